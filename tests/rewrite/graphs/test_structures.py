"""Graphs laid out otherwise: in functions, out of order, quantised, behind operators that nobody can evaluate."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from ..command import inspect, rewrite, session
from . import decomposed
from .builder import WIDTH, Shape, decoder
from .compare import calls, difference, logits
from .decomposed import attention as spelt_out
from .fused import group_query, multi_head

LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off".split()


def same(tmp_path, model, within=5e-3, **settings):
    """The model is rewritten without loss, and with the default settings runs; gives the lossless one."""
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    report = rewrite(source, target, *LOSSLESS)
    assert isinstance(report, dict), report.stderr
    conversation = calls(1, None, False)
    expected, _ = logits(session(source), conversation, **settings)
    found, _ = logits(session(target), conversation, **settings)
    assert difference(found, expected)[0] < within
    usual = rewrite(source, tmp_path / "usual.onnx")
    assert isinstance(usual, dict), usual.stderr
    logits(session(tmp_path / "usual.onnx"), conversation, **settings)
    return onnx.load(target)


def into_function(model, chosen, name="Part", domain="local", attributes=()):
    """Moves the nodes that `chosen` picks into a function that one node calls."""
    graph = model.graph
    inside = [n for n in graph.node if chosen(n)]
    made = {o for n in inside for o in n.output}
    outside = [n for n in graph.node if not chosen(n)]
    wanted = {i for n in outside for i in n.input} | {o.name for o in graph.output}
    inputs = sorted({i for n in inside for i in n.input if i and i not in made})
    outputs = sorted(made & wanted)
    # Names within are the function's own.
    own = {name: f"own_{i}" for i, name in enumerate(sorted({*inputs, *made}))}
    for node in inside:
        node.input[:] = [own.get(i, "") for i in node.input]
        node.output[:] = [own[o] for o in node.output]
    given, made = [own[i] for i in inputs], [own[o] for o in outputs]
    opsets = list(model.opset_import)
    function = helper.make_function(domain, name, given, made, inside, opsets, list(attributes))
    at = next(i for i, n in enumerate(graph.node) if chosen(n))
    before = [n for n in graph.node[:at]]
    call = helper.make_node(name, inputs, outputs, name="call", domain=domain)
    after = [n for n in graph.node[at:] if not any(n is i for i in inside)]
    del graph.node[:]
    graph.node.extend([*before, call, *after])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return call, function


@pytest.mark.parametrize("attend", [spelt_out(), group_query()], ids=["spelt out", "gqa"])
def test_whole_model_in_a_function(tmp_path, attend):
    """Exporters of PyTorch keep modules as functions."""
    model = decoder(attend)
    into_function(model, lambda node: True)
    rewritten = same(tmp_path, model)
    assert not rewritten.functions


def test_function_with_attribute(tmp_path):
    """A function's attribute takes the value of the call, and its default where the call has none."""
    model = decoder(spelt_out(), Shape(layers=2))
    for scale in ("given", "default"):
        node = next(n for n in model.graph.node if n.op_type == "Softmax")
        node.op_type, node.domain = f"Weigh_{scale}", "local"
        inner = helper.make_node("Softmax", ["x"], ["y"])
        reference = onnx.AttributeProto(name="axis", ref_attr_name="over", type=onnx.AttributeProto.INT)
        inner.attribute.append(reference)
        del node.attribute[:]
        function = helper.make_function("local", node.op_type, ["x"], ["y"], [inner], list(model.opset_import))
        if scale == "given":
            function.attribute.append("over")
            node.attribute.append(helper.make_attribute("over", -1))
        else:
            function.attribute_proto.append(helper.make_attribute("over", -1))
        model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    same(tmp_path, model)


def test_functions_on_query_and_key(tmp_path):
    """Each layer rotates by functions."""
    model = decoder(spelt_out(rotate=decomposed.rotate_half))
    turned = [n for n in model.graph.node if n.op_type == "Neg"]
    for node in turned:
        node.op_type, node.domain = "Turned", "local"
    inner = helper.make_node("Neg", ["x"], ["y"])
    model.functions.append(helper.make_function("local", "Turned", ["x"], ["y"], [inner], list(model.opset_import)))
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert len(turned) == 4
    same(tmp_path, model)


def test_function_of_another_opset(tmp_path):
    """A function of other operators than the model's stays a call."""
    model = decoder(group_query())
    function = helper.make_function(
        "local", "Same", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    gather = next(n for n in model.graph.node if n.op_type == "Gather")
    made = gather.output[0]
    gather.output[0] = "before"
    place = list(model.graph.node).index(gather) + 1
    model.graph.node.insert(place, helper.make_node("Same", ["before"], [made], domain="local"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    assert [f.name for f in same(tmp_path, model).functions] == ["Same"]


@pytest.mark.parametrize("attend", [spelt_out(), group_query()], ids=["spelt out", "gqa"])
def test_out_of_order(tmp_path, attend):
    """ONNX Runtime takes nodes in any order, and some converters write them so."""
    model = decoder(attend)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    same(tmp_path, model)


QUANTISED = [spelt_out(), group_query(), multi_head()]


@pytest.mark.parametrize("attend", QUANTISED, ids=["spelt out", "gqa", "mha"])
def test_quantised_weights(tmp_path, attend):
    """A model whose weights are int8, as quantize_dynamic makes it."""
    shape = Shape(4, 4)
    onnx.save(decoder(attend, shape), tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx",
        tmp_path / "int8.onnx",
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    model = onnx.load(tmp_path / "int8.onnx")
    assert "DynamicQuantizeLinear" in {n.op_type for n in model.graph.node}
    # A rounding of activations may go the other way.
    same(tmp_path, model, within=5e-2)


@pytest.mark.parametrize("attend", QUANTISED, ids=["spelt out", "gqa", "mha"])
def test_weights_quantised_afterwards(tmp_path, attend):
    """The tools that quantise weights also take a rewritten model."""
    onnx.save(decoder(attend, Shape(4, 4)), tmp_path / "float.onnx")
    rewrite(tmp_path / "float.onnx", tmp_path / "rewritten.onnx", *LOSSLESS)
    # Of 7 bits: on processors without VNNI, ONNX Runtime adds pairs of products of 8 bits up in int16, which saturates.
    target = tmp_path / "int8.onnx"
    quantize_dynamic(tmp_path / "rewritten.onnx", target, weight_type=QuantType.QInt8, reduce_range=True)
    conversation = calls(1, None, False)
    expected, _ = logits(session(tmp_path / "float.onnx"), conversation)
    found, _ = logits(session(tmp_path / "int8.onnx"), conversation)
    assert difference(found, expected)[0] < 0.2


def gemm(graph, hidden):
    """A Gemm of all tokens, as old exporters write a Linear with a bias."""
    flat = graph.add("Reshape", hidden, np.array([-1, WIDTH]))
    flat = graph.add("Gemm", flat, graph.weight(WIDTH, WIDTH), graph.weight(WIDTH, scale=0.1))
    return graph.add("Reshape", flat, graph.add("Shape", hidden))


def einsum(graph, hidden):
    return graph.add("Einsum", hidden, graph.weight(WIDTH, WIDTH), equation="blw,wv->blv")


def top_k(graph, hidden):
    """The largest channel of each token, weighted: as experts are chosen."""
    largest, _ = graph.add("TopK", hidden, np.array([1]), outputs=2, axis=-1)
    return graph.add("Mul", hidden, graph.add("Sigmoid", largest))


def convolution(graph, hidden):
    turned = graph.add("Transpose", hidden, perm=[0, 2, 1])
    turned = graph.add("Conv", turned, graph.weight(WIDTH, WIDTH, 1), kernel_shape=[1])
    return graph.add("Transpose", turned, perm=[0, 2, 1])


def bias_gelu(graph, hidden):
    return graph.add("BiasGelu", hidden, graph.weight(WIDTH, scale=0.1), domain="com.microsoft")


def fused_matmul(graph, hidden):
    return graph.add("FusedMatMul", hidden, graph.weight(WIDTH, WIDTH), domain="com.microsoft", alpha=0.5)


def if_either(graph, hidden):
    def branch(name, factor):
        values = [helper.make_node("Constant", [], [f"{name}_by"], value=numpy_helper.from_array(np.float32(factor)))]
        nodes = [*values, helper.make_node("Mul", [hidden, f"{name}_by"], [f"{name}_out"])]
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [output])

    key = ("long", hidden)
    long = graph.once(key, lambda: graph.add("Greater", graph.scalar(graph.total()), np.array(16)))
    branches = [branch(graph.name(name), factor) for name, factor in (("then", 1.5), ("else", 1.0))]
    return graph.add("If", long, then_branch=branches[0], else_branch=branches[1])


def non_zero(graph, hidden):
    """Tokens that are picked by a condition and put back, as experts get them."""
    flat = graph.add("Reshape", hidden, np.array([-1, WIDTH]))
    largest = graph.add("ReduceMax", graph.add("Mul", flat, flat), np.array([1]), keepdims=0)
    picked = graph.add("Transpose", graph.add("NonZero", graph.add("Greater", largest, np.float32(-1))))
    tokens = graph.add("GatherND", flat, picked)
    return graph.add("Reshape", graph.add("Sigmoid", tokens), graph.add("Shape", hidden))


def gather_block_quantized(graph, hidden):
    """A table of 4 bits, such as embeddings that are read anew in a layer."""
    width, block = 32, 16
    table = np.random.default_rng(3).integers(0, 256, (WIDTH, width // 2), np.uint8)
    scales = np.full((WIDTH, width // block), 0.05, np.float32)
    largest = graph.add("ArgMax", hidden, axis=-1, keepdims=0)
    read = graph.add(
        "GatherBlockQuantized", table, largest, scales, domain="com.microsoft",
        bits=4, block_size=block, gather_axis=0, quantize_axis=1,
    )
    return graph.add("Add", hidden, graph.add("MatMul", read, graph.weight(width, WIDTH)))


ABOVE = [gemm, einsum, top_k, convolution, bias_gelu, fused_matmul, if_either, non_zero, gather_block_quantized]


@pytest.mark.parametrize("above", ABOVE, ids=[f.__name__ for f in ABOVE])
@pytest.mark.parametrize("inferred", [False, True], ids=["bare", "declared"])
def test_opaque_above_a_layer(tmp_path, above, inferred):
    """What stands above a layer does not matter, whatever computes it."""
    plain = spelt_out(rotate=decomposed.rotate_half)

    def attend(graph, number, shape, hidden):
        return plain(graph, number, shape, above(graph, hidden))

    same(tmp_path, decoder(attend, inferred=inferred))


@pytest.mark.parametrize("above", [top_k, gemm], ids=["top_k", "gemm"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_opaque_lengths(tmp_path, above, kv_heads):
    """Lengths that heads are split by come from behind an operator that nobody can evaluate."""
    plain = spelt_out(rotate=decomposed.rotate_half)

    def attend(graph, number, shape, hidden):
        return plain(graph, number, shape, above(graph, hidden))

    model = decoder(attend, Shape(4, kv_heads))
    sizes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in list(model.graph.node):
        wanted = sizes.get(node.input[1]) if node.op_type == "Reshape" else None
        if wanted is not None and wanted.size == 4 and not wanted[:2].any():
            base = node.output[0]
            for name, value in (("start", [0]), ("end", [2]), ("heads", wanted[2:])):
                model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"{base}_{name}"))
            new = [
                helper.make_node("Shape", [node.input[0]], [f"{base}_shape"]),
                helper.make_node("Slice", [f"{base}_{n}" for n in ("shape", "start", "end")], [f"{base}_lengths"]),
                helper.make_node("Concat", [f"{base}_lengths", f"{base}_heads"], [f"{base}_sizes"], axis=0),
            ]
            node.input[1] = f"{base}_sizes"
            for one in new:
                model.graph.node.insert(list(model.graph.node).index(node), one)
    same(tmp_path, model)


def test_inspected_as_rewritten(tmp_path):
    """`inspect` looks at a model as `rewrite` does."""
    model = decoder(spelt_out())
    into_function(model, lambda node: True)
    onnx.save(model, tmp_path / "model.onnx")
    assert inspect(tmp_path / "model.onnx")["source"] == "decomposed"

"""What is a KV cache and what is not: by what reads it, whatever it is called, and whatever passes it on."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ..command import rewrite, session
from . import decomposed, latent, unknown
from .builder import WIDTH, Shape, decoder, projections, split_heads
from .compare import calls, difference, logits
from .decomposed import attention as spelt_out
from .fused import attention, group_query, multi_head
from .refused import check_refused, refuse, small, write

LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off".split()
OUT = {"input_ids", "attention_mask"}


# States that are no caches.


def convolution(graph, hidden, name, after):
    """Mixes each token with the two before it; the state is those two."""
    state = graph.input(name, graph.element, ["batch", WIDTH, 2])
    rows = graph.add("Concat", state, graph.add("Transpose", hidden, perm=[0, 2, 1]), axis=2)
    graph.add("Slice", rows, np.array([-2]), np.array([1 << 62]), np.array([2]), outputs=[after])
    graph.output(after, graph.element, ["batch", WIDTH, 2])
    mixed = graph.add("Conv", rows, graph.weight(WIDTH, 1, 3, scale=0.5), group=WIDTH)
    return graph.add("Add", hidden, graph.add("Transpose", mixed, perm=[0, 2, 1]))


def recurrence(graph, hidden, name, after):
    """A state of four dimensions, as linear attention has it, that each call adds to."""
    state = graph.input(name, graph.element, ["batch", 2, 12, 12])
    heads = split_heads(graph, hidden, 2, 12)
    product = graph.add("MatMul", graph.add("Transpose", heads, perm=[0, 1, 3, 2]), heads)
    graph.add("Add", state, graph.add("Mul", product, 0.01), outputs=[after])
    graph.output(after, graph.element, ["batch", 2, 12, 12])
    mixed = graph.add("Transpose", graph.add("MatMul", heads, after), perm=[0, 2, 1, 3])
    return graph.add("Add", hidden, graph.add("Reshape", mixed, np.array([0, 0, WIDTH])))


def linear_attention(graph, hidden, name, after):
    """com.microsoft LinearAttention, whose past is a state."""
    state = graph.input(name, graph.element, ["batch", 2, 12, 12])
    parts = [graph.add("MatMul", hidden, graph.weight(WIDTH, WIDTH)) for _ in range(3)]
    settings = dict(q_num_heads=2, kv_num_heads=2, update_rule="linear", domain="com.microsoft")
    mixed, _ = graph.add("LinearAttention", *parts, state, outputs=[graph.name("mixed"), after], **settings)
    graph.output(after, graph.element, ["batch", 2, 12, 12])
    return graph.add("Add", hidden, mixed)


def gated_attention(graph, hidden, name, after):
    """The same with gates that com.microsoft LinearAttentionGate makes, as Qwen 3.5 has it."""
    state = graph.input(name, graph.element, ["batch", 2, 12, 12])
    parts = [graph.add("MatMul", hidden, graph.weight(WIDTH, WIDTH)) for _ in range(3)]
    gates = [graph.add("MatMul", hidden, graph.weight(WIDTH, 2)) for _ in range(2)]
    inputs = [gates[0], np.zeros(2, np.float32), np.full(2, -1, np.float32), gates[1]]
    decay, beta = graph.add("LinearAttentionGate", *inputs, outputs=2, domain="com.microsoft")
    settings = dict(q_num_heads=2, kv_num_heads=2, update_rule="gated_delta", domain="com.microsoft")
    made = [graph.name("mixed"), after]
    mixed, _ = graph.add("LinearAttention", *parts, state, decay, beta, outputs=made, **settings)
    graph.output(after, graph.element, ["batch", 2, 12, 12])
    return graph.add("Add", hidden, mixed)


def hybrid(state, name, after, attend):
    """A layer with a state below attention, in the first layer only."""

    def layer(graph, number, shape, hidden):
        if number == 0:
            hidden = state(graph, hidden, name, after)
        return attend(graph, number, shape, hidden)

    return layer


def converse(path, states):
    """Logits of a conversation; `states` says which output goes to which input."""
    run = session(path)
    held, results, past = {}, [], 0
    for tokens, _ in calls(1, None, False):
        feeds = {"input_ids": tokens, "attention_mask": np.ones((1, past + tokens.shape[1]), np.int64)}
        feeds = {name: value for name, value in feeds.items() if name in [i.name for i in run.get_inputs()]}
        for given in run.get_inputs():
            if given.name not in OUT:
                sizes = [d if isinstance(d, int) else int(axis == 0) for axis, d in enumerate(given.shape)]
                feeds[given.name] = held.get(given.name, np.zeros(sizes, np.float32))
        values = dict(zip([o.name for o in run.get_outputs()], run.run(None, feeds)))
        results.append(values["logits"])
        held = {name.replace("present", "past_key_values"): value for name, value in values.items()}
        held.update({given: values[made] for made, given in states.items()})
        past += tokens.shape[1]
    return results


STATES = {
    "convolution": (convolution, "past.0.conv", "present.0.conv"),
    "recurrence": (recurrence, "past_key_values.0.recurrent_state", "present.0.recurrent_state"),
    "recurrence of another name": (recurrence, "ssm_0", "ssm_after_0"),
    "LinearAttention": (linear_attention, "past_key_values.0.recurrent", "present.0.recurrent"),
    "LinearAttentionGate": (gated_attention, "past_key_values.0.recurrent", "present.0.recurrent"),
}


@pytest.mark.parametrize("attend", [spelt_out(), group_query()], ids=["spelt out", "gqa"])
@pytest.mark.parametrize("name", STATES)
def test_states_stay(tmp_path, name, attend):
    """The rewriter leaves the other states of hybrid models alone, and calibration feeds them zeros."""
    state, given, made = STATES[name]
    source = write(tmp_path, decoder(hybrid(state, given, made, attend)))
    rewrite(source, tmp_path / "out.onnx", *LOSSLESS)
    old, new = onnx.load(source), onnx.load(tmp_path / "out.onnx")
    for before, after in ((old.graph.input, new.graph.input), (old.graph.output, new.graph.output)):
        before, after = [next(i for i in infos if i.name in (given, made)) for infos in (before, after)]
        assert before == after
    assert sum(n.op_type == "SparkAttention" for n in new.graph.node) == 2
    expected, found = [converse(path, {made: given}) for path in (source, tmp_path / "out.onnx")]
    assert difference(found, expected)[0] < 5e-3
    report = rewrite(source, tmp_path / "usual.onnx")
    assert any(given in warning and "stay" in warning for warning in report["warnings"]) == ("past" in given)
    assert not any("calibration failed" in warning for warning in report["warnings"])
    converse(tmp_path / "usual.onnx", {made: given})


# Between past and its use.


def passed_on(model, operator, shapes_too=False):
    """Puts `operator` behind every past and in front of every present; with Cast these are float32."""
    graph = model.graph
    names = {i.name for i in [*graph.input, *graph.output] if i.name.startswith(("past", "present"))}
    for node in graph.node:
        if node.op_type != "Shape" or shapes_too:
            node.input[:] = [f"{i}_inside" if i in names else i for i in node.input]
        node.output[:] = [f"{o}_inside" if o in names else o for o in node.output]
    for info in graph.input:
        if info.name in names:
            to = dict(to=info.type.tensor_type.elem_type) if operator == "Cast" else {}
            node = helper.make_node(operator, [info.name], [f"{info.name}_inside"], f"in {info.name}", **to)
            graph.node.insert(0, node)
    for info in graph.output:
        if info.name in names:
            to = dict(to=TensorProto.FLOAT) if operator == "Cast" else {}
            node = helper.make_node(operator, [f"{info.name}_inside"], [info.name], f"out {info.name}", **to)
            graph.node.append(node)
    for info in [*graph.input, *graph.output]:
        if info.name in names and operator == "Cast":
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


SOURCES = {"spelt out": spelt_out(), "gqa": group_query(), "attention": attention(is_causal=1), "mha": multi_head()}


@pytest.mark.parametrize("shapes_too", [False, True], ids=["", "shapes too"])
@pytest.mark.parametrize("operator", ["Identity", "Cast"])
@pytest.mark.parametrize("name", SOURCES)
def test_past_that_is_passed_on(tmp_path, name, operator, shapes_too):
    """An Identity, or a Cast of float32 caches of a float16 model, between the cache and what reads it."""
    dtype = np.float16 if operator == "Cast" else np.float32
    shape = Shape(4, 4) if name == "mha" else Shape()
    opset = 23 if name == "attention" else 18
    model = passed_on(decoder(SOURCES[name], shape, dtype, opset), operator, shapes_too)
    source = write(tmp_path, model)
    rewrite(source, tmp_path / "out.onnx", *LOSSLESS)
    new = onnx.load(tmp_path / "out.onnx")
    caches = [i for i in [*new.graph.input, *new.graph.output] if i.name.startswith(("past", "present"))]
    element = TensorProto.FLOAT16 if operator == "Cast" else TensorProto.FLOAT
    assert {i.type.tensor_type.elem_type for i in caches} == {element}
    conversation = calls(1, None, False)
    expected, found = [logits(session(path), conversation)[0] for path in (source, tmp_path / "out.onnx")]
    assert difference(found, expected)[0] < (2e-2 if operator == "Cast" else 5e-3)
    report = rewrite(source, tmp_path / "usual.onnx")
    said = any("float16" in warning and "past_key_values.0.key" in warning for warning in report["warnings"])
    assert said == (operator == "Cast")
    logits(session(tmp_path / "usual.onnx"), conversation)


def test_optimised_model(tmp_path):
    """ONNX Runtime's optimiser puts scale and transposition into FusedMatMul."""
    source = write(tmp_path, decoder(spelt_out(repeat=decomposed.as_is), Shape(4, 4)))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    assert "FusedMatMul" in {n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node}
    rewrite(tmp_path / "optimised.onnx", tmp_path / "out.onnx", *LOSSLESS)
    conversation = calls(1, None, False)
    expected, found = [logits(session(path), conversation)[0] for path in (source, tmp_path / "out.onnx")]
    assert difference(found, expected)[0] < 5e-3


# What cannot be rewritten, and why.


def change_cache(new_rows=None, present=None, past=None, keys_turned=False):
    """A layer that makes its caches otherwise: functions of graph and tensor."""

    def layer(graph, number, shape, hidden):
        heads = [shape.query_heads, shape.kv_heads, shape.kv_heads]
        query, *rows = [split_heads(graph, t, h, shape.size) for t, h in zip(projections(graph, shape, hidden), heads)]
        whole = []
        for part, new in zip(("key", "value"), rows):
            held = graph.past(number, part, shape.kv_heads, shape.size)
            held = past(graph, held) if past else held
            made = f"present.{number}.{part}"
            if keys_turned and part == "key":
                new = graph.add("Transpose", new, perm=[0, 1, 3, 2])
                whole.append(graph.add("Concat", held, new, outputs=[made], axis=3))
            elif new_rows or present:
                whole.append(graph.add("Concat", held, new, axis=2))
                graph.add("Identity", new, outputs=[made]) if new_rows else present(graph, whole[-1], made)
            else:
                whole.append(graph.add("Concat", held, new, outputs=[made], axis=2))
        key, value = [decomposed.as_is(graph, t, shape) for t in whole]
        scores = graph.add("MatMul", query, key if keys_turned else graph.add("Transpose", key, perm=[0, 1, 3, 2]))
        return decomposed.join_heads(graph, graph.add("MatMul", decomposed.softmax(graph, scores), value), shape)

    return layer


def cut(graph, whole, made):
    graph.add("Slice", whole, np.array([-8]), np.array([1 << 62]), np.array([2]), outputs=[made], name=f"cut {made}")


def beams(graph, held):
    return graph.add("Gather", held, graph.input("beams", TensorProto.INT64, ["batch"]), name=f"beams of {held}")


def quantised_keys(graph, rows, shape):
    """Keys and values by way of bytes of a scale that they have themselves."""
    stored = graph.add("DynamicQuantizeLinear", decomposed.tile(graph, rows, shape), outputs=3)
    return graph.add("DequantizeLinear", *stored)


def merged():
    """A model that reads its cache in one branch of an If."""
    model = small()
    name = "past_key_values.0.key"
    branch = helper.make_graph(
        [helper.make_node("Identity", [name], ["read"])],
        "branch",
        [],
        [helper.make_tensor_value_info("read", TensorProto.FLOAT, None)],
    )
    node = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    node.input[3] = "chosen"
    model.graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, []))
    choice = helper.make_node("If", ["use_cache_branch"], ["chosen"], "merge", then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, choice)
    return model


def of_rank(*shape, name="past_kv", axis=1):
    """A model whose only cache has another shape."""
    model = small()
    graph = model.graph
    for info in [*graph.input, *graph.output]:
        if info.name.startswith(("past", "present")):
            (graph.input if info in graph.input else graph.output).remove(info)
    for node in [n for n in graph.node if n.op_type == "GroupQueryAttention"]:
        node.op_type, node.domain = "Sum", ""
        del node.input[3:], node.output[1:], node.attribute[:]
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph.node.append(helper.make_node("Concat", [name, name], ["present_kv"], "join", axis=axis))
    graph.output.append(helper.make_tensor_value_info("present_kv", TensorProto.FLOAT, None))
    return model


def no_shape():
    model = small()
    for info in model.graph.input:
        if info.name.startswith("past"):
            info.type.tensor_type.ClearField("shape")
    return model


def keys_turned():
    """A cache of keys [B,H,D,P] that says so."""
    model = decoder(change_cache(keys_turned=True), Shape(4, 4))
    for info in [*model.graph.input, *model.graph.output]:
        if info.name.endswith(".key"):
            dims = info.type.tensor_type.shape.dim
            tokens, size = dims[2].dim_param, dims[3].dim_value
            dims[2].dim_value, dims[3].dim_param = size, tokens
    return model


REFUSED = {
    "only new rows": (
        lambda: decoder(change_cache(new_rows=True), Shape(4, 4)),
        ["past_key_values.0.key", "new rows alone"],
    ),
    "present is cut": (
        lambda: decoder(change_cache(present=cut), Shape(4, 4)),
        ["past_key_values.0.key", "cut present.0.key"],
    ),
    "appended along another axis": (lambda: decoder(unknown.tokens_first), ["past_key_values.0.key", "along axis 1"]),
    "keys the other way round": (
        lambda: decoder(change_cache(keys_turned=True), Shape(4, 4)),
        ["past_key_values.0.key", "along axis 3"],
    ),
    "keys the other way round, declared": (keys_turned, ["past_key_values.0.key", "along axis 3"]),
    "beams in the graph": (
        lambda: decoder(change_cache(past=beams), Shape(4, 4)),
        ["beams of past_key_values.0.key", "chooses"],
    ),
    "sinks": (lambda: decoder(spelt_out(softmax=unknown.sink)), ["past_key_values.0.key", "attention sinks"]),
    "quantised attention": (
        lambda: decoder(spelt_out(repeat=quantised_keys)),
        ["past_key_values.0.key", "quantised attention", "DynamicQuantizeLinear"],
    ),
    "latent attention, whole": (
        lambda: latent.model(latent.whole),
        ["node_MatMul", "keys of 4 heads of 48", "values of 4 heads of 24"],
    ),
    "latent attention, expanded": (
        lambda: latent.model(latent.expanded),
        ["past_key_values.0.key", "latent attention"],
    ),
    "latent attention, absorbed": (
        lambda: latent.model(latent.absorbed),
        ["sum of two products", "latent attention"],
    ),
    "merged decoder": (merged, ["merge", "If"]),
    "three dimensions": (lambda: of_rank("batch", "past", 64), ["'past_kv' has 3 dimensions"]),
    "five dimensions": (lambda: of_rank(2, "batch", 2, "past", 32), ["past_kv", "several caches in one tensor"]),
    "six dimensions": (lambda: of_rank(2, 2, "batch", 2, "past", 32), ["'past_kv' has 6 dimensions"]),
    "no shape": (no_shape, ["GroupQueryAttention", "past_key_values.0.key", "declares no shape"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    """The error names the node or input that is the reason, and what it is."""
    make, words = REFUSED[name]
    refuse(tmp_path, make(), *words)


def test_encoder_in_a_name(tmp_path):
    """An input of what an encoder of images made does not make a model an encoder-decoder."""
    model = small()
    model.graph.input.append(helper.make_tensor_value_info("image_encoder_tokens", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["image_encoder_tokens"], ["same"], "image"))
    model.graph.output.append(helper.make_tensor_value_info("same", TensorProto.FLOAT, [1]))
    rewrite(write(tmp_path, model), tmp_path / "out.onnx", *LOSSLESS)


def test_ort_format(tmp_path):
    """ONNX Runtime's own format is named."""
    source = write(tmp_path, small())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    check_refused(tmp_path, tmp_path / "model.ort", "model.ort", "ONNX Runtime's own format", ".onnx file")


def test_folder_is_made(tmp_path):
    """OUT's folder is made, and goes again where nothing is written."""
    source = write(tmp_path, small())
    rewrite(source, tmp_path / "new/below/out.onnx", *LOSSLESS)
    assert [p.name for p in (tmp_path / "new/below").iterdir()] == ["out.onnx"]
    check_refused(tmp_path, write(tmp_path, merged()), "merge", target=tmp_path / "other/below/out.onnx")


@pytest.mark.parametrize("attend", [spelt_out(), group_query()], ids=["spelt out", "gqa"])
def test_initializers_among_inputs(tmp_path, attend):
    """Exporters of IR version 3 list every initializer among the inputs too."""
    model = decoder(attend)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    source = write(tmp_path, model)
    rewrite(source, tmp_path / "out.onnx", *LOSSLESS)
    conversation = calls(1, None, False)
    expected, found = [logits(session(path), conversation)[0] for path in (source, tmp_path / "out.onnx")]
    assert difference(found, expected)[0] < 5e-3

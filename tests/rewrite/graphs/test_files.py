"""What a rewrite leaves as it was: everything but attention and the width of the cache."""

import hashlib
import shutil

import numpy as np
import onnx
import pytest
from ..exports.build import NAMES
from onnx import TensorProto, helper, numpy_helper

from ..command import rewrite, session
from .builder import Shape, decoder
from .compare import calls, dead_nodes, logits, unread_initializers
from .decomposed import attention as spelt_out
from .fused import group_query
from .refused import OFF, small, write
from .schemas import registered
from .variants import VARIANTS

FUSED = {"GroupQueryAttention", "MultiHeadAttention", "Attention"}
SOME = ["gqa", "gqa-float16-packed", "mha-behind", "attention-bool", "scale Mul product", "repeat split", "window 16"]


def load(path):
    """The model as it is, its external data where it is."""
    return onnx.load(path, load_external_data=False)


def named(items):
    found = {item.name: item for item in items}
    assert len(found) == len(items), "names occur twice"
    return found


def is_new(node):
    return node.domain == "ai.spark" or any(part in node.name for part in ("/attention_bias/", "/keep_float16/"))


def without_cache_width(value):
    """A declaration without what may change of a cache tensor: element type and dimension 3."""
    copy = onnx.ValueInfoProto.FromString(value.SerializeToString())
    copy.type.tensor_type.elem_type = 0
    if len(copy.type.tensor_type.shape.dim) == 4:
        copy.type.tensor_type.shape.dim[3].Clear()
    return copy


def check_kept(old, new):
    """`new` is `old` but for the attention."""
    for field in ("input", "output"):
        pairs = list(zip(getattr(old.graph, field), getattr(new.graph, field), strict=True))
        for before, after in pairs:
            cache = before.name.startswith(("past", "present"))
            same = without_cache_width if cache else lambda value: value
            assert same(before) == same(after), before.name
    before, after = named(old.graph.node), named(new.graph.node)
    for name in before.keys() & after.keys():
        assert before[name].SerializeToString() == after[name].SerializeToString(), name
    added = [after[name] for name in after.keys() - before.keys()]
    assert all(is_new(node) for node in added), [n.name for n in added if not is_new(n)]
    gone = [before[name] for name in before.keys() - after.keys()]
    assert gone
    if FUSED & {n.op_type for n in gone} and not any(n.op_type in ("Concat", "Slice") for n in gone):
        assert {n.op_type for n in gone} <= FUSED, "only the node itself goes"
    check_parts(old, new, gone, added)


def check_parts(old, new, gone, added):
    """Initializers, descriptions and all the rest."""
    read_by = lambda nodes: {i for n in nodes for i in n.input}
    before, after = named(old.graph.initializer), named(new.graph.initializer)
    for name in before.keys() & after.keys():
        assert before[name].SerializeToString() == after[name].SerializeToString(), name
    unread = before.keys() - after.keys()
    assert unread <= read_by(gone)
    assert after.keys() - before.keys() <= read_by(added)
    before, after = named(old.graph.value_info), named(new.graph.value_info)
    for name in before.keys() & after.keys():
        assert before[name].SerializeToString() == after[name].SerializeToString(), name
    # Tools that quantise need the type of what operators make that they do not know.
    declared = after.keys() - before.keys()
    assert declared <= {o for n in added for o in n.output} & {o for n in gone for o in n.output}
    types = {v.name: v.type for v in onnx.shape_inference.infer_shapes(old).graph.value_info}
    for name in declared & types.keys():
        assert after[name].type.tensor_type.elem_type == types[name].tensor_type.elem_type, name
    assert before.keys() - after.keys() <= {o for n in gone for o in n.output} | unread
    opsets = {o.domain: o.version for o in old.opset_import}
    assert {o.domain: o.version for o in new.opset_import} == {**opsets, "ai.spark": 1}
    assert len(new.opset_import) == len(opsets) + 1
    ours = [p for p in new.metadata_props if p.key.startswith("ai.spark.")]
    assert len(ours) == 3 and ours == list(new.metadata_props[-3:])
    assert list(old.metadata_props) == list(new.metadata_props[:-3])
    assert rest(old) == rest(new)


def rest(model):
    """The bytes of all that check_kept() does not look into."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    for field in ("node", "input", "output", "initializer", "value_info"):
        copy.graph.ClearField(field)
    copy.ClearField("opset_import")
    copy.ClearField("metadata_props")
    return copy.SerializeToString(deterministic=True)


def check_order(graph):
    """Each node reads what is there already: inputs, initializers, outputs of nodes before it."""
    known = {i.name for i in [*graph.input, *graph.initializer]} | {i.values.name for i in graph.sparse_initializer}
    made = set()
    for node in graph.node:
        assert all(not name or name in known for name in node.input), node.name
        outputs = {o for o in node.output if o}
        assert not outputs & (made | known), f"{node.name} makes what is there already"
        made |= outputs
        known |= outputs
    assert {o.name for o in graph.output} <= known


@pytest.fixture(params=[f"export {n}" for n in NAMES] + SOME)
def pair(request, exports, tmp_path):
    """Paths of a model, exported or small, and of the rewritten one."""
    kind, _, name = request.param.partition(" ")
    source = exports[name] / "model.onnx" if kind == "export" else write(tmp_path, VARIANTS[request.param].model())
    target = tmp_path / "out.onnx"
    rewrite(source, target, *OFF)
    return source, target


def test_nothing_else_changes(pair):
    """What is not attention is byte for byte as it was, names and order of inputs and outputs included."""
    old, new = map(load, pair)
    check_kept(old, new)


def test_nothing_is_left_over(pair):
    """Nodes are in order, and nothing is there only for attention that is gone."""
    old, new = map(load, pair)
    check_order(new.graph)
    assert set(dead_nodes(new.graph)) <= set(dead_nodes(old.graph))
    assert set(unread_initializers(new.graph)) <= set(unread_initializers(old.graph))


def test_same_bytes_again(pair, tmp_path):
    """The same model is rewritten to the same bytes."""
    source, target = pair
    again = tmp_path / "again/out.onnx"
    again.parent.mkdir()
    rewrite(source, again, *OFF)
    digests = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (target, again)]
    assert digests[0] == digests[1]


def problem(path):
    """What onnx says against a model, None if nothing; the data of `path` must have no other links."""
    try:
        onnx.checker.check_model(path)
        onnx.shape_inference.infer_shapes(load(path), check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error)
    return None


def test_valid(pair, tmp_path):
    """onnx finds nothing wrong that was not wrong before: attributes, inputs, types, shapes behind the operators."""
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    for file in pair[0].parent.glob(pair[0].name + "*"):
        # onnx takes no data file with several links.
        shutil.copyfile(file, source / file.name)
    source, target = source / pair[0].name, target / "out.onnx"
    rewrite(source, target, *OFF, "--data", "copy")
    with registered():
        assert problem(target) == problem(source)
        if "com.microsoft" not in {n.domain for n in load(source).graph.node}:
            onnx.checker.check_model(target, check_custom_domain=True)


@pytest.mark.parametrize("spoilt", ["attribute", "input", "width"])
def test_schemas_notice(tmp_path, spoilt):
    """What the test above rests on notices a misspelt attribute, a missing input, a wrong width behind the operator."""
    source, target = write(tmp_path, small()), tmp_path / "out.onnx"
    rewrite(source, target, *OFF)
    model = load(target)
    node = next(n for n in model.graph.node if n.op_type == "SparkAttention")
    if spoilt == "attribute":
        node.attribute.append(helper.make_attribute("kept_chanels", 3))
    elif spoilt == "input":
        node.input[3] = ""
    else:
        node.input[0] = model.graph.node[0].output[0]
    onnx.save(model, target)
    with registered():
        assert problem(source) is None
        assert problem(target)


# Everything else that ONNX can say, and what it cannot yet.


def unknown(message, text):
    """Adds a field that no version of ONNX has."""
    text = text.encode()
    # Field 5000, of bytes.
    message.MergeFromString(b"\xc2\xb8\x02" + bytes([len(text)]) + text)


def decorated():
    """A small model with something in every corner."""
    model = decoder(spelt_out(), Shape(layers=1))
    graph = model.graph
    model.producer_name, model.producer_version, model.domain = "torch", "9.9", "org.example"
    model.model_version, model.doc_string = 7, "a model"
    graph.doc_string = "a graph"
    helper.set_model_props(model, {"author": "nobody", "licence": "none"})
    graph.metadata_props.add(key="part", value="decoder")
    for number, node in enumerate(graph.node):
        node.doc_string = f"node {number}"
        node.metadata_props.add(key="number", value=str(number))
        unknown(node, f"in node {number}")
    for number, tensor in enumerate(graph.initializer):
        tensor.doc_string = f"tensor {number}"
        unknown(tensor, f"in tensor {number}")
    for value in [*graph.input, *graph.output]:
        value.doc_string = f"value {value.name}"
        value.metadata_props.add(key="of", value=value.name)
        unknown(value, f"in value {value.name}")
        unknown(value.type, f"in type of {value.name}")
    graph.value_info.append(helper.make_tensor_value_info("Add_2", TensorProto.FLOAT, None))
    unknown(graph.value_info[0], "in value_info")
    graph.quantization_annotation.add(tensor_name="logits")
    unknown(model, "in model")
    unknown(graph, "in graph")
    unknown(model.opset_import[0], "in opset")
    unknown(model.metadata_props[0], "in metadata")
    add_function(model)
    add_branches(model)
    return model


def add_function(model):
    """Logits go through a function of the model's own, twice."""
    body = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Sub", ["square", "square"], ["y"])]
    function = helper.make_function("org.example", "Nothing", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    function.doc_string = "zero"
    unknown(function, "in function")
    unknown(function.node[0], "in function's node")
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("org.example", 1))
    model.graph.node.append(helper.make_node("Nothing", ["logits"], ["zero"], "nothing", domain="org.example"))
    model.graph.output.append(helper.make_tensor_value_info("zero", TensorProto.FLOAT, None))


def add_branches(model):
    """An If whose branches read tensors of the graph around, one of them what attention makes."""
    attended = next(n for n in model.graph.node if n.op_type == "Reshape" and "Transpose" in n.input[0]).output[0]
    branches = []
    for name, source in (("then", "logits"), ("else", attended)):
        node = helper.make_node("ReduceSum", [source], [f"{name}_sum"], f"{name}_node", keepdims=0)
        unknown(node, f"in {name}")
        value = helper.make_tensor_value_info(f"{name}_sum", TensorProto.FLOAT, [])
        branches.append(helper.make_graph([node], name, [], [value]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "which"))
    settings = dict(then_branch=branches[0], else_branch=branches[1])
    model.graph.node.append(helper.make_node("If", ["which"], ["chosen"], "choose", **settings))
    model.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.FLOAT, []))


def test_every_corner(tmp_path):
    """Text, metadata, functions, graphs within nodes and fields that nobody knows survive, each where it was."""
    model = decorated()
    source = write(tmp_path, model)
    rewrite(source, tmp_path / "out.onnx", *OFF)
    old, new = load(source), load(tmp_path / "out.onnx")
    assert b"in value_info" in old.SerializeToString()
    check_kept(old, new)
    check_order(new.graph)
    conversation = calls(1, None, True)
    logits(session(new), conversation)


def test_fields_of_changed_parts(tmp_path):
    """Cache inputs and outputs, too, keep what the rewriter does not change of them."""
    source = write(tmp_path, decorated())
    rewrite(source, tmp_path / "out.onnx", *OFF, "--cache-type", "uint8")
    new = load(tmp_path / "out.onnx")
    for value in [*new.graph.input, *new.graph.output]:
        if value.name.startswith(("past", "present")):
            content = value.SerializeToString()
            assert f"in value {value.name}".encode() in content
            assert f"in type of {value.name}".encode() in content
            assert value.doc_string == f"value {value.name}"


@pytest.mark.parametrize("attend", [group_query(), spelt_out()])
def test_names_taken(tmp_path, attend):
    """Names that the rewriter would give are left to those who have them."""
    model = decoder(attend, Shape(layers=1))
    first = write(tmp_path, model)
    rewrite(first, tmp_path / "out.onnx", *OFF, "--recent", "4")
    old, new = named(model.graph.node), named(load(tmp_path / "out.onnx").graph.node)
    added = [new[name] for name in new.keys() - old.keys()]
    names = {n.name for n in added} | {o for n in added for o in n.output if o and not o.startswith("present.0.")}
    names |= {"past_key_values.0.key_recent", "present.0.key_recent"}
    taken = sorted(names - {o for n in old.values() for o in n.output})
    for name in taken:
        model.graph.node.append(helper.make_node("Identity", ["input_ids"], [name], name))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, None))
    second = write(tmp_path, model, "taken.onnx")
    rewrite(second, tmp_path / "out.onnx", *OFF, "--recent", "4", "--force")
    other = load(tmp_path / "out.onnx")
    check_order(other.graph)
    named(other.graph.node), named(other.graph.initializer), named(other.graph.input), named(other.graph.output)
    session(other)

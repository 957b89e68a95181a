"""Models, files and options that cannot be rewritten: an error that says what and where, and nothing is written."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ..command import spark_ort

from . import decomposed, masks, unknown
from .builder import Shape, decoder
from .decomposed import attention as spelt_out
from .fused import attention, group_query, multi_head
from .refused import OFF, check_refused, refuse, small, write
from .variants import by_layer


def find(model, operator, number=0):
    return [n for n in model.graph.node if n.op_type == operator][number]


def set_input(node, index, name):
    node.input.extend([""] * (index + 1 - len(node.input)))
    node.input[index] = name


def set_attribute(node, **values):
    for name in values:
        for old in [a for a in node.attribute if a.name == name]:
            node.attribute.remove(old)
    node.attribute.extend(helper.make_attribute(n, v) for n, v in values.items())


def extra(model, name, element, shape):
    model.graph.input.append(helper.make_tensor_value_info(name, element, shape))


def info(model, name):
    return next(i for i in [*model.graph.input, *model.graph.output] if i.name == name)


# Changes of a model that attention as one node has.


def head_sink(model):
    extra(model, "sinks", TensorProto.FLOAT, [4])
    set_input(find(model, "GroupQueryAttention"), 11, "sinks")


def smooth_softmax(model):
    set_attribute(find(model, "GroupQueryAttention"), smooth_softmax=1)


def quantised(model):
    set_attribute(find(model, "GroupQueryAttention"), k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR")


def int8_past(model):
    for name in ("past_key_values.0.key", "present.0.key"):
        info(model, name).type.tensor_type.elem_type = TensorProto.INT8


def bfloat16(model):
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16


def wide_rotary(model):
    """Tables of more channels than a head has."""
    node = find(model, "GroupQueryAttention")
    for index, name in ((7, "wide_cos"), (8, "wide_sin")):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 24), np.float32), name))
        node.input[index] = name


def unknown_rotary(model):
    extra(model, "cos", TensorProto.FLOAT, ["positions", "width"])
    find(model, "GroupQueryAttention").input[7] = "cos"


def one_length(model):
    find(model, "GroupQueryAttention").input[6] = ""


def present_inside(model):
    gone = info(model, "present.1.value")
    model.graph.output.remove(gone)


def other_operator(model):
    node = find(model, "GroupQueryAttention", 1)
    node.op_type = "DecoderMaskedMultiHeadAttention"


def key_padding(model):
    set_input(find(model, "MultiHeadAttention"), 4, "attention_mask")


def nonpad(model):
    extra(model, "nonpad", TensorProto.INT64, ["batch"])
    set_input(find(model, "Attention"), 6, "nonpad")


def product_output(model):
    find(model, "Attention").output.append("scores")


def past_elements(model):
    node = helper.make_node("ReduceSum", ["past_key_values.0.key"], ["sum"], "sum_of_keys", keepdims=0)
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))


def last_dimension(model):
    model.graph.node.insert(0, helper.make_node("Shape", ["past_key_values.0.key"], ["sizes"], "sizes_of_keys"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(3), "three"))
    model.graph.node.insert(1, helper.make_node("Gather", ["sizes", "three"], ["head_size"]))
    model.graph.output.append(helper.make_tensor_value_info("head_size", TensorProto.INT64, []))


def last_dimension_by_start(model):
    node = helper.make_node("Shape", ["past_key_values.0.key"], ["sizes"], "sizes_of_keys", start=-1)
    model.graph.node.insert(0, node)
    model.graph.output.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, [1]))


def encoder(model):
    extra(model, "encoder_hidden_states", TensorProto.FLOAT, ["batch", "words", 16])


def combined(model):
    extra(model, "past_0", TensorProto.FLOAT, [2, "batch", 2, "past", 32])


def no_past(model):
    for value in [i for i in model.graph.input if i.name.startswith("past")]:
        model.graph.input.remove(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 2, 0, 32), np.float32), value.name))


def other_heads(model):
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.shape.dim[1].dim_value = 3


def countless_heads(model):
    """Of which there are 2^64 altogether; the head size is nowhere but in their width."""
    set_attribute(find(model, "GroupQueryAttention"), num_heads=1 << 62, kv_num_heads=3 << 61)
    for index in (1, 2):
        find(model, "GroupQueryAttention").input[index] = ""
    info(model, "past_key_values.0.key").type.tensor_type.shape.dim[3].dim_param = "size"


def circle(model):
    """Two nodes that wait for each other."""
    nodes = [helper.make_node("Neg", [f"turn_{i}"], [f"turn_{1 - i}"]) for i in range(2)]
    model.graph.node.extend(nodes)


def two_readers(model):
    for index in (3, 4):
        find(model, "GroupQueryAttention", 1).input[index] = find(model, "GroupQueryAttention").input[index]


def old_softmax(model):
    """Before opset 13 a softmax without axis goes over all dimensions from the second on."""
    model.opset_import[0].version = 12
    for node in model.graph.node:
        if node.op_type == "Softmax":
            del node.attribute[:]


def weights_put_out(model):
    name = find(model, "Softmax").output[0]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def open_heads(model):
    info(model, "past_key_values.0.key").type.tensor_type.shape.dim[1].dim_param = "heads"


gqa, mha, opset23 = group_query(), multi_head(), attention()
# How the model is made, what is changed in it, and what the error must name.
CHANGED = {
    "head sink": (gqa, head_sink, "/layers.0/GroupQueryAttention", "head_sink", "sinks"),
    "smooth softmax": (gqa, smooth_softmax, "/layers.0/GroupQueryAttention", "smooth_softmax"),
    "quantised": (gqa, quantised, "/layers.0/GroupQueryAttention", "k_quant_type", "PER_TENSOR"),
    "int8 past": (gqa, int8_past, "past_key_values.0.key", "quantised"),
    "bfloat16": (gqa, bfloat16, "/layers.0/GroupQueryAttention", "bfloat16", "float16 cache"),
    "wide rotary": (gqa, wide_rotary, "/layers.0/GroupQueryAttention", "32 channels", "wide_cos"),
    "unknown rotary": (gqa, unknown_rotary, "/layers.0/GroupQueryAttention", "'cos', whose width nothing says"),
    "one length": (gqa, one_length, "/layers.0/GroupQueryAttention", "total_sequence_length", "missing"),
    "present inside": (gqa, present_inside, "/layers.1/GroupQueryAttention", "present_value", "present.1.value"),
    "other operator": (gqa, other_operator, "/layers.1/GroupQueryAttention", "DecoderMaskedMultiHeadAttention"),
    "two readers": (gqa, two_readers, "/layers.1/GroupQueryAttention", "past_key_values.0.key", "another layer"),
    "encoder": (gqa, encoder, "encoder_hidden_states", "decoder-only"),
    "combined": (gqa, combined, "past_0", "five dimensions"),
    "no past": (gqa, no_past, "/layers.0/GroupQueryAttention", "cache input", "past_key_values.0.key"),
    "other heads": (gqa, other_heads, "/layers.0/GroupQueryAttention", "2", "3"),
    "countless heads": (gqa, countless_heads, "/layers.0/GroupQueryAttention"),
    "circle": (gqa, circle, "nodes that can be put in order", "turn_"),
    "past elements": (gqa, past_elements, "sum_of_keys", "past_key_values.0.key", "elements"),
    "last dimension": (gqa, last_dimension, "sizes_of_keys", "last dimension"),
    "last dimension by start": (gqa, last_dimension_by_start, "sizes_of_keys", "last dimension"),
    "key padding": (mha, key_padding, "/layers.0/MultiHeadAttention", "key_padding_mask", "attention_mask"),
    "nonpad": (opset23, nonpad, "/layers.0/Attention", "nonpad_kv_seqlen"),
    "product output": (opset23, product_output, "/layers.0/Attention", "product of query and key", "scores"),
    "old softmax": (spelt_out(), old_softmax, "node_Softmax", "axis"),
    "weights put out": (spelt_out(), weights_put_out, "output of the model", "weights"),
    "open heads": (spelt_out(), open_heads, "past_key_values.0.key"),
}
SPELT = {
    "scaled after the mask": (spelt_out(how=unknown.scaled_after_mask), "node_Softmax", "scaled mask"),
    "capped behind the mask": (spelt_out(how=unknown.capped_mask), "node_Softmax", "a mask inside of a tanh"),
    "sink": (spelt_out(softmax=unknown.sink), "past_key_values.0"),
    "softmax over queries": (spelt_out(softmax=unknown.over_queries), "node_Softmax", "over keys", "-2"),
    "softmax over axis 3 of 5": (decomposed.grouped(softmax=unknown.over_axis_3), "node_Softmax", "over keys", "3"),
    "guard that fills": (spelt_out(softmax=unknown.filled_guard), "past_key_values.0"),
    "repeated otherwise": (spelt_out(repeat=decomposed.interleaved), "node_MatMul", "query heads"),
    "tiled beyond memory": (spelt_out(repeat=unknown.tiled_beyond_memory), "Tile"),
    "expanded beyond memory": (spelt_out(repeat=unknown.expanded_beyond_memory), "Expand"),
    "cache of tokens first": (unknown.tokens_first, "past_key_values.0"),
    "scattered": (unknown.scattered, "past_key_values.0.key", "write_0_key"),
    "causal behind": (attention(behind=decomposed.tile, is_causal=1), "/layers.0/Attention", "is_causal"),
    "unidirectional behind": (
        multi_head(behind=decomposed.expand, unidirectional=1),
        "/layers.0/MultiHeadAttention",
        "unidirectional",
    ),
    "another Attention": (by_layer(gqa, unknown.microsoft_attention), "/encoder/Attention", "com.microsoft Attention"),
    "one of two": (by_layer(gqa, unknown.crossed), "/crossed", "key and value"),
    "one of two spelt out": (by_layer(spelt_out(), spelt_out(how=unknown.capped_mask)), "tanh"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed(tmp_path, name):
    """A model changed in a way that SparkAttention does not know is refused, and the error names place and reason."""
    attend, change, *words = CHANGED[name]
    model = decoder(attend)
    change(model)
    refuse(tmp_path, model, *words)


FUSED = {
    "GroupQueryAttention": gqa,
    "MultiHeadAttention": mha,
    "Attention": opset23,
}
# Inputs by their place, attributes by their name, that no pattern can honour, and what the error must name.
NOT_HONOURED = [
    ("GroupQueryAttention", 11, ["head_sink", "sinks"]),
    ("GroupQueryAttention", 12, ["k_scale"]),
    ("GroupQueryAttention", 13, ["v_scale"]),
    ("GroupQueryAttention", 14, ["q_norm_weight and k_norm_weight", "one of them"]),
    ("GroupQueryAttention", 15, ["q_norm_weight and k_norm_weight", "one of them"]),
    ("GroupQueryAttention", 16, ["query_seqlens"]),
    ("GroupQueryAttention", 17, ["input 17", "query_seqlens"]),
    ("GroupQueryAttention", {"local_window_size": 0}, ["local_window_size = 0"]),
    ("GroupQueryAttention", {"causal": 2}, ["causal = 2"]),
    ("GroupQueryAttention", {"qk_output": 1}, ["qk_output = 1"]),
    ("GroupQueryAttention", {"kv_cache_bit_width": 8}, ["kv_cache_bit_width = 8"]),
    ("GroupQueryAttention", {"v_quant_type": "PER_CHANNEL"}, ["v_quant_type = PER_CHANNEL"]),
    ("MultiHeadAttention", 3, ["bias"]),
    ("MultiHeadAttention", 8, ["past_sequence_length"]),
    ("MultiHeadAttention", 9, ["cache_indirection"]),
    ("MultiHeadAttention", 10, ["input 10"]),
    ("Attention", 6, ["nonpad_kv_seqlen"]),
    ("Attention", 7, ["input 7"]),
    ("Attention", {"right_window_size": 2}, ["right_window_size = 2"]),
    ("Attention", {"is_causal": 2}, ["is_causal = 2"]),
    *((operator, {"of_the_future": 1}, ["attribute 'of_the_future'"]) for operator in FUSED),
]


@pytest.mark.parametrize("operator, change, words", NOT_HONOURED)
def test_not_honoured(tmp_path, operator, change, words):
    """An input or attribute that changes the result and cannot be honoured, one of a later version included."""
    model = decoder(FUSED[operator])
    node = find(model, operator)
    if isinstance(change, dict):
        set_attribute(node, **change)
    else:
        extra(model, "more", TensorProto.FLOAT, ["size"])
        set_input(node, change, "more")
    refuse(tmp_path, model, node.name, *words)


@pytest.mark.parametrize("operator", ["FutureAttention", "PagedAttention", "DecoderMaskedMultiHeadAttention"])
def test_other_operators(tmp_path, operator):
    """com.microsoft's other operators of attention, those of later versions too."""
    model = decoder(gqa)
    find(model, "GroupQueryAttention", 1).op_type = operator
    refuse(tmp_path, model, "/layers.1/GroupQueryAttention", f"com.microsoft {operator}")


@pytest.mark.parametrize("name", SPELT)
def test_spelt(tmp_path, name):
    """Attention in a spelling that is not known is refused, and so are the other layers of the model."""
    attend, *words = SPELT[name]
    refuse(tmp_path, decoder(attend, inferred="attention" in name.lower() or "causal" in name), *words)


@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("size", [0, -5, 1 << 40, (1 << 62) + 8])
@pytest.mark.parametrize("attend", [spelt_out(), multi_head(behind=decomposed.tile)])
def test_declared_sizes(tmp_path, attend, axis, size):
    """Heads and head sizes that no cache can have are refused, however large they are."""
    model = decoder(attend)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    refuse(tmp_path, model, "past_key_values.0")


@pytest.mark.parametrize("shape", [[], [32], [4, 32]])
def test_query_of_another_rank(tmp_path, shape):
    """A product whose first factor has no heads is no attention."""
    model = decoder(spelt_out(), Shape(layers=1))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), "flat"))
    product = next(n for n in model.graph.node if n.op_type == "MatMul" and "Transpose" in n.input[0])
    product.input[0] = "flat"
    refuse(tmp_path, model, product.name)


@pytest.mark.parametrize("size", [20, 16, 264, 512])
def test_head_size(tmp_path, size):
    """Head sizes beyond what the operators take are refused."""
    refuse(tmp_path, decoder(gqa, Shape(2, 1, size)), "/layers.0/GroupQueryAttention", "32 to 256", str(size))


def test_said_once(tmp_path):
    """An error says what is wrong once, its cause is no second time the same, and in words of people."""
    source = write(tmp_path, decoder(spelt_out(softmax=unknown.over_queries)))
    done = check_refused(tmp_path, source, "softmax over keys", "-2")
    assert done.stderr.count("softmax over keys") == 1
    assert "Some(" not in done.stderr


def test_rewritten_already(tmp_path):
    """A rewritten model is not rewritten again."""
    source = write(tmp_path, small())
    spark_ort("rewrite", source, tmp_path / "once.onnx", *OFF)
    check_refused(tmp_path, tmp_path / "once.onnx", "SparkAttention", "already rewritten")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--ratio", "-0.1"], ["--ratio", "-0.1"]),
        (["--ratio=-0.1"], ["--ratio", "-0.1", "below 1"]),
        (["--ratio", "1"], ["--ratio", "below 1"]),
        (["--ratio", "nan"], ["--ratio", "NaN", "below 1"]),
        (["--ratio", "inf"], ["--ratio", "inf", "below 1"]),
        (["--key-bits", "5"], ["--key-bits", "5 is not 16, 8 or 4"]),
        (["--value-bits", "0"], ["--value-bits", "0 is not 16, 8 or 4"]),
        (["--recent", "3000000000"], ["--recent", "3000000000"]),
        (["--calibrate", "nowhere.txt"], ["nowhere.txt"]),
    ],
)
def test_options(tmp_path, options, words):
    """Options out of range are refused by their name."""
    calibrate = () if "--calibrate" in options else OFF
    check_refused(tmp_path, write(tmp_path, small()), *words, options=[*options, *calibrate])


def test_value_bits_of_head_size(tmp_path):
    """Values of 4 bits come in groups of 32."""
    source = write(tmp_path, decoder(gqa, Shape(2, 1, 40)))
    check_refused(tmp_path, source, "--value-bits", "40", options=["--value-bits", "4", *OFF])

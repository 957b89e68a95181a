"""Shapes that the operators infer at load, and the ways of leaving optional inputs and outputs out.

The shapes of optional outputs are not inferred: an operator cannot know whether a node has them, and ONNX Runtime 1.24
to 1.27 at least crash when told the shape of one that it does not have.
"""

import numpy as np
import pytest
from onnx import TensorProto, helper

from . import cases, models, reference
from .compare import check_attention, check_prune
from .reference import Settings

OPTIONAL = (
    "seqlens_k",
    "total_sequence_length",
    "cos_cache",
    "sin_cache",
    "position_ids",
    "past_key_recent",
    "query_saliency",
)


def input_shapes(s, C, rank=3, packed=False):
    """Declared shapes as an exported model has them: everything but batch and lengths is known."""
    size = np.dtype(models.DTYPES[C]).itemsize
    shapes = {
        "past_key": ["batch", s.Hk, "past", s.key_bytes // size],
        "past_value": ["batch", s.Hk, "past", s.value_bytes // size],
    }
    for name, heads in (("query", s.Hq + 2 * s.Hk if packed else s.Hq), ("key", s.Hk), ("value", s.Hk)):
        shapes[name] = ["batch", "new", heads * s.D] if rank == 3 else ["batch", heads, "new", s.D]
    return shapes


def loaded(s, C="f32", rank=3, packed=False, op=None, **more):
    names = ["query", *([] if packed else ["key", "value"]), "past_key", "past_value"]
    shapes = input_shapes(s, C, rank, packed)
    model = models.spark(
        s, names, "f32", C, shapes=shapes, prune=op != "SparkAttention", attention=op != "SparkPrune", **more
    )
    return {o.name: o for o in models.session(model).get_outputs()}


def known(shape):
    """Dimensions that are numbers, None for the others."""
    return [d if isinstance(d, int) else None for d in shape]


@pytest.mark.parametrize("C", ["f32", "u8"])
@pytest.mark.parametrize("rank,packed", [(3, False), (3, True), (4, False)])
def test_inferred_shapes(rank, packed, C):
    s = Settings(6, 2, 64, 20, key_bits=4, value_bits=8, recent_window=5)
    out = loaded(s, C, rank, packed)
    size = np.dtype(models.DTYPES[C]).itemsize
    assert known(out["present_key"].shape) == [None, 2, None, s.key_bytes // size]
    assert known(out["present_value"].shape) == [None, 2, None, s.value_bytes // size]
    assert known(out["output"].shape) == ([None, None, 6 * 64] if rank == 3 else [None, 6, None, 64])
    for name in ("present_key", "present_value", "output"):
        assert out[name].shape[0] == "batch", f"{name} lost the name of the batch: {out[name].shape}"
    assert out["output"].shape[1 if rank == 3 else 2] == "new"


def test_inferred_shapes_of_padded_rows_and_static_lengths():
    s = Settings(2, 1, 32, 8, key_row_bytes=128, value_row_bytes=256)
    names = ["query", "key", "value", "past_key", "past_value"]
    shapes = {
        "query": [3, 7, 64],
        "key": [3, 7, 32],
        "value": [3, 7, 32],
        "past_key": [3, 1, 5, 32],
        "past_value": [3, 1, 5, 64],
    }
    out = {o.name: o.shape for o in models.session(models.spark(s, names, "f32", "f32", shapes=shapes)).get_outputs()}
    assert out["output"] == [3, 7, 64]
    assert known(out["present_key"])[:2] == [3, 1] and known(out["present_key"])[3] == 32
    assert out["present_key"][2] == out["present_value"][2] == 12
    assert known(out["present_value"])[3] == 64


def test_inferred_shapes_without_tokens():
    """L = 0: key has no elements, but its width tells that it is given, and query not packed."""
    s = Settings(6, 2, 64, 20)
    shapes = input_shapes(s, "f32")
    for name in ("query", "key", "value"):
        shapes[name][1] = 0
    model = models.spark(s, list(shapes), "f32", "f32", shapes=shapes)
    out = {o.name: o.shape for o in models.session(model).get_outputs()}
    assert out["output"] == ["batch", 0, 6 * 64]
    assert out["present_key"] == ["batch", 2, "past", s.key_bytes // 4]


@pytest.mark.parametrize("T,C", [("f32", "f32"), ("f32", "u8"), ("f16", "f16"), ("f16", "u8")])
def test_output_types(T, C):
    s = Settings(2, 1, 32, 8, recent_window=2)
    feeds = cases.call(0, s, T, C, P=0)
    types = {o.name: o.type for o in models.session(models.spark(s, feeds, T, C)).get_outputs()}
    of = {"f32": "tensor(float)", "f16": "tensor(float16)", "u8": "tensor(uint8)"}
    assert types == {
        "output": of[T],
        "present_key": of[C],
        "present_value": of[C],
        "present_key_recent": of[T],
        "observed_saliency": "tensor(float)",
    }


def no_elements(s, T):
    """Every optional input as an initializer of no elements."""
    kinds = {
        "seqlens_k": np.int32,
        "total_sequence_length": np.int32,
        "position_ids": np.int64,
        "query_saliency": np.float32,
    }
    return {n: np.zeros((0,), kinds.get(n, models.DTYPES[T])) for n in OPTIONAL}


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("packed", [False, True])
def test_absent_and_empty_optional_inputs_mean_the_same(T, packed):
    s = Settings(4, 2, 32, 10)
    feeds = cases.call(6, s, T, T, L=9, P=5, packed=packed)
    absent = models.run(models.session(models.spark(s, feeds, T, T)), feeds)
    check_prune(s, feeds, {k: v for k, v in absent.items() if k != "output"})
    check_attention(s, feeds, absent["output"])
    empty = dict(no_elements(s, T), attention_bias=np.zeros((0,), models.DTYPES[T]))
    if packed:
        empty.update({n: np.zeros((0,), models.DTYPES[T]) for n in ("key", "value")})
    model = models.spark(s, feeds, T, T, initializers=empty, opset=17)
    # SparkPrune has no attention_bias; models.spark leaves it out there.
    filled = models.run(models.session(model), feeds)
    for name, wanted in absent.items():
        assert filled[name].tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("shape", [(0,), (0, 0), (2, 0), (0, 32), (2, 2, 0, 32)])
def test_empty_inputs_of_any_shape(shape):
    """No elements is no input, whatever the shape says; also where it is fed rather than constant."""
    s = Settings(4, 2, 32, 10)
    feeds = cases.call(6, s, L=3, P=5)
    want = models.run(models.session(models.spark(s, feeds)), feeds)
    for name in (*OPTIONAL, "attention_bias"):
        kind = {"seqlens_k": np.int32, "total_sequence_length": np.int32, "position_ids": np.int64}.get(
            name, np.float32
        )
        more = dict(feeds, **{name: np.zeros(shape, kind)})
        got = models.run(models.session(models.spark(s, more)), more)
        for output, wanted in want.items():
            assert got[output].tobytes() == wanted.tobytes(), (name, output)


@pytest.mark.parametrize(
    "wired",
    [("present_key", "present_value"), models.PRUNE_OUTPUTS[:3], ("present_key", "present_value", "observed_saliency")],
)
def test_optional_outputs(wired):
    s = Settings(4, 2, 32, 10, recent_window=3)
    feeds = cases.call(6, s, L=9, P=0)
    out = models.run(models.session(models.spark(s, feeds, prune_outputs=wired)), feeds)
    assert set(out) == {"output", *wired}
    check_prune(s, feeds, {k: v for k, v in out.items() if k != "output"})


@pytest.mark.parametrize("op", ["SparkPrune", "SparkAttention"])
def test_each_operator_alone(op):
    s = Settings(4, 2, 32, 10)
    out = loaded(s, op=op)
    assert set(out) == ({"output"} if op == "SparkAttention" else set(models.PRUNE_OUTPUTS))


def test_seqlens_and_total_in_either_shape():
    """seqlens_k `[B]` or `[B,1]`, total_sequence_length a scalar or one element."""
    s = Settings(4, 2, 32, 10)
    feeds = cases.call(3, s, L=3, P=9, mode="step")
    want = reference.attend(s, feeds)
    sess = models.session(models.spark(s, feeds))
    total = feeds["total_sequence_length"].reshape(-1)[0]
    for seqlens in (feeds["seqlens_k"], feeds["seqlens_k"].reshape(-1, 1)):
        for t in (np.array(total), np.array([total]), np.array([[total]])):
            out = models.run(sess, dict(feeds, seqlens_k=seqlens, total_sequence_length=t.astype(np.int32)))
            check_attention(s, feeds, out["output"], want)


def test_metadata_types_of_inputs_are_kept():
    """A model with declared input types loads as written."""
    s = Settings(2, 1, 32, 8)
    model = models.spark(s, cases.call(0, s, "f16", "u8"), "f16", "u8")
    assert [i.type.tensor_type.elem_type for i in model.graph.input][-1] == TensorProto.UINT8
    assert models.session(model).get_inputs()[0].type == "tensor(float16)"


def test_unknown_lengths_share_no_name():
    """Two lengths that may differ must not look equal to ONNX Runtime, which plans memory by names of dimensions."""
    names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"]
    s = Settings(6, 2, 64, 20, recent_window=5)
    model = models.spark(s, names, shapes=input_shapes(s, "f32"), attention=False)
    outputs = [f"{n}_2" for n in models.PRUNE_OUTPUTS]
    model.graph.node.append(models.node("SparkPrune", s, set(names), outputs, name="second"))
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs)
    lengths = [o.shape[2] for o in models.session(model).get_outputs() if len(o.shape) == 4]
    assert len(lengths) == len(set(lengths)) == 4
    # Without the values of seqlens_k nothing says that present is longer than past.
    assert not set(lengths) & {"past", "new", "batch"}

"""Inputs that no caller should pass: an exception that names the node and the input, or a finite result.

Everything runs in this process: a crash of a kernel ends the whole test run.
"""

import dataclasses

import numpy as np
import pytest

from . import cases, models
from .cases import PAST
from .compare import check_attention
from .reference import Settings

BOTH = ("SparkPrune", "SparkAttention")
S = Settings(4, 2, 32, 10, key_bits=8, value_bits=8, recent_window=4, do_rotary=1)


def good(**more):
    """A decoding step of two sequences, B = 2, L = 3, P = 9, that wires everything."""
    return cases.call(
        0, S, "f32", "u8", B=2, L=3, P=9, mode="step", positions=True, recent=True, saliency=True, bias={}, **more
    )


def one(op, feeds, s=S, T="f32", C="u8", **more):
    """Model of one operator alone, all outputs wired."""
    names = [n for n in feeds if op == "SparkAttention" or n != "attention_bias"]
    return models.spark(s, names, T, C, prune=op == "SparkPrune", attention=op == "SparkAttention", **more)


def rejected(op, feeds, names, s=S, T="f32", C="u8", types=()):
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        models.run(models.session(one(op, feeds, s, T, C, types=types)), feeds)
    message = str(caught.value)
    assert f"{op}_node" in message, f"no name of the node in: {message}"
    assert any(n in message for n in names), f"none of {names} in: {message}"


def resized(axis, by, fill=0):
    """A change of an array's size along an axis."""

    def change(x):
        n = x.shape[axis] + by
        pad = [(0, 0)] * x.ndim
        pad[axis] = (0, max(by, 0))
        return np.pad(x, pad, constant_values=fill).take(range(n), axis)

    return change


def put(value, at=(0,)):
    """Writes one element."""

    def change(x):
        x = x.copy()
        x[tuple(at) + (0,) * (x.ndim - len(at))] = value
        return x

    return change


def constant(*values, shape=(-1,), dtype=np.int32):
    return lambda _: np.array(values, dtype).reshape(shape)


def flat(x):
    return x.reshape(-1)


def merged(x):
    return x.reshape(-1, x.shape[-1])


def deeper(x):
    return x[None]


def remove(_):
    return None


# (input, change, the names of which a message must hold one; the input itself when empty)
BAD_INPUTS = {
    "query of rank 1": ("query", flat, ()),
    "query of rank 2": ("query", merged, ()),
    "query of rank 5": ("query", lambda x: x[None, None], ()),
    "query too wide": ("query", resized(2, 1), ()),
    "query one head short": ("query", resized(2, -32), ()),
    "query of another batch": ("query", resized(0, 1), ("query", "key")),
    "query of another length": ("query", resized(1, 1), ("query", "key")),
    "query of no width": ("query", lambda x: x[..., :0], ()),
    "key of rank 2": ("key", merged, ()),
    "key of rank 5": ("key", lambda x: x[None, None], ()),
    "key of another batch": ("key", resized(0, 1), ("key", "query")),
    "key of another length": ("key", resized(1, -1), ("key", "query")),
    "key one head short": ("key", resized(2, -32), ()),
    "key alone": ("value", remove, ("key", "value", "query")),
    "value of rank 1": ("value", flat, ()),
    "value of another length": ("value", resized(1, 1), ("value", "query")),
    "value too wide": ("value", resized(2, 8), ()),
    "value alone": ("key", remove, ("key", "value", "query")),
    "past_key of rank 3": ("past_key", lambda x: x[0], ()),
    "past_key of rank 5": ("past_key", deeper, ()),
    "past_key of another batch": ("past_key", resized(0, 1), ()),
    "past_key of another head count": ("past_key", resized(1, 1), ()),
    "past_key one byte wider": ("past_key", resized(3, 1), ()),
    "past_key four bytes narrower": ("past_key", resized(3, -4), ()),
    "past_key of no width": ("past_key", lambda x: x[..., :0], ()),
    "past_key shorter than past_value": ("past_key", resized(2, -1), PAST),
    "past_value of rank 2": ("past_value", merged, ()),
    "past_value of another batch": ("past_value", resized(0, -1), ()),
    "past_value of another head count": ("past_value", resized(1, -1), ()),
    "past_value wider": ("past_value", resized(3, 4), ()),
    "past_value longer than past_key": ("past_value", resized(2, 1), PAST),
    "seqlens_k of another batch": ("seqlens_k", constant(5, 5, 5), ()),
    "seqlens_k for one of two": ("seqlens_k", constant(5), ()),
    "seqlens_k of two columns": ("seqlens_k", constant(5, 5, 5, 5, shape=(2, 2)), ()),
    "seqlens_k as a row": ("seqlens_k", constant(5, 5, shape=(1, 2)), ()),
    "seqlens_k of rank 3": ("seqlens_k", constant(5, 5, shape=(2, 1, 1)), ()),
    "seqlens_k below the new tokens": ("seqlens_k", constant(1, 5), ()),
    "seqlens_k negative": ("seqlens_k", constant(-1, 5), ()),
    "seqlens_k very negative": ("seqlens_k", constant(-(2**31), 5), ()),
    "seqlens_k beyond the total": ("seqlens_k", constant(11, 11), ("seqlens_k", "total_sequence_length")),
    "seqlens_k huge": ("seqlens_k", constant(2**31 - 1, 5), ("seqlens_k", "total_sequence_length")),
    "total of two elements": ("total_sequence_length", constant(8, 8), ()),
    "total below the new tokens": ("total_sequence_length", constant(2), ("total_sequence_length", "seqlens_k")),
    "total zero": ("total_sequence_length", constant(0), ("total_sequence_length", "seqlens_k")),
    "total negative": ("total_sequence_length", constant(-7), ("total_sequence_length", "seqlens_k")),
    "total beyond the buffer": ("total_sequence_length", constant(13), ()),
    "total huge": ("total_sequence_length", constant(2**31 - 1), ()),
    "cos_cache missing": ("cos_cache", remove, ()),
    "cos_cache of no elements": ("cos_cache", lambda x: x[:0], ()),
    "cos_cache of rank 1": ("cos_cache", flat, ()),
    "cos_cache of the whole head": ("cos_cache", resized(1, 16), ()),
    "cos_cache too short": ("cos_cache", lambda x: x[:2], ("cos_cache", "sin_cache", "position_ids")),
    "sin_cache missing": ("sin_cache", remove, ()),
    "sin_cache narrower": ("sin_cache", resized(1, -1), ()),
    "sin_cache too short": ("sin_cache", lambda x: x[:2], ("cos_cache", "sin_cache", "position_ids")),
    "position_ids of another length": ("position_ids", resized(1, 1), ()),
    "position_ids of another batch": ("position_ids", lambda x: x[:1], ()),
    "position_ids of rank 1": ("position_ids", flat, ()),
    "position beyond cos_cache": ("position_ids", put(512, (1, 2)), ()),
    "position negative": ("position_ids", put(-1, (0, 1)), ()),
    "position huge": ("position_ids", put(2**63 - 1, (1, 0)), ()),
    "position very negative": ("position_ids", put(-(2**63), (1, 0)), ()),
    "past_key_recent of rank 3": ("past_key_recent", lambda x: x[0], ()),
    "past_key_recent of another batch": ("past_key_recent", resized(0, 1), ()),
    "past_key_recent of another head count": ("past_key_recent", resized(1, -1), ()),
    "past_key_recent narrower": ("past_key_recent", resized(3, -8), ()),
    "past_key_recent too short": ("past_key_recent", lambda x: x[:, :, :1], ()),
    "query_saliency of rank 1": ("query_saliency", flat, ()),
    "query_saliency for one head": ("query_saliency", lambda x: x[:1], ()),
    "query_saliency of the query heads": ("query_saliency", lambda x: np.concatenate([x, x]), ()),
    "query_saliency wider": ("query_saliency", resized(1, 1, 1), ()),
    "query_saliency zero": ("query_saliency", put(0.0, (1, 3)), ()),
    "query_saliency negative": ("query_saliency", put(-1.0, (1, 3)), ()),
    "query_saliency NaN": ("query_saliency", put(np.nan, (1, 31)), ()),
    "query_saliency infinite": ("query_saliency", put(np.inf, (0, 0)), ()),
}
BAD_BIASES = {
    "of rank 3": lambda x: x[0],
    "of rank 5": deeper,
    "of another batch": resized(0, 1),
    "of another head count": resized(1, -1),
    "for one query": lambda x: x[:, :, :1],
    "for more queries": resized(2, 1),
    "too short": resized(3, -1),
    "of one column": lambda x: x[..., :1],
}


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input(case, op):
    name, change, names = BAD_INPUTS[case]
    feeds = good()
    changed = change(feeds[name])
    if changed is None:
        del feeds[name]
    else:
        feeds[name] = np.ascontiguousarray(changed)
    rejected(op, feeds, names or (name,))


@pytest.mark.parametrize("case", BAD_BIASES)
def test_bad_attention_bias(case):
    feeds = good()
    feeds["attention_bias"] = np.ascontiguousarray(BAD_BIASES[case](feeds["attention_bias"]))
    rejected("SparkAttention", feeds, ["attention_bias"])


@pytest.mark.parametrize("op", BOTH)
def test_counts_without_seqlens(op):
    """Without seqlens_k the total must be P + L."""
    s = dataclasses.replace(S, do_rotary=0, recent_window=0)
    feeds = cases.call(0, s, "f32", "u8", L=3, P=9)
    for total in (3, 11, 13, -1, 2**31 - 1):
        rejected(op, dict(feeds, total_sequence_length=np.array(total, np.int32)), ["total_sequence_length"], s)


@pytest.mark.parametrize("op", BOTH)
def test_prompt_lengths(op):
    """A first prompt whose seqlens_k say more tokens than there are, or fewer than none."""
    for bad in (9, 100, -2, -(2**31), 2**31 - 1):
        feeds = cases.call(0, S, "f32", "u8", L=9, P=20, mode="prompt")
        feeds["seqlens_k"][1] = bad
        rejected(op, feeds, ["seqlens_k"])
    feeds = cases.call(0, S, "f32", "u8", L=9, P=20, mode="alone_prompt")
    feeds["seqlens_k"][1] = 9 + 20
    rejected(op, feeds, ["seqlens_k", "total_sequence_length"])


def test_recent_keys_missing():
    """With past tokens and output 2 wired, past_key_recent must hold the last keys."""
    for change in (
        lambda f: f.pop("past_key_recent"),
        lambda f: f.update(past_key_recent=np.zeros((2, 2, 0, 32), np.float32)),
    ):
        feeds = good()
        change(feeds)
        rejected("SparkPrune", feeds, ["past_key_recent"])


def test_a_session_outlives_rejected_calls():
    feeds = good()
    sess = models.session(models.spark(S, feeds, "f32", "u8"))
    before = models.run(sess, feeds)
    for name in ("seqlens_k", "past_key", "position_ids", "query_saliency"):
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            models.run(sess, dict(feeds, **{name: -np.ones((7, 7), feeds[name].dtype).astype(feeds[name].dtype)}))
    after = models.run(sess, feeds)
    assert all(np.array_equal(before[n], after[n]) for n in before)


DTYPE_CASES = [
    ("query", np.float16),
    ("query", np.float64),
    ("key", np.float16),
    ("value", np.float16),
    ("past_key", np.float16),
    ("past_key", np.float32),
    ("past_key", np.int8),
    ("past_value", np.float32),
    ("seqlens_k", np.int64),
    ("total_sequence_length", np.int64),
    ("cos_cache", np.float16),
    ("position_ids", np.int32),
    ("past_key_recent", np.float16),
    ("query_saliency", np.float16),
]


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("name,dtype", DTYPE_CASES, ids=lambda x: x if isinstance(x, str) else np.dtype(x).name)
def test_wrong_type(op, name, dtype):
    """One input of another element type. ONNX Runtime itself reports it, and names the node."""
    feeds = good()
    kinds = {np.float16: 10, np.float64: 11, np.float32: 1, np.int8: 3, np.int64: 7, np.int32: 6}
    feeds[name] = feeds[name].astype(dtype)
    rejected(op, feeds, [""], types={name: kinds[dtype]})


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("T,C", [("f32", "f16"), ("f16", "f32")])
def test_container_is_t_or_bytes(op, T, C):
    """Both caches of the other float type."""
    s = Settings(4, 2, 32, 10)
    rejected(op, cases.call(0, s, T, C, L=3, P=5), [""], s, T, C)


def test_positions_of_padding_are_not_looked_at():
    feeds = cases.call(0, S, "f32", "u8", B=2, L=9, P=0, mode="prompt", positions=True, garbage=True)
    assert feeds["position_ids"].min() < 0
    check_attention(S, feeds, models.run(models.session(one("SparkAttention", feeds)), feeds)["output"])


@pytest.mark.parametrize("op", ["SparkPrune", "SparkAttention"])
def test_sizes_without_any_memory(op):
    """No tokens, so that nothing real bounds the batch: an error, not an attempt to allocate for each sequence."""
    feeds = cases.call(0, S, "f32", "u8", B=1, L=0, P=0)
    B = 2**40
    for name in ("query", "key", "value", *PAST):
        feeds[name] = np.zeros((B, *feeds[name].shape[1:]), feeds[name].dtype)
    names = [n for n in feeds if n in ("query", "key", "value", "cos_cache", "sin_cache", *PAST)]
    model = models.spark(S, names, "f32", "u8", prune=op == "SparkPrune", attention=op != "SparkPrune")
    with pytest.raises(Exception, match=rf"{op}_node': input 0 \(query\): 1099511627776 sequences"):
        models.run(models.session(model), {n: feeds[n] for n in names})


def spoil(rng, feeds):
    """One random change of one random input: its shape, its presence or, for lengths and positions, its values."""
    name = rng.choice(list(feeds))
    x, kind = feeds[name], rng.integers(5)
    if kind == 0 and name not in ("query", *PAST):
        del feeds[name]
    elif kind == 1 and x.ndim:
        feeds[name] = (
            resized(int(rng.integers(x.ndim)), int(rng.choice([-2, -1, 1, 2])))(x) if min(x.shape) > 2 else x[:0]
        )
    elif kind == 2:
        shape = rng.integers(0, 5, rng.integers(0, 6))
        feeds[name] = np.resize(x, shape) if x.size else np.zeros(shape, x.dtype)
    elif x.dtype.kind == "i":
        feeds[name] = rng.choice([-(2**31), -9, -1, 0, 1, 2, 3, 8, 11, 12, 13, 600, 2**31 - 1], x.shape).astype(x.dtype)
    elif x.dtype.kind == "f" and x.size:
        feeds[name] = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1e38, 2.0, -3.0], x.shape).astype(x.dtype)


@pytest.mark.parametrize("seed", range(30))
def test_random_spoiling(seed):
    """Several random changes at once: the exception names the node, or everything that comes out is finite."""
    rng = np.random.default_rng(seed)
    accepted = 0
    for _ in range(12):
        feeds = good()
        for _ in range(rng.integers(1, 4)):
            spoil(rng, feeds)
        for op in BOTH:
            try:
                out = models.run(models.session(one(op, feeds)), feeds)
            except Exception as error:
                assert "ONNXRuntimeError" in str(error) and f"{op}_node" in str(error), str(error)
                continue
            accepted += 1
            for name, x in out.items():
                assert np.isfinite(x).all(), name
    assert accepted < 24

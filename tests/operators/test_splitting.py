"""One sequence fed in pieces: which rows result, and that growing and shared caches hold the same ones.

A call of 8 or more tokens is pruned by its own window, a smaller one by query_saliency, so the rows of a token depend
on the call it came in with and on nothing else of the past.
"""

import numpy as np
import pytest

from . import cases, models
from .compare import as_rows, check_attention, check_prune, close
from .reference import Settings

N = 40
SPLITS = [[40], [12, 20, 8], [8] * 5, [33, 7], [20] + [1] * 20, [5, 30, 5]]


def stream(s, T, seed=0, n=N):
    """query, key, value `[1,n,H*D]` of one sequence, and the inputs that do not change from call to call."""
    rng = np.random.default_rng(seed)
    constant = {"query_saliency": np.exp(rng.normal(size=(s.Hk, s.D)) * 0.7).astype(np.float32)}
    if s.do_rotary:
        constant.update(cases.rotary_tables(s, models.DTYPES[T]))
    return cases.new_tokens(rng, s, T, 1, n), constant


def feed(s, T, split, capacity=0, seed=0, fill=None):
    """Feeds the stream in pieces of the given lengths; every call is compared with the reference.

    Returns (key rows, value rows, outputs concatenated). `capacity` shares one buffer, filled with `fill` bytes.
    """
    whole, constant = stream(s, T, seed, sum(split))
    with_recent = s.recent_window > 0
    wired = [n for n in models.PRUNE_OUTPUTS if n != "present_key_recent" or with_recent]
    names = [*whole, *constant, "past_key", "past_value", "seqlens_k", "total_sequence_length"]
    names += ["past_key_recent"] if with_recent else []
    sess = models.session(models.spark(s, names, T, "u8", prune_outputs=wired))
    cache = models.empty_cache(s, 1, "u8", capacity)
    if fill is not None:
        for x in cache.values():
            x[...] = np.random.default_rng(fill).integers(0, 256, x.shape, np.uint8)
    shared = {k: models.as_value(v) for k, v in cache.items()}
    recent = np.zeros((1, s.Hk, 0, s.D), models.DTYPES[T])
    outputs, past = [], 0
    for L in split:
        feeds = {k: v[:, past : past + L] for k, v in whole.items()}
        feeds.update(constant, past_key_recent=recent, seqlens_k=np.array([past + L - 1], np.int32))
        feeds["total_sequence_length"] = np.array(past + L, np.int32)
        if capacity:
            before = {k: v.numpy().copy() for k, v in shared.items()}
            feeds.update(before)
            out = models.run_shared(sess, feeds, shared)
            out.update(present_key=shared["past_key"].numpy().copy(), present_value=shared["past_value"].numpy().copy())
        else:
            feeds.update(cache)
            out = models.run(sess, feeds)
        check_prune(s, feeds, out, shared=capacity > 0)
        check_attention(s, feeds, out["output"])
        cache = {"past_key": out["present_key"], "past_value": out["present_value"]}
        recent = out.get("present_key_recent", recent)
        outputs.append(out["output"])
        past += L
    rows = as_rows(cache["past_key"], s.key_bytes), as_rows(cache["past_value"], s.value_bytes)
    return *rows, np.concatenate(outputs, 1)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(
    "T,rotary,recent,bits", [("f32", 0, 0, 16), ("f32", 1, 6, 8), ("f16", 1, 6, 4), ("f16", 0, 0, 16)]
)
def test_growing_and_shared_caches_are_equal(T, rotary, recent, bits, split):
    s = Settings(4, 2, 64, 20, key_bits=bits, value_bits=bits, do_rotary=rotary, recent_window=recent)
    grown = feed(s, T, split)
    shared = feed(s, T, split, capacity=N + 9, fill=1)
    for a, b in zip(grown[:2], shared[:2]):
        assert (a == b[:, :, :N]).all()
    assert (grown[2] == shared[2]).all()


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("rotary", [0, 1])
def test_small_calls_prune_by_query_saliency(bits, rotary):
    """Calls of 1 to 7 tokens leave byte for byte the same rows, however they cut the sequence."""
    s = Settings(4, 2, 64, 20, key_bits=bits, value_bits=bits, do_rotary=rotary)
    n = 21
    one = feed(s, "f32", [1] * n)
    for split in ([7] * 3, [2, 3, 4, 5, 6, 1], [5, 5, 5, 6]):
        other = feed(s, "f32", split)
        assert (one[0] == other[0]).all() and (one[1] == other[1]).all()
    window = feed(s, "f32", [n])
    assert (one[0] != window[0]).any() and (one[1] == window[1]).all()


def test_a_piece_is_pruned_by_its_own_window():
    """Without rotation, the rows of a piece of 8 or more tokens are those of the piece as a prompt of its own."""
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=4)
    split = [12, 20, 8]
    whole, constant = stream(s, "f32")
    pieces = feed(s, "f32", split)
    at = 0
    for L in split:
        feeds = {k: v[:, at : at + L] for k, v in whole.items()}
        feeds.update(constant, **models.empty_cache(s, 1, "u8"))
        alone = models.run(models.session(models.spark(s, feeds, "f32", "u8", attention=False)), feeds)
        assert (alone["present_key"] == pieces[0][:, :, at : at + L]).all()
        assert (alone["present_value"] == pieces[1][:, :, at : at + L]).all()
        at += L
    assert (feed(s, "f32", [N])[0] != pieces[0]).any(), "the whole prompt's window should choose other channels"


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("split", SPLITS[1:], ids=str)
def test_unpruned_output_does_not_depend_on_the_split(T, split):
    """kept_channels = D, 16 bits: the pieces' outputs are the whole prompt's, to float16 rounding of cached tokens."""
    s = Settings(4, 2, 64, 64, do_rotary=1)
    close(feed(s, T, split)[2], feed(s, T, [N])[2], 2e-3)


@pytest.mark.parametrize("split", SPLITS[1:], ids=str)
def test_recent_window_over_everything_is_dense(split):
    """A recent window wider than the sequence: attention over exact keys, whatever the rows lost."""
    s = Settings(4, 2, 64, 4, key_bits=4, value_bits=16, recent_window=N)
    close(feed(s, "f32", split)[2], feed(s, "f32", [N])[2], 2e-3)
    narrow = Settings(4, 2, 64, 4, key_bits=4, value_bits=16)
    assert np.abs(feed(narrow, "f32", split)[2] - feed(s, "f32", split)[2]).max() > 1e-2


def test_order_of_the_operators_does_not_matter():
    """On a shared buffer SparkPrune may run before SparkAttention or after it."""
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=8)
    feeds = cases.call(3, s, "f32", "u8", B=2, L=5, P=30, mode="step", garbage=True, shared=True)
    results = []
    for flip in (False, True):
        model = models.spark(s, feeds, "f32", "u8", prune_outputs=("present_key", "present_value"))
        if flip:
            first, second = model.graph.node
            nodes = [second, first]
            del model.graph.node[:]
            model.graph.node.extend(nodes)
        cache = {n: models.as_value(feeds[n].copy()) for n in ("past_key", "past_value")}
        out = models.run_shared(models.session(model), feeds, cache)
        check_attention(s, feeds, out["output"])
        results.append((out["output"], cache["past_key"].numpy().copy(), cache["past_value"].numpy().copy()))
    for a, b in zip(*results):
        assert (a == b).all()

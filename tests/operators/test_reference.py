"""Both operators against the float64 reference: every setting, alone and in random combinations."""

import dataclasses

import numpy as np
import pytest

from . import cases, models, reference
from .compare import as_rows, check_attention, check_prune, exact_rows
from .reference import Settings

# Recoveries that draw magnitudes.
SAMPLED = ("exponential", "normal")

MODES = ("plain", "counted", "prompt", "step", "alone_prompt", "alone_step")
BITS = [(k, v) for k in (16, 8, 4) for v in (16, 8, 4)]


def check(s, feeds, T, C):
    """Runs both operators on one call and compares every output; returns them by name."""
    outputs = [n for n in models.PRUNE_OUTPUTS if n != "present_key_recent" or readable_recent(s, feeds)]
    sess = models.session(models.spark(s, feeds, T, C, prune_outputs=outputs))
    out = models.run(sess, feeds)
    check_prune(s, feeds, out)
    check_attention(s, feeds, out["output"])
    sp = reference.spans(s, feeds)
    wide = out["output"] if out["output"].ndim == 3 else out["output"].transpose(0, 2, 1, 3)
    for b, n in enumerate(sp.new):
        assert (wide[b, n:] == 0).all(), "output of padding is not zero"
    return out


def readable_recent(s, feeds):
    """Whether present_key_recent may be wired: the past keys it needs are given."""
    sp = reference.spans(s, feeds)
    return s.recent_window > 0 and (not sp.past.any() or reference.given(feeds, "past_key_recent") is not None)


def random_case(seed):
    """Settings and options of `cases.call`, everything drawn at once."""
    rng = np.random.default_rng([seed, 77])

    def pick(*options):
        return options[rng.integers(len(options))]

    Hk, G = pick(1, 2, 3), int(rng.integers(1, 9))
    D = pick(32, 40, 64, 72, 96, 128, 128, 160, 256)
    value_bits = pick(16, 8, 4 if D % 32 == 0 else 8)
    s = Settings(
        Hk * G,
        Hk,
        D,
        int(rng.integers(1, D + 1)) if rng.random() < 0.8 else D,
        key_bits=pick(16, 8, 4),
        value_bits=value_bits,
        recovery=pick("mean", "mean", "none", *SAMPLED),
        recent_window=pick(0, 1, 4, 16),
        do_rotary=pick(0, 1),
        rotary_interleaved=pick(0, 1),
        observation_window=pick(1, 5, 8, 32),
        scale=pick(0.0, 0.1),
        softcap=pick(0.0, 2.0),
        local_window_size=pick(-1, -1, 3, 20),
        causal=pick(1, 1, 0),
    )
    if rng.random() < 0.3:
        s = dataclasses.replace(
            s, key_row_bytes=s.key_bytes + pick(0, 4, 64), value_row_bytes=s.value_bytes + pick(4, 12)
        )
    mode, rank = pick(*MODES), pick(3, 4)
    L = int(pick(1, 2, 7, 8, 9, 40)) if s.D < 256 else int(pick(1, 8))
    options = dict(
        B=pick(1, 2, 3),
        L=L,
        P=0 if mode == "plain" and rng.random() < 0.4 else int(pick(1, 8, 33, 100)),
        mode=mode,
        rank=rank,
        packed=rank == 3 and rng.random() < 0.3,
        positions=bool(s.do_rotary and rng.random() < 0.5),
        recent=bool(s.recent_window and rng.random() < 0.8),
        saliency=bool(rng.random() < 0.6),
        bias=pick(None, dict(wide_batch=pick(True, False), wide_heads=pick(True, False), extra=pick(0, 3))),
        garbage=bool(rng.random() < 0.5),
    )
    T = pick("f32", "f16")
    return s, options, T, pick(T, "u8")


@pytest.mark.parametrize("seed", range(400 if models.DEVICE == "cpu" else 100))
def test_random_combination(seed):
    s, options, T, C = random_case(seed)
    check(s, cases.call(seed, s, T, C, **options), T, C)


@pytest.mark.parametrize("recovery", ["mean", "none", *SAMPLED])
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("key_bits,value_bits", BITS)
def test_bits(key_bits, value_bits, T, recovery):
    s = Settings(4, 2, 64, 21, key_bits=key_bits, value_bits=value_bits, recovery=recovery)
    feeds = cases.call(5, s, T, T, B=2, L=24, P=40, mode="step", saliency=True)
    out = check(s, feeds, T, T)
    # Nearly all rows are the reference's byte for byte; the rest sit on rounding boundaries that check_prune granted.
    assert exact_rows(s, feeds, out) > 0.97
    other = dataclasses.replace(s, recovery="none" if recovery == "mean" else "mean")
    if recovery != "none":
        assert np.abs(reference.attend(other, feeds) - out["output"]).max() > 1e-2, "recovery makes no difference"


@pytest.mark.parametrize("T,C", [("f32", "f32"), ("f32", "u8"), ("f16", "f16"), ("f16", "u8")])
@pytest.mark.parametrize("key_bits", [16, 8, 4])
def test_every_kept_channels(T, C, key_bits):
    for kept in (1, 2, 3, 8, 15, 16, 17, 30, 31, 32):
        s = Settings(2, 1, 32, kept, key_bits=key_bits, value_bits=8)
        feeds = cases.call(kept, s, T, C, B=1, L=9, P=6, saliency=True)
        assert exact_rows(s, feeds, check(s, feeds, T, C)) > 0.8


@pytest.mark.parametrize("D", range(32, 257, 8))
def test_every_head_size(D):
    value_bits = 4 if D % 32 == 0 else 8
    s = Settings(3, 1, D, D // 3, key_bits=(16, 8, 4)[D // 8 % 3], value_bits=value_bits, do_rotary=1)
    check(s, cases.call(D, s, "f32", "u8", B=1, L=10, P=7, saliency=True), "f32", "u8")


@pytest.mark.parametrize("groups", range(1, 9))
def test_every_group_size(groups):
    s = Settings(2 * groups, 2, 64, 20)
    check(s, cases.call(groups, s, "f32", "f32", B=2, L=11, P=5), "f32", "f32")


@pytest.mark.parametrize("extra_key,extra_value", [(0, 0), (4, 0), (0, 8), (100, 40)])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_padded_rows(bits, extra_key, extra_value):
    s = Settings(2, 2, 64, 19, key_bits=bits, value_bits=bits)
    s = dataclasses.replace(s, key_row_bytes=s.key_bytes + extra_key, value_row_bytes=s.value_bytes + extra_value)
    check(s, cases.call(bits, s, "f16", "f16", B=2, L=8, P=9, mode="step", garbage=True), "f16", "f16")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("recent_window,L", [(1, 1), (4, 1), (4, 9), (16, 3), (64, 9)])
def test_recent_window(recent_window, L, T, mode):
    """Wider and narrower than the past and than the new tokens; rows of the input beyond n_b are NaN."""
    s = Settings(4, 2, 64, 10, key_bits=4, value_bits=8, recent_window=recent_window, do_rotary=1)
    feeds = cases.call(3, s, T, "u8", B=3, L=L, P=20, mode=mode, recent=True, garbage=True)
    out = check(s, feeds, T, "u8")
    assert "present_key_recent" in out
    if reference.spans(s, feeds).past.any():
        without = reference.attend(s, dict(feeds, past_key_recent=None))
        assert np.abs(without - out["output"]).max() > 1e-2, "recent keys make no difference"


def test_recent_window_unwired_reads_rows():
    """SparkAttention without past_key_recent, or with one of no elements, reads rows whatever recent_window says."""
    s = Settings(2, 1, 64, 8, recent_window=16)
    feeds = cases.call(4, s, B=2, L=1, P=20, mode="step")
    empty = dict(feeds, past_key_recent=np.zeros((2, 1, 0, 64), np.float32))
    for f in (feeds, empty):
        out = models.run(models.session(models.spark(s, f, prune=False)), f)
        check_attention(s, feeds, out["output"])


@pytest.mark.parametrize("T", ["f32", "f16"])
def test_recent_input_wider_than_the_window(T):
    """Only the first n_b rows of past_key_recent hold keys, however many there are."""
    s = Settings(4, 2, 32, 8, recent_window=3)
    feeds = cases.call(4, s, T, "u8", B=2, L=2, P=9, mode="step", recent=True, garbage=True)
    more = np.full((2, 2, 5, 32), np.inf, models.DTYPES[T])
    check(s, dict(feeds, past_key_recent=np.concatenate([feeds["past_key_recent"], more], 2)), T, "u8")


@pytest.mark.parametrize("L,past,total", [(3, [0, 4], 7), (3, [0, 0], 8), (1, [2, 5], 9), (9, [1, 0], 11)])
def test_total_beyond_every_length(L, past, total):
    """total_sequence_length may exceed every sequence's, and a sequence may have no past among others that do."""
    s = Settings(4, 2, 32, 8, recent_window=4, do_rotary=1)
    feeds = cases.call(5, s, "f32", "u8", B=2, L=L, P=8, mode="step", recent=True)
    feeds["seqlens_k"] = np.array(past, np.int32) + L - 1
    feeds["total_sequence_length"] = np.array(total, np.int32)
    feeds["past_key_recent"][0, :, past[0] :] = np.nan
    feeds["past_key_recent"][1, :, past[1] :] = np.nan
    feeds["attention_bias"] = cases.bias_for(np.random.default_rng(0), s, "f32", feeds, 2, L, extra=2)
    check(s, feeds, "f32", "u8")


@pytest.mark.parametrize("L,W", [(7, 32), (8, 32), (8, 8), (40, 32), (40, 1), (40, 5), (33, 32), (5, 2)])
@pytest.mark.parametrize("saliency", [False, True])
def test_observation_window(L, W, saliency):
    """The last W valid queries choose, query_saliency below 8 tokens; observed_saliency is n either way."""
    s = Settings(6, 2, 64, 12, observation_window=W)
    feeds = cases.call(L + W, s, B=3, L=L, P=3, mode="prompt", saliency=saliency)
    feeds["seqlens_k"] = np.array([L, min(L, 7), min(L, (L + 8) // 2)], np.int32) - 1
    out = check(s, feeds, "f32", "f32")
    assert out["observed_saliency"].min() > 0


def test_padding_does_not_observe():
    """A sequence with no valid new token: observed saliency zero, rows zero, output zero."""
    s = Settings(2, 1, 32, 8, recent_window=4)
    feeds = cases.call(1, s, B=2, L=9, P=0, mode="prompt")
    feeds["seqlens_k"] = np.array([8, -1], np.int32)
    out = check(s, feeds, "f32", "f32")
    for name in ("observed_saliency", "present_key", "present_value", "present_key_recent", "output"):
        assert (out[name][1] == 0).all() and (out[name][0] != 0).any(), name


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("mode", ["prompt", "step", "plain"])
def test_rotary(mode, positions, T, interleaved):
    s = Settings(4, 2, 64, 24, do_rotary=1, rotary_interleaved=interleaved)
    feeds = cases.call(9, s, T, T, B=2, L=12, P=15, mode=mode, positions=positions, garbage=True)
    out = check(s, feeds, T, T)
    other = dataclasses.replace(s, rotary_interleaved=1 - interleaved)
    assert np.abs(reference.attend(other, feeds) - out["output"]).max() > 1e-2


@pytest.mark.parametrize("wide_batch", [True, False])
@pytest.mark.parametrize("wide_heads", [True, False])
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("mode,extra", [("prompt", 0), ("step", 0), ("step", 5), ("alone_step", 1), ("plain", 0)])
def test_attention_bias(mode, extra, T, wide_heads, wide_batch):
    s = Settings(4, 2, 32, 10)
    bias = dict(wide_batch=wide_batch, wide_heads=wide_heads, extra=extra)
    check(s, cases.call(2, s, T, T, B=3, L=6, P=11, mode=mode, bias=bias), T, T)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("window", [-1, 0, 1, 2, 7, 100])
@pytest.mark.parametrize("softcap", [0.0, 0.5, 30.0])
def test_scores(causal, window, softcap):
    """softcap, local_window_size, causal and scale together; the bias comes after softcap."""
    s = Settings(4, 2, 32, 12, softcap=softcap, local_window_size=window, causal=causal, scale=0.7)
    for mode, L in (("prompt", 12), ("step", 5)):
        check(s, cases.call(8, s, B=2, L=L, P=9, mode=mode, bias={}, garbage=True), "f32", "f32")


def test_negative_scale():
    """Scale is a factor like any other; only 0 has a meaning of its own."""
    s = Settings(2, 1, 32, 12, scale=-0.2)
    check(s, cases.call(8, s, B=2, L=5, P=9, mode="step"), "f32", "f32")


@pytest.mark.parametrize("more", [dict(softcap=-1.0), dict(local_window_size=-5)], ids=str)
def test_negative_softcap_and_window_are_off(more):
    s = Settings(2, 1, 32, 12, **more)
    check(s, cases.call(8, s, B=2, L=5, P=9, mode="step"), "f32", "f32")


def test_query_that_sees_nothing():
    """Every column masked, by minus infinity or NaN: output exactly zero, other queries unharmed."""
    s = Settings(2, 1, 32, 12)
    feeds = cases.call(8, s, B=2, L=5, P=9, bias={})
    feeds["attention_bias"][0, 1, 2] = -np.inf
    feeds["attention_bias"][1, 0, 4] = np.nan
    out = check(s, feeds, "f32", "f32")["output"].reshape(2, 5, 2, 32)
    assert (out[0, 2, 1] == 0).all() and (out[1, 4, 0] == 0).all()
    assert ((out == 0).all(-1)).sum() == 2


def test_equal_scores_keep_the_lower_channel():
    """Keys of equal magnitudes, and keys of zeros, under a saliency of ones."""
    s = Settings(1, 1, 32, 9)
    rng = np.random.default_rng(0)
    key = rng.choice([-2.0, 0.0, 1.0, 1.0, -1.0, 2.0], (1, 1, 7, 32)).astype(np.float32)
    key[0, 0, 0] = 0
    feeds = {"query": key, "key": key, "value": key, **models.empty_cache(s, 1, "u8")}
    out = models.run(models.session(models.spark(s, feeds, "f32", "u8", attention=False)), feeds)
    want = reference.prune(s, feeds)
    assert (as_rows(out["present_key"], s.key_bytes) == want.present_key).all()
    assert (want.present_key[0, 0, 0, :4] == [255, 1, 0, 0]).all()


@pytest.mark.parametrize("key_bits,value_bits", [(16, 16), (8, 8), (4, 4)])
def test_constant_rows(key_bits, value_bits):
    """Steps of zero: all magnitudes of a key alike, all channels of a value alike."""
    s = Settings(1, 1, 32, 11, key_bits=key_bits, value_bits=value_bits)
    feeds = cases.call(1, s, "f16", "u8", B=1, L=6, P=5)
    feeds["key"][...] = np.where(np.arange(32) % 3, 1.5, -1.5)
    feeds["value"][...] = -0.75
    out = check(s, feeds, "f16", "u8")
    assert exact_rows(s, feeds, out) == 1


@pytest.mark.parametrize("valid", [1, 3, 6])
def test_first_prompt_of_one_sequence_into_a_used_buffer(valid):
    """The cache of an earlier conversation is passed with a new prompt, right-padded: nothing of it is past."""
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=8, recent_window=4)
    feeds = cases.call(5, s, B=1, L=6, P=20, mode="prompt")
    feeds["seqlens_k"] = np.array([valid - 1], np.int32)
    out = check(s, feeds, "f32", "f32")
    assert out["present_key"].shape[2] == 20


@pytest.mark.parametrize("mode", ["prompt", "step", "alone_step"])
@pytest.mark.parametrize("seed", range(6))
def test_shared_buffer(mode, seed):
    """Present bound to past's memory: only the valid new tokens' rows change, to what a growing cache would hold."""
    rng = np.random.default_rng(seed)
    bits = BITS[seed]
    s = Settings(4, 2, 64, 16, key_bits=bits[0], value_bits=bits[1], recent_window=(0, 5)[seed % 2])
    T, C = ("f32", "f16")[seed % 2], ("f32", "f16", "u8")[2 * (seed % 3 == 0) or seed % 2]
    L = int(rng.integers(1, 12))
    recent = s.recent_window > 0
    feeds = cases.call(seed, s, T, C, B=3, L=L, P=30, mode=mode, recent=recent, garbage=True, shared=True)
    wired = [n for n in models.PRUNE_OUTPUTS if n != "present_key_recent" or s.recent_window]
    sess = models.session(models.spark(s, feeds, T, C, prune_outputs=wired))
    cache = {n: models.as_value(feeds[n].copy()) for n in ("past_key", "past_value")}
    out = models.run_shared(sess, feeds, cache)
    out.update(present_key=cache["past_key"].numpy(), present_value=cache["past_value"].numpy())
    check_prune(s, feeds, out, shared=True)
    check_attention(s, feeds, out["output"])
    grown = models.run(sess, feeds)
    sp = reference.spans(s, feeds)
    assert (grown["output"] == out["output"]).all()
    for name in ("present_key", "present_value"):
        for b, total in enumerate(sp.past + sp.new):
            assert (as_bytes(grown[name])[b, :, :total] == as_bytes(out[name])[b, :, :total]).all()


@pytest.mark.parametrize("name", ["past_key", "past_value"])
def test_one_shared_cache_and_one_growing(name):
    """Whether memory is shared is a matter of each pair of tensors."""
    s = Settings(4, 2, 64, 16)
    feeds = cases.call(7, s, "f32", "u8", B=2, L=3, P=20, mode="step", garbage=True, shared=True)
    sess = models.session(models.spark(s, feeds, "f32", "u8"))
    grown = models.run(sess, feeds)
    cache = {name: models.as_value(feeds[name].copy())}
    out = models.run_shared(sess, feeds, cache)
    shared, other = name.replace("past", "present"), {"past_key": "present_value", "past_value": "present_key"}[name]
    assert (out[other] == grown[other]).all() and (out["output"] == grown["output"]).all()
    sp, got = reference.spans(s, feeds), cache[name].numpy()
    for b, (past, new) in enumerate(zip(sp.past, sp.new)):
        assert (got[b, :, : past + new] == grown[shared][b, :, : past + new]).all()
        assert (got[b, :, past + new :] == feeds[name][b, :, past + new :]).all()


@pytest.mark.skipif(models.DEVICE != "cpu", reason="memory of a device is aligned to 4 bytes, see tests/gpu/providers")
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_unaligned_container(offset):
    """A uint8 cache may start at any address, though its rows hold float16 fields."""
    s = Settings(4, 2, 64, 15, key_bits=(16, 8, 4)[offset - 1], value_bits=16)
    feeds = cases.call(offset, s, "f32", "u8", B=2, L=9, P=30, mode="step", shared=True)
    sess = models.session(models.spark(s, feeds, "f32", "u8", prune_outputs=("present_key", "present_value")))
    memory, cache = [], {}
    for name in ("past_key", "past_value"):
        x = feeds[name]
        memory.append(np.zeros(x.size + 64, np.uint8))
        start = -memory[-1].ctypes.data % 16 + offset
        view = memory[-1][start : start + x.size].reshape(x.shape)
        view[...] = x
        cache[name] = models.as_value(view)
        assert cache[name].data_ptr() % 16 == offset, "ONNX Runtime copied the cache: nothing is tested"
    out = models.run_shared(sess, feeds, cache)
    check_attention(s, feeds, out["output"])
    out = {"present_key": cache["past_key"].numpy(), "present_value": cache["past_value"].numpy()}
    check_prune(s, feeds, out, shared=True)


def as_bytes(x):
    return np.ascontiguousarray(x).view(np.uint8)


@pytest.mark.parametrize("key_bits,value_bits", BITS)
def test_long_context(key_bits, value_bits):
    """Several hundred cached tokens at D = 256 and D = 128, with everything on."""
    for D, P in ((128, 600), (256, 300)):
        s = Settings(4, 2, D, D // 5, key_bits=key_bits, value_bits=value_bits, recent_window=16, do_rotary=1)
        feeds = cases.call(D, s, "f16", "f16", B=2, L=1, P=P, mode="step", recent=True, saliency=True, bias={})
        check(s, feeds, "f16", "f16")

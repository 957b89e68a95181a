"""Numbers that are not numbers, and caches of foreign bytes: outputs and rows are finite, and what the document says.

`reference` reads NaN as 0 and limits everything to the float16 range, so it is the oracle here too. Scores of such
numbers are huge; a small `scale` keeps the softmax from hiding all keys but one.
"""

import dataclasses

import numpy as np
import pytest

from . import cases, models, reference
from .compare import as_rows, check_attention, check_prune
from .reference import Settings

STRANGE = (np.nan, np.inf, -np.inf, 1e30, -7e4, 65504.0, 65519.0, -0.0, 1e-40)


def run_both(s, feeds, T="f32", C="u8"):
    return models.run(models.session(models.spark(s, feeds, T, C)), feeds)


def sprinkle(feeds, names, seed, share=0.03):
    """Strange numbers in random places of some inputs, as their type holds them."""
    rng = np.random.default_rng(seed)
    for name in names:
        x = feeds[name] = feeds[name].copy()
        at = rng.random(x.shape) < share
        with np.errstate(over="ignore"):
            x[at] = rng.choice(STRANGE, at.sum()).astype(x.dtype)


@pytest.mark.parametrize("key_bits,value_bits", [(k, v) for k in (16, 8, 4) for v in (16, 8, 4)])
@pytest.mark.parametrize("T,C", [("f32", "f32"), ("f32", "u8"), ("f16", "f16")])
@pytest.mark.parametrize("kept", [1, 10, 32])
def test_random_bytes(kept, T, C, key_bits, value_bits):
    """Masks of any number of bits, fields of any pattern."""
    s = Settings(4, 2, 32, kept, key_bits=key_bits, value_bits=value_bits, scale=1e-8)
    feeds = cases.call(0, s, T, C, B=2, L=2, P=0, saliency=True)
    rng = np.random.default_rng(kept)
    for name, width in (("past_key", s.key_bytes), ("past_value", s.value_bytes)):
        feeds[name] = cases.container(rng.integers(0, 256, (2, 2, 40, width), np.uint8), C)
    out = run_both(s, feeds, T, C)
    assert np.isfinite(out["output"]).all() and (out["output"] != 0).any()
    with np.errstate(over="ignore"):
        if T == "f32":
            check_attention(s, feeds, out["output"])
    # Past rows are copied as they are, whatever the bits say.
    assert out["present_key"][:, :, :40].tobytes() == feeds["past_key"].tobytes()
    plain = dataclasses.replace(s, scale=0.0)
    assert np.isfinite(run_both(plain, feeds, T, C)["output"]).all()


@pytest.mark.parametrize("value", [0x00, 0xFF, 0x7C, 0x7E, 0xFC])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_constant_bytes(bits, value):
    """All masks empty or full, all fields zero, NaN, infinite or the like."""
    s = Settings(4, 2, 32, 10, key_bits=bits, value_bits=bits, scale=1e-8)
    feeds = cases.call(0, s, "f32", "u8", B=1, L=2, P=9)
    for name in ("past_key", "past_value"):
        feeds[name][...] = value
    check_attention(s, feeds, run_both(s, feeds)["output"])


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_reserved_bytes_and_padding_are_ignored(bits):
    s = Settings(4, 2, 32, 9, key_bits=bits, value_bits=bits)
    s = dataclasses.replace(s, key_row_bytes=s.key_bytes + 8, value_row_bytes=s.value_bytes + 8)
    feeds = cases.call(0, s, "f32", "u8", B=1, L=2, P=9)
    before = run_both(s, feeds)["output"]
    used = {16: 12 + 18, 8: 14 + 9, 4: 14 + 5}[bits]
    feeds["past_key"][..., used:] = 0xAB
    feeds["past_value"][..., -8:] = 0xCD
    if bits == 16:
        feeds["past_key"][..., 10:12] = 0xEF
    if bits == 4:
        # Nine nibbles: the high one of the last byte belongs to no channel.
        feeds["past_key"][..., used - 1] |= 0xF0
    assert np.array_equal(run_both(s, feeds)["output"], before)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_masks_with_other_numbers_of_bits(bits):
    """More than T_k set bits keep the first T_k, fewer leave slots unread, recovery reads the rest."""
    s = Settings(2, 1, 32, 12, key_bits=bits, value_bits=16)
    for mask in (0, 0xFFFFFFFF, 1, 1 << 31, 0xFFFF0000, 0x55555555, 0x000000FF):
        feeds = cases.call(mask % 97, s, "f32", "u8", B=1, L=1, P=6, saliency=True)
        feeds["past_key"][..., :4] = np.frombuffer(np.uint32(mask).tobytes(), np.uint8)
        for recovery in ("mean", "none"):
            r = dataclasses.replace(s, recovery=recovery)
            out = run_both(r, feeds)["output"]
            check_attention(r, feeds, out)


@pytest.mark.parametrize("names", [("query",), ("key",), ("value",), ("query", "key", "value")], ids="+".join)
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("key_bits,value_bits", [(16, 16), (8, 8), (4, 4)])
@pytest.mark.parametrize("rotary", [0, 1])
def test_strange_tokens(rotary, key_bits, value_bits, T, names):
    s = Settings(4, 2, 32, 12, key_bits=key_bits, value_bits=value_bits, scale=1e-9, do_rotary=rotary)
    feeds = cases.call(1, s, T, "u8", B=2, L=10, P=6, saliency=True)
    sprinkle(feeds, names, 3)
    out = run_both(s, feeds, T)
    check_attention(s, feeds, out.pop("output"))
    out.pop("present_key_recent")
    check_prune(s, feeds, out)
    plain = dataclasses.replace(s, scale=0.0)
    again = run_both(plain, feeds, T)
    assert np.isfinite(again["output"]).all() and np.isfinite(again["observed_saliency"]).all()


@pytest.mark.parametrize("T", ["f32", "f16"])
def test_only_strange_tokens(T):
    """Nothing but NaN, or nothing but infinities."""
    for value in (np.nan, np.inf, -np.inf):
        s = Settings(4, 2, 32, 12, key_bits=4, value_bits=4, recent_window=3)
        feeds = cases.call(1, s, T, "u8", B=2, L=10, P=0)
        for name in ("query", "key", "value"):
            feeds[name][...] = value
        out = run_both(s, feeds, T)
        for name in ("output", "present_key_recent", "observed_saliency"):
            assert np.isfinite(out[name]).all(), name
        wanted = {np.inf: 65504.0, -np.inf: -65504.0}.get(value, 0.0)
        assert np.abs(out["output"] - wanted).max() <= 1e-5 * abs(wanted)
        assert np.array_equal(out["present_key_recent"], np.full((2, 2, 3, 32), wanted))
        # A range that needs more than float16 does not occur here: steps are zero.
        assert (as_rows(out["present_key"], s.key_bytes) == reference.prune(s, feeds).present_key).all()


@pytest.mark.parametrize("T", ["f32", "f16"])
def test_strange_recent_keys(T):
    s = Settings(4, 2, 32, 12, recent_window=4, scale=1e-9)
    feeds = cases.call(1, s, T, "u8", B=2, L=2, P=9, recent=True)
    sprinkle(feeds, ("past_key_recent",), 4, 0.2)
    out = run_both(s, feeds, T)
    check_attention(s, feeds, out.pop("output"))
    check_prune(s, feeds, out)


@pytest.mark.parametrize("T", ["f32", "f16"])
def test_strange_biases(T):
    """Minus infinity and NaN mask; whatever plus infinity means, the output is finite."""
    s = Settings(4, 2, 32, 12)
    feeds = cases.call(1, s, T, "u8", B=2, L=3, P=9, bias={})
    for value in (np.inf, 65504.0, -65504.0):
        bias = feeds["attention_bias"].copy()
        bias[:, 1, :, 4] = value
        out = run_both(s, dict(feeds, attention_bias=bias), T)["output"]
        assert np.isfinite(out).all() and (out != 0).any()
        if np.isfinite(value):
            check_attention(s, dict(feeds, attention_bias=bias), out)
    everything = np.full_like(feeds["attention_bias"], np.inf)
    assert np.isfinite(run_both(s, dict(feeds, attention_bias=everything), T)["output"]).all()


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1e-20, 1e20, 3e38])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_extreme_saliency(bits, value):
    """Positive and finite is all that query_saliency must be."""
    s = Settings(4, 2, 32, 12, key_bits=bits)
    feeds = cases.call(1, s, "f32", "u8", B=1, L=3, P=0)
    feeds["query_saliency"] = np.ones((2, 32), np.float32)
    feeds["query_saliency"][:, ::3] = value
    for _ in range(2):
        out = run_both(s, feeds)
        assert np.isfinite(out["output"]).all()
        feeds.update(past_key=out["present_key"], past_value=out["present_value"])


@pytest.mark.parametrize("scale", [3e38, 1e-45])
@pytest.mark.parametrize("softcap", [0.0, 1e-38, 3e38])
@pytest.mark.parametrize("bias", [False, True])
def test_extreme_scores(scale, softcap, bias):
    s = Settings(4, 2, 32, 12, scale=scale, softcap=softcap)
    feeds = cases.call(1, s, "f32", "u8", B=1, L=3, P=5, bias={} if bias else None)
    assert ("attention_bias" in feeds) == bias
    assert np.isfinite(run_both(s, feeds)["output"]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_strange_rotation(value):
    """cos_cache is no list of numbers the document names, yet outputs and rows are always finite."""
    s = Settings(4, 2, 32, 12, do_rotary=1, recent_window=3)
    feeds = cases.call(1, s, "f32", "u8", B=1, L=9, P=0)
    feeds["cos_cache"][::2] = value
    out = run_both(s, feeds)
    for name in ("output", "present_key_recent", "observed_saliency"):
        assert np.isfinite(out[name]).all(), name

"""Scaling key channels by s and query channels by 1/s changes no score of dense attention.

query_saliency is a query quantity and scales by 1/s with them. With rotary both channels of a pair scale alike, or the
rotation would mix them.
"""

import numpy as np
import pytest

from . import cases, models
from .compare import check_attention, check_prune, close
from .reference import Settings


def scales(s, seed, sigma=1.0):
    """Positive channel scales `[Hk,D]`, alike within RoPE pairs."""
    x = np.exp(np.random.default_rng(seed).normal(size=(s.Hk, s.D)) * sigma)
    if s.do_rotary:
        half = s.D // 2
        x = np.repeat(x[:, :half], 2, 1) if s.rotary_interleaved else np.tile(x[:, :half], 2)
    return x


def scaled(s, feeds, by):
    """The call with keys times `by`, queries divided by it, and query_saliency matched where it is wired."""
    out = dict(feeds)
    dtype = feeds["query"].dtype
    out["query"] = (feeds["query"] / np.repeat(by, s.Hq // s.Hk, 0).reshape(-1)).astype(dtype)
    out["key"] = (feeds["key"] * by.reshape(-1)).astype(dtype)
    if "query_saliency" in feeds:
        out["query_saliency"] = (feeds["query_saliency"] / by).astype(np.float32)
    return out


def generate(s, by=None, saliency=True, steps=6, T="f32", seed=0):
    """A prompt and some decoded tokens through both operators, each call compared with the reference.

    `by` scales every call; `saliency` False leaves query_saliency unwired, as an uncalibrated model does.
    Returns the decoding outputs, concatenated.
    """
    rng = np.random.default_rng(seed)
    constant = cases.rotary_tables(s, models.DTYPES[T]) if s.do_rotary else {}
    # Drawn even when not wired, so that the tokens do not depend on it.
    n = np.exp(rng.normal(size=(s.Hk, s.D)) * 0.3).astype(np.float32)
    if saliency:
        constant["query_saliency"] = n
    spread = cases.channel_spread(rng, s.Hk, s.D, 0.3)
    cache, outputs, sess = models.empty_cache(s, 1, "u8"), [], None
    for L in (24, *[1] * steps):
        feeds = dict(cases.new_tokens(rng, s, T, 1, L, spread=spread), **constant)
        feeds = scaled(s, feeds, by) if by is not None else feeds
        feeds.update(cache)
        sess = sess or models.session(models.spark(s, feeds, T, "u8"))
        out = models.run(sess, feeds)
        check_prune(s, feeds, {k: v for k, v in out.items() if k != "output"})
        check_attention(s, feeds, out["output"])
        cache = {"past_key": out["present_key"], "past_value": out["present_value"]}
        outputs.append(out["output"])
    return np.concatenate(outputs[1:], 1).astype(np.float64)


@pytest.mark.parametrize("rotary,interleaved", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_unpruned_output_is_unchanged(seed, rotary, interleaved):
    s = Settings(4, 2, 64, 64, do_rotary=rotary, rotary_interleaved=interleaved)
    plain = generate(s, seed=seed)
    # The float16 roundings of the cached keys differ, nothing else does.
    close(generate(s, scales(s, seed), seed=seed), plain, 2e-3)
    # Powers of two do not even change those.
    close(generate(s, 2.0 ** np.rint(np.log2(scales(s, seed))), seed=seed), plain, 1e-5)


@pytest.mark.parametrize("rotary,interleaved", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_pruned_with_matched_saliency(bits, rotary, interleaved):
    """Rows and outputs are the reference's (inside `generate`), and nearer to dense attention than unmatched ones."""
    s = Settings(4, 2, 64, 24, key_bits=bits, do_rotary=rotary, rotary_interleaved=interleaved)
    dense = generate(Settings(4, 2, 64, 64, do_rotary=rotary, rotary_interleaved=interleaved))
    by = scales(s, 5, 1.5)
    matched = generate(s, by)
    unmatched = generate(s, by, saliency=False)
    assert np.abs(matched - unmatched).max() > 1e-2 * np.abs(dense).max(), "saliency makes no difference"
    assert np.square(matched - dense).mean() < np.square(unmatched - dense).mean()


def test_saliency_scale_is_arbitrary():
    """query_saliency times a constant: the same channels, and the same a times c to float16 rounding of a."""
    s = Settings(4, 2, 64, 24)
    feeds = cases.call(4, s, "f32", "u8", B=2, L=3, P=0, mode="plain", saliency=True)
    outputs = []
    for factor in (1, 64):
        f = dict(feeds, query_saliency=feeds["query_saliency"] * np.float32(factor))
        outputs.append(models.run(models.session(models.spark(s, f, "f32", "u8", attention=False)), f))
    a, b = (o["present_key"] for o in outputs)
    D = s.D
    assert (a[..., : D // 4] == b[..., : D // 4]).all()
    mine, theirs = (np.ascontiguousarray(x[..., D // 4 : D // 4 + 2]).view(np.float16).astype(float) for x in (a, b))
    close(theirs, mine * 8, 2.0**-10)

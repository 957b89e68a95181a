"""Comparison of the operators' outputs with the reference.

The operators compute in float32, the reference in float64, so a stored field may fall on the other side of a
rounding boundary. Each comparison below grants exactly that: a float16 field must be the rounding of a number within
float32 error of the reference's, a quantised u within half a step plus float32 error of the exact quotient, and a mask
may differ only where the scores involved tie within that error. Away from boundaries this means equal bytes.
"""

import os

import numpy as np

from . import models, reference, rows, tail
from .reference import channel_scale, select

# The path that the CPU kernels were told to take; the fastest there is if none.
PATH = os.environ.get("SPARK_ORT_CPU", "")

# Relative float32 error granted to sums of squares, square roots and quotients; about 20 units in the last place.
EPS = 2.5e-6


def rotation_error(s, k):
    """Absolute error `[...,D]` granted to a rotated key: float32 products of both channels of a pair may cancel."""
    if s.row_format == 3:
        # Sums of products with a matrix.
        return np.broadcast_to(3e-6 * np.abs(k).max(-1, keepdims=True), k.shape)
    if not s.do_rotary:
        return np.zeros_like(k)
    half = s.D // 2
    pairs = k.reshape(*k.shape[:-1], half, 2) if s.rotary_interleaved else k.reshape(*k.shape[:-1], 2, half)
    norm = np.sqrt((pairs**2).sum(-1 if s.rotary_interleaved else -2, keepdims=True))
    return 3e-7 * np.broadcast_to(norm, pairs.shape).reshape(k.shape)


def between(got, x, error, what):
    """`got` is the float16 nearest to some number within `error` of x."""
    low, high = (rows.to_f16(x + d).astype(np.float64) for d in (-error, error))
    wrong = (got < low) | (got > high)
    assert not wrong.any(), f"{what}: {got[wrong][:4]} instead of {x[wrong][:4]} (float16 of it)"


def check_masks(s, keep, k, n, delta):
    """Masks `[...,D]` are the reference's, or differ between channels whose scores tie within float32 error."""
    score = k**2 * n
    slack = score * 2 * EPS + 2 * np.abs(k) * delta * n
    expected = select(k, n, s.kept)
    assert (keep.sum(-1) == s.kept).all(), "a mask does not have kept_channels bits"
    differing = (keep != expected).any(-1)
    for row in np.argwhere(differing):
        at = tuple(row)
        extra, missing = keep[at] & ~expected[at], expected[at] & ~keep[at]
        worst, best = (score - slack)[at][missing].min(), (score + slack)[at][extra].min()
        assert best >= worst, f"row {at} keeps {np.flatnonzero(extra)} instead of {np.flatnonzero(missing)}"
    return differing.mean() if differing.size else 0.0


def check_plane_rows(s, got, k, n):
    """Rows of format 3 of keys k in the basis: with their scales codes are the nearest, and no scale is better."""
    kept = rows.in_slot(k)[..., : s.kept]
    n = np.broadcast_to(n, k.shape)[..., : s.kept]
    scale = np.ascontiguousarray(got[..., :2]).view("<f2").astype(np.float64)
    read = rows.decode_planes(got, s.D, s.kept, s.planes)[..., : s.kept]

    def error(rows_):
        other = rows.decode_planes(rows_, s.D, s.kept, s.planes)[..., : s.kept]
        return (n**2 * (kept - other) ** 2).sum(-1)

    nearest = rows.planes_row(scale, rows.plane_codes(kept, s.kept, s.planes, scale), s.key_bytes)
    best = rows.encode_planes(k, pad(n, s.D), s.kept, s.planes, s.key_bytes)
    # Keys come of float32 sums over the channels, and float16 of them.
    slack = 1e-3 * np.abs(kept).max(initial=0) * scale + 2e-3 * np.abs(kept)
    other = rows.decode_planes(nearest, s.D, s.kept, s.planes)[..., : s.kept]
    assert (np.abs(np.abs(read - kept) - np.abs(other - kept)) <= slack + 1e-6).all(), "codes are not the nearest"
    found, least = error(got), error(best)
    as_good = found <= least * 1.02 + 1e-6
    # Where a key came out as a neighbouring float16, the scale is the best one for that.
    off = np.sqrt((n**2 * (2.0**-10 * kept) ** 2).sum(-1))
    assert (as_good | (np.sqrt(found) <= np.sqrt(least) + 2 * off)).all(), "another scale is better"
    assert as_good.mean() > 0.9, "other scales are better"
    used = rows.key_row_bytes(s.D, s.kept, 8, s.planes)
    assert (got[..., used:] == 0).all(), "padding of a key row is not zero"


def pad(n, D):
    """n `[..., kept]` as `[..., D]`."""
    return np.concatenate([n, np.ones((*n.shape[:-1], D - n.shape[-1]))], -1)


def check_key_rows(s, got, k, n, c):
    """Key rows uint8 `[...,bytes]` of rotated keys k with saliency n and channel scale c, all broadcastable."""
    if s.row_format == 3:
        return check_plane_rows(s, got, k, 1 / np.asarray(c) ** 2)
    k, n, c = np.broadcast_arrays(k, n, c)
    delta = rotation_error(s, k)
    f = rows.key_fields(got, s.D, s.kept, s.key_bits)
    check_masks(s, f.raw_mask, k, n, delta)
    negative = k <= 0
    if s.key_bits == 16:
        negative = negative & ~f.keep
    assert (f.negative == negative)[np.abs(k) > delta].all(), "wrong sign plane"
    zero_a = s.kept == s.D or s.recovery == "none"
    a = np.zeros(k.shape[:-1] + (1,))
    if not zero_a:
        a = np.sqrt(np.where(f.keep, 0, (k / c) ** 2).sum(-1, keepdims=True) / (s.D - s.kept))
    a_error = np.zeros_like(a) if zero_a else a * EPS + np.where(f.keep, 0, delta / c).max(-1, keepdims=True)
    between(f.a, a, a_error, "recovery magnitude a")
    if s.key_bits == 16:
        between(f.kept[f.keep], k[f.keep], delta[f.keep], "kept keys")
    else:
        top = 2**s.key_bits - 1
        size, size_error = np.abs(k) / c, np.abs(k) / c * EPS + delta / c
        least = np.where(f.keep, size, np.inf).min(-1, keepdims=True)
        greatest = np.where(f.keep, size, -np.inf).max(-1, keepdims=True)
        error = np.where(f.keep, size_error, 0).max(-1, keepdims=True)
        between(f.m, least, error, "least kept magnitude m")
        between(f.step, (greatest - least) / top, 2 * error / top, "step")
        check_quantised(f.kept, size, size_error, f.m, f.step, top, f.keep, "key u")
    rebuilt = reassemble_keys(s, f)
    assert (rebuilt == got).all(), "bytes of a key row that belong to no field are not zero"


def reassemble_keys(s, f):
    """Rows made of parsed fields, with everything else zero."""
    slots = rows.slots_of(f.keep, s.kept)
    parts = [rows.bits_of(f.raw_mask), rows.bits_of(f.negative), rows.bytes_of(rows.to_f16(f.a))]
    kept = np.take_along_axis(f.kept, slots, -1)
    if s.key_bits == 16:
        parts += [np.zeros(kept.shape[:-1] + (2,), np.uint8), rows.bytes_of(kept.astype(np.float16))]
    else:
        u = kept.astype(np.uint8)
        parts += [rows.bytes_of(rows.to_f16(x)) for x in (f.m, f.step)] + [u if s.key_bits == 8 else rows.nibbles(u)]
    return rows.padded_row(parts, s.key_bytes)


def check_quantised(u, x, x_error, low, step, top, where, what):
    """u rounds (x - low)/step of the stored low and step, clamped; anything but 0 is wrong where step is 0."""
    flat = step == 0
    exact = np.clip((x - low) / np.where(flat, 1, step), 0, top)
    error = 0.5 + (x_error + EPS * (np.abs(x) + np.abs(low))) / np.where(flat, 1, step)
    off = np.where(flat, u != 0, np.abs(u - exact) > error) & where
    assert not off.any(), f"{what}: {u[off][:4]} instead of {exact[off][:4]} (rounded)"


def check_rotated_values(s, got, v):
    """Values that are stored rotated: as the reference's, but for a step of some codes, since float32 rotates them."""
    want = rows.encode_values(v, s.value_bits, s.value_bytes, s.row_format)
    u, scale, minimum = rows.value_fields(got, s.D, s.value_bits, s.row_format)
    u_wanted, scale_wanted, minimum_wanted = rows.value_fields(want, s.D, s.value_bits, s.row_format)
    off = np.abs(minimum + u * scale - minimum_wanted - u_wanted * scale_wanted)
    assert (off <= 1.01 * scale + 1e-3 * np.abs(minimum)).all() and (u != u_wanted).mean() < 0.01, "rotated values"


def check_value_rows(s, got, v):
    """Value rows uint8 `[...,bytes]` of values v."""
    if s.row_format != 1 and s.value_bits < 16:
        return check_rotated_values(s, got, v)
    if s.value_bits == 16:
        assert (got == rows.encode_values(v, 16, s.value_bytes)).all(), "float16 value rows differ"
        return
    u, scale, minimum = rows.value_fields(got, s.D, s.value_bits)
    groups, top = (1 if s.value_bits == 8 else s.D // 32), 2**s.value_bits - 1
    grouped = v.reshape(*v.shape[:-1], groups, s.D // groups)
    low, high = (np.repeat(f(-1), s.D // groups, -1) for f in (grouped.min, grouped.max))
    between(minimum, low, 0, "value minimum")
    between(scale, (high - low) / top, EPS * (np.abs(high) + np.abs(low)) / top, "value scale")
    check_quantised(u, v, 0, minimum, scale, top, np.ones(u.shape, bool), "value u")
    used = 4 * groups + s.D * s.value_bits // 8
    assert (got[..., used:] == 0).all(), "padding of a value row is not zero"


def check_prune(s, feeds, out, shared=False):
    """All outputs of SparkPrune, a dictionary by output name; with `shared` the bytes outside the new tokens' rows are
    those of the past, else past rows are copied and rows of no token zero."""
    want = reference.prune(s, feeds)
    sp, c = want.spans, channel_scale(s, feeds)
    untouched = {n: reference.cache_rows(feeds, n).copy() for n in ("past_key", "past_value")} if shared else {}
    if shared and s.tail_window:
        check_tail(s, out, want, untouched)
    for name, width in (("present_key", s.key_bytes), ("present_value", s.value_bytes)):
        got = as_rows(out[name], width)
        assert got.shape == getattr(want, name).shape, f"{name} has shape {got.shape}"
        before = untouched["past" + name[7:]] if shared else getattr(want, name)
        for b, (past, new) in enumerate(zip(sp.past, sp.new)):
            assert (got[b, :, :past] == before[b, :, :past]).all(), f"{name}: past rows of sequence {b} changed"
            assert (got[b, :, past + new :] == before[b, :, past + new :]).all(), (
                f"{name}: rows of no token, sequence {b}"
            )
            fresh = got[b, :, past : past + new]
            if name == "present_value":
                check_value_rows(s, fresh, want.values[b, :, :new])
            else:
                check_key_rows(s, fresh, want.keys[b, :, :new], want.saliency[b][:, None], c)
    if "present_key_recent" in out:
        got = out["present_key_recent"].astype(np.float64)
        assert got.shape == want.present_key_recent.shape, f"present_key_recent has shape {got.shape}"
        slack = rotation_error(s, want.present_key_recent)
        if out["present_key_recent"].dtype == np.float16:
            slack = slack + np.abs(want.present_key_recent) * 2.0**-11 * 1.01 + 2.0**-25
        assert (np.abs(got - want.present_key_recent) <= slack).all(), "present_key_recent"
    if "observed_saliency" in out:
        got = out["observed_saliency"]
        assert got.shape == want.observed_saliency.shape and got.dtype == np.float32
        limit = 1e-5 * want.observed_saliency + 1e-6 * want.observed_saliency.max(initial=0)
        assert (np.abs(got - want.observed_saliency) <= limit).all(), "observed_saliency"
    return want


def check_tail(s, out, want, before):
    """The slots of the last new tokens hold their keys; copies what they hold to `before`, the caches of the call."""
    sp = want.spans
    after = {
        n: as_rows(out["present" + n[4:]], bytes_)
        for n, bytes_ in (("past_key", s.key_bytes), ("past_value", s.value_bytes))
    }
    error = rotation_error(s, want.keys)
    for b, (past, new) in enumerate(zip(sp.past, sp.new)):
        for position, place in tail.expected_slots(s, sp.S, past, new).items():
            for h in range(s.Hk):
                raw = tail.slot_bytes(s, after, b, h, place)
                key, delta = want.keys[b, h, position - past], error[b, h, position - past]
                got = np.ascontiguousarray(raw).view("<f2").astype(np.float64)
                least = (got == tail.LEAST) & (key > -delta) & (key < tail.LEAST)
                between(got[~least], key[~least], delta[~least], "dense keys of the tail")
                tail.slot_bytes(s, before, b, h, place)[...] = raw


def exact_rows(s, feeds, out):
    """Share of the new tokens' key and value rows whose bytes equal the reference's."""
    want = reference.prune(s, feeds)
    equal = []
    for name, width in (("present_key", s.key_bytes), ("present_value", s.value_bytes)):
        same = (as_rows(out[name], width) == getattr(want, name)).all(-1)
        for b, (past, new) in enumerate(zip(want.spans.past, want.spans.new)):
            equal.append(same[b, :, past : past + new].reshape(-1))
    return np.concatenate(equal).mean()


def as_rows(cache, row_bytes):
    """A present tensor of any container as uint8 `[B,Hk,S,row bytes]`."""
    raw = np.ascontiguousarray(cache).view(np.uint8)
    assert raw.shape[-1] == row_bytes, f"rows have {raw.shape[-1]} bytes instead of {row_bytes}"
    return raw


def check_attention(s, feeds, output, want=None):
    """SparkAttention's output against the reference on the same feeds, whose rows may be the operator's own.

    Float32 scores of size m carry an error of about m * 2^-24 * sqrt(D), hence 1e-5 of the greatest output; float16
    outputs are rounded to 2^-11 of themselves, and 2e-3 allows for inputs of several hundred tokens. Values of row
    format 2 are added up rotated and rotated back, sums of D numbers more: 3e-5. But by `scalar` and `portable`,
    quantised rows are read in int16, about a hundred times as fine as their codes: 1e-2; with AVX-512 VNNI, values of 4
    bits are weighed in bytes, which loses up to a quarter of what their codes have lost: 3e-2. Keys in planes beside
    float16 values lose but what queries in int16 do: 5e-4; with VNNI, queries that meet directions of 2 bits are int8:
    2e-2.
    """
    want = reference.attend(s, feeds) if want is None else want
    assert output.shape == want.shape and output.dtype == feeds["query"].dtype
    vnni = PATH in ("", "vnni")
    whole = PATH not in ("scalar", "portable") and min(s.key_bits, s.value_bits) < 16
    twos = s.row_format == 3 and s.kept > sum(s.planes)
    in_int8 = 2e-2 if twos and vnni and models.DEVICE == "cpu" else 0
    exact = 1e-5 if s.row_format == 1 else 3e-5
    if s.row_format == 3 and PATH not in ("scalar", "portable"):
        exact = max(5e-4, in_int8)
    if whole:
        tolerance = in_int8 + 3e-2 if vnni and s.value_bits == 4 else max(1e-2, in_int8)
    else:
        tolerance = max(2e-3, exact) if output.dtype == np.float16 else exact
    close(output, want, tolerance)
    return want


def close(got, want, tolerance):
    """Greatest difference at most `tolerance` of the greatest magnitude wanted, which is not zero."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    scale = np.abs(want).max(initial=0)
    assert scale > 0, "nothing to compare with"
    worst = np.abs(got - want).max()
    assert worst <= tolerance * scale, f"differs by {worst:.3g} at magnitude {scale:.3g}"

"""Row formats (docs/format.md) in NumPy, written from the document alone.

Everything works on arrays of rows: keys and values are float64 `[..., D]`, rows uint8 `[..., row bytes]`, masks bool
`[..., D]`, and the channel scale `c` anything that broadcasts to `[..., D]`.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

F16_MAX = 65504.0


def finite(x):
    """Float64 of x with NaN as 0 and everything beyond the float16 range as its nearest end."""
    x = np.asarray(x, np.float64)
    return np.clip(np.where(np.isnan(x), 0.0, x), -F16_MAX, F16_MAX)


def to_f16(x):
    """float16 nearest to x, never NaN or infinite."""
    return finite(x).astype(np.float16)


def padded(n):
    return (n + 3) // 4 * 4


def key_row_bytes(D, kept, bits, planes=None):
    """Bytes of a key row without extra padding; `planes` are the directions of 8 and of 4 bits in format 3."""
    if planes is not None:
        eight, four = planes
        return padded(2 + eight + (four + 1) // 2 + (kept - eight - four + 3) // 4)
    fields = {16: 2 + 2 * kept, 8: 4 + kept, 4: 4 + (kept + 1) // 2}[bits]
    return padded(D // 8 * 2 + 2 + fields)


def value_groups(D, bits, row_format=1):
    """Groups of channels that have a scale and a minimum."""
    return D // 32 if bits == 4 and row_format == 1 else 1


def value_row_bytes(D, bits, row_format=1):
    """Bytes of a value row without extra padding."""
    return padded(2 * D if bits == 16 else 4 * value_groups(D, bits, row_format) + D * bits // 8)


# What the codes of 4-bit keys of format 2 stand for.
CODEBOOK = np.array([0, 4, 12, 23, 35, 49, 65, 81, 99, 119, 139, 160, 182, 206, 230, 255])
_SIGNS = bytes.fromhex("243f6a8885a308d313198a2e03707344a4093822299f31d0082efa98ec4e6c89")


def rotation(D):
    """R of format 2, `[D, D]`."""
    matrix, first = np.zeros((D, D)), 0
    signs = np.where(np.unpackbits(np.frombuffer(_SIGNS, np.uint8), bitorder="little"), -1.0, 1.0)
    while first < D:
        n = 1 << (D - first).bit_length() - 1
        shared = np.array([[(i & j).bit_count() for j in range(n)] for i in range(n)])
        matrix[first : first + n, first : first + n] = np.where(shared % 2, -1, 1) * signs[first : first + n] / n**0.5
        first += n
    return matrix


def bytes_of(f16):
    """float16 `[..., n]` as uint8 `[..., 2n]`, little-endian."""
    return np.ascontiguousarray(f16.astype("<f2")).view(np.uint8)


def _f16_of(raw):
    """uint8 `[..., 2n]` as float64 `[..., n]`, every bit pattern finite."""
    return finite(np.ascontiguousarray(raw).view("<f2").astype(np.float64))


def bits_of(mask):
    """bool `[..., n]` as its little-endian bit string."""
    return np.packbits(mask, axis=-1, bitorder="little")


def _mask_of(raw):
    return np.unpackbits(np.ascontiguousarray(raw), axis=-1, bitorder="little").astype(bool)


def nibbles(u):
    """uint8 `[..., n]` of values below 16 as `[..., ceil(n/2)]`, the low nibble first."""
    if u.shape[-1] % 2:
        u = np.concatenate([u, np.zeros_like(u[..., :1])], -1)
    return u[..., 0::2] | u[..., 1::2] << 4


def _from_nibbles(raw, n):
    return np.stack([raw & 15, raw >> 4], -1).reshape(*raw.shape[:-1], 2 * raw.shape[-1])[..., :n]


def _quantise(x, low, step, top):
    """u = rint((x - low)/step) clamped to 0..top; 0 where the stored step is 0."""
    safe = np.where(step == 0, 1.0, step)
    return np.where(step == 0, 0.0, np.clip(np.rint((x - low) / safe), 0, top)).astype(np.uint8)


def padded_row(parts, row_bytes):
    """The parts one after the other, then zeros up to row_bytes."""
    row = np.concatenate(parts, -1)
    fill = row_bytes - row.shape[-1]
    assert fill >= 0, "row_bytes smaller than the fields"
    return np.concatenate([row, np.zeros((*row.shape[:-1], fill), np.uint8)], -1)


def slots_of(keep, kept):
    """Channel numbers `[..., kept]` of the set bits, ascending; every row of `keep` has exactly `kept` of them."""
    assert (keep.sum(-1) == kept).all()
    return np.argsort(~keep, axis=-1, kind="stable")[..., :kept]


def encode_keys(keys, keep, kept, c, bits, recovery, row_bytes, row_format=1):
    """Key rows of `keys [..., D]` that keep the `kept` channels of `keep [..., D]`."""
    keys = finite(keys)
    c = np.broadcast_to(c, keys.shape)
    slots = slots_of(keep, kept)
    pruned = keys.shape[-1] - kept
    a = np.zeros(keys.shape[:-1] + (1,))
    if pruned and recovery != "none":
        a = np.sqrt(np.where(keep, 0.0, (keys / c) ** 2).sum(-1, keepdims=True) / pruned)
    negative = keys <= 0
    if bits == 16:
        negative = negative & ~keep
        tail = [np.zeros(keys.shape[:-1] + (2,), np.uint8), bytes_of(to_f16(np.take_along_axis(keys, slots, -1)))]
    else:
        companded = bits == 4 and row_format == 2
        top = 255 if companded else 2**bits - 1
        size = np.take_along_axis(np.abs(keys) / c, slots, -1)
        least, greatest = size.min(-1, keepdims=True), size.max(-1, keepdims=True)
        m, step = to_f16(least), to_f16((greatest - least) / top)
        if companded:
            safe = np.where(step == 0, np.inf, step.astype(np.float64))
            u = np.abs(((size - m.astype(np.float64)) / safe)[..., None] - CODEBOOK).argmin(-1).astype(np.uint8)
        else:
            u = _quantise(size, m.astype(np.float64), step.astype(np.float64), top)
        tail = [bytes_of(m), bytes_of(step), u if bits == 8 else nibbles(u)]
    return padded_row([bits_of(keep), bits_of(negative), bytes_of(to_f16(a)), *tail], row_bytes)


@dataclass
class KeyFields:
    """Fields of key rows: booleans `[..., D]`, float64 `[..., 1]`, and float64 `kept [..., D]` in channel order.

    `keep` is the mask as it reads (its first T_k set bits), `raw_mask` as it is stored. With key_bits 16 `kept` holds
    the stored float16, otherwise u; it is 0 where `keep` is not set.
    """

    keep: np.ndarray
    raw_mask: np.ndarray
    negative: np.ndarray
    a: np.ndarray
    m: np.ndarray
    step: np.ndarray
    kept: np.ndarray


def key_fields(rows, D, kept, bits, row_format=1):
    """Parses key rows of any bytes; companded codes as what they stand for."""
    rows = np.asarray(rows, np.uint8)
    n = D // 8
    raw_mask = _mask_of(rows[..., :n])
    order = np.cumsum(raw_mask, -1) - 1
    keep = raw_mask & (order < kept)
    negative = _mask_of(rows[..., n : 2 * n])
    at = 2 * n
    a = _f16_of(rows[..., at : at + 2])
    m = step = np.zeros_like(a)
    if bits == 16:
        slots = _f16_of(rows[..., at + 4 : at + 4 + 2 * kept])
    else:
        m, step = _f16_of(rows[..., at + 2 : at + 4]), _f16_of(rows[..., at + 4 : at + 6])
        raw = rows[..., at + 6 : at + 6 + (kept if bits == 8 else (kept + 1) // 2)]
        slots = (raw if bits == 8 else _from_nibbles(raw, kept)).astype(np.float64)
        if bits == 4 and row_format == 2:
            slots = CODEBOOK[slots.astype(int)].astype(np.float64)
    values = np.take_along_axis(slots, np.clip(order, 0, kept - 1), -1) if rows.size else np.zeros(keep.shape)
    return KeyFields(keep, raw_mask, negative, a, m, step, np.where(keep, values, 0.0))


def decode_keys(rows, D, kept, bits, c, recovery, row_format=1):
    """Recovered keys `[..., positions, D]` in float64, from position 0 on; `recovery` "none" reads pruned channels as
    zero whatever the row says."""
    f = key_fields(rows, D, kept, bits, row_format)
    c = np.broadcast_to(c, f.keep.shape)
    sign = np.where(f.negative, -1.0, 1.0)
    stored = f.kept if bits == 16 else sign * (f.m + f.kept * f.step) * c
    return np.where(f.keep, stored, sign * f.a * c * recovery_factor(recovery, np.asarray(rows).shape[-2], D))


RANGES = (4.5, 2.73, 1.51)
LEVELS = (
    np.arange(-127, 128),
    np.array([1, 32, 53, 70, 84, 98, 110, 122, 134, 146, 158, 172, 186, 203, 224, 255]) - 128,
    np.array([1, 90, 166, 255]) - 128,
)
SCALES = (0.55, 0.65, 0.75, 0.85, 0.95, 1.05, 1.15, 1.25, 1.35, 1.45, 1.55, 1.65, 1.75, 1.85, 1.95)


def in_slot(keys):
    """Keys as the tail of a shared buffer has them."""
    f16 = to_f16(keys)
    return np.where((finite(keys) > 0) & (f16 < 2.0**-24), 2.0**-24, f16.astype(np.float64))


def _parts(x, kept, planes):
    """The directions of each plane."""
    first = np.cumsum([0, *planes, kept - sum(planes)])
    return [x[..., a:b] for a, b in zip(first, first[1:])]


def plane_codes(keys, kept, planes, s):
    """Numbers of the levels nearest to keys `[..., D]` with scales `[..., 1]`, by plane."""
    safe = np.where(s == 0, np.inf, s)
    codes = []
    for x, r, levels in zip(_parts(keys, kept, planes), RANGES, LEVELS):
        off = np.abs(127 * x[..., None] / (safe[..., None] * r) - levels)
        codes.append(np.where(s == 0, 0, off.argmin(-1)))
    return codes


def encode_planes(keys, saliency, kept, planes, row_bytes):
    """Key rows of format 3 of `keys [..., D]` in a basis; `saliency` broadcasts to them."""
    keys = in_slot(keys)
    n = np.broadcast_to(saliency, keys.shape)[..., :kept]
    size = np.sqrt((keys[..., :kept] ** 2).mean(-1, keepdims=True))
    tried = [to_f16(factor * size).astype(np.float64) for factor in SCALES]
    errors = []
    for s in tried:
        read = _read_planes(plane_codes(keys, kept, planes, s), s)
        errors.append((n**2 * (keys[..., :kept] - read) ** 2).sum(-1, keepdims=True))
    s = np.take_along_axis(np.stack(tried), np.argmin(errors, 0)[None], 0)[0]
    return planes_row(s, plane_codes(keys, kept, planes, s), row_bytes)


def planes_row(s, codes, row_bytes):
    """Rows of scales `[..., 1]` and the numbers of levels, by plane."""
    eight, four, two = (code.astype(np.uint8) for code in codes)
    # The levels of 8 bits begin with that of code 1.
    eight = np.where(s == 0, 0, eight + 1).astype(np.uint8)
    return padded_row([bytes_of(to_f16(s)), eight, nibbles(four), _quarters(two)], row_bytes)


def _quarters(u):
    """uint8 `[..., n]` of values below 4 as `[..., ceil(n/4)]`, the lowest first."""
    fill = -u.shape[-1] % 4
    u = np.concatenate([u, np.zeros((*u.shape[:-1], fill), np.uint8)], -1)
    return u[..., 0::4] | u[..., 1::4] << 2 | u[..., 2::4] << 4 | u[..., 3::4] << 6


def _read_planes(codes, s):
    levels = [table[code] for table, code in zip(LEVELS, codes)]
    return np.concatenate([s * r * t / 127 for r, t in zip(RANGES, levels)], -1)


def decode_planes(rows, D, kept, planes):
    """Keys `[..., D]` of rows of format 3, whatever their bytes, in float64."""
    rows = np.asarray(rows, np.uint8)
    s = _f16_of(rows[..., :2])
    eight, four = planes
    at = 2 + eight + (four + 1) // 2
    nibble = _from_nibbles(rows[..., 2 + eight : at], four)
    raw = rows[..., at : at + (kept - eight - four + 3) // 4]
    two = np.stack([raw >> shift & 3 for shift in (0, 2, 4, 6)], -1).reshape(*raw.shape[:-1], 4 * raw.shape[-1])
    byte = rows[..., 2 : 2 + eight].astype(np.float64) - 128
    levels = [byte, LEVELS[1][nibble], LEVELS[2][two[..., : kept - eight - four]]]
    read = np.concatenate([s * r * t / 127 for r, t in zip(RANGES, levels)], -1)
    return np.concatenate([read, np.zeros((*read.shape[:-1], D - kept))], -1)


def recovery_factor(recovery, positions, D):
    """What the recovery magnitude is multiplied by, `[positions, D]`."""
    if recovery in ("mean", "none"):
        return np.full((positions, D), float(recovery == "mean"))
    p = (np.arange(64) + 0.5) / 64
    normal = [NormalDist().inv_cdf((1 + x) / 2) for x in p]
    q = -np.log1p(-p) if recovery == "exponential" else np.array(normal)
    table = np.rint(4096 * q / np.sqrt((q**2).mean())) / 4096
    x = (np.arange(positions, dtype=np.uint64)[:, None] * 256 + np.arange(D, dtype=np.uint64)) % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) % 2**32
    return table[(x ^ (x >> np.uint64(16))) >> np.uint64(26)]


def encode_values(values, bits, row_bytes, row_format=1):
    """Value rows of `values [..., D]`."""
    values = finite(values)
    if bits == 16:
        return padded_row([bytes_of(to_f16(values))], row_bytes)
    D, top = values.shape[-1], 2**bits - 1
    if row_format != 1:
        values = values @ rotation(D).T
    groups = value_groups(D, bits, row_format)
    grouped = values.reshape(*values.shape[:-1], groups, D // groups)
    low, high = grouped.min(-1, keepdims=True), grouped.max(-1, keepdims=True)
    pair = to_f16(np.concatenate([(high - low) / top, low], -1))
    scale, minimum = (pair[..., i : i + 1].astype(np.float64) for i in (0, 1))
    u = _quantise(grouped, minimum, scale, top).reshape(values.shape)
    heads = bytes_of(pair.reshape(*values.shape[:-1], 2 * groups))
    return padded_row([heads, u if bits == 8 else nibbles(u)], row_bytes)


def value_fields(rows, D, bits, row_format=1):
    """(u or float16, scale, minimum) of value rows, each float64 `[..., D]`; scale 1 and minimum 0 for bits 16."""
    rows = np.asarray(rows, np.uint8)
    if bits == 16:
        v = _f16_of(rows[..., : 2 * D])
        return v, np.ones_like(v), np.zeros_like(v)
    groups = value_groups(D, bits, row_format)
    pair = _f16_of(rows[..., : 4 * groups]).reshape(*rows.shape[:-1], groups, 2)
    scale, minimum = (np.repeat(pair[..., i], D // groups, -1) for i in (0, 1))
    raw = rows[..., 4 * groups : 4 * groups + (D if bits == 8 else D // 2)]
    return (raw if bits == 8 else _from_nibbles(raw, D)).astype(np.float64), scale, minimum


def decode_values(rows, D, bits, row_format=1):
    """Values `[..., D]` in float64."""
    u, scale, minimum = value_fields(rows, D, bits, row_format)
    values = minimum + u * scale
    return values @ rotation(D) if row_format != 1 and bits < 16 else values

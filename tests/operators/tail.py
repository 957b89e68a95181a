"""Recent keys in the tail of a shared buffer, in NumPy, written from docs/format.md alone."""

import numpy as np

from . import rows

LEAST = 2.0**-24


def kept(s, free):
    """Keys that are kept where `free` rows are."""
    n, fitting = s.tail_window, free * s.key_bytes // (2 * s.D) + free * s.value_bytes // (2 * s.D)
    while n > fitting:
        n //= 2
    return n


def places(s, P):
    """(buffer, first byte) of each slot by its number, in buffers of P rows of one (sequence, KV head)."""
    found, slot = {}, 2 * s.D
    for buffer, mine, other in (("past_key", s.key_bytes, s.value_bytes), ("past_value", s.value_bytes, s.key_bytes)):
        for n in range(P * mine // slot):
            # Slots of the other buffer that need fewer free rows; a slot of the key buffer goes before its equal.
            before = -(-(n + 1) * other // mine) - 1 if buffer == "past_key" else (n + 1) * other // mine
            found[n + before] = (buffer, P * mine - (n + 1) * slot)
    assert sorted(found)[: len(found) // 2] == list(range(len(found) // 2)), "numbers without gaps"
    return found


def slot_bytes(s, caches, b, h, place):
    """View of the 2 D bytes of a slot; caches maps past_key and past_value to uint8 `[B,Hk,P,bytes]`."""
    buffer, first = place
    return caches[buffer][b, h].reshape(-1)[first : first + 2 * s.D]


def candidates(s, position, free):
    """Numbers of the slots that the key at `position` may be read from, the first one first."""
    now, before = kept(s, free), s.tail_window
    if now == 0:
        return []
    while before // 2 > now:
        before //= 2
    return [position % now] + ([position % before] if before > now else [])


def is_key_of(s, dense, row):
    """Whether the dense key float64 `[D]` is that of a key row."""
    if s.row_format == 3:
        return is_in_planes(s, rows.finite(dense), row)
    f = rows.key_fields(row, s.D, s.kept, s.key_bits)
    # As it is read: NaN is 0.
    dense = rows.finite(dense)
    negative = dense <= 0
    if s.key_bits != 16:
        return (negative == f.negative).all()
    same = (f.kept == dense) | (f.kept == 0) & (dense == LEAST)
    return np.where(f.keep, same, f.raw_mask | (negative == f.negative)).all()


def is_in_planes(s, dense, row):
    """The same of format 3, but for padding: whether the key has the row's codes."""
    scale = row[:2].view("<f2").astype(np.float64)
    if scale == 0:
        return (dense[: s.kept] == 0).all()
    codes = rows.plane_codes(dense, s.kept, s.planes, scale)
    nearest = rows.decode_planes(rows.planes_row(scale, codes, s.key_bytes), s.D, s.kept, s.planes)
    off = [np.abs(x - dense)[: s.kept] for x in (nearest, rows.decode_planes(row, s.D, s.kept, s.planes))]
    # Between two levels float32 may choose the other one.
    return (off[1] <= off[0] + 1e-5 * np.abs(scale)).all()


def recent(s, caches, b, h, past):
    """Dense keys by position that the tail of a (sequence, KV head) holds beside `past` rows."""
    P = caches["past_key"].shape[2]
    free, found, where = P - past, {}, places(s, P)
    for position in range(max(0, past - kept(s, free)), past):
        for number in candidates(s, position, free):
            buffer, first = where[number]
            if first < past * (s.key_bytes if buffer == "past_key" else s.value_bytes):
                continue
            raw = np.ascontiguousarray(slot_bytes(s, caches, b, h, where[number])).view("<f2").astype(np.float64)
            if is_key_of(s, raw, caches["past_key"][b, h, position]):
                found[position] = rows.finite(raw)
                break
    return found


def expected_slots(s, P, past, new):
    """{position: place} of the new tokens' keys that a call writes, of one sequence."""
    free, where = P - past - new, places(s, P)
    n = min(kept(s, free), new)
    return {position: where[position % kept(s, free)] for position in range(past + new - n, past + new)}

"""Float64 reference of both operators, written from docs/operators.md alone, for clarity and not for speed.

`prune` and `attend` take the same dictionary of NumPy arrays that is fed to the operators, keyed by input name; an
input that is missing, None or without elements is absent. Inside, queries, keys and values are float64 `[B,H,L,D]`,
rows uint8.
"""

from dataclasses import dataclass

import numpy as np

from . import rows, tail
from .rows import finite


@dataclass(frozen=True)
class Settings:
    """Sizes and attributes of one layer; 0 in `key_row_bytes`, `value_row_bytes` and `scale` as in the attributes."""

    Hq: int
    Hk: int
    D: int
    kept: int
    key_bits: int = 16
    value_bits: int = 16
    key_row_bytes: int = 0
    value_row_bytes: int = 0
    recovery: str = "mean"
    recent_window: int = 0
    tail_window: int = 0
    do_rotary: int = 0
    rotary_interleaved: int = 0
    observation_window: int = 32
    observation_scale: float = 0.0
    scale: float = 0.0
    softcap: float = 0.0
    local_window_size: int = -1
    causal: int = 1
    row_format: int = 1
    # Directions of 8 and of 4 bits in row format 3.
    planes: tuple | None = None

    @property
    def key_bytes(self):
        return self.key_row_bytes or rows.key_row_bytes(self.D, self.kept, self.key_bits, self.planes)

    @property
    def value_bytes(self):
        return self.value_row_bytes or rows.value_row_bytes(self.D, self.value_bits, self.row_format)


@dataclass
class Spans:
    """Lengths of a call: `past` and `new` int `[B]` are the valid tokens of each sequence."""

    past: np.ndarray
    new: np.ndarray
    total: int
    S: int


def given(feeds, name):
    """The array fed to input `name`, or None when it is absent."""
    x = feeds.get(name)
    return None if x is None or x.size == 0 else x


def to_heads(x, H):
    """`[B,L,H*D]` or `[B,H,L,D]` as `[B,H,L,D]`."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], H, x.shape[2] // H).transpose(0, 2, 1, 3)


def like_query(out, query):
    """`[B,Hq,L,D]` in the layout of the query."""
    return (
        out
        if query.ndim == 4
        else out.transpose(0, 2, 1, 3).reshape(out.shape[0], out.shape[2], out.shape[1] * out.shape[3])
    )


def spans(s, feeds):
    """Lengths by the section of that name; the caller passes only what it allows."""
    query = feeds["query"]
    B, L = query.shape[0], query.shape[1] if query.ndim == 3 else query.shape[2]
    P = feeds["past_key"].shape[2]
    seqlens, total = given(feeds, "seqlens_k"), given(feeds, "total_sequence_length")
    if seqlens is None:
        assert total is None or int(total.reshape(-1)[0]) == P + L
        past, new, total = np.full(B, P), np.full(B, L), P + L
    else:
        length = seqlens.reshape(-1).astype(np.int64) + 1
        total = int(total.reshape(-1)[0]) if total is not None else max(L, int(length.max()))
        past, new = (np.zeros(B, int), length) if total == L else (length - L, np.full(B, L))
    return Spans(past, new, total, max(P, total))


def _rotate(s, feeds, sp, x):
    """x `[B,H,L,D]` rotated at the positions of its valid tokens; padding stays as it is."""
    if not s.do_rotary:
        return x
    cos, sin = (feeds[n].astype(np.float64) for n in ("cos_cache", "sin_cache"))
    ids, half, out = given(feeds, "position_ids"), s.D // 2, x.copy()
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if s.rotary_interleaved else (slice(0, half), slice(half, None))
    )
    for b, n in enumerate(sp.new):
        at = ids[b, :n] if ids is not None else sp.past[b] + np.arange(n)
        p, q = x[b, :, :n, first], x[b, :, :n, second]
        out[b, :, :n, first] = p * cos[at] - q * sin[at]
        out[b, :, :n, second] = q * cos[at] + p * sin[at]
    return out


def tokens(s, feeds, sp):
    """Rotated query, rotated key and value of the call, float64 `[B,H,L,D]`; key and query in a given basis."""
    query, key, value = feeds["query"], given(feeds, "key"), given(feeds, "value")
    if key is None and query.ndim == 3 and query.shape[2] == (s.Hq + 2 * s.Hk) * s.D:
        query, key, value = np.split(query, [s.Hq * s.D, (s.Hq + s.Hk) * s.D], 2)
    elif key is None:
        key, value = feeds["key"], feeds["value"]
    q, k, v = (finite(to_heads(x, H)) for x, H in ((query, s.Hq), (key, s.Hk), (value, s.Hk)))
    q, k = finite(_rotate(s, feeds, sp, q)), finite(_rotate(s, feeds, sp, k))
    if s.row_format == 3:
        k = in_basis(feeds, "key_basis", k)
        q = in_basis(feeds, "query_basis", q)
    return q, k, v


def in_basis(feeds, name, x):
    """x `[B,H,L,D]` times the matrix of its KV head, if there is one."""
    matrices = given(feeds, name)
    if matrices is None:
        return x
    group = x.shape[1] // matrices.shape[0]
    return finite(np.einsum("bhli,hij->bhlj", x, np.repeat(matrices.astype(np.float64), group, 0)))


def model_saliency(s, feeds):
    """query_saliency float64 `[Hk,D]`, ones when absent."""
    n = given(feeds, "query_saliency")
    return np.ones((s.Hk, s.D)) if n is None else n.astype(np.float64)


def channel_scale(s, feeds):
    """c of the method, `[Hk,1,D]`."""
    return 1 / np.sqrt(model_saliency(s, feeds))[:, None]


def observed(s, sp, q):
    """n of the call `[B,Hk,D]` from the rotated query `[B,Hq,L,D]`."""
    n = np.zeros((q.shape[0], s.Hk, s.D))
    qbar = q.reshape(q.shape[0], s.Hk, s.Hq // s.Hk, *q.shape[2:]).mean(2)
    for b, valid in enumerate(sp.new):
        w = qbar[b, :, max(0, valid - s.observation_window) : valid]
        n[b] = np.sqrt((w**2).sum(1))
    return n


def saliency(s, feeds, sp, n):
    """Saliency `[B,Hk,D]` that prunes each sequence, given the observed one."""
    return np.where((sp.new < 8)[:, None, None], model_saliency(s, feeds)[None], n)


def select(keys, n, kept):
    """Mask `[...,D]` of the `kept` channels of highest score keys^2 * n; of equal scores the lower channel."""
    order = np.argsort(-(keys**2) * n, axis=-1, kind="stable")
    mask = np.zeros(keys.shape, bool)
    np.put_along_axis(mask, order[..., :kept], True, -1)
    return mask


def cache_rows(feeds, name):
    """Rows uint8 `[B,Hk,P,bytes]` of a cache input of any container type."""
    x = np.ascontiguousarray(feeds[name])
    return x.view(np.uint8) if x.shape[2] else np.zeros((*x.shape[:3], 0), np.uint8)


def dense_recent(s, feeds, sp):
    """(past_key_recent in float64 or None, n_b `[B]`)."""
    recent = given(feeds, "past_key_recent")
    return (None if recent is None else finite(recent)), np.minimum(sp.past, s.recent_window)


@dataclass
class Pruned:
    """Outputs of SparkPrune, rows as uint8 and the rest float64, and what they were made from: rotated `keys` and
    `values [B,Hk,L,D]`, and the `saliency [B,Hk,D]` that chose the channels."""

    present_key: np.ndarray
    present_value: np.ndarray
    present_key_recent: np.ndarray
    observed_saliency: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    saliency: np.ndarray
    spans: Spans


def prune(s, feeds):
    """SparkPrune on a growing cache."""
    sp = spans(s, feeds)
    q, k, v = tokens(s, {**feeds, "query_basis": None}, sp)
    B = q.shape[0]
    n_observed = observed(s, sp, q)
    n = saliency(s, feeds, sp, n_observed)
    new_key = encode_keys(s, feeds, k, n[:, :, None])
    new_value = rows.encode_values(v, s.value_bits, s.value_bytes, s.row_format)
    past_key, past_value = cache_rows(feeds, "past_key"), cache_rows(feeds, "past_value")
    present_key = np.zeros((B, s.Hk, sp.S, s.key_bytes), np.uint8)
    present_value = np.zeros((B, s.Hk, sp.S, s.value_bytes), np.uint8)
    past_recent, n_past = dense_recent(s, feeds, sp)
    recent = np.zeros((B, s.Hk, min(sp.total, s.recent_window), s.D))
    for b, (past, new) in enumerate(zip(sp.past, sp.new)):
        for present, old, fresh in ((present_key, past_key, new_key), (present_value, past_value, new_value)):
            if past:
                present[b, :, :past] = old[b, :, :past]
            present[b, :, past : past + new] = fresh[b, :, :new]
        dense = k[b, :, :new]
        if past_recent is not None:
            dense = np.concatenate([past_recent[b, :, : n_past[b]], dense], 1)
        # Without past_key_recent the past keys are unknown; only a call without output 2 may leave them out.
        last = min(past + new, s.recent_window, dense.shape[1])
        recent[b, :, :last] = dense[:, dense.shape[1] - last :]
    return Pruned(present_key, present_value, recent, n_observed, k, v, n, sp)


def encode_keys(s, feeds, k, n):
    """Key rows of `k [B,Hk,L,D]`, in the basis if there is one; `n` is what chooses channels."""
    if s.row_format == 3:
        return rows.encode_planes(k, model_saliency(s, feeds)[:, None], s.kept, s.planes, s.key_bytes)
    mask, c = select(k, n, s.kept), channel_scale(s, feeds)
    return rows.encode_keys(k, mask, s.kept, c, s.key_bits, s.recovery, s.key_bytes, s.row_format)


def _softmax_of(scores):
    """Softmax over the last axis; rows that are all minus infinity give zeros."""
    top = scores.max(-1, keepdims=True)
    weight = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = weight.sum(-1, keepdims=True)
    return weight / np.where(total == 0, 1.0, total)


def attend(s, feeds):
    """SparkAttention in the layout of the query, float64; reads the rows that `feeds` holds."""
    sp = spans(s, feeds)
    q, k, v = tokens(s, feeds, sp)
    past_key, past_value = cache_rows(feeds, "past_key"), cache_rows(feeds, "past_value")
    recent, n_past = dense_recent(s, feeds, sp)
    c = channel_scale(s, feeds)
    bias = given(feeds, "attention_bias")
    scale = s.scale or 1 / np.sqrt(s.D)
    B, _, L, _ = q.shape
    out = np.zeros((B, s.Hq, L, s.D))
    for b, (past, new) in enumerate(zip(sp.past, sp.new)):
        keys, values = k[b, :, :new], v[b, :, :new]
        if past:
            raw = past_key[b, :, :past]
            if s.row_format == 3:
                old = rows.decode_planes(raw, s.D, s.kept, s.planes)
            else:
                old = rows.decode_keys(raw, s.D, s.kept, s.key_bits, c, s.recovery, s.row_format)
            if recent is not None and n_past[b]:
                old[:, past - n_past[b] :] = recent[b, :, : n_past[b]]
            elif recent is None and s.tail_window:
                caches = {"past_key": past_key, "past_value": past_value}
                for h in range(s.Hk):
                    for position, key in tail.recent(s, caches, b, h, past).items():
                        old[h, position] = key
            keys = np.concatenate([old, keys], 1)
            old = rows.decode_values(past_value[b, :, :past], s.D, s.value_bits, s.row_format)
            values = np.concatenate([old, values], 1)
        keys, values = (np.repeat(x, s.Hq // s.Hk, 0) for x in (keys, values))
        if new == 0:
            continue
        scores = np.einsum("hid,htd->hit", q[b, :, :new], keys) * scale
        if s.softcap > 0:
            scores = s.softcap * np.tanh(scores / s.softcap)
        if bias is not None:
            add = bias[b % bias.shape[0], :, :new, : past + new].astype(np.float64)
            scores = scores + np.where(np.isnan(add), -np.inf, add)
        at, t = (past + np.arange(new))[:, None], np.arange(past + new)[None]
        hidden = (t > at) if s.causal else np.zeros((new, past + new), bool)
        if s.local_window_size > 0:
            hidden |= t <= at - s.local_window_size
        out[b, :, :new] = np.einsum("hit,htd->hid", _softmax_of(np.where(hidden, -np.inf, scores)), values)
    return like_query(out, feeds["query"])

"""Random calls of the operators: dictionaries of feeds by input name, from a seeded generator."""

import numpy as np

from . import rows
from .models import DTYPES
from .reference import Settings, encode_keys, spans

PAST = ("past_key", "past_value")


def channel_spread(rng, H, D, sigma=0.8):
    """Log-normal channel scales `[H,1,D]`: uniform channels would make every selection nearly a tie."""
    return np.exp(rng.normal(size=(H, 1, D)) * sigma)


def rotary_tables(s, dtype, length=512, base=10000.0):
    """cos_cache and sin_cache `[length, D/2]`."""
    angle = np.arange(length)[:, None] * base ** (-np.arange(s.D // 2) / (s.D // 2))
    return {"cos_cache": np.cos(angle).astype(dtype), "sin_cache": np.sin(angle).astype(dtype)}


def bases(seed, s):
    """key_basis and query_basis of row format 3, random ones that keep products; none of other formats."""
    if s.row_format != 3:
        return {}
    rng = np.random.default_rng(seed)
    key = np.linalg.qr(rng.normal(size=(s.Hk, s.D, s.D)))[0] * np.exp(rng.normal(size=(s.Hk, 1, s.D)) * 0.5)
    query = np.linalg.inv(key).transpose(0, 2, 1)
    return {"key_basis": key.astype(np.float32), "query_basis": query.astype(np.float32)}


def container(raw, C):
    """Rows uint8 `[B,Hk,P,bytes]` in container type C."""
    return np.ascontiguousarray(raw).view(DTYPES[C])


def random_rows(rng, s, feeds, shape, spread):
    """(key rows, value rows, keys) of random tokens; shape is (B, Hk, P)."""
    keys = rng.normal(size=(*shape, s.D)) * spread
    n = np.exp(rng.normal(size=(s.Hk, 1, s.D)) * 0.5)
    key_rows = encode_keys(s, feeds, keys, n)
    values = rng.normal(size=keys.shape)
    return key_rows, rows.encode_values(values, s.value_bits, s.value_bytes, s.row_format), keys


def layout(x, rank):
    """`[B,H,L,D]` as it is, or `[B,L,H*D]`."""
    return (
        x
        if rank == 4
        else np.ascontiguousarray(x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3]))
    )


def new_tokens(rng, s, T, B, L, rank=3, packed=False, spread=None):
    """query, key and value feeds of L new tokens; packed leaves only query."""
    dtype = DTYPES[T]
    spread = channel_spread(rng, s.Hk, s.D) if spread is None else spread
    q = (rng.normal(size=(B, s.Hq, L, s.D)) / np.repeat(spread, s.Hq // s.Hk, 0) ** 0.5).astype(dtype)
    k = (rng.normal(size=(B, s.Hk, L, s.D)) * spread).astype(dtype)
    v = rng.normal(size=(B, s.Hk, L, s.D)).astype(dtype)
    if packed:
        return {"query": np.concatenate([layout(x, 3) for x in (q, k, v)], 2)}
    return {"query": layout(q, rank), "key": layout(k, rank), "value": layout(v, rank)}


def lengths(mode, rng, B, L, P, shared=False):
    """seqlens_k and total_sequence_length for one of the ways the document has of giving lengths.

    plain: neither; counted: only the total; prompt: first prompt with right padding; step: past tokens and L new ones;
    alone_prompt, alone_step: the same without total_sequence_length. With `shared` the new tokens fit in P rows.
    """
    if mode == "plain":
        return {}
    if mode == "counted":
        return {"total_sequence_length": np.array(P + L, np.int32)}
    if mode.endswith("prompt"):
        valid = rng.integers(1, L + 1, B)
        valid[rng.integers(B)] = L
        seqlens, total = valid - 1, L
    else:
        past = rng.integers(1, P + 1 - (L if shared else 0), B)
        seqlens, total = past + L - 1, int(past.max()) + L
    out = {"seqlens_k": seqlens.astype(np.int32)}
    if not mode.startswith("alone"):
        out["total_sequence_length"] = np.array([total], np.int32)
    return out


def bias_for(rng, s, T, feeds, B, L, wide_batch=True, wide_heads=True, extra=0):
    """attention_bias with some minus infinities and NaN (both mask), never on a token's own column.

    Columns beyond the largest total length, `extra` of them, hold what would spoil the output if they were read.
    """
    sp = spans(s, feeds)
    shape = (B if wide_batch else 1, s.Hq if wide_heads else 1, L, sp.total + extra)
    bias = rng.normal(size=shape)
    bias[rng.random(shape) < 0.1] = -np.inf
    bias[rng.random(shape) < 0.02] = np.nan
    own = np.arange(shape[3]) == (sp.past[:, None] + np.arange(L))[..., None]
    bias[:, :, own.any(0)] = 0.25
    bias[..., sp.total :] = 1000.0
    return bias.astype(DTYPES[T])


def call(
    seed,
    s: Settings,
    T="f32",
    C="f32",
    B=2,
    L=4,
    P=12,
    mode="plain",
    rank=3,
    packed=False,
    positions=False,
    recent=False,
    saliency=False,
    bias=None,
    garbage=False,
    shared=False,
):
    """One call of both operators over a cache of random rows.

    `recent` wires past_key_recent, `saliency` query_saliency, `bias` is None or the options of bias_for, `garbage`
    spoils what must not be looked at: rows and recent keys of no token, positions and new tokens of padding.
    """
    rng = np.random.default_rng(seed)
    dtype = DTYPES[T]
    feeds, spread = bases(seed, s), channel_spread(rng, s.Hk, s.D)
    if saliency:
        feeds["query_saliency"] = np.exp(rng.normal(size=(s.Hk, s.D)) * 0.7).astype(np.float32)
    key_rows, value_rows, keys = random_rows(rng, s, feeds, (B, s.Hk, P), spread)
    feeds.update(new_tokens(rng, s, T, B, L, rank, packed, spread))
    feeds.update(
        past_key=container(key_rows, C), past_value=container(value_rows, C), **lengths(mode, rng, B, L, P, shared)
    )
    if s.do_rotary:
        feeds.update(rotary_tables(s, dtype))
    sp = spans(s, feeds)
    if positions:
        feeds["position_ids"] = sp.past[:, None] + np.arange(L) + rng.integers(0, 50, (B, 1))
    if recent:
        width = min(P, s.recent_window)
        feeds["past_key_recent"] = np.zeros((B, s.Hk, width, s.D), dtype)
        for b, past in enumerate(sp.past):
            n = min(past, s.recent_window)
            feeds["past_key_recent"][b, :, :n] = keys[b, :, past - n : past]
            if garbage:
                feeds["past_key_recent"][b, :, n:] = np.nan
    if bias is not None:
        feeds["attention_bias"] = bias_for(rng, s, T, feeds, B, L, **bias)
    if garbage:
        for b in range(B):
            for name in PAST:
                unused = feeds[name][b, :, sp.past[b] :]
                unused[...] = rng.integers(
                    0, 256, (*unused.shape[:-1], unused.shape[-1] * unused.itemsize), np.uint8
                ).view(unused.dtype)
            if positions:
                feeds["position_ids"][b, sp.new[b] :] = -(2**40)
            for name in ("query", "key", "value"):
                if name in feeds:
                    x = feeds[name][b]
                    (x if x.ndim == 2 else x.transpose(1, 0, 2))[sp.new[b] :] = np.nan
    return feeds

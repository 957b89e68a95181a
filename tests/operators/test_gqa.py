"""Ratio 0 with 16 bits (kept_channels = D) against ONNX Runtime's own GroupQueryAttention and ONNX Attention.

Keys and values are drawn as float16 numbers, so a cache of float16 rows loses nothing; only keys rotated in float32 are
rounded on their way into the cache. Tolerances are shares of the greatest output: exact float32 up to summation order,
float32 with rotated keys rounded to float16 (2^-11 of a key, smaller in a softmax), float16 outputs.
"""

import dataclasses

import numpy as np
import pytest

from . import cases, models, rows
from .compare import close
from .reference import Settings, channel_scale, like_query, spans, to_heads

EXACT, ROUNDED_KEYS, FLOAT16 = 1e-5, 2e-3, 2e-3


def dense(s, **more):
    """Settings of a cache that prunes nothing."""
    return dataclasses.replace(s, kept=s.D, key_bits=16, value_bits=16, **more)


class Pair:
    """SparK and GroupQueryAttention side by side, each with its own cache, fed the same tokens step by step.

    `capacity` 0 grows the caches from nothing; otherwise present is bound to the memory of past of so many rows.
    """

    def __init__(self, s, T, B, capacity=0, packed=False, rank=3, positions=False, bias=False, seed=0):
        self.s, self.T, self.B, self.capacity, self.packed, self.rank = s, T, B, capacity, packed, rank
        self.positions, self.bias, self.rng = positions, bias, np.random.default_rng(seed)
        self.spread = cases.channel_spread(self.rng, s.Hk, s.D, 0.4)
        self.past = np.zeros(B, int)
        dtype = models.DTYPES[T]
        empty = models.empty_cache(s, B, T, capacity)
        shape = (B, s.Hk, capacity, s.D)
        theirs = {"past_key": np.zeros(shape, dtype), "past_value": np.zeros(shape, dtype)}
        if capacity:
            empty, theirs = ({k: models.as_value(v) for k, v in c.items()} for c in (empty, theirs))
        self.caches = {"ours": empty, "theirs": theirs}
        self.sessions = {}

    def step(self, new, valid=None):
        """One call of `new` tokens, of which the first prompt may hold only `valid [B]`; compares the outputs."""
        s, valid = self.s, np.full(self.B, new) if valid is None else np.asarray(valid)
        first = not self.past.any()
        feeds = cases.new_tokens(self.rng, s, "f16", self.B, new, 3, False, self.spread)
        feeds = {k: v.astype(models.DTYPES[self.T]) for k, v in feeds.items()}
        total = self.past + valid
        feeds["seqlens_k"] = (total - 1).astype(np.int32)
        feeds["total_sequence_length"] = np.array(new if first else total.max(), np.int32)
        if s.do_rotary:
            feeds.update(cases.rotary_tables(s, models.DTYPES[self.T]))
            if self.positions:
                # In a first prompt GroupQueryAttention reads one position for the batch, so only steps shift them.
                shift = 0 if first else 3
                feeds["position_ids"] = self.past[:, None] + np.arange(new) + shift
        if self.bias:
            largest = int(feeds["total_sequence_length"])
            feeds["attention_bias"] = self.rng.normal(size=(1, s.Hq, new, largest)).astype(feeds["query"].dtype)
        mine = dict(feeds)
        if self.packed:
            feeds = dict(feeds, query=np.concatenate([feeds.pop(n) for n in ("query", "key", "value")], 2))
            mine = dict(feeds)
        elif self.rank == 4:
            for name, heads in (("query", s.Hq), ("key", s.Hk), ("value", s.Hk)):
                mine[name] = np.ascontiguousarray(to_heads(feeds[name], heads))
        ours = self.run("ours", mine)
        if self.rank == 4:
            ours = ours.transpose(0, 2, 1, 3).reshape(self.B, new, -1)
        theirs = self.run("theirs", feeds)
        tolerance = FLOAT16 if self.T == "f16" else ROUNDED_KEYS if s.do_rotary and not first else EXACT
        for b, n in enumerate(valid):
            close(ours[b, :n], theirs[b, :n], tolerance)
            assert (ours[b, n:] == 0).all()
        self.past = total
        self.compare_caches()

    def run(self, side, feeds):
        names = tuple(feeds) + ("past_key", "past_value")
        if (side, names) not in self.sessions:
            if side == "ours":
                outputs = ("present_key", "present_value")
                made = models.session(models.spark(self.s, names, self.T, self.T, prune_outputs=outputs))
            else:
                made = models.plain_session(models.gqa(self.s, names, self.T))
            self.sessions[side, names] = made
        sess, cache = self.sessions[side, names], self.caches[side]
        if self.capacity:
            return models.run_shared(sess, feeds, cache)["output"]
        out = models.run(sess, {**feeds, **cache})
        self.caches[side] = {"past_key": out["present_key"], "past_value": out["present_value"]}
        return out["output"]

    def compare_caches(self):
        """Rows decode to GroupQueryAttention's dense cache to float16 rounding, values exactly."""
        s = self.s
        ours, theirs = ({k: models.as_array(v) for k, v in self.caches[side].items()} for side in ("ours", "theirs"))
        key, value = (np.ascontiguousarray(ours[n]).view(np.uint8) for n in ("past_key", "past_value"))
        key = rows.decode_keys(key, s.D, s.D, 16, 1.0, s.recovery)
        value = rows.decode_values(value, s.D, 16)
        assert key.shape == theirs["past_key"].shape
        for b, n in enumerate(self.past):
            assert (value[b, :, :n] == theirs["past_value"][b, :, :n]).all()
            wanted = theirs["past_key"][b, :, :n].astype(np.float64)
            # Both round; a rotated key may cancel to something small, so the slack is not quite relative.
            slack = (2.0**-10 * np.abs(wanted) + 2e-6 * np.abs(wanted).max()) if s.do_rotary else 0
            assert (np.abs(key[b, :, :n] - wanted) <= slack).all()


def random_settings(seed):
    rng = np.random.default_rng([seed, 5])

    def pick(*options):
        return options[rng.integers(len(options))]

    Hk, D = pick(1, 2, 4), pick(32, 48, 64, 96, 128)
    s = Settings(Hk * pick(1, 2, 3, 4), Hk, D, D, do_rotary=pick(0, 1), rotary_interleaved=pick(0, 1))
    return dense(s, softcap=pick(0.0, 0.0, 3.0), local_window_size=pick(-1, -1, 1, 6), scale=pick(0.0, 0.2)), pick


@pytest.mark.parametrize("seed", range(40))
def test_prompt_and_decoding(seed):
    """A right-padded first prompt of unequal lengths, then several decoding steps."""
    s, pick = random_settings(seed)
    B, T = pick(1, 2, 3), pick("f32", "f16")
    rotary = pick(0, 1) if s.D % 16 == 0 else 0
    s = dataclasses.replace(s, do_rotary=rotary)
    packed = pick(True, False)
    pair = Pair(s, T, B, pick(0, 30), packed, 3 if packed else pick(3, 4), pick(True, False), pick(True, False), seed)
    L = pick(1, 5, 12, 20)
    pair.step(L, np.concatenate([[L], np.random.default_rng(seed).integers(1, L + 1, B - 1)]).astype(int))
    for _ in range(5):
        pair.step(1)


@pytest.mark.parametrize("capacity", [0, 64])
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("rotary,interleaved", [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_chunked_prefill(T, capacity, rotary, interleaved, packed):
    """Prompts of several tokens on a filled cache; GroupQueryAttention takes those for a batch of 1 only."""
    s = dense(Settings(6, 2, 64, 64, do_rotary=rotary, rotary_interleaved=interleaved))
    pair = Pair(s, T, 1, capacity, packed, seed=3)
    for L in (9, 7, 1, 20, 2, 1):
        pair.step(L)


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("window", [1, 2, 5, 11, 12, 13, 40])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_window_and_softcap(T, window, softcap):
    s = dense(Settings(4, 2, 32, 32, local_window_size=window, softcap=softcap))
    pair = Pair(s, T, 1, bias=True, seed=4)
    for L in (12, 1, 6, 1):
        pair.step(L)


@pytest.mark.parametrize("T", ["f32", "f16"])
def test_long_context_and_large_heads(T):
    for D, L in ((128, 300), (256, 60)):
        pair = Pair(dense(Settings(4, 1, D, D, do_rotary=1)), T, 1, 320, seed=6)
        for n in (L, 1, 1):
            pair.step(n)


def test_first_prompt_ignores_the_past():
    """With total_sequence_length = L nothing is past, though the cache is full of rows of another sequence."""
    s = dense(Settings(4, 2, 64, 64))
    pair = Pair(s, "f32", 2, 40, seed=7)
    pair.step(10, [10, 4])
    pair.past[:] = 0
    pair.step(12, [5, 12])
    pair.step(1)


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("L,P", [(1, 9), (12, 0), (8, 9)])
def test_rank_4_equals_rank_3_and_packed(L, P, T):
    """Bit for bit: the layouts hold the same numbers, so the same sums."""
    s = Settings(6, 3, 64, 20, key_bits=8, value_bits=8, do_rotary=1)
    outputs = {}
    for form in ("rank3", "rank4", "packed"):
        feeds = cases.call(1, s, T, T, B=2, L=L, P=P, rank=4 if form == "rank4" else 3, packed=form == "packed")
        outputs[form] = models.run(
            models.session(models.spark(s, feeds, T, T, prune_outputs=("present_key", "present_value"))), feeds
        )
    outputs["rank4"]["output"] = like_query(outputs["rank4"]["output"], np.zeros((0, 0, 0)))
    for form in ("rank4", "packed"):
        for name, wanted in outputs["rank3"].items():
            assert np.array_equal(outputs[form][name].view(np.uint8), np.ascontiguousarray(wanted).view(np.uint8)), (
                form,
                name,
            )


def test_mixed_ranks():
    """Key and value may be of another rank than the query."""
    s = Settings(4, 2, 32, 12)
    flat, deep = (cases.call(1, s, B=2, L=5, P=4, rank=r) for r in (3, 4))
    want = models.run(models.session(models.spark(s, flat, prune=False)), flat)["output"]
    for names in (("query",), ("key",), ("value",), ("key", "value"), ("query", "value")):
        feeds = dict(flat, **{n: deep[n] for n in names})
        got = models.run(models.session(models.spark(s, feeds, prune=False)), feeds)["output"]
        assert np.array_equal(got if got.ndim == 3 else like_query(got, flat["query"]), want), names


def onnx_feeds(s, feeds):
    """The same call for ONNX Attention: heads apart, the cache dense and causality left to is_causal."""
    P = feeds["past_key"].shape[2]
    out = {n: to_heads(feeds[n], s.Hq if n == "query" else s.Hk) for n in ("query", "key", "value")}
    if P:
        dtype = feeds["query"].dtype
        key, value = (np.ascontiguousarray(feeds[n]).view(np.uint8) for n in ("past_key", "past_value"))
        out["past_key"] = rows.decode_keys(key, s.D, s.D, 16, channel_scale(s, feeds), "mean").astype(dtype)
        out["past_value"] = rows.decode_values(value, s.D, 16).astype(dtype)
    if "attention_bias" in feeds:
        out["attention_bias"] = feeds["attention_bias"]
    return out


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("wide_batch", [False, True])
@pytest.mark.parametrize("wide_heads", [False, True])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("L,P", [(7, 0), (5, 9), (1, 9)])
def test_onnx_attention(L, P, causal, wide_batch, wide_heads, T):
    """attention_bias of every broadcast shape, causal or not, over no past and over a cache."""
    s = dense(Settings(4, 2, 32, 32, causal=causal))
    feeds = cases.call(11, s, T, "u8", B=3, L=L, P=P, bias=dict(wide_batch=wide_batch, wide_heads=wide_heads))
    feeds["attention_bias"][np.isnan(feeds["attention_bias"])] = -np.inf
    theirs = onnx_feeds(s, feeds)
    if causal and P:
        # ONNX Runtime aligns is_causal with a cache in its own way: say causality by the mask instead.
        hidden = np.arange(P + L) > P + np.arange(L)[:, None]
        theirs["attention_bias"] = np.where(hidden, -np.inf, feeds["attention_bias"]).astype(feeds["query"].dtype)
    plain = dataclasses.replace(s, causal=0 if causal and P else causal)
    want = models.run(models.plain_session(models.onnx_attention(plain, theirs, T)), theirs)["output"]
    got = models.run(models.session(models.spark(s, feeds, T, "u8", prune=False)), feeds)["output"]
    close(got, like_query(want, feeds["query"]), FLOAT16 if T == "f16" else EXACT)
    assert spans(s, feeds).total == P + L

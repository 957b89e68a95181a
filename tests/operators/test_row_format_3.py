"""Row format 3 against docs/format.md: keys in a basis, in planes of 8, 4 and 2 bits."""

import dataclasses

import numpy as np
import pytest

from . import cases, models, reference
from .compare import check_attention, check_prune, close, exact_rows
from .reference import Settings
from .test_attributes import attributes_of, rejected

on_cpu = pytest.mark.skipif(models.DEVICE != "cpu", reason="observed_covariance is found on the CPU only")


def settings(D, kept, planes, **more):
    return Settings(6, 2, D, kept, recovery="none", row_format=3, planes=planes, **{"value_bits": 8, **more})


BASE = settings(64, 40, (6, 20), do_rotary=1)


@pytest.mark.parametrize("L", [1, 24])
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("value_bits", [16, 4])
@pytest.mark.parametrize(
    "D,kept,planes", [(64, 60, (9, 29)), (64, 1, (0, 0)), (96, 40, (0, 40)), (128, 128, (128, 0)), (128, 101, (3, 50))]
)
def test_rows_and_output(D, kept, planes, value_bits, T, L):
    s = settings(D, kept, planes, value_bits=value_bits, do_rotary=1)
    feeds = cases.call(7, s, T, T, B=2, L=L, P=150, mode="step", saliency=True)
    out = models.run(models.session(models.spark(s, feeds, T, T)), feeds)
    # Keys come of float32 sums: some codes sit on a boundary between levels.
    assert exact_rows(s, feeds, out) > 0.6
    check_prune(s, feeds, {n: x for n, x in out.items() if n not in ("output", "present_key_recent")})
    check_attention(s, feeds, out["output"])


def test_recent_keys_are_exact_in_any_basis():
    """Keys that are all recent give what they give without a basis; pruned ones would not."""
    s = settings(64, 20, (2, 4), value_bits=16, do_rotary=1, recent_window=64)
    outputs = []
    plain = Settings(6, 2, 64, 20, do_rotary=1, recent_window=64)
    for layer in (s, dataclasses.replace(s, recent_window=0), plain):
        rng, cache = np.random.default_rng(3), models.empty_cache(layer, 1, "u8")
        recent = {"past_key_recent": np.zeros((1, 2, 0, 64), np.float32)} if layer.recent_window else {}
        constant = {**cases.bases(3, layer), **cases.rotary_tables(layer, np.float32)}
        spread = cases.channel_spread(np.random.default_rng(4), 2, 64)
        found = []
        for L in (30, 1, 5):
            feeds = {**cases.new_tokens(rng, layer, "f32", 1, L, spread=spread), **cache, **recent, **constant}
            if not feeds["past_key"].shape[2]:
                feeds.pop("past_key_recent", None)
            wired = [n for n in models.PRUNE_OUTPUTS if n != "present_key_recent" or layer.recent_window]
            out = models.run(models.session(models.spark(layer, feeds, "f32", "u8", prune_outputs=wired)), feeds)
            cache = {"past_key": out["present_key"], "past_value": out["present_value"]}
            if recent:
                recent = {"past_key_recent": out["present_key_recent"]}
            found.append(out["output"])
        outputs.append(np.concatenate(found, 1))
    close(outputs[0], outputs[2], 2e-3)
    assert np.abs(outputs[1] - outputs[2]).max() > 10 * np.abs(outputs[0] - outputs[2]).max()


def covariance(s, feeds, scale=0.0):
    attributes = {**models.prune_attributes(s), "version": 2, "observation_scale": float(scale)}
    outputs = ["present_key", "present_value", "", "", "observed_covariance"]
    made = models.node("SparkPrune", s, feeds, outputs, attributes)
    names = [n for n in models.PRUNE_INPUTS if n in feeds]
    model = models.graph([made], names, [n for n in made.output if n], "f32", "u8")
    return models.run(models.session(model), feeds)["observed_covariance"]


def key_weights(keys, queries, scale):
    """How keys `[L,D]` count: by what queries `[G,L,D]` at least 64 tokens later give them."""
    scores = np.where(np.tri(len(keys), dtype=bool), queries @ keys.T * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    costs = (p * (1 - p) * np.tri(len(keys), k=-64)).sum((0, 1))
    return 0.3 + 0.7 * costs / costs.mean() if costs.any() else np.ones(len(keys))


@on_cpu
@pytest.mark.parametrize("L,scale", [(20, 0), (64, 0), (65, 0), (150, 0), (150, 0.02)])
@pytest.mark.parametrize("in_basis", [True, False])
def test_observed_covariance(in_basis, L, scale):
    """Of keys and queries that are neither rotated nor in the basis."""
    s = dataclasses.replace(BASE, do_rotary=0) if in_basis else Settings(6, 2, 64, 40, key_bits=8)
    feeds = cases.call(3, s, "f32", "u8", B=2, L=L, P=9, mode="prompt")
    got, sp = covariance(s, feeds, scale), reference.spans(s, feeds)
    q, k, _ = reference.tokens(dataclasses.replace(s, row_format=1), feeds, sp)
    assert got.shape == (2, 2, 2, 64, 64)
    for b, new in enumerate(sp.new):
        for h in range(2):
            keys, queries = k[b, h, :new], q[b, 3 * h : 3 * h + 3, :new]
            weights = key_weights(keys, queries, scale or 1 / 8)
            assert (weights == 1).all() == (new <= 64)
            close(got[b, h, 0], (keys.T * weights) @ keys, 1e-5)
            x = queries.reshape(-1, 64)
            close(got[b, h, 1], x.T @ x, 1e-5)


@on_cpu
def test_observed_covariance_is_spread_over_positions():
    """Rotation keeps the energy of each pair of channels, and at many positions their angle is lost."""
    s = Settings(6, 2, 64, 40, key_bits=8, do_rotary=1)
    feeds = cases.call(3, s, "f32", "u8", B=1, L=200, P=0)
    feeds["key"] = np.ones_like(feeds["key"])
    got = covariance(s, feeds)[0, :, 0]
    pairs = got[:, range(32), range(32)] + got[:, range(32, 64), range(32, 64)]
    close(pairs, np.full((2, 32), 400.0), 1e-5)
    # The fastest pair: 512 positions are many turns.
    assert (np.abs(got[:, 0, 32]) < 20).all() and (np.abs(got[:, 31, 63]) > 190).all()


WRONG = {
    "recovery": dict(recovery="mean"),
    "key_directions_8": dict(key_directions_8=30, key_directions_4=11),
    "kept_channels": dict(kept_channels=65),
    "key_row_bytes": dict(key_row_bytes=16),
    "version": dict(version=1),
}


@pytest.mark.parametrize("op", ["SparkPrune", "SparkAttention"])
@pytest.mark.parametrize("what", WRONG)
def test_attributes_that_cannot_be_are_refused(op, what):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    rejected(op, BASE, feeds, attributes_of(op, BASE, **WRONG[what]), what, "row_format")


@pytest.mark.parametrize("op", ["SparkPrune", "SparkAttention"])
def test_planes_of_other_formats_are_refused(op):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=0)
    attributes = attributes_of(op, BASE, row_format=2)
    rejected(op, BASE, feeds, attributes, "key_directions_8): belongs to row_format 3", "belongs to row_format 3")
    for name in ("key_directions_8", "key_directions_4"):
        attributes.pop(name)
    rejected(op, BASE, feeds, attributes, "(key_basis): belongs to row_format 3")


@pytest.mark.parametrize(
    "op,name", [("SparkPrune", "key_basis"), ("SparkAttention", "key_basis"), ("SparkAttention", "query_basis")]
)
@pytest.mark.parametrize("shape", [None, (64, 64), (2, 64, 32), (6, 64, 64)])
def test_bases_that_cannot_be_are_refused(op, name, shape):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    feeds[name] = np.zeros(shape or (0, 64, 64), np.float32)
    rejected(op, BASE, feeds, attributes_of(op, BASE), f"({name})")


def test_numbers_that_are_not_numbers_stay_within_a_direction():
    feeds = cases.call(5, BASE, "f32", "u8", L=3, P=20)
    clean = models.run(models.session(models.spark(BASE, feeds, "f32", "u8")), feeds)
    feeds["key_basis"][:, 3, 5] = np.nan
    feeds["query_basis"][:, 7, 5] = np.inf
    out = models.run(models.session(models.spark(BASE, feeds, "f32", "u8")), feeds)
    assert np.isfinite(out["output"]).all() and np.abs(out["output"] - clean["output"]).max() > 1e-3

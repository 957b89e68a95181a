"""Channels of keys that are larger than others, as other models have them, need calibration and are handled by it."""

import json
from functools import cache

import numpy as np
import pytest
from .exports.build import GRAPHS, bundled_weights, write_export

from .command import rewrite, session
from .passkeys import assert_as_good, predictions, score, variants

LAYERS, KV_HEADS, GROUP, SIZE = 4, 2, 2, 64
KEYS = KV_HEADS * GROUP * SIZE  # where the packed projection's keys begin
EXPORTS = ("genai-cpu-fp32", "optimum-fp32")
SETTINGS = {"0.7/4/4": (0.7, 4, 4), "0.8/16/16": (0.8, 16, 16)}
TEXTS = [variants(0, 12), variants(2, 6)]


def with_outliers(weights):
    """Weights with each channel of a KV head's key scaled, and that of its query heads by the inverse.

    Both channels that are rotated together have one factor, so no product of query and key changes.
    """
    weights, rng = dict(weights), np.random.default_rng(0)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.attn.qkv_proj.MatMul.weight"
        weights[name] = packed = weights[name].copy()
        for head in range(KV_HEADS):
            factors = np.tile(np.exp(rng.normal(size=SIZE // 2)), 2)
            packed[:, KEYS + head * SIZE :][:, :SIZE] *= factors
            queries = packed[:, head * GROUP * SIZE :][:, : GROUP * SIZE]
            queries /= np.tile(factors, GROUP)
    return weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder} of exports with outliers, and "plain" of one without, all made in the same way."""
    recipe, weights = json.loads((GRAPHS / "recipe.json").read_text()), bundled_weights()
    made = {}
    for name, source, given in [(n, n, with_outliers(weights)) for n in EXPORTS] + [("plain", EXPORTS[0], weights)]:
        made[name] = tmp_path_factory.mktemp(name)
        write_export(made[name], recipe[source], given)
    return made


@pytest.fixture(scope="module")
def before(folders):
    """before(name): predictions of an export that is not rewritten."""
    return cache(lambda name: run(folders[name] / "model.onnx"))


def run(path):
    model = session(path)
    return [predictions(model, texts) for texts in TEXTS]


def rewritten(folder, target, setting, *calibration):
    ratio, key_bits, value_bits = SETTINGS[setting]
    options = ("--ratio", ratio, "--key-bits", key_bits, "--value-bits", value_bits, "--recent", 16)
    rewrite(folder / "model.onnx", target, *options, *calibration)
    return run(target)


@pytest.mark.parametrize("name", EXPORTS)
def test_outliers_change_no_logit(name, before):
    """With the whole cache, the model is the same: only sums round differently."""
    for found, plain in zip(before(name), before("plain")):
        assert np.abs(found - plain).max() < 2e-4


@pytest.mark.parametrize(
    "name, setting", [(EXPORTS[0], "0.7/4/4"), (EXPORTS[0], "0.8/16/16"), (EXPORTS[1], "0.8/16/16")]
)
def test_calibration_handles_outliers(name, setting, folders, before, tmp_path, figure):
    """Calibrated, the rewritten model stays close to the original; without calibration it does not."""
    expected = score(before(name), before(name), TEXTS)
    found = {}
    for calibration in ("auto", "off"):
        target = tmp_path / calibration / "model.onnx"
        target.parent.mkdir()
        predicted = rewritten(folders[name], target, setting, "--calibrate", calibration)
        found[calibration] = score(before(name), predicted, TEXTS)
        figure(f"outliers, {name}, {setting}, --calibrate {calibration}: {found[calibration]}")
    calibrated, plain = found["auto"], found["off"]
    assert_as_good(calibrated, expected)
    assert calibrated.divergence < 0.15 and calibrated.loss < expected.loss + 0.15
    assert plain.divergence > 0.5 and plain.loss > expected.loss + 0.5
    assert plain.answered < expected.answered / 2

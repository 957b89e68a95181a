"""Pruned as advised, the model answers passkeys from its cache as well as the original does."""

import pytest

from .command import session
from .passkeys import assert_as_good, predictions, score, variants

# Ratio, bits of keys and values, dense recent keys.
SETTINGS = {"0.5/8/8": (0.5, 8, 8, 0), "0.7/4/4": (0.7, 4, 4, 16), "0.8/16/16": (0.8, 16, 16, 16)}
# Largest mean KL divergence of a predicted token, in nats: several times what was measured.
DIVERGENCE = {"0.5/8/8": 0.02, "0.7/4/4": 0.02, "0.8/16/16": 0.04}
TEXTS = [variants(0, 16), variants(1, 8)]


@pytest.fixture(scope="module")
def before(original):
    model = original("genai-cpu-fp32")
    return [predictions(model, texts) for texts in TEXTS]


@pytest.mark.parametrize("setting", SETTINGS)
def test_passkeys(setting, before, rewritten, figure):
    """Answers are right as often, within what so few prompts can tell, and predictions close to the original's."""
    ratio, key_bits, value_bits, recent = SETTINGS[setting]
    options = ("--ratio", ratio, "--key-bits", key_bits, "--value-bits", value_bits, "--recent", recent)
    model = session(rewritten("genai-cpu-fp32", *options))
    found = score(before, [predictions(model, texts) for texts in TEXTS], TEXTS)
    figure(f"{setting}: {found}")
    assert_as_good(found, score(before, before, TEXTS))
    assert found.divergence < DIVERGENCE[setting] and found.agreement > 0.94

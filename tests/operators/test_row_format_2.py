"""Row format 2 against docs/format.md: the rows that SparkPrune writes, and what SparkAttention reads."""

import numpy as np
import pytest

from . import cases, models, reference, rows
from .compare import check_attention, exact_rows
from .reference import Settings


@pytest.mark.parametrize("L", [1, 24])
@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("key_bits,value_bits", [(16, 8), (8, 8), (4, 8), (4, 4)])
@pytest.mark.parametrize("D,kept", [(64, 21), (96, 48), (128, 39)])
def test_rows_and_output(D, kept, key_bits, value_bits, T, L):
    s = Settings(4, 2, D, kept, key_bits=key_bits, value_bits=value_bits, row_format=2)
    feeds = cases.call(7, s, T, T, B=2, L=L, P=150, mode="step", saliency=True)
    out = models.run(models.session(models.spark(s, feeds, T, T)), feeds)
    # Rows that differ sit on a rounding boundary: the operator rotates in float32.
    assert exact_rows(s, feeds, out) > 0.9
    check_attention(s, feeds, out["output"])


def test_rows_are_of_the_documented_size():
    for D in (64, 128):
        assert [rows.value_row_bytes(D, bits, 2) for bits in (8, 4)] == [D + 4, D // 2 + 4]


def test_error_is_less_than_format_1s():
    """Of 4-bit keys, and of values some of whose channels are large."""
    rng = np.random.default_rng(3)
    c = np.exp(rng.normal(size=128) * 0.5)
    keys, values = rng.normal(size=(200, 128)) * c, rng.normal(size=(200, 128))
    values[:, ::17] *= 6
    keep = reference.select(keys, np.ones(128), 39)
    errors = []
    for row_format in (1, 2):
        raw = rows.encode_keys(keys, keep, 39, c, 4, "mean", 60, row_format)
        read = rows.decode_keys(raw, 128, 39, 4, c, "mean", row_format)
        size = rows.value_row_bytes(128, 4, row_format)
        back = rows.decode_values(rows.encode_values(values, 4, size, row_format), 128, 4, row_format)
        errors.append([((read - keys)[keep] ** 2).mean(), ((back - values) ** 2).mean()])
    assert errors[1][0] < errors[0][0] and errors[1][1] < errors[0][1], errors

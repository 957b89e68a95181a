"""What the library says to models of versions and row formats that it does not know."""

import numpy as np
import pytest

from . import cases, models
from .test_attributes import BASE, BOTH, attempt, attributes_of, rejected

FEEDS = cases.call(0, BASE, "f32", "u8", L=3, P=5)


def update(op, name, attributes):
    """A refusal that says what to update."""
    rejected(op, BASE, FEEDS, attributes, f"attribute {name}: ")
    rejected(op, BASE, FEEDS, attributes, "update spark-ort (libspark_ort.so)")


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("more", [{"version": 1}, {"version": 2}, {"version": 2, "row_format": 1}])
def test_known_versions_mean_the_same(op, more):
    plain = attempt(op, BASE, FEEDS, attributes_of(op, BASE))
    out = attempt(op, BASE, FEEDS, {**attributes_of(op, BASE), **more}, version=more["version"])
    assert plain.keys() == out.keys() and all(np.array_equal(plain[name], out[name]) for name in plain)


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("version", [3, 1000, 0, -1, 2**40])
def test_other_versions_are_refused(op, version):
    update(op, "version", {**attributes_of(op, BASE), "version": version})


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("row_format", [0, 4, -1, 2**40])
def test_other_row_formats_are_refused(op, row_format):
    update(op, "row_format", {**attributes_of(op, BASE), "version": 2, "row_format": row_format})


@pytest.mark.parametrize("op", BOTH)
def test_version_1_has_no_attributes_of_version_2(op):
    rejected(
        op, BASE, FEEDS, {**attributes_of(op, BASE), "row_format": 1}, "attribute row_format: belongs to version 2"
    )


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("recovery", ["exponential", "normal"])
def test_version_1_draws_nothing(op, recovery):
    attributes = {**attributes_of(op, BASE), "recovery": recovery}
    rejected(op, BASE, FEEDS, attributes, f'attribute recovery: "{recovery}" belongs to version 2')


@pytest.mark.parametrize("op", BOTH)
def test_a_version_that_is_no_int(op):
    rejected(op, BASE, FEEDS, {**attributes_of(op, BASE), "version": "2"}, "attribute version: ")


def test_onnx_runtime_does_not_look_at_the_end_of_an_operators_versions():
    """Why nodes say their version. Where this fails, ONNX Runtime has begun to refuse what a library does not serve."""
    assert attempt(BOTH[0], BASE, FEEDS, attributes_of(BOTH[0], BASE), version=3)

"""Attributes that no node may have: an exception that names the node and the attribute, at load or at the first run."""

import dataclasses

import numpy as np
import pytest
from onnx import helper

from . import cases, models, schema
from .compare import check_attention, check_prune
from .reference import Settings

BOTH = ("SparkPrune", "SparkAttention")
BASE = Settings(4, 2, 32, 10, key_bits=8, value_bits=8)


def attempt(op, s, feeds, attributes, T="f32", C="u8", version=1):
    """Loads one node with these attributes and runs it on feeds."""
    outputs = ["output"] if op == "SparkAttention" else ["present_key", "present_value"]
    made = models.node(op, s, feeds, outputs, attributes, name="the_node")
    order = models.ATTENTION_INPUTS if op == "SparkAttention" else models.PRUNE_INPUTS
    model = models.graph([made], [n for n in order if n in feeds], outputs, T, C, version=version)
    return models.run(models.session(model), feeds)


def attributes_of(op, s, without=(), **changed):
    made = models.attention_attributes(s) if op == "SparkAttention" else models.prune_attributes(s)
    return {k: v for k, v in {**made, **changed}.items() if k not in without}


def rejected(op, s, feeds, attributes, *names):
    """An ONNX Runtime exception that names the node and one of `names`."""
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        attempt(op, s, feeds, attributes)
    message = str(caught.value)
    assert "the_node" in message, f"no name of the node in: {message}"
    assert any(n in message for n in names), f"none of {names} in: {message}"


def test_base_case_is_accepted():
    """What the tests below spoil is fine in itself, and every optional attribute may be left out."""
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    required = {"num_heads", "kv_num_heads", "kept_channels", "key_bits", "value_bits"}
    for op in BOTH:
        full = attempt(op, BASE, feeds, attributes_of(op, BASE))
        optional = set(attributes_of(op, BASE)) - required
        assert all(
            full[n].tobytes() == v.tobytes()
            for n, v in attempt(op, BASE, feeds, attributes_of(op, BASE, optional)).items()
        )


def test_default_bits_are_16():
    s = Settings(4, 2, 32, 10)
    feeds = cases.call(0, s, "f32", "u8", L=3, P=5)
    required = {"num_heads", "kv_num_heads", "kept_channels"}
    out = {}
    for op in BOTH:
        out.update(attempt(op, s, feeds, attributes_of(op, s, set(attributes_of(op, s)) - required)))
    check_attention(s, feeds, out.pop("output"))
    check_prune(s, feeds, out)


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("name", ["num_heads", "kv_num_heads", "kept_channels"])
def test_missing(op, name):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    rejected(op, BASE, feeds, attributes_of(op, BASE, without=(name,)), name)


BAD_VALUES = [
    ("num_heads", 0),
    ("num_heads", -4),
    ("num_heads", 3),
    ("num_heads", 2**62),
    ("kv_num_heads", 0),
    ("kv_num_heads", -2),
    ("kv_num_heads", 3),
    ("kv_num_heads", 2**62),
    ("kept_channels", 0),
    ("kept_channels", -1),
    ("kept_channels", 33),
    ("kept_channels", 2**62),
    ("key_bits", 5),
    ("key_bits", 0),
    ("key_bits", 32),
    ("value_bits", 2),
    ("value_bits", -8),
    ("key_row_bytes", 4),
    ("key_row_bytes", 26),
    ("key_row_bytes", -4),
    ("value_row_bytes", 32),
    ("value_row_bytes", 38),
    ("value_row_bytes", -64),
    ("recovery", "median"),
    ("recovery", ""),
    ("recovery", "MEAN"),
    ("recent_window", -1),
    ("do_rotary", 2),
    ("do_rotary", -1),
    ("rotary_interleaved", 2),
]


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("name,value", BAD_VALUES)
def test_bad_value(op, name, value):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    names = (name, "num_heads") if "heads" in name else (name,)
    rejected(op, BASE, feeds, attributes_of(op, BASE, **{name: value}), *names)


@pytest.mark.parametrize(
    "op,name,value",
    [
        ("SparkPrune", "observation_window", 0),
        ("SparkPrune", "observation_window", -3),
        ("SparkAttention", "causal", 2),
        ("SparkAttention", "scale", float("nan")),
        ("SparkAttention", "scale", float("inf")),
        ("SparkAttention", "softcap", float("nan")),
    ],
)
def test_bad_value_of_one_operator(op, name, value):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    rejected(op, BASE, feeds, attributes_of(op, BASE, **{name: value}), name)


WRONG_TYPES = [
    ("num_heads", 4.0),
    ("kv_num_heads", "2"),
    ("kept_channels", 10.0),
    ("kept_channels", [10]),
    ("key_bits", "8"),
    ("value_bits", 8.0),
    ("key_row_bytes", [0, 0]),
    ("recovery", 1),
    ("recovery", ["mean"]),
    ("recent_window", 0.5),
    ("do_rotary", "no"),
]


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("name,value", WRONG_TYPES)
def test_wrong_type(op, name, value):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    rejected(op, BASE, feeds, attributes_of(op, BASE, **{name: value}), name)


@pytest.mark.parametrize("name,value", [("scale", 1), ("softcap", "x"), ("local_window_size", 4.0), ("causal", 1.0)])
def test_wrong_type_of_attention(name, value):
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=5)
    rejected("SparkAttention", BASE, feeds, attributes_of("SparkAttention", BASE, **{name: value}), name)


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("D", [8, 16, 24, 36, 100, 264, 320])
def test_head_size(op, D):
    """Outside 32 to 256, or not divisible by 8: found from the shapes, so the message names the query."""
    rng = np.random.default_rng(D)
    feeds = {n: rng.normal(size=(1, h, 3, D)).astype(np.float32) for n, h in (("query", 2), ("key", 1), ("value", 1))}
    feeds.update(past_key=np.zeros((1, 1, 0, 4), np.uint8), past_value=np.zeros((1, 1, 0, 4), np.uint8))
    s = Settings(2, 1, D, 4)
    rejected(op, s, feeds, attributes_of(op, s, key_bits=16, value_bits=16), "query")


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("D", [40, 48, 200])
def test_value_bits_4_needs_groups_of_32(op, D):
    s = Settings(2, 1, D, 4, value_bits=8)
    feeds = cases.call(0, s, "f32", "u8", L=3, P=0)
    rejected(op, s, feeds, attributes_of(op, s, value_bits=4), "value_bits")


@pytest.mark.parametrize("op", BOTH)
@pytest.mark.parametrize("name", ["key_row_bytes", "value_row_bytes"])
@pytest.mark.parametrize("value", [2**40, 2**61, 2**63 - 4])
def test_enormous_rows(op, name, value):
    """No past to contradict them, so only their size can be refused; SparkAttention writes none and may accept."""
    feeds = cases.call(0, BASE, "f32", "u8", L=3, P=0)
    try:
        out = attempt(op, BASE, feeds, attributes_of(op, BASE, **{name: value}))
    except Exception as error:
        assert "the_node" in str(error)
        return
    assert op == "SparkAttention"
    check_attention(BASE, feeds, out["output"])


@pytest.mark.parametrize("value", [2**20, 2**30, 2**40, 2**62])
@pytest.mark.parametrize("name", ["recent_window", "observation_window", "local_window_size"])
def test_enormous_windows(name, value):
    """Windows beyond every length mean all of it; one that no int32 holds may be refused by name."""
    s = dataclasses.replace(BASE, **{name: value})
    feeds = cases.call(0, s, "f32", "u8", L=12, P=5, recent=True)
    try:
        out = models.run(models.session(models.spark(s, feeds, "f32", "u8")), feeds)
    except Exception as error:
        assert value > 2**31 and "_node" in str(error) and name in str(error)
        return
    check_attention(s, feeds, out.pop("output"))
    check_prune(s, feeds, out)


def test_unnamed_node_is_rejected_too():
    """A node without a name still gives an exception that names the operator and the attribute."""
    made = models.node(
        "SparkPrune", BASE, ("query", "key", "value", "past_key", "past_value"), ["present_key", "present_value"]
    )
    made.name = ""
    next(a for a in made.attribute if a.name == "key_bits").CopyFrom(helper.make_attribute("key_bits", 5))
    model = models.graph(
        [made], ["query", "key", "value", "past_key", "past_value"], ["present_key", "present_value"], "f32", "u8"
    )
    with pytest.raises(Exception, match="(?s)SparkPrune.*key_bits|key_bits.*SparkPrune"):
        models.session(model)


def test_settings_have_the_defaults_of_the_schema():
    """The references' settings, which the other tests are written with, name no default of their own."""
    settings = {field.name: field.default for field in dataclasses.fields(Settings)}
    given = {name: default for op in schema.OPERATORS for name, default in schema.defaults(op).items()}
    assert {name: settings[name] for name in given if name in settings} == {
        name: default for name, default in given.items() if name in settings
    }
    assert {name for name in given if name not in settings} == {
        *("num_heads", "kv_num_heads", "kept_channels", "version"),
        *("key_directions_8", "key_directions_4"),
    }

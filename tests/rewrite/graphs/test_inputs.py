"""Inputs beside tokens, mask, positions and cache: calibration and the trial run feed them harmless values."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ..command import rewrite, session
from .builder import VOCABULARY, WIDTH, Shape, decoder
from .compare import calls, difference, logits
from .decomposed import attention as spelt_out
from .fused import group_query

LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off".split()
INT64 = TensorProto.INT64


def first(change, attend):
    """Layers of which the first one gets a hidden state that `change` makes."""

    def layer(graph, number, shape, hidden):
        return attend(graph, number, shape, change(graph, hidden) if number == 0 else hidden)

    return layer


def token_types(graph, hidden):
    given = graph.input("token_type_ids", INT64, ["batch", "tokens"])
    return graph.add("Add", hidden, graph.add("Gather", graph.weight(2, WIDTH), given))


def per_layer(graph, hidden):
    """A second embedding that the host looks up, as Gemma 3n has one for each layer."""
    given = graph.input("per_layer_inputs", graph.element, ["batch", "tokens", 2, WIDTH])
    return graph.add("Add", hidden, graph.add("Gather", given, np.array(1), axis=2))


def by_three_positions(graph, tensor, shape):
    """Rotated by the first of three positions, as Qwen 2 VL has them."""
    given = graph.input("position_ids", INT64, [3, "batch", "tokens"])
    places = graph.add("Unsqueeze", graph.cast(graph.add("Gather", given, np.array(0), axis=0)), np.array([1, 3]))
    half = shape.size // 2
    turns = (100.0 ** -(np.arange(shape.size) % half / half)).astype(np.float32)
    angles = graph.add("Mul", places, turns)
    cut = [graph.add("Slice", tensor, np.array([a]), np.array([a + half]), np.array([3])) for a in (0, half)]
    turned = graph.add("Concat", graph.add("Neg", cut[1]), cut[0], axis=-1)
    parts = [graph.add("Mul", tensor, graph.add("Cos", angles)), graph.add("Mul", turned, graph.add("Sin", angles))]
    return graph.add("Add", *parts)


def whole_mask(graph):
    """A float mask of four dimensions that the host makes."""
    return graph.input("attention_mask", graph.element, ["batch", 1, "tokens", "total"])


def fewer_logits():
    """num_logits_to_keep, 0 for all of them, as transformers.js feeds it."""
    model = decoder(group_query())
    graph = model.graph
    last = graph.node[-1]
    graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", INT64, []))
    constants = {"keep_end": [1 << 62], "keep_axis": [1], "keep_shape": [1]}
    graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), name) for name, v in constants.items())
    cut = [
        helper.make_node("Neg", ["num_logits_to_keep"], ["keep_from"]),
        helper.make_node("Reshape", ["keep_from", "keep_shape"], ["keep_start"]),
        helper.make_node("Slice", [last.input[0], "keep_start", "keep_end", "keep_axis"], ["kept"]),
    ]
    last.input[0] = "kept"
    graph.node.remove(graph.node[-1])
    graph.node.extend([*cut, last])
    return model


def embedded():
    """inputs_embeds instead of tokens."""
    model = decoder(spelt_out())
    graph = model.graph
    gather = next(n for n in graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    for node in graph.node:
        node.input[:] = ["inputs_embeds" if name in (gather.output[0], "input_ids") else name for name in node.input]
    graph.node.remove(gather)
    ids = next(i for i in graph.input if i.name == "input_ids")
    ids.CopyFrom(helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch", "tokens", WIDTH]))
    return model


def three_positions(feeds):
    total, new = feeds["attention_mask"].shape[1], feeds["input_ids"].shape[1]
    return {"position_ids": np.broadcast_to(np.arange(total - new, total), (3, 1, new))}


def causal_mask(feeds):
    total, new = feeds["attention_mask"].shape[1], feeds["input_ids"].shape[1]
    seen = np.arange(total) <= np.arange(total - new, total)[:, None]
    return {"attention_mask": np.where(seen, 0, -1e9).astype(np.float32)[None, None]}


def drawn(name, *shape):
    """Numbers that depend on the token."""
    table = np.random.default_rng(5).standard_normal((VOCABULARY, *shape)).astype(np.float32)
    return lambda feeds: {name: table[feeds["input_ids"]]}


INPUTS = {
    "num_logits_to_keep": (fewer_logits, lambda feeds: {"num_logits_to_keep": np.array(0)}),
    "token types": (
        lambda: decoder(first(token_types, group_query())),
        lambda feeds: {"token_type_ids": np.ones_like(feeds["input_ids"])},
    ),
    "inputs of layers": (lambda: decoder(first(per_layer, spelt_out())), drawn("per_layer_inputs", 2, WIDTH)),
    "three positions": (lambda: decoder(spelt_out(rotate=by_three_positions)), three_positions),
    "mask of four dimensions": (lambda: decoder(spelt_out(mask=whole_mask, how="add")), causal_mask),
    "embeddings": (embedded, drawn("inputs_embeds", WIDTH)),
}


class Fed:
    """A session that gets what else its model needs."""

    def __init__(self, path, more):
        self.session, self.more = session(path), more
        self.names = [i.name for i in self.session.get_inputs()]

    def get_inputs(self):
        known = helper.make_tensor_value_info
        given = [i for i in self.session.get_inputs() if i.name.startswith("past")]
        shape = ["batch", "tokens"]
        return [*given, *(Named(known(name, INT64, shape)) for name in ("input_ids", "attention_mask"))]

    def get_outputs(self):
        return self.session.get_outputs()

    def run(self, names, feeds):
        feeds = {**feeds, **self.more(feeds)}
        return self.session.run(names, {name: feeds[name] for name in self.names})


class Named:
    """A declaration as sessions give it."""

    def __init__(self, info):
        self.name = info.name


def calibrated(source, target):
    """Rewritten with the default settings, calibration and trial run included."""
    report = rewrite(source, target)
    assert report["model"]["calibration"].startswith("measured on")
    assert not [w for w in report["warnings"] if "calibration failed" in w or "not tried" in w], report["warnings"]


@pytest.mark.parametrize("name", INPUTS)
def test_other_inputs(tmp_path, name):
    make, more = INPUTS[name]
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(make(), source)
    rewrite(source, target, *LOSSLESS)
    expected, found = [logits(Fed(path, more), calls(1, None, False))[0] for path in (source, target)]
    assert difference(found, expected)[0] < 5e-3
    calibrated(source, tmp_path / "usual.onnx")
    logits(Fed(tmp_path / "usual.onnx", more), calls(1, None, False))


@pytest.mark.parametrize("tokens", [VOCABULARY, 64])
def test_no_logits(tmp_path, tokens):
    """Of a model whose head was cut off nobody knows the vocabulary: 64 tokens are tried. Where that fails and nobody
    asked for calibration, the model is written without."""
    model = decoder(spelt_out())
    model.graph.node[-1].output[0] = "last_hidden_state"
    next(o for o in model.graph.output if o.name == "logits").name = "last_hidden_state"
    gather = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids")
    table = next(i for i in model.graph.initializer if i.name == gather.input[0])
    rows = onnx.numpy_helper.to_array(table)
    table.CopyFrom(onnx.numpy_helper.from_array(np.resize(rows, (tokens, WIDTH)), table.name))
    onnx.save(model, tmp_path / "model.onnx")
    if tokens == 64:
        calibrated(tmp_path / "model.onnx", tmp_path / "out.onnx")
        return
    report = rewrite(tmp_path / "model.onnx", tmp_path / "out.onnx")
    assert report["model"]["calibration"] is None
    assert any("calibration failed" in warning for warning in report["warnings"])
    done = rewrite(tmp_path / "model.onnx", tmp_path / "asked.onnx", "--calibrate", "random", check=False)
    assert done.returncode == 1 and not (tmp_path / "asked.onnx").exists()


FIXED = {"batch": 1, "tokens": 1, "past": 15, "total": 16}


@pytest.mark.parametrize("tokens", [1, 4])
def test_fixed_sizes(tmp_path, tokens):
    """A model for one length, as those for neural processors are: rows are declared where none can be missing."""
    static = FIXED | {"tokens": tokens, "total": FIXED["past"] + tokens}
    source, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(decoder(spelt_out(), Shape(4, 4), static=static), source)
    rewrite(source, target, *LOSSLESS)
    calibrated(source, tmp_path / "usual.onnx")
    mask = (np.arange(static["total"]) >= FIXED["past"]).astype(np.int64)[None]
    feeds = {"input_ids": np.arange(tokens)[None], "attention_mask": mask}
    answers = []
    for path in (source, target, tmp_path / "usual.onnx"):
        run = session(path)
        past = {i.name: np.zeros(i.shape, np.float32) for i in run.get_inputs() if i.name.startswith("past")}
        answers.append(run.run(["logits"], {**feeds, **past})[0])
    assert difference(answers[1:2], answers[:1])[0] < 5e-3


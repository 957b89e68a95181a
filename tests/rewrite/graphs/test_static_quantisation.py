"""quantize_static before and after rewriting: QuantizeLinear and DequantizeLinear around all that it knows."""

from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from ..command import library_path, rewrite, session
from . import decomposed, masks
from .builder import Shape, decoder
from .compare import calls, difference, logits
from .decomposed import attention as spelt_out
from .fused import attention, group_query, multi_head

LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off".split()
SHAPE = Shape(4, 4)
# ONNX's quantiser knows nothing of attention that is one node, but of what stands before and behind it.
OPERATORS = {
    "gqa": (group_query(), 18),
    "mha": (multi_head(unidirectional=1), 18),
    "Attention": (attention(is_causal=1), 23),
}
PARTS = {
    "spelt out": (spelt_out(), 18),
    "no mask": (spelt_out(mask=None), 18),
    "where": (spelt_out(how="where"), 18),
    "tile": (spelt_out(repeat=decomposed.tile, scale="Div product"), 18),
    "behind": (attention(mask=masks.padded, behind=decomposed.expand), 23),
}
# Roundings of activations may go the other way.
WITHIN = 5e-2


class Recorded(CalibrationDataReader):
    """The calls of a conversation but the first one, whose empty cache has no range."""

    def __init__(self, path):
        self.session, self.calls = session(path), []
        logits(self, calls(1, None, False))
        del self.calls[0]

    def __getattr__(self, name):
        return getattr(self.session, name)

    def run(self, names, feeds):
        self.calls.append(feeds)
        return self.session.run(names, feeds)

    def get_next(self):
        return self.calls.pop() if self.calls else None


class Options(onnxruntime.SessionOptions):
    """As documentation says it: sessions that tools make know the operators."""

    def __init__(self):
        super().__init__()
        self.register_custom_ops_library(str(library_path()))


def quantised(path, target, **settings):
    reader = Recorded(path)
    with mock.patch("onnxruntime.SessionOptions", Options):
        quantize_static(path, target, reader, **settings)
    return target


def answers(path):
    return logits(session(path), calls(1, None, False))[0]


def attention_nodes(graph):
    """The names of all nodes from the caches to the product of probabilities and values."""
    cached, probabilities, names = {i.name for i in graph.input if "past" in i.name}, set(), []
    for node in graph.node:
        if node.op_type == "Shape" or not cached & set(node.input):
            continue
        names.append(node.name)
        if node.op_type != "Attention" and not probabilities & set(node.input):
            cached |= set(node.output)
        if node.op_type == "Softmax":
            probabilities |= set(node.output)
    return names


@pytest.mark.parametrize("name", PARTS)
def test_roundings_of_attention_go(tmp_path, name):
    """What is left is the model that is quantised all but for attention."""
    attend, opset = PARTS[name]
    whole = tmp_path / "float.onnx"
    onnx.save(decoder(attend, SHAPE, opset=opset), whole)
    inside = attention_nodes(onnx.load(whole).graph)
    expected = answers(quantised(whole, tmp_path / "outside.onnx", nodes_to_exclude=inside))
    report = rewrite(quantised(whole, tmp_path / "int8.onnx"), tmp_path / "out.onnx", *LOSSLESS)
    assert any("roundings" in warning and "float" in warning for warning in report["warnings"])
    assert difference(answers(tmp_path / "out.onnx"), expected)[0] < WITHIN
    rewrite(tmp_path / "int8.onnx", tmp_path / "usual.onnx")
    answers(tmp_path / "usual.onnx")


@pytest.mark.parametrize("name", OPERATORS)
def test_quantised_around_operators(tmp_path, name):
    """Weights and activations stay as they were quantised."""
    attend, opset = OPERATORS[name]
    whole, int8 = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(decoder(attend, SHAPE, opset=opset), whole)
    report = rewrite(quantised(whole, int8), tmp_path / "out.onnx", *LOSSLESS)
    assert not any("roundings" in warning for warning in report["warnings"])
    assert difference(answers(tmp_path / "out.onnx"), answers(int8))[0] < WITHIN
    graphs = [onnx.load(path).graph for path in (int8, tmp_path / "out.onnx")]
    kept = [sum(n.op_type == "QuantizeLinear" for n in graph.node) for graph in graphs]
    assert kept[0] == kept[1] > 0


@pytest.mark.parametrize("name", [*PARTS, "Attention"])
def test_quantised_afterwards(tmp_path, name):
    """A rewritten model is quantised as the original is all but for attention."""
    attend, opset = (PARTS | OPERATORS)[name]
    whole, rewritten = tmp_path / "float.onnx", tmp_path / "rewritten.onnx"
    onnx.save(decoder(attend, SHAPE, opset=opset), whole)
    rewrite(whole, rewritten, *LOSSLESS)
    inside = attention_nodes(onnx.load(whole).graph)
    expected = answers(quantised(whole, tmp_path / "outside.onnx", nodes_to_exclude=inside))
    assert difference(answers(quantised(rewritten, tmp_path / "int8.onnx")), expected)[0] < WITHIN


@pytest.mark.parametrize("name", ["gqa", "mha"])
def test_all_projections_are_quantised_afterwards(tmp_path, name):
    """Of a rewritten model the quantiser knows what attention makes, so it quantises what multiplies that too."""
    attend, opset = OPERATORS[name]
    onnx.save(decoder(attend, SHAPE, opset=opset), tmp_path / "float.onnx")
    rewrite(tmp_path / "float.onnx", tmp_path / "rewritten.onnx", *LOSSLESS)
    graph = onnx.load(quantised(tmp_path / "rewritten.onnx", tmp_path / "int8.onnx")).graph
    rounded = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    products = [n for n in graph.node if n.op_type == "MatMul"]
    assert len(products) == 9 and all(rounded >= set(n.input) for n in products)
    assert all(np.isfinite(call).all() for call in answers(tmp_path / "int8.onnx"))

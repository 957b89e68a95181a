"""Writes the models that tests/onnxruntime/host.rs runs: one attention layer whose every optional input is a graph
input (fed without elements where a test does not use it). Run by hand after a change, from the project's folder:
python -m tests.support.models.make"""

from pathlib import Path

from onnx import save

from tests.operators.models import ATTENTION_INPUTS, PRUNE_OUTPUTS, graph, node
from tests.operators.reference import Settings


INPUTS = [name for name in ATTENTION_INPUTS if not name.endswith("_basis")]


def layer(T, C):
    """Half of the channels kept, 8 bits, 6 recent keys."""
    s = Settings(4, 2, 32, 16, key_bits=8, value_bits=8, recent_window=6)
    nodes = [
        node("SparkPrune", s, INPUTS, PRUNE_OUTPUTS, name="layer.0.prune"),
        node("SparkAttention", s, INPUTS, ["output"], name="layer.0.attention"),
    ]
    return graph(nodes, INPUTS, ["output", *PRUNE_OUTPUTS], T, C)


if __name__ == "__main__":
    folder = Path(__file__).parent
    save(layer("f32", "f32"), folder / "layer_f32.onnx")
    save(layer("f16", "u8"), folder / "layer_f16_u8.onnx")

"""Writes the models that tests/host.rs runs: one attention layer whose every optional input is a graph input (fed without
elements where a test does not use it). Run by hand after a change: python tests/models/make.py"""

from pathlib import Path

from onnx import TensorProto, helper, save

INPUTS = (
    "query key value past_key past_value seqlens_k total_sequence_length cos_cache sin_cache position_ids "
    "past_key_recent query_saliency attention_bias"
).split()
TYPES = {"seqlens_k": TensorProto.INT32, "total_sequence_length": TensorProto.INT32, "position_ids": TensorProto.INT64,
         "query_saliency": TensorProto.FLOAT, "observed_saliency": TensorProto.FLOAT}


def layer(element, container):
    """Hq 4, Hk 2, D 32, half of the channels kept, 8 bits, 6 recent keys."""
    settings = dict(num_heads=4, kv_num_heads=2, kept_channels=16, key_bits=8, value_bits=8, recent_window=6, domain="ai.spark")

    def info(name):
        cache = container if name in ("past_key", "past_value", "present_key", "present_value") else element
        return helper.make_tensor_value_info(name, TYPES.get(name, cache), None)

    prune = ["present_key", "present_value", "present_key_recent", "observed_saliency"]
    nodes = [
        helper.make_node("SparkPrune", INPUTS[:-1], prune, name="layer.0.prune", **settings),
        helper.make_node("SparkAttention", INPUTS, ["output"], name="layer.0.attention", **settings),
    ]
    graph = helper.make_graph(nodes, "layer", [info(n) for n in INPUTS], [info(n) for n in ["output", *prune]])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.spark", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


if __name__ == "__main__":
    folder = Path(__file__).parent
    save(layer(TensorProto.FLOAT, TensorProto.FLOAT), folder / "layer_f32.onnx")
    save(layer(TensorProto.FLOAT16, TensorProto.UINT8), folder / "layer_f16_u8.onnx")

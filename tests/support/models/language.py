"""Writes the models that tests/onnxruntime/runtime.rs runs: language models of one attention layer with random weights,
one as ONNX Runtime GenAI's builder exports it, one with the operators in its place. Run by hand after a change, from
the project's folder: python -m tests.support.models.language"""

from pathlib import Path

import numpy as np
from onnx import TensorProto as T
from onnx import checker, helper as h, numpy_helper, save

VOCABULARY, HIDDEN, HEADS, KV_HEADS, D = 32, 16, 2, 1, 32
# Bytes of key and value rows at half of the channels and 8 bits, as docs/format.md has them, as float32.
ROWS = [32 // 4, 36 // 4]


def weights():
    random = np.random.default_rng(3)
    shapes = {
        "embedding": (VOCABULARY, HIDDEN),
        "qkv": (HIDDEN, (HEADS + 2 * KV_HEADS) * D),
        "project": (HEADS * D, HIDDEN),
        "head": (HIDDEN, VOCABULARY),
    }
    tensors = {name: random.normal(0, shape[0] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors["embedding"] *= 8
    tensors |= {"one": np.array([1], np.int64), "minus_one": np.array(-1, np.int32)}
    return [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]


def language(pruned):
    rows = ROWS if pruned else [D, D]
    sizes = dict(num_heads=HEADS, kv_num_heads=KV_HEADS)
    inputs = ["qkv_new", "", "", "past_key_values.0.key", "past_key_values.0.value", "last", "total"]
    presents = ["present.0.key", "present.0.value"]
    if pruned:
        settings = dict(sizes, kept_channels=D // 2, key_bits=8, value_bits=8, recent_window=4, domain="ai.spark")
        inputs += ["", "", "", "past_key_values.0.key_recent"]
        presents += ["present.0.key_recent", "saliency"]
        attention = [
            h.make_node("SparkAttention", inputs, ["mixed"], **settings),
            h.make_node("SparkPrune", inputs, presents, **settings),
        ]
    else:
        attention = [h.make_node("GroupQueryAttention", inputs, ["mixed", *presents], domain="com.microsoft", **sizes)]
    nodes = [
        h.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        h.make_node("MatMul", ["embedded", "qkv"], ["qkv_new"]),
        h.make_node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0),
        h.make_node("Cast", ["lengths"], ["lengths_32"], to=T.INT32),
        h.make_node("Add", ["lengths_32", "minus_one"], ["last"]),
        h.make_node("Shape", ["attention_mask"], ["total_64"], start=1, end=2),
        h.make_node("Cast", ["total_64"], ["total"], to=T.INT32),
        *attention,
        h.make_node("MatMul", ["mixed", "project"], ["projected"]),
        h.make_node("Add", ["embedded", "projected"], ["hidden"]),
        h.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    value = h.make_tensor_value_info
    ends = [("key", rows[0]), ("value", rows[1])] + ([("key_recent", D)] if pruned else [])
    graph_inputs = [
        value(name, T.INT64, ["B", length]) for name, length in [("input_ids", "L"), ("attention_mask", "S")]
    ]
    graph_inputs += [value(f"past_key_values.0.{n}", T.FLOAT, ["B", KV_HEADS, f"P_{n}", w]) for n, w in ends]
    outputs = [value("logits", T.FLOAT, ["B", "L", VOCABULARY])]
    outputs += [value(f"present.0.{n}", T.FLOAT, ["B", KV_HEADS, f"S_{n}", w]) for n, w in ends]
    outputs += [value("saliency", T.FLOAT, ["B", KV_HEADS, D])] * pruned
    graph = h.make_graph(nodes, "language", graph_inputs, outputs, weights())
    domains = [("", 17), ("com.microsoft", 1), ("ai.spark", 1)]
    model = h.make_model(graph, opset_imports=[h.make_opsetid(*domain) for domain in domains], ir_version=8)
    checker.check_model(model)
    return model


if __name__ == "__main__":
    folder = Path(__file__).parent
    save(language(False), folder / "language.onnx")
    save(language(True), folder / "language_pruned.onnx")

"""Writes a large LLaMA with random int4 weights as an ONNX Runtime GenAI folder.

    python make_model.py OUT [CONTEXT [SIZES]]

The graph is the bundled one, as GenAI's model builder wrote it for CPUs, with other layers and sizes: SIZES is 1b,
Llama 3.2 1B (1.2 B parameters, if not given), or 8b, two of the layers of Llama 3 8B. Small models hide the cache
behind everything else; what the weights are has no influence on speed and memory. CONTEXT is how many positions the
tables of the rotation have, 16384 if not given.
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

BUNDLED = Path(__file__).parents[2] / "graphs/genai-cpu-int4"
SIZES = {"1b": (16, 2048, 32, 8, 64, 8192, 128256), "8b": (2, 4096, 32, 8, 128, 14336, 128256)}
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FEED_FORWARD, VOCABULARY = SIZES[(sys.argv[3:] or ["1b"])[0]]
ROPE_THETA = 500_000.0
# Weights of one scale.
BLOCK = 32
# Inputs and outputs of the bundled graph's matrices, by the last part of their names.
MATRICES = {
    "qkv_proj": (HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM),
    "o_proj": (HEADS * HEAD_DIM, HIDDEN),
    "gate_proj": (HIDDEN, FEED_FORWARD),
    "up_proj": (HIDDEN, FEED_FORWARD),
    "down_proj": (FEED_FORWARD, HIDDEN),
    "lm_head": (HIDDEN, VOCABULARY),
}


def renumber(name, shift):
    """The name of a tensor or node of layer n, made that of layer n + shift."""
    name = re.sub(r"\blayers\.(\d+)", lambda m: f"layers.{int(m[1]) + shift}", name)
    return re.sub(r"^(past_key_values|present)\.(\d+)", lambda m: f"{m[1]}.{int(m[2]) + shift}", name)


def moved(message, shift):
    """A copy of a node or value, as many layers further."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.name = renumber(copy.name, shift)
    if isinstance(copy, onnx.NodeProto):
        for names in (copy.input, copy.output):
            names[:] = [renumber(name, shift) for name in names]
    return copy


def layer_of(node):
    """The layer that a node belongs to; the norm after the last one counts as one more. None: to no layer."""
    found = re.search(r"/layers\.(\d+)/", node.name)
    return int(found[1]) if found else None


def resize(node):
    """Gives a node the attributes of the new sizes."""
    attributes = {a.name: a for a in node.attribute}
    if node.op_type == "MatMulNBits":
        attributes["K"].i, attributes["N"].i = MATRICES[matrix(node.name)]
    if node.op_type == "GroupQueryAttention":
        attributes["num_heads"].i, attributes["kv_num_heads"].i = HEADS, KV_HEADS
        attributes["scale"].f = HEAD_DIM**-0.5
    if node.op_type == "Constant" and attributes["value"].t.dims == [2]:
        # The shape by which the embedding reads the last matrix.
        value = onnx.numpy_helper.from_array(np.array([VOCABULARY, HIDDEN // 2], np.int64), attributes["value"].t.name)
        attributes["value"].t.CopyFrom(value)
    return node


def matrix(name):
    return next(key for key in MATRICES if re.search(rf"\b{key}\b", name))


class Weights:
    """A data file, written weight by weight."""

    def __init__(self, path):
        self.file, self.name, self.tensors = open(path, "wb"), path.name, []
        self.random = np.random.default_rng(0)

    def add(self, name, array):
        offset = -self.file.tell() % 4096
        self.file.write(bytes(offset))
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self.name, "offset": self.file.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.file.write(array.tobytes())
        self.tensors.append(tensor)

    def add_matrix(self, name, inputs, outputs):
        """Random nibbles, and the scale by which an output has the variance of an input."""
        blocks = inputs // BLOCK
        self.add(
            f"{name}_Q4", np.frombuffer(self.random.bytes(outputs * inputs // 2), np.uint8).reshape(outputs, blocks, -1)
        )
        # The variance of -8 to 7 is 21.5.
        self.add(f"{name}_scales", np.full((outputs, blocks), (21.5 * inputs) ** -0.5, np.float32))


def cache_info(name):
    """An input or output of the cache as the builder declares it."""
    rows = "past_sequence_length" if name.startswith("past") else "total_sequence_length"
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", KV_HEADS, rows, HEAD_DIM])


def build(out, context):
    source = onnx.load(BUNDLED / "model.onnx", load_external_data=False)
    old = source.graph
    last = max(layer for node in old.node if (layer := layer_of(node)) is not None)
    # Layer 0 begins after the embedding and the others after a layer: layer 1 stands for all of them.
    *before, head = [node for node in old.node if layer_of(node) is None]
    assert "lm_head" in head.name, head.name
    shifts = [(0, 0), *((1, i - 1) for i in range(1, LAYERS)), (last, LAYERS - last)]
    layers = [moved(node, shift) for layer, shift in shifts for node in old.node if layer_of(node) == layer]
    # Only the last token's logits, as the builder's option prune_lm_head has it: a prompt's would outweigh its cache.
    last_token = helper.make_tensor("last_token", TensorProto.INT64, [1], [-1])
    gather = helper.make_node("Gather", [renumber(head.input[0], LAYERS - last), "last_token"], ["last_hidden"], axis=1)
    head.input[0] = gather.output[0]
    nodes = [*before, *layers, gather, head]

    weights = Weights(out / "model.onnx.data")
    frequencies = ROPE_THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = np.arange(context)[:, None] * frequencies
    weights.add("cos_cache", np.cos(angles).astype(np.float32))
    weights.add("sin_cache", np.sin(angles).astype(np.float32))
    for node in nodes:
        resize(node)
        if "LayerNorm" in node.op_type:
            weights.add(next(name for name in node.input if name.endswith(".weight")), np.ones(HIDDEN, np.float32))
        elif node.op_type == "MatMulNBits":
            weights.add_matrix(node.input[1].removesuffix("_Q4"), *MATRICES[matrix(node.name)])

    cache = [(f"past_key_values.{i}.{part}", f"present.{i}.{part}") for part in ("key", "value") for i in range(LAYERS)]
    inputs = [i for i in old.input if not i.name.startswith("past_key_values.")]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", 1, VOCABULARY])
    graph = helper.make_graph(
        nodes, "main_graph", [*inputs, *(cache_info(past) for past, _ in cache)],
        [logits, *(cache_info(present) for _, present in cache)], [*weights.tensors, last_token],
    )
    weights.file.close()
    model = helper.make_model(graph, opset_imports=source.opset_import, ir_version=source.ir_version)
    onnx.save(model, out / "model.onnx")


def configure(out, context):
    config = json.loads((BUNDLED / "genai_config.json").read_text())
    config["model"] |= {"context_length": context, "vocab_size": VOCABULARY}
    config["model"]["decoder"] |= {
        "head_size": HEAD_DIM, "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS,
        "num_key_value_heads": KV_HEADS,
    }
    config["search"]["max_length"] = context
    (out / "genai_config.json").write_text(json.dumps(config, indent=4))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, out)


def main(out, context=16384, _sizes=None):
    out = Path(out)
    if (out / "genai_config.json").exists():
        return
    # Seen only when whole.
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    build(new, int(context))
    configure(new, int(context))
    new.rename(out)


if __name__ == "__main__":
    main(*sys.argv[1:])

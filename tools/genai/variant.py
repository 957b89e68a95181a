"""Copies a folder of ONNX Runtime GenAI whose attention is GroupQueryAttention, for more positions or another cache.

    python variant.py FOLDER OUT POSITIONS [int8|int4]

The tables of the rotation get at least POSITIONS rows. int8 and int4 make the cache what GenAI's builder makes of it
with `kv_cache_quant_scheme=int8_per_channel` and `int4_per_channel`. A channel's scale is from its largest magnitude,
here for random tokens. Past and present share a buffer where FOLDER has it so; the builder leaves that off on CPUs.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

CALIBRATION_TOKENS = 256
# By cache: bits of a number, their largest value, and the type and numbers of a row's bytes.
CACHES = {"int8": (8, 127, TensorProto.INT8, 1), "int4": (4, 7, TensorProto.UINT8, 2)}


def attention(graph):
    return [node for node in graph.node if node.op_type == "GroupQueryAttention"]


def lengthen(graph, folder, positions):
    """Makes the rotation's tables anew with as many rows, at the frequencies of the second row."""
    tables = [next(i for i in graph.initializer if i.name == name) for name in attention(graph)[0].input[7:9]]
    cos, sin = (numpy_helper.to_array(table, str(folder)) for table in tables)
    if len(cos) >= positions:
        return
    angles = np.arange(positions)[:, None] * np.arctan2(sin[1], cos[1]).astype(np.float64)
    for table, values in zip(tables, (np.cos(angles), np.sin(angles))):
        table.CopyFrom(numpy_helper.from_array(values.astype(cos.dtype), table.name))


def largest_magnitudes(path, graph, head_dim):
    """Of each channel of the cache, [Hk, D], by the name of its output."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(1).integers(2, 2000, (1, CALIBRATION_TOKENS))
    feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for info in graph.input:
        if info.name not in feeds:
            kv_heads = info.type.tensor_type.shape.dim[1].dim_value
            feeds[info.name] = np.zeros((1, kv_heads, 0, head_dim), np.float32)
    names = [name for node in attention(graph) for name in node.output[1:3]]
    return {name: np.abs(rows).max((0, 2)) for name, rows in zip(names, session.run(names, feeds))}


def quantise(graph, largest, cache):
    bits, levels, element, numbers = CACHES[cache]
    infos = {info.name: info for info in [*graph.input, *graph.output]}
    for node in attention(graph):
        node.input.extend([""] * (14 - len(node.input)))
        for part, name in enumerate(("key", "value")):
            past, present = node.input[3 + part], node.output[1 + part]
            scale = np.maximum(largest[present], 1e-6).astype(np.float32) / levels
            node.input[12 + part] = f"{present}_scale"
            graph.initializer.append(numpy_helper.from_array(scale.reshape(-1), node.input[12 + part]))
            node.attribute.append(helper.make_attribute(f"{name[0]}_quant_type", "PER_CHANNEL"))
            for tensor in (infos[past].type.tensor_type, infos[present].type.tensor_type):
                tensor.elem_type = element
                tensor.shape.dim[3].dim_value = scale.shape[1] // numbers
        node.attribute.append(helper.make_attribute("kv_cache_bit_width", bits))


def main(folder, out, positions, cache=None):
    folder, out, positions = Path(folder), Path(out), int(positions)
    config = json.loads((folder / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    path = folder / decoder["filename"]
    model = onnx.load(path, load_external_data=False)
    if not attention(model.graph):
        sys.exit(f"{path}: no GroupQueryAttention, whose cache could be quantised")
    lengthen(model.graph, folder, positions)
    config["model"]["context_length"] = config["search"]["max_length"] = positions
    if cache:
        quantise(model.graph, largest_magnitudes(path, model.graph, decoder["head_size"]), cache)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name not in (path.name, "genai_config.json"):
            shutil.copy(file, out)
    onnx.save(model, out / path.name)
    (out / "genai_config.json").write_text(json.dumps(config, indent=4))


if __name__ == "__main__":
    main(*sys.argv[1:])

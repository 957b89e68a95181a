"""Writes small models of both operators, inputs for some steps of each, and what this ONNX Runtime gives for them.

    python cases.py LIBRARY FOLDER

The models are in an old format (IR 8, opset 17), so that replay.py can run them in old versions. They differ in how
the optional inputs are left out, which is where versions differ.
"""

import itertools
import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import replay

HEADS, KV_HEADS, SIZE = 4, 2, 64
SCHEMA = json.loads((pathlib.Path(__file__).parents[1] / "operators/schema.json").read_text())
INPUTS = [entry["name"] for entry in SCHEMA["operators"][1]["inputs"]]
RECENT = 8
CAPACITY = 40

TYPES = {"f32": (TensorProto.FLOAT, np.float32), "f16": (TensorProto.FLOAT16, np.float16),
         "u8": (TensorProto.UINT8, np.uint8)}
# kept_channels, key_bits, value_bits, bytes of a key row, bytes of a value row
SETTINGS = {"f32": (32, 8, 8, 56, 68), "f16": (20, 4, 4, 32, 40)}


def rotary_caches(dtype, length=64):
    angles = np.outer(np.arange(length), 10000.0 ** -(np.arange(SIZE // 2) / (SIZE // 2)))
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def model(wiring, element, container, version=1):
    """One layer, its optional inputs
    absent  left out, the list of inputs ends before them;
    gaps    left out, but query_saliency after them is there, and observed_saliency after an absent output;
    empty   all wired to initializers without elements;
    packed  likewise absent, and query, key and value in one tensor; packed-empty: likewise empty;
    wired   all there;  shared: seqlens_k and total_sequence_length, past and present in the same memory;
    version absent, as version 2 of ai.spark.
    """
    element_type, dtype = TYPES[element]
    container_type, container_dtype = TYPES[container]
    kept, key_bits, value_bits, key_row, value_row = SETTINGS[element]
    row_widths = {"key": key_row // np.dtype(container_dtype).itemsize,
                  "value": value_row // np.dtype(container_dtype).itemsize}
    shapes = {
        "query": (element_type, ["B", "L", HEADS * SIZE]),
        "key": (element_type, ["B", "L", KV_HEADS * SIZE]),
        "value": (element_type, ["B", "L", KV_HEADS * SIZE]),
        "past_key": (container_type, ["B", KV_HEADS, "P", row_widths["key"]]),
        "past_value": (container_type, ["B", KV_HEADS, "P", row_widths["value"]]),
        "seqlens_k": (TensorProto.INT32, ["B"]),
        "total_sequence_length": (TensorProto.INT32, [1]),
        "position_ids": (TensorProto.INT64, ["B", "L"]),
        "past_key_recent": (element_type, ["B", KV_HEADS, "R", SIZE]),
        "attention_bias": (element_type, [1, HEADS, "L", "M"]),
        "present_key": (container_type, ["B", KV_HEADS, "S", row_widths["key"]]),
        "present_value": (container_type, ["B", KV_HEADS, "S", row_widths["value"]]),
        "present_key_recent": (element_type, ["B", KV_HEADS, "N", SIZE]),
        "observed_saliency": (TensorProto.FLOAT, ["B", KV_HEADS, SIZE]),
        "output": (element_type, ["B", "L", HEADS * SIZE]),
    }
    saliency = np.exp(np.random.default_rng(1).normal(size=(KV_HEADS, SIZE))).astype(np.float32)
    cos, sin = rotary_caches(dtype)
    constants = {"cos_cache": cos, "sin_cache": sin, "query_saliency": saliency}
    absent = {name: "" for name in INPUTS[5:]}
    empty = {name: f"no_{name}" for name in INPUTS[5:]}
    # Rows here are not in a basis.
    names = {name: name for name in INPUTS} | dict.fromkeys(["key_basis", "query_basis"], "")
    outputs = ["present_key", "present_value"]
    if wiring in ("absent", "version"):
        names |= absent
    elif wiring == "gaps":
        names |= absent | {"query_saliency": "query_saliency"}
        outputs += ["", "observed_saliency"]
    elif wiring == "empty":
        names |= empty
    elif wiring == "packed":
        names |= absent | {"key": "", "value": ""}
    elif wiring == "packed-empty":
        names |= empty | {"key": "no_key", "value": "no_value"}
    elif wiring == "shared":
        names |= absent | {name: name for name in ["seqlens_k", "total_sequence_length", "query_saliency"]}
    elif wiring == "wired":
        outputs += ["present_key_recent", "observed_saliency"]
    if wiring.startswith("packed"):
        shapes["query"] = (element_type, ["B", "L", (HEADS + 2 * KV_HEADS) * SIZE])
    for name in INPUTS:
        if names[name].startswith("no_"):
            given = {"seqlens_k": np.int32, "total_sequence_length": np.int32, "position_ids": np.int64}
            given |= dict.fromkeys(["query_saliency", "key_basis", "query_basis"], np.float32)
            constants[names[name]] = np.zeros(0, given.get(name, dtype))

    def node(operator, inputs, results, **attributes):
        inputs = [names[name] for name in inputs]
        while inputs[-1] == "":
            inputs.pop()
        return helper.make_node(
            operator, inputs, results, domain="ai.spark", name=operator, num_heads=HEADS, kv_num_heads=KV_HEADS,
            kept_channels=kept, key_bits=key_bits, value_bits=value_bits, do_rotary=int(wiring == "wired"),
            recent_window=RECENT if wiring == "wired" else 0, **attributes)

    of_version = {} if version == 1 else {"version": version, "row_format": 1}
    nodes = [
        node("SparkPrune", INPUTS[:12], outputs, **of_version),
        node("SparkAttention", INPUTS, ["output"], **of_version),
    ]
    fed = dict.fromkeys(name for each in nodes for name in each.input if name and name not in constants)
    graph = helper.make_graph(
        nodes, "layer",
        [helper.make_tensor_value_info(name, *shapes[name]) for name in fed],
        [helper.make_tensor_value_info(name, *shapes[name]) for each in nodes for name in each.output if name],
        [numpy_helper.from_array(value, name) for name, value in constants.items()
         if any(name in each.input for each in nodes)])
    return helper.make_model(graph, ir_version=8, producer_name="tests/onnxruntime",
                             opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.spark", version)])


def inputs_of(model, steps):
    """Random inputs, the same for models of the same inputs: a prompt, then decoded tokens and a piece of several.
    With seqlens_k there are two sequences of unequal length."""
    generator = np.random.default_rng(2)
    types = {
        value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in model.graph.input
    }
    widths = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    ragged = "seqlens_k" in types
    batch = 2 if ragged else 1
    shared = ragged and "past_key_recent" not in types
    totals = np.zeros(batch, np.int32)
    rows = 0
    for length in steps:
        first = rows == 0
        past = totals.copy()
        totals = past + (np.array([length, length - 7], np.int32) if ragged and first else length)
        rows = max(rows, int(totals.max()))
        feeds = {}
        for name in ["query", "key", "value"]:
            if name in types:
                feeds[name] = generator.normal(size=(batch, length, widths[name][2])).astype(types[name])
        if first:
            for name in ["past_key", "past_value", "past_key_recent"]:
                if name in types:
                    capacity = CAPACITY if shared else 0
                    feeds[name] = np.zeros((batch, KV_HEADS, capacity, widths[name][3]), types[name])
        if ragged:
            feeds["seqlens_k"] = totals - 1
            feeds["total_sequence_length"] = np.array([totals.max()], np.int32)
        if "position_ids" in types:
            feeds["position_ids"] = past[:, None] + np.arange(length, dtype=np.int64)
        if "attention_bias" in types:
            feeds["attention_bias"] = generator.normal(size=(1, HEADS, length, rows)).astype(types["attention_bias"])
        yield feeds


def write(library, folder):
    wirings = ["absent", "gaps", "empty", "packed", "packed-empty", "wired", "shared", "version"]
    for wiring, element, container in itertools.product(wirings, ["f32", "f16"], ["same", "u8"]):
        case = pathlib.Path(folder, f"{wiring}-{element}-{container}")
        made = model(wiring, element, element if container == "same" else container, 2 if wiring == "version" else 1)
        steps = list(inputs_of(made, [24, 1, 1, 3, 1]))
        shared = wiring == "shared"
        results = replay.run(replay.load(made.SerializeToString(), library), steps, shared)
        arrays = {"about": json.dumps({"steps": len(steps), "shared": shared})}
        for kind, tensors in [("in", steps), ("out", results)]:
            arrays |= {f"{i}/{kind}/{name}": value for i, step in enumerate(tensors) for name, value in step.items()}
        np.savez(case.with_suffix(".npz"), **arrays)
        onnx.save(made, case.with_suffix(".onnx"))
    onnx.save(model("version", "f32", "f32", 3), pathlib.Path(folder, "unknown.refused"), format="protobuf")


if __name__ == "__main__":
    write(*sys.argv[1:])

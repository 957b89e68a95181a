"""ONNX models of the operators, and sessions on them.

Graph inputs and outputs have no declared shape unless asked, so that a wrong shape reaches the operator. Inputs are
graph inputs of the operator's own names, or initializers.

SPARK_TEST_PROVIDER=ROCMExecutionProvider or SparkExecutionProvider in the environment runs the operators there instead
of on the CPU; tests/gpu does, on stand-ins for GPU drivers.
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from . import schema

ROOT = Path(__file__).resolve().parents[2]
DTYPES = {"f32": np.float32, "f16": np.float16, "u8": np.uint8}
ATTENTION_INPUTS = schema.names("SparkAttention", "inputs")
PRUNE_INPUTS = schema.names("SparkPrune", "inputs")
SHARED_INPUTS = PRUNE_INPUTS[: PRUNE_INPUTS.index("after")]
# Those that any provider makes.
PRUNE_OUTPUTS = tuple(name for name in schema.names("SparkPrune", "outputs") if name != "observed_covariance")
PROVIDER = os.environ.get("SPARK_TEST_PROVIDER", "CPUExecutionProvider")
# What Python calls the provider's memory; ONNX Runtime's ROCm package calls it cuda.
DEVICE = "cpu" if PROVIDER == "CPUExecutionProvider" else "cuda"
if PROVIDER == "SparkExecutionProvider":
    from . import plugin  # noqa: F401  registers the provider
_TENSOR_TYPE = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "u8": TensorProto.UINT8}
_FIXED_TYPE = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
_TYPES = schema.types("SparkPrune") | schema.types("SparkAttention")


def library_path():
    """Path of the operator library; a test that needs it fails when it is absent."""
    path = Path(os.environ.get("SPARK_ORT_LIBRARY", "target/release/libspark_ort.so"))
    path = path if path.is_absolute() else ROOT / path
    if not path.exists():
        pytest.fail(f"operator library not found at {path}: build it, or set SPARK_ORT_LIBRARY", pytrace=False)
    return str(path)


def session(model, threads=1, mode=ort.ExecutionMode.ORT_SEQUENTIAL):
    """Session on a ModelProto with the operators registered."""
    return plain_session(model, threads, library_path(), PROVIDER, mode)


def plain_session(
    model, threads=1, library=None, provider="CPUExecutionProvider", mode=ort.ExecutionMode.ORT_SEQUENTIAL
):
    """Session with the operators of `library`, or only ONNX Runtime's own ones."""
    options = ort.SessionOptions()
    options.execution_mode = mode
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, providers=[provider])


def input_type(name, T, C):
    """ONNX element type of an input or output of the operators."""
    kind = _TYPES.get(name, "T")
    return _FIXED_TYPE.get(kind) or _TENSOR_TYPE[{"T": T, "C": C}[kind]]


def trimmed(names):
    """Node inputs or outputs without the trailing absent ones."""
    names = list(names)
    while names and not names[-1]:
        names.pop()
    return names


def prune_attributes(s):
    """Attributes of SparkPrune for a Settings."""
    return dict(common_attributes(s), observation_window=s.observation_window)


def attention_attributes(s):
    """Attributes of SparkAttention for a Settings."""
    return dict(
        common_attributes(s),
        scale=float(s.scale),
        softcap=float(s.softcap),
        local_window_size=s.local_window_size,
        causal=s.causal,
    )


def common_attributes(s):
    return dict(
        num_heads=s.Hq,
        kv_num_heads=s.Hk,
        kept_channels=s.kept,
        key_bits=s.key_bits,
        value_bits=s.value_bits,
        key_row_bytes=s.key_row_bytes,
        value_row_bytes=s.value_row_bytes,
        recovery=s.recovery,
        recent_window=s.recent_window,
        do_rotary=s.do_rotary,
        rotary_interleaved=s.rotary_interleaved,
        **of_version_2(s),
    )


def of_version_2(s):
    """The attributes that only version 2 of the operators has."""
    more = {"tail_window": s.tail_window} if s.tail_window else {}
    if s.row_format != 1:
        more["row_format"] = s.row_format
    if s.row_format == 3:
        more.update(key_directions_8=s.planes[0], key_directions_4=s.planes[1])
    return {"version": 2, **more} if more or s.recovery in ("exponential", "normal") else {}


def graph(nodes, inputs, outputs, T, C, initializers=(), types=(), shapes=(), opset=17, version=1):
    """ModelProto around nodes; `types` and `shapes` override by value name, a value without a shape has none.
    `version` is that of ai.spark."""
    types, shapes = dict(types), dict(shapes)

    def info(name):
        return helper.make_tensor_value_info(name, types.get(name, input_type(name, T, C)), shapes.get(name))

    later = any(a.name in ("tail_window", "row_format") for n in nodes for a in n.attribute)
    domains = (("", opset), ("ai.spark", 2 if later else version), ("com.microsoft", 1))
    opsets = [helper.make_opsetid(d, v) for d, v in domains]
    made = helper.make_graph(
        nodes,
        "layer",
        [info(n) for n in inputs],
        [info(n) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(initializers).items()],
    )
    return helper.make_model(made, opset_imports=opsets, ir_version=11 if opset > 21 else 8)


def node(op, s, present, outputs, attributes=None, name=None):
    """One SparkPrune or SparkAttention node with the inputs named in `present`."""
    order = ATTENTION_INPUTS if op == "SparkAttention" else PRUNE_INPUTS
    if attributes is None:
        attributes = attention_attributes(s) if op == "SparkAttention" else prune_attributes(s)
    inputs = trimmed(n if n in present else "" for n in order)
    return helper.make_node(op, inputs, trimmed(outputs), name=name or f"{op}_node", domain="ai.spark", **attributes)


def spark(
    s, present, T="f32", C="f32", prune=True, attention=True, prune_outputs=PRUNE_OUTPUTS, initializers=(), **more
):
    """Model of SparkPrune, SparkAttention or both over one set of inputs.

    `present` names the inputs that are wired; those in `initializers` (name to array) are constants. `prune_outputs`
    names the outputs of SparkPrune that are wired.
    """
    initializers = dict(initializers)
    wired = set(present) | set(initializers)
    nodes, outputs = [], []
    if attention:
        nodes.append(node("SparkAttention", s, wired, ["output"]))
        outputs.append("output")
    if prune:
        used = wired - {"attention_bias", "query_basis"}
        made = node("SparkPrune", s, used, [n if n in prune_outputs else "" for n in PRUNE_OUTPUTS])
        if s.tail_window and attention:
            # It may write what SparkAttention reads.
            place = len(SHARED_INPUTS)
            made.input.extend([""] * (place + 1 - len(made.input)))
            made.input[place] = "output"
        nodes.append(made)
        outputs += [n for n in PRUNE_OUTPUTS if n in prune_outputs]
    order = ATTENTION_INPUTS if attention else PRUNE_INPUTS
    inputs = [n for n in order if n in wired and n not in initializers]
    return graph(nodes, inputs, outputs, T, C, initializers, **more)


def gqa(s, present, T="f32"):
    """com.microsoft GroupQueryAttention over the same dense tensors: outputs output, present_key, present_value."""
    names = SHARED_INPUTS[:10] + ["attention_bias"]
    attributes = dict(num_heads=s.Hq, kv_num_heads=s.Hk, do_rotary=s.do_rotary, rotary_interleaved=s.rotary_interleaved)
    attributes.update(scale=s.scale or 1 / s.D**0.5, softcap=float(s.softcap), local_window_size=s.local_window_size)
    outputs = ["output", "present_key", "present_value"]
    inputs = trimmed(n if n in present else "" for n in names)
    made = helper.make_node("GroupQueryAttention", inputs, outputs, name="gqa", domain="com.microsoft", **attributes)
    return graph([made], [n for n in names if n in present], outputs, T, T)


def onnx_attention(s, present, T="f32"):
    """ONNX opset 23 Attention over rank-4 tensors; `attention_bias` becomes its attn_mask, causal its is_causal."""
    names = ["query", "key", "value", "attention_bias", "past_key", "past_value"]
    inputs = trimmed(n if n in present else "" for n in names)
    attributes = dict(is_causal=s.causal, scale=s.scale or 1 / s.D**0.5)
    outputs = ["output", "present_key", "present_value"] if "past_key" in present else ["output"]
    made = helper.make_node("Attention", inputs, outputs, name="attention", **attributes)
    return graph([made], [n for n in names if n in present], outputs, T, T, opset=23)


def empty_cache(s, B, C, P=0):
    """Zero past_key and past_value of P rows in container C."""
    size = np.dtype(DTYPES[C]).itemsize
    return {
        "past_key": np.zeros((B, s.Hk, P, s.key_bytes // size), DTYPES[C]),
        "past_value": np.zeros((B, s.Hk, P, s.value_bytes // size), DTYPES[C]),
    }


def run(sess, feeds):
    """Outputs by name; feeds may hold more than the model's inputs."""
    wanted = {i.name for i in sess.get_inputs()}
    names = [o.name for o in sess.get_outputs()]
    return dict(zip(names, sess.run(names, {k: v for k, v in feeds.items() if k in wanted})))


def run_bound(sess, feeds, outputs):
    """Runs with the memory of `outputs` (name to OrtValue) written in place; feeds are arrays or OrtValues.

    Outputs that are not bound are returned by name.
    """
    binding = sess.io_binding()
    # An OrtValue made from an array borrows its memory: these must outlive the run.
    values = {i.name: feeds[i.name] for i in sess.get_inputs()}
    values = {n: x if isinstance(x, ort.OrtValue) else as_value(x) for n, x in values.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    names = [o.name for o in sess.get_outputs()]
    for name in names:
        if name in outputs:
            binding.bind_ortvalue_output(name, outputs[name])
        else:
            binding.bind_output(name)
    sess.run_with_iobinding(binding)
    return {n: v.numpy().copy() for n, v in zip(names, binding.get_outputs()) if n not in outputs}


def run_shared(sess, feeds, cache):
    """Runs with present bound to the memory of past; `cache` maps past_key and past_value to OrtValues.

    Outputs other than the cache are returned by name; the cache changes in place.
    """
    return run_bound(sess, {**feeds, **cache}, {n.replace("past", "present"): v for n, v in cache.items()})


def as_array(cache):
    """A copy of an OrtValue or an array as an array."""
    return np.array(cache.numpy() if isinstance(cache, ort.OrtValue) else cache)


def as_value(array):
    """OrtValue over the memory of an array, which is copied only if it is not contiguous, or to a device."""
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), DEVICE, 0)

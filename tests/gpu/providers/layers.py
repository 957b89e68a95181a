"""One layer on an execution provider: its session, its calls, and what comes of them. Settings and random calls come
from tests/operators.
"""

import json
import os

import numpy as np
import onnxruntime as ort
from onnx import helper

from operators import cases, models
from operators.reference import Settings

from driver import PROVIDER

PAST = {"present_key": "past_key", "present_value": "past_value"}


def note(text):
    """A line among those that the stand-ins write."""
    if os.environ.get("GPU_SIM_TRACE"):
        with open(os.environ["GPU_SIM_TRACE"], "a") as trace:
            trace.write(f"-- {text}\n")


def session(model, provider=PROVIDER, profile=None, **options):
    """A session on one provider alone, so that nothing can be placed elsewhere."""
    given = ort.SessionOptions()
    given.log_severity_level = 4
    given.intra_op_num_threads = 1
    if profile:
        given.enable_profiling = True
        given.profile_file_prefix = profile
    given.register_custom_ops_library(models.library_path())
    return ort.InferenceSession(model.SerializeToString(), given, providers=[(provider, options)])


def on_device(array, device=0):
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", device)


def layer(T="f32", C="u8", recent_window=0, rotary=1):
    """Settings, model and the inputs that stay the same, of a layer whose cache is shared."""
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=8, recent_window=recent_window, do_rotary=rotary)
    names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length", "query_saliency"]
    fixed = {"query_saliency": np.exp(np.random.default_rng(1).normal(size=(s.Hk, s.D))).astype(np.float32)}
    if rotary:
        names += ["cos_cache", "sin_cache"]
        fixed |= cases.rotary_tables(s, models.DTYPES[T])
    return s, models.spark(s, names, T, C, prune_outputs=("present_key", "present_value")), fixed


def steps(s, T, prompt=20, decoded=6, piece=5, batch=2):
    """Tokens and lengths of a right-padded prompt, decoded tokens and a piece of several."""
    rng = np.random.default_rng(3)
    totals = np.zeros(batch, np.int32)
    for length in [prompt, *[1] * decoded, piece]:
        valid = length - 3 * np.arange(batch) % 7 if not totals.any() else np.full(batch, length)
        totals = (totals + valid).astype(np.int32)
        yield dict(cases.new_tokens(rng, s, T, batch, length), seqlens_k=totals - 1,
                   total_sequence_length=np.array([length if length == prompt else totals.max()], np.int32))


def decode(sess, s, T, C, fixed, device, capacity=64, batch=2, **more):
    """Outputs of all steps, and the cache at the end; past and present are the same memory."""
    place = (lambda x: on_device(x, device)) if device is not None else ort.OrtValue.ortvalue_from_numpy
    # On the CPU, an OrtValue borrows the memory of its array.
    arrays = models.empty_cache(s, batch, C, capacity)
    cache = {n: place(x) for n, x in arrays.items()}
    fixed = {n: place(x) for n, x in fixed.items()}
    outputs = []
    for i, step in enumerate(steps(s, T, batch=batch, **more)):
        binding = sess.io_binding()
        for name, value in {**step, **fixed, **cache}.items():
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(name, value)
            elif device is None or "seq" in name:
                binding.bind_cpu_input(name, value)
            else:
                step[name] = on_device(value, device)
                binding.bind_ortvalue_input(name, step[name])
        binding.bind_output("output", "cpu" if device is None else "cuda", device or 0)
        for present, past in PAST.items():
            binding.bind_ortvalue_output(present, cache[past])
        note(f"run {i}")
        sess.run_with_iobinding(binding)
        note("done")
        outputs.append(binding.get_outputs()[0].numpy().copy())
    return outputs, {n: x.numpy().copy() for n, x in cache.items()}


def worst(got, want):
    """Greatest difference, relative to the greatest magnitude."""
    return max(float(np.abs(g.astype(np.float64) - w).max() / np.abs(w).max()) for g, w in zip(got, want))


def raw(value):
    """An OrtValue on the CPU as an array; bfloat16, which NumPy lacks, as its bits."""
    if "bfloat16" not in value.data_type():
        return value.numpy()
    import ctypes

    shape = value.shape()
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr())).reshape(shape).copy()


def around(model, operator):
    """Puts nodes of an operator of ONNX before and after ours."""
    for node in model.graph.node:
        node.input[:] = ["before" if name == "query" else name for name in node.input]
        node.output[:] = ["after" if name == "output" else name for name in node.output]
    nodes = [helper.make_node(operator, ["query"], ["before"], name="first"), *model.graph.node,
             helper.make_node(operator, ["after"], ["output"], name="last")]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def placed(sess):
    """Operators, and the providers that ran them, of ONNX Runtime's profile."""
    with open(sess.end_profiling()) as file:
        events = [e for e in json.load(file) if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return sorted({(e["args"]["op_name"], e["args"]["provider"]) for e in events})

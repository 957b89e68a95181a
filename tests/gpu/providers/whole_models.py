"""Whole rewritten models on an execution provider with a GPU, compared with the CPU provider: scenarios of
scenarios.py.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime as ort

from operators import models

from driver import PROVIDER
from layers import on_device, worst


def language():
    """The bundled rewritten model with the operators on the GPU and all else on the CPU: greatest difference of
    logits."""
    path = str(pathlib.Path(__file__).parents[2] / "support/models/language_pruned.onnx")
    options = ort.SessionOptions()
    options.register_custom_ops_library(models.library_path())
    gpu = ort.InferenceSession(path, options, providers=[PROVIDER, "CPUExecutionProvider"])
    options = ort.SessionOptions()
    options.register_custom_ops_library(models.library_path())
    cpu = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in cpu.get_outputs()]
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
             "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
    past, before, differences, rng = {}, 0, [], np.random.default_rng(0)
    for new in (7, 1, 1, 3):
        feeds = dict(past)
        for i in cpu.get_inputs():
            if i.name in feeds:
                continue
            sizes = {"B": 1, "S": before + new}
            shape = [d if isinstance(d, int) else sizes.get(d, before if d.startswith("P") else new) for d in i.shape]
            if i.name == "input_ids":
                value = rng.integers(0, 20, shape)
            elif "position" in i.name:
                value = np.broadcast_to(before + np.arange(new), shape)
            else:
                value = np.ones(shape) if "mask" in i.name else np.zeros(shape)
            feeds[i.name] = np.ascontiguousarray(value).astype(types[i.type])
        got, want = (dict(zip(names, sess.run(names, feeds))) for sess in (gpu, cpu))
        [logits] = [n for n in names if "logits" in n]
        differences.append(worst([got[logits]], [want[logits]]))
        past = {
            i.name: want[n]
            for i in cpu.get_inputs()
            for n in names
            if n.startswith("present")
            and i.name == n.replace("present", "past_key_values" if i.name.startswith("past_key_values") else "past")
        }
        before += new
    return {"difference": max(differences)}


def large(capacity="400"):
    """The same as `folder` for two layers of Llama 3 8B's shape, with random weights."""
    source = pathlib.Path(os.environ["SCENARIO_FOLDER"], "large")
    script = pathlib.Path(__file__).parents[3] / "tools/genai/make_model.py"
    subprocess.run([sys.executable, script, source, "16384", "8b"], check=True)
    return folder(capacity, source=source)


def folder(capacity="160", key_bytes="", source=pathlib.Path(__file__).parents[3] / "graphs/genai-cpu-int4"):
    """A GenAI folder as `spark-ort rewrite` makes it, keys in a basis if `key_bytes` says of how many bytes, in one
    buffer for past and present: greatest difference of its logits from the CPU's, whether the first layer's buffers are
    the CPU's, and how many numbers of their free rows are written."""
    target = pathlib.Path(os.environ["SCENARIO_FOLDER"], "folder")
    shutil.rmtree(target, ignore_errors=True)
    program = pathlib.Path(models.library_path()).with_name("spark-ort")
    package = pathlib.Path(ort.__file__).parent
    variables = {**os.environ, "ORT_DYLIB_PATH": str(next(package.glob("capi/libonnxruntime.so.*")))}
    basis = ["--basis", "calibrated", "--key-bytes", key_bytes, "--calibration-tokens", "512"]
    command = [program, "rewrite", source, target, *(basis if key_bytes else ["--calibrate", "off"])]
    subprocess.run(command, check=True, capture_output=True, env=variables)
    results, fill = [], 3.0
    for providers, place in (([PROVIDER, "CPUExecutionProvider"], on_device),
                             (["CPUExecutionProvider"], ort.OrtValue.ortvalue_from_numpy)):
        options = ort.SessionOptions()
        options.register_custom_ops_library(models.library_path())
        sess = ort.InferenceSession(str(target / "model.onnx"), options, providers=providers)
        # On the CPU, an OrtValue borrows the memory of its array.
        arrays = {i.name: np.full((1, i.shape[1], int(capacity), i.shape[3]), fill, np.float32)
                  for i in sess.get_inputs() if i.name.startswith("past_key_values.")}
        cache = {name: place(x) for name, x in arrays.items()}
        past, logits, rng = 0, [], np.random.default_rng(0)
        for new in (70, 1, 1, 9, 1, 1):
            past += new
            binding = sess.io_binding()
            binding.bind_cpu_input("input_ids", rng.integers(2, 2000, (1, new)))
            binding.bind_cpu_input("attention_mask", np.ones((1, past), np.int64))
            for name, value in cache.items():
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
            binding.bind_output("logits")
            sess.run_with_iobinding(binding)
            # In the order in which they were bound.
            logits.append(binding.get_outputs()[-1].numpy().copy())
        first = [cache[f"past_key_values.0.{which}"].numpy().copy() for which in ("key", "value")]
        results.append((logits, first))
    (got, rows), (want, expected) = results
    return {"difference": worst(got, want),
            "rows": [bool((g.view(np.uint8) == w.view(np.uint8)).all()) for g, w in zip(rows, expected)],
            "free": [int((x[:, :, past:] != fill).sum()) for x in rows]}

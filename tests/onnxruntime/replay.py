"""Runs the cases that cases.py wrote, in whatever ONNX Runtime this Python has, and compares with what they must give.

    python replay.py LIBRARY FOLDER [THREADS]

Needs NumPy and ONNX Runtime, nothing else: it runs in environments of old versions too.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime as ort

# What a step gives back to the next one.
STATE = {
    "present_key": "past_key",
    "present_value": "past_value",
    "present_key_recent": "past_key_recent",
}


def load(model, library, threads=2):
    """A session of the model (bytes) on the CPU, with the library's operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session, steps, shared):
    """The outputs of every step (a list of dictionaries). Inputs that a step does not give are the state that the last
    step left. With `shared`, past and present are the same memory, as the first step gives it."""
    names = [output.name for output in session.get_outputs()]
    if shared:
        return list(run_in_place(session, steps, names))
    results = []
    for step in steps:
        state = {STATE[name]: value for name, value in (results[-1] if results else {}).items() if name in STATE}
        results.append(dict(zip(names, session.run(names, {**state, **step}))))
    return results


def run_in_place(session, steps, names):
    buffers = {present: ort.OrtValue.ortvalue_from_numpy(steps[0][past].copy())
               for present, past in STATE.items() if present in names}
    for step in steps:
        binding = session.io_binding()
        for name, value in step.items():
            if name not in STATE.values():
                binding.bind_cpu_input(name, value)
        for name in names:
            if name in buffers:
                binding.bind_ortvalue_input(STATE[name], buffers[name])
                binding.bind_ortvalue_output(name, buffers[name])
            else:
                binding.bind_output(name)
        session.run_with_iobinding(binding)
        yield {name: value.numpy().copy() for name, value in zip(names, binding.get_outputs())}


def differences(got, expected):
    """What is wrong with one step's outputs. Cache rows and dense keys are bytes, to be equal; the rest are numbers."""
    for name, value in expected.items():
        if got[name].shape != value.shape or got[name].dtype != value.dtype:
            yield f"{name} is {got[name].dtype}{got[name].shape}, not {value.dtype}{value.shape}"
        elif name in STATE:
            wrong = np.any(got[name].view(np.uint8) != value.view(np.uint8), axis=-1)
            if wrong.any():
                yield f"{name}: {wrong.sum()} of {wrong.size} rows differ"
        else:
            tolerance = 1e-3 if value.dtype == np.float16 else 1e-6
            if not np.allclose(got[name], value, rtol=tolerance, atol=tolerance):
                yield f"{name} differs by up to {np.nanmax(np.abs(got[name].astype(np.float32) - value))}"


def read(path):
    """Steps, expected outputs and whether buffers are shared, of one case's .npz file."""
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        steps = [{} for _ in range(about["steps"])]
        expected = [{} for _ in range(about["steps"])]
        for name in arrays.files:
            if name != "about":
                step, kind, tensor = name.split("/")
                (steps if kind == "in" else expected)[int(step)][tensor] = arrays[name]
    return steps, expected, about["shared"]


def not_refused(model, library):
    """What is wrong with how the library refuses a model (bytes) of a version that it does not know."""
    try:
        load(model, library)
    except Exception as error:  # Each host has exceptions of its own.
        text = str(error)
        if "attribute version: version 3 of ai.spark" not in text or "update spark-ort" not in text:
            yield f"refused for another reason: {text}"
    else:
        yield "a model of version 3 loads"


def main(library, folder, threads=2):
    failed = 0
    for model in pathlib.Path(folder).glob("*.refused"):
        for text in not_refused(model.read_bytes(), library):
            print(f"{model.name}: {text}")
            failed += 1
    models = sorted(pathlib.Path(folder).glob("*.onnx"))
    for model in models:
        try:
            steps, expected, shared = read(model.with_suffix(".npz"))
            results = run(load(model.read_bytes(), library, int(threads)), steps, shared)
            wrong = [f"step {i}: {text}" for i, (got, want) in enumerate(zip(results, expected))
                     for text in differences(got, want)]
        except Exception as error:  # Each host has exceptions of its own; any of them is this case's failure.
            wrong = [f"{type(error).__name__}: {error}"]
        for text in wrong:
            print(f"{model.stem}: {text}")
        failed += bool(wrong)
    print(f"ONNX Runtime {ort.__version__}, NumPy {np.__version__}: {failed} failures in {len(models)} models")
    return int(failed > 0 or not models)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

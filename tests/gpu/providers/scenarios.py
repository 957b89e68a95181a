"""What a process does on an execution provider with a GPU: SPARK_TEST_PROVIDER, ROCMExecutionProvider by default. Each
scenario runs in a process of its own, with an environment that says what its stand-in devices are like and which call
fails:

    python scenarios.py NAME [ARGUMENT...]

It prints one line of JSON. Settings and random calls come from tests/operators.
"""

import hashlib
import json
import os
import pathlib
import sys
import threading

import numpy as np
import onnxruntime as ort
from onnx import TensorProto

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
from operators import cases, models
from operators.reference import Settings

from driver import PROVIDER
from layers import PAST, around, decode, layer, note, on_device, placed, raw, session, steps, worst
# Scenarios too, found by their names.
from whole_models import folder, language, large  # noqa: F401


def shared(T="f32", C="u8", device="0", batch="2"):
    """Decoding with everything in device memory, compared with the CPU provider."""
    device, batch = int(device), int(batch)
    s, model, fixed = layer(T, C)
    profile = os.path.join(os.environ["SCENARIO_FOLDER"], "profile")
    sess = session(model, profile=profile, device_id=device)
    got, rows = decode(sess, s, T, C, fixed, device, batch=batch)
    on = placed(sess)
    want, expected = decode(session(model, "CPUExecutionProvider"), s, T, C, fixed, None, batch=batch)
    return {
        "difference": worst(got, want),
        "rows": [bool((rows[n].view(np.uint8) == expected[n].view(np.uint8)).all()) for n in rows],
        "placed": on,
    }


def bfloat16(C="u8"):
    """bfloat16 tensors on the GPU against the same numbers in float32 on the CPU."""
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=8)
    names = ["query", "key", "value", "past_key", "past_value"]
    model = models.spark(s, names, "f32", "u8" if C == "u8" else "f16")
    theirs = models.spark(s, names, "f32", "u8" if C == "u8" else "f32")
    cut = lambda x: (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)
    wide = lambda x: (x.astype(np.uint32) << 16).view(np.float32)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name != "observed_saliency" and value.type.tensor_type.elem_type != TensorProto.UINT8:
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
    sess, cpu = session(model), session(theirs, "CPUExecutionProvider")
    rng, result = np.random.default_rng(0), []
    caches = [models.empty_cache(s, 1, "u8" if C == "u8" else each) for each in ("f16", "f32")]
    for length in [12, 1, 1, 9]:
        bits = {n: cut(x) for n, x in cases.new_tokens(rng, s, "f32", 1, length).items()}
        binding = sess.io_binding()
        values = {n: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(x, TensorProto.BFLOAT16) for n, x in bits.items()}
        for n, x in caches[0].items():
            x = np.ascontiguousarray(x)
            values[n] = (ort.OrtValue.ortvalue_from_numpy(x) if C == "u8" else
                         ort.OrtValue.ortvalue_from_numpy_with_onnx_type(x.view(np.uint16), TensorProto.BFLOAT16))
        for n, x in values.items():
            binding.bind_ortvalue_input(n, x)
        names = [o.name for o in sess.get_outputs()]
        for n in names:
            binding.bind_output(n)
        sess.run_with_iobinding(binding)
        got = dict(zip(names, map(raw, binding.get_outputs())))
        want = models.run(cpu, {**{n: wide(x) for n, x in bits.items()}, **caches[1]})
        caches = [{p: got[n].view(caches[0][p].dtype) for n, p in PAST.items()}, {p: want[n] for n, p in PAST.items()}]
        result.append({"difference": worst([wide(got["output"])], [want["output"]]),
                       "rows": [bool((got[n].view(np.uint8) == want[n].view(np.uint8)).all()) for n in PAST]})
    return result


# Sessions that live as long as the process.
kept = []


def plain(runs="2", **options):
    """Runs of one layer with host arrays; the messages of those that fail."""
    s, model, fixed = layer()
    try:
        sess = session(model, **options)
    except Exception as error:
        return {"session": str(error)}
    kept.append(sess)
    messages = []
    feeds = {**fixed, **next(steps(s, "f32")), **models.empty_cache(s, 2, "u8", 64)}
    for i in range(int(runs)):
        note(f"run {i}")
        try:
            output = models.run(sess, feeds)["output"]
            messages.append(None if np.isfinite(output).all() else "not finite")
        except Exception as error:
            messages.append(str(error))
    return {"session": None, "runs": messages}


def captured():
    """A run of which ONNX Runtime makes a CUDA graph."""
    return plain("1", enable_cuda_graph="1")


def exact(runs="1"):
    """The same with every piece of device memory taken by itself, not from a larger one."""
    return plain(runs, arena_extend_strategy="kSameAsRequested")


def long_piece():
    """A prompt, and a piece of so many tokens after it that the rows of the cache are unpacked; or what failed."""
    s, model, fixed = layer("f16")
    try:
        sess = session(model, arena_extend_strategy="kSameAsRequested")
        outputs, _ = decode(sess, s, "f16", "u8", fixed, 0, capacity=448, prompt=300, decoded=0, piece=140)
    except Exception as error:
        return {"error": str(error)}
    return {"error": None, "outputs": [hashlib.sha256(x).hexdigest() for x in outputs]}


def sessions(devices="0,0"):
    """Sessions one after the other on these devices, each run once, by threads that end."""
    s, model, fixed = layer()
    feeds = {**fixed, **next(steps(s, "f32")), **models.empty_cache(s, 2, "u8", 64)}
    made = [session(model, device_id=int(d)) for d in devices.split(",")]
    outputs = [None] * len(made)

    def work(i):
        outputs[i] = models.run(made[i], feeds)["output"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(made))]
    for thread in threads:
        thread.start()
        thread.join()
    return {"equal": all((o == outputs[0]).all() for o in outputs)}


def load(path):
    """A session of a model file; ONNX Runtime's log, on standard error, says where each node is placed."""
    options = ort.SessionOptions()
    options.log_severity_level = 0
    options.register_custom_ops_library(models.library_path())
    kept.append(ort.InferenceSession(path, options, providers=[PROVIDER, "CPUExecutionProvider"]))


def unchecked():
    """Whether numbers on the device that the CPU provider refuses do what docs/gpu.md says."""
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=8, do_rotary=1)
    feeds = cases.call(0, s, "f32", "u8", B=2, L=3, P=9, mode="step", positions=True, saliency=True)
    sess = session(models.spark(s, list(feeds), "f32", "u8"))

    def same(**changes):
        (one, two) = ([models.run(sess, {**feeds, n: x})[o] for o in ("output", *PAST)] for n, x in
                      [(n, x) for n, pair in changes.items() for x in pair])
        return all((a == b).all() for a, b in zip(one, two))

    last = len(feeds["cos_cache"]) - 1
    far = np.array([[last + 1, 2**63 - 1, 5], [-1, -(2**63), last]])
    saliency = feeds["query_saliency"].copy()
    ones = saliency.copy()
    at = ([0, 0, 1, 1], [3, 9, 0, 63])
    saliency[at], ones[at] = [0, np.nan, -1, np.inf], 1
    return {
        "positions": same(position_ids=(far, np.clip(far, 0, last))),
        "saliency": same(query_saliency=(saliency, ones)),
    }


def addresses():
    """Messages for device memory that starts at odd addresses, or is shared where it may not be."""
    s, model, fixed = layer(rotary=0)
    sess = session(model)
    feeds = {**fixed, **next(steps(s, "f32")), **models.empty_cache(s, 2, "u8", 64)}
    values = {n: on_device(x) for n, x in feeds.items() if "seq" not in n}
    rows = {n: on_device(np.full(feeds[n].nbytes + 4096, 7, np.uint8)) for n in ("past_key", "past_value")}
    query = on_device(np.zeros(feeds["query"].size + 16, np.float32))

    def attempt(offsets=(), outputs=()):
        offsets, binding = dict(offsets), sess.io_binding()
        for name, value in values.items():
            at = (rows[name].data_ptr() if name in rows else
                  query.data_ptr() if name == "query" and name in offsets else value.data_ptr()) + offsets.get(name, 0)
            binding.bind_input(name, "cuda", 0, feeds[name].dtype.type, feeds[name].shape, at)
        for name in ("seqlens_k", "total_sequence_length"):
            binding.bind_cpu_input(name, feeds[name])
        for output in sess.get_outputs():
            binding.bind_output(output.name, "cuda")
        for name, (base, offset) in dict(outputs).items():
            shape = feeds[PAST[name]].shape if name in PAST else feeds["query"].shape
            kind = np.uint8 if name in PAST else np.float32
            binding.bind_output(name, "cuda", 0, kind, shape, base.data_ptr() + offset)
        try:
            sess.run_with_iobinding(binding)
            return None
        except Exception as error:
            return str(error)

    return {
        "right": attempt(),
        "odd query": attempt({"query": 2}),
        "odd past_key": attempt({"past_key": 1}),
        "shared": attempt(outputs={"present_key": (rows["past_key"], 0)}),
        "partly shared": attempt(outputs={"present_key": (rows["past_key"], 112)}),
        "crossed": attempt(outputs={"present_key": (rows["past_value"], 0)}),
        "output over query": attempt(outputs={"output": (values["query"], 0)}),
    }


def neighbours():
    """A node of ONNX before and one after the operators, on the CPU."""
    s, model, fixed = layer()
    around(model, "Neg")
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(os.environ["SCENARIO_FOLDER"], "profile")
    options.register_custom_ops_library(models.library_path())
    sess = ort.InferenceSession(model.SerializeToString(), options, providers=[PROVIDER, "CPUExecutionProvider"])
    feeds = {**fixed, **next(steps(s, "f32")), **models.empty_cache(s, 2, "u8", 64)}
    got = models.run(sess, feeds)
    want = models.run(session(model, "CPUExecutionProvider"), feeds)
    return {"difference": worst([got["output"]], [want["output"]]), "placed": placed(sess)}


def beside(order="first"):
    """Between nodes of another provider on the same device, which comes first or last in the session."""
    from operators import plugin

    folder = os.environ["LD_LIBRARY_PATH"].split(":")[0]
    ort.register_execution_provider_library("neighbour", os.path.join(folder, "libneighbour.so"))
    [other] = [d for d in ort.get_ep_devices() if d.ep_name == "NeighbourExecutionProvider"]
    s, model, fixed = layer()
    around(model, "Identity")
    options = ort.SessionOptions()
    # ONNX Runtime would remove the nodes.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(os.environ["SCENARIO_FOLDER"], "profile")
    options.register_custom_ops_library(models.library_path())
    for device in [other, plugin.DEVICES[0]][:: 1 if order == "first" else -1]:
        options.add_provider_for_devices([device], {})
    sess = plugin.PLAIN_SESSION(model.SerializeToString(), options)
    feeds = {**fixed, **next(steps(s, "f32")), **models.empty_cache(s, 2, "u8", 64)}
    note("run 0")
    got = models.run(sess, feeds)
    note("done")
    want = models.run(session(model, "CPUExecutionProvider"), feeds)
    return {"difference": worst([got["output"]], [want["output"]]), "placed": placed(sess)}


def side_by_side(runs="6"):
    """Two sessions, one of them on two threads, at the same time."""
    s, model, fixed = layer()
    feeds = {**fixed, **next(steps(s, "f32")), **models.empty_cache(s, 2, "u8", 64)}
    first, second = session(model), session(model)
    want, wrong = models.run(first, feeds)["output"], []

    def work(sess):
        for _ in range(int(runs)):
            if (models.run(sess, feeds)["output"] != want).any():
                wrong.append(1)

    threads = [threading.Thread(target=work, args=(sess,)) for sess in (first, second, first)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    return {"equal": not wrong}


def again():
    """A session, the library unregistered, registered again, another session."""
    import gc

    from operators import plugin

    results = []
    for i in range(2):
        results += plain("1")["runs"]
        kept.clear()
        plugin.DEVICES.clear()
        gc.collect()
        if i == 0:
            ort.unregister_execution_provider_library("spark")
            plugin.register()
    return results


def chosen(gpu="True"):
    """What `spark_ort.register` of the source folder chooses, which operators then run where, and what is wrong."""
    import types

    package = types.ModuleType("spark_ort")
    package.__path__ = [str(pathlib.Path(__file__).parents[3] / "python/spark_ort")]
    sys.modules["spark_ort"] = package
    from spark_ort import _register

    _register.library_path = models.library_path
    if PROVIDER == "SparkExecutionProvider":
        ort.unregister_execution_provider_library("spark")
    s, model, fixed = layer()
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = os.path.join(os.environ["SCENARIO_FOLDER"], "profile")
    try:
        name = _register.register(options, gpu={"True": True, "False": False}.get(gpu, gpu))
    except _register.Error as error:
        return {"error": str(error)}
    older = {} if hasattr(options, "add_provider") else {"providers": [name]}
    sess = ort.InferenceSession(model.SerializeToString(), options, **older)
    models.run(sess, {**fixed, **next(steps(s, "f32")), **models.empty_cache(s, 2, "u8", 64)})
    return {"name": name, "placed": placed(sess)}


def devices():
    """How many devices the provider offers."""
    return sum(d.ep_name == PROVIDER for d in ort.get_ep_devices())


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])), flush=True)
    if os.environ.get("SCENARIO_ENDS_AT_ONCE"):
        # ONNX Runtime ends the process when it puts streams of a device away that has failed.
        os._exit(0)
    kept.clear()

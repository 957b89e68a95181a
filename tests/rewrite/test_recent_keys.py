"""Recent keys in the tail of a shared buffer: how models are rewritten for them, and what they bring a host that
shares."""

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from .exports.prompts import load

from .command import inspect, library_path, rewrite, spark_ort

FOLDERS = ["genai-cpu-fp32", "genai-cuda-fp16"]
OFF = ("--calibrate", "off")
STRONG = ("--ratio", 0.7, "--key-bits", 4, "--value-bits", 4)


def operators(model, kind):
    return [n for n in model.graph.node if n.op_type == kind and n.domain == "ai.spark"]


def attribute(node, name):
    return next((a.i for a in node.attribute if a.name == name), None)


@pytest.fixture(scope="module")
def folder(exports, tmp_path_factory):
    """folder(name, *options): (rewritten GenAI folder, its report)."""
    made = {}

    def get(name, *options):
        if (name, options) not in made:
            target = tmp_path_factory.mktemp(name) / "out"
            made[name, options] = target, rewrite(exports[name], target, *OFF, *options)
        return made[name, options]

    return get


@pytest.mark.parametrize(
    "options, window",
    [((), 64), (STRONG, 64), (("--recent", 16), 16), (("--recent", 0), 0), (("--ratio", 0, "--key-bits", 16), 0)],
)
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_keeps_recent_keys_in_its_buffer(name, options, window, folder):
    """Nothing that GenAI sees changes; SparkPrune waits for SparkAttention; the domain's version says it."""
    path, report = folder(name, *options)
    model = onnx.load(path / "model.onnx", load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import}["ai.spark"] == (2 if window else 1)
    attentions, prunes = (operators(model, kind) for kind in ("SparkAttention", "SparkPrune"))
    assert len(attentions) == len(prunes) == 4
    assert {attribute(n, "tail_window") for n in attentions + prunes} == {window or None}
    outputs = [n.output[0] for n in attentions]
    # SparkPrune is stored for the first layer last: ONNX Runtime runs them in the layers' order.
    assert [n.input[12:] for n in reversed(prunes)] == ([[o] for o in outputs] if window else [[]] * 4)
    names = [v.name for v in [*model.graph.input, *model.graph.output]]
    assert not [n for n in names if "recent" in n]
    rows = inspect(path)["rows"]
    assert (rows["tail_window"], rows["recent_window"]) == (window, 0)
    said = spark_ort("inspect", path).stdout
    assert (f"the last {window} keys also dense, in free rows" in said) == (window > 0)
    assert report["model"] == inspect(path)


def test_what_cannot_share_a_buffer_is_told(exports, tmp_path):
    """A configuration that lets caches grow is a warning; a model that is not given its lengths a refusal."""
    source = shutil.copytree(exports["genai-cpu-fp32"], tmp_path / "in")
    shares = "past_present_share_buffer"
    assert not any(shares in w for w in rewrite(source, tmp_path / "a", *OFF)["warnings"])
    config = json.loads((source / "genai_config.json").read_text())
    config["search"][shares] = False
    (source / "genai_config.json").chmod(0o644)
    (source / "genai_config.json").write_text(json.dumps(config))
    assert any(shares in w for w in rewrite(source, tmp_path / "b", *OFF)["warnings"])
    assert not any(shares in w for w in rewrite(source, tmp_path / "c", *OFF, "--recent", 0)["warnings"])
    model = exports["optimum-fp32"] / "model.onnx"
    options = ("--recent", 8, "--recent-in", "buffer")
    done = spark_ort("rewrite", model, tmp_path / "out.onnx", *OFF, *options, check=False)
    assert done.returncode == 1 and "--recent-in" in done.stderr and not (tmp_path / "out.onnx").exists()


class Sharer:
    """A host with one buffer for past and present, as GenAI has it."""

    def __init__(self, folder, capacity, mode=ort.ExecutionMode.ORT_SEQUENTIAL, threads=1):
        options = ort.SessionOptions()
        options.execution_mode, options.intra_op_num_threads, options.inter_op_num_threads = mode, threads, 2
        options.register_custom_ops_library(str(library_path()))
        model = str(folder / "model.onnx")
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.cache, self.past, self.capacity = {}, 0, capacity
        for i in self.session.get_inputs():
            if i.name.startswith("past_key_values."):
                dtype = np.float16 if "float16" in i.type else np.float32
                # What a host's memory happens to hold.
                width = i.shape[3] if isinstance(i.shape[3], int) else 64
                self.cache[i.name] = np.full((1, i.shape[1], capacity, width), 3, dtype)

    def feed(self, tokens):
        """Logits `[L,V]` of new tokens."""
        self.past += len(tokens)
        values = {n: ort.OrtValue.ortvalue_from_numpy(x) for n, x in self.cache.items()}
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([tokens], np.int64))
        binding.bind_cpu_input("attention_mask", np.ones((1, self.past), np.int64))
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        # In the order in which they were bound.
        return binding.get_outputs()[-1].numpy()[0].astype(np.float64)


def divergence(folder, original, chunk, capacity=None):
    """KL divergence in nats of the predictions along a known text from those of the original, mean over its tokens."""
    tokens = [token for prompt in load() for token in prompt["tokens"]]
    prompt, told = tokens[:400], tokens[400:480]
    predictions = []
    for model in (original, folder):
        host = Sharer(model, capacity or 600)
        logits = [host.feed(prompt[i : i + chunk])[-1:] for i in range(0, len(prompt), chunk)][-1:]
        logits += [host.feed([t]) for t in told[:-1]]
        x = np.concatenate(logits)
        x -= x.max(-1, keepdims=True)
        predictions.append(x - np.log(np.exp(x).sum(-1, keepdims=True)))
    p, q = predictions
    return (np.exp(p) * (p - q)).sum(-1).mean()


@pytest.mark.parametrize("chunk", [400, 128])
@pytest.mark.parametrize("name", FOLDERS)
def test_predictions_are_closer_to_the_original(name, chunk, folder, exports, figure):
    """On the bundled model at a quarter of the memory; with a buffer that is all but full, as it is without a tail."""
    original = exports[name]
    with_tail, without = (folder(name, *STRONG, *recent)[0] for recent in ((), ("--recent", 0)))
    found, before = (divergence(path, original, chunk) for path in (with_tail, without))
    figure(f"{name}, chunks of {chunk}: divergence {found:.4f} with recent keys in the buffer, {before:.4f} without")
    assert found < before / 2
    assert divergence(with_tail, original, chunk, capacity=480) < before * 1.1


def test_execution_modes_agree(folder):
    """Whether ONNX Runtime may run nodes at once or not, logits and caches are the same bytes."""
    path, _ = folder("genai-cpu-fp32", *STRONG)
    tokens = load()[1]["tokens"][:200]
    results = []
    for mode in (ort.ExecutionMode.ORT_SEQUENTIAL, ort.ExecutionMode.ORT_PARALLEL):
        host = Sharer(path, 220, mode, threads=2)
        logits = [host.feed(tokens[:90]), host.feed(tokens[90:180]), *[host.feed([t]) for t in tokens[180:]]]
        results.append((np.concatenate(logits), *host.cache.values()))
    for a, b in zip(*results):
        assert a.tobytes() == b.tobytes()


def test_keys_are_stored_layer_by_layer(folder, tmp_path):
    """Each layer's SparkPrune runs before the next layer's attention: the keys of all layers are never held at once."""
    path, _ = folder("genai-cpu-fp32")
    host = Sharer(path, 100)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    host.session = ort.InferenceSession(str(path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    host.feed([1, 2, 3])
    events = json.loads(open(host.session.end_profiling()).read())
    ran = [e["args"]["op_name"] for e in sorted(events, key=lambda e: e["ts"]) if e["name"].endswith("_kernel_time")]
    assert [n for n in ran if re.fullmatch("Spark.*", n)] == ["SparkAttention", "SparkPrune"] * 4

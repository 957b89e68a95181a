"""What genai_config.json may say of a folder: windows, subfolders, other models beside the decoder, providers."""

import json
import shutil

import numpy as np
import onnx
import pytest

from .command import rewrite, session, spark_ort
from .exports.drive import Driver

LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off --recent 0".split()
WINDOW = 8
# As the model builder of GenAI 0.18 writes it.
SLIDING = {"window_size": WINDOW, "pad_value": 0, "slide_key_value_cache": False, "slide_inputs": False}


@pytest.fixture
def folder(exports, tmp_path):
    return shutil.copytree(exports["genai-cpu-fp32"], tmp_path / "in")


def change(folder, edit):
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    edit(config["model"])
    path.write_text(json.dumps(config))


def settings(folder):
    return json.loads((folder / "genai_config.json").read_text())["model"]


def windowed(path, cache):
    """The model at `path` with attention over a window, and a cache that holds no more than that if `cache`."""
    model = onnx.load(path, load_external_data=False)
    for node in [n for n in model.graph.node if n.op_type == "GroupQueryAttention"]:
        kept = [a for a in node.attribute if a.name not in ("local_window_size", "sliding_window_cache")]
        del node.attribute[:]
        sizes = {"local_window_size": WINDOW, "sliding_window_cache": int(cache)}
        node.attribute.extend([*kept, *(onnx.helper.make_attribute(name, size) for name, size in sizes.items())])
    onnx.save(model, path)


def logits(path, library=None):
    driver = Driver(session(path, library))
    tokens = np.random.default_rng(1).integers(3, 50, (1, 3 * WINDOW))
    return [driver.feed(part) for part in np.split(tokens, [2 * WINDOW, 2 * WINDOW + 1, 2 * WINDOW + 2], axis=1)[:3]]


def test_window(folder, tmp_path):
    """A cache of a window becomes a whole one; attention keeps the window, and a warning says the bytes."""
    change(folder, lambda model: model["decoder"].update(sliding_window=SLIDING))
    windowed(folder / "model.onnx", cache=True)
    report = rewrite(folder, tmp_path / "out", *LOSSLESS)
    assert "sliding_window" not in settings(tmp_path / "out")["decoder"]
    warning = next(w for w in report["warnings"] if "sliding_window_cache" in w)
    per_token = report["model"]["original_bytes_per_token"]
    assert f"last {WINDOW} tokens" in warning and f"{per_token * WINDOW} bytes" in warning
    found = logits(tmp_path / "out/model.onnx", tmp_path / "out/libspark_ort.so")
    # ONNX Runtime's CPU wants room for the whole window at once.
    windowed(folder / "model.onnx", cache=False)
    expected = logits(folder / "model.onnx")
    scale = max(np.abs(e).max() for e in expected)
    assert max(np.abs(f - e).max() for f, e in zip(found, expected, strict=True)) / scale < 5e-3


@pytest.mark.parametrize("part", ["slide_key_value_cache", "slide_inputs"])
def test_window_that_the_host_moves(part, folder, tmp_path):
    change(folder, lambda model: model["decoder"].update(sliding_window=SLIDING | {part: True}))
    done = spark_ort("rewrite", folder, tmp_path / "out", check=False)
    assert done.returncode == 1 and f"sliding_window.{part}" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["num_key_value_heads", "head_size"])
def test_sizes_of_another_model(name, folder, tmp_path):
    """By these GenAI allocates caches: it would fail at the first call."""
    change(folder, lambda model: model["decoder"].update({name: 7}))
    done = spark_ort("rewrite", folder, tmp_path / "out", *LOSSLESS, check=False)
    right = {"num_key_value_heads": 2, "head_size": 64}[name]
    assert done.returncode != 0 and not (tmp_path / "out").exists()
    assert f"model.decoder.{name} {right}" in done.stderr and "genai_config.json" in done.stderr, done.stderr


def test_subfolder(folder, tmp_path):
    """The decoder and its data may lie in a folder of their own."""
    expected = logits(folder / "model.onnx")
    (folder / "decoder").mkdir()
    for file in folder.glob("model.onnx*"):
        file.rename(folder / "decoder" / file.name)
    change(folder, lambda model: model["decoder"].update(filename="decoder/model.onnx"))
    rewrite(folder, tmp_path / "out", *LOSSLESS)
    assert settings(tmp_path / "out")["decoder"]["filename"] == "decoder/model.onnx"
    found = logits(tmp_path / "out/decoder/model.onnx", tmp_path / "out/libspark_ort.so")
    assert max(np.abs(f - e).max() for f, e in zip(found, expected)) / np.abs(expected[0]).max() < 5e-3


def test_models_beside_the_decoder(folder, tmp_path):
    """Of a multi-modal folder only the decoder and its section change."""
    (folder / "vision.onnx").write_bytes(b"not looked at")
    vision = {"filename": "vision.onnx", "inputs": {"pixel_values": "pixel_values"}}
    change(folder, lambda model: model.update(vision=vision))
    rewrite(folder, tmp_path / "out", *LOSSLESS)
    assert (tmp_path / "out/vision.onnx").read_bytes() == b"not looked at"
    before, after = settings(folder), settings(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {"decoder"} and before.keys() == after.keys()


def with_providers(folder, *options):
    def edit(model):
        model["decoder"].setdefault("session_options", {})["provider_options"] = list(options)

    change(folder, edit)


def providers(folder):
    return settings(folder)["decoder"]["session_options"].get("provider_options")


def test_foreign_provider(folder, tmp_path):
    """A provider without our operators gets a warning that says what will happen."""
    with_providers(folder, {"dml": {}})
    report = rewrite(folder, tmp_path / "out", *LOSSLESS)
    assert any("execution provider dml" in w and "runs them on the CPU" in w for w in report["warnings"])


def test_graphs_are_switched_off(folder, tmp_path):
    with_providers(folder, {"cuda": {"enable_cuda_graph": "1", "device_id": "1"}})
    report = rewrite(folder, tmp_path / "out", *LOSSLESS)
    assert providers(tmp_path / "out") == [{"cuda": {"enable_cuda_graph": "0", "device_id": "1"}}]
    assert any("enable_cuda_graph" in w for w in report["warnings"])
    assert not any("no kernels" in w for w in report["warnings"])


def test_a_provider_is_named(folder, tmp_path):
    """Once, after the others, and with what the host has to do."""
    ours = {"SparkExecutionProvider": {}}
    for given, named in ([], [ours]), ([{"AMDGPU": {}}], [{"AMDGPU": {}}, ours]), ([ours], [ours]):
        with_providers(folder, *given)
        out = tmp_path / f"out{len(given)}{len(named)}"
        report = rewrite(folder, out, *LOSSLESS, "--provider", "SparkExecutionProvider")
        assert providers(out) == named
        assert any("register_execution_provider_library" in w for w in report["warnings"])
        assert any("every step copies" in w for w in report["warnings"]) == (len(named) == 1)
        assert not any("no kernels" in w for w in report["warnings"])


def test_a_file_names_no_provider(folder, tmp_path):
    done = spark_ort("rewrite", folder / "model.onnx", tmp_path / "out.onnx", "--provider", "cuda", check=False)
    assert done.returncode != 0 and "provider" in done.stderr and "GenAI folder" in done.stderr

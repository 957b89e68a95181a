"""A rewritten GenAI folder is complete, and `spark-ort inspect` says what models are like."""

import json
import shutil

import numpy as np
import onnx
import pytest
from .exports.build import BUNDLED, NAMES
from .exports.drive import decode
from .exports.prompts import load

from .command import inspect, library_path, rewrite, session, spark_ort

GENAI = [name for name in NAMES if name.startswith("genai")]
CHANGED = {"model.onnx", "genai_config.json", "libspark_ort.so"}
SOURCES = {"optimum-fp32": "decomposed", "dynamo18-fp32": "decomposed", "dynamo23-fp32": "Attention"}
LAYERS, KV_HEADS, SIZE = 4, 2, 64


def element_bytes(name):
    return 2 if name.endswith("fp16") else 4


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", GENAI)
def test_folder(name, exports, tmp_path):
    """Library, configuration that names it, one row size, and all else as it was; it answers with its own library."""
    before, out = files(exports[name]), tmp_path / "out"
    report = rewrite(exports[name], out, "--calibrate", "off")
    assert files(exports[name]) == before
    after = files(out)
    assert after.keys() == before.keys() | CHANGED
    assert all(after[file] == before[file] for file in before.keys() - CHANGED)
    assert after["libspark_ort.so"] == library_path().read_bytes()
    config, expected = (json.loads(found["genai_config.json"]) for found in (after, before))
    expected["model"]["decoder"]["session_options"]["custom_ops_library"] = "libspark_ort.so"
    expected["model"]["decoder"]["head_size"] = 68 // element_bytes(name)
    assert config == expected

    rows = report["model"]["rows"]
    assert rows["key_row_bytes"] == rows["value_row_bytes"] == 68
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    caches = [t for t in [*graph.input, *graph.output] if t.name.startswith(("past_key_values.", "present."))]
    assert len(caches) == 4 * LAYERS
    assert {t.type.tensor_type.shape.dim[3].dim_value for t in caches} == {68 // element_bytes(name)}

    prompt = load()[0]
    answer, _ = decode(session(out / "model.onnx", out / "libspark_ort.so"), [prompt["tokens"]], steps=7)
    assert answer[0].tolist() == prompt["answer"]


def test_library(exports, tmp_path):
    """The library may be named; where it is missing, nothing is written."""
    folder = shutil.copytree(exports[BUNDLED], tmp_path / "in")
    library = tmp_path / "other.so"
    library.write_bytes(b"\x7fELF, with the name RegisterCustomOps")
    rewrite(folder, tmp_path / "out", "--calibrate", "off", "--library", library)
    assert (tmp_path / "out/libspark_ort.so").read_bytes() == library.read_bytes()
    (tmp_path / "text.so").write_text("RegisterCustomOps")
    for name, problem in (("missing.so", "no file"), ("text.so", "no library")):
        done = spark_ort("rewrite", folder, tmp_path / "none", "--library", tmp_path / name, check=False)
        assert done.returncode == 1 and name in done.stderr and problem in done.stderr
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", NAMES)
def test_inspect_original(name, exports):
    """What an export is like."""
    found = inspect(exports[name] / "model.onnx")
    assert found["source"] == SOURCES.get(name, "GroupQueryAttention")
    assert found["rows"] is None and found["calibration"] is None and found["query_heads"] == [4] * LAYERS
    per_token = LAYERS * KV_HEADS * 2 * SIZE * element_bytes(name)
    assert found["bytes_per_token"] == found["original_bytes_per_token"] == per_token
    layers = found["interface"]["layers"]
    assert len(layers) == LAYERS and all((l["kv_heads"], l["head_dim"]) == (KV_HEADS, SIZE) for l in layers)
    names = [(l["key"]["past"], l["value"]["present"]) for l in layers]
    assert names == [(f"past_key_values.{i}.key", f"present.{i}.value") for i in range(LAYERS)]
    assert {l[part]["width"] for l in layers for part in ("key", "value")} == {SIZE}


def test_data_stays_loadable(exports, tmp_path):
    """The package onnx, which refuses linked data, loads the original and the rewritten model with their data."""
    folder = shutil.copytree(exports[BUNDLED], tmp_path / "in")
    rewrite(folder, tmp_path / "out", "--calibrate", "off")
    for path in (folder, tmp_path / "out"):
        onnx.load(path / "model.onnx")


@pytest.mark.parametrize("name", [BUNDLED, "optimum-fp32"])
def test_dry_run(name, exports, tmp_path):
    """A dry run says what would come out, and writes nothing."""
    # A GenAI folder, and a file.
    source = exports[name] if name == BUNDLED else exports[name] / "model.onnx"
    said = rewrite(source, tmp_path / "out.onnx", "--dry-run", "--calibrate", "off")
    assert not list(tmp_path.iterdir())
    done = rewrite(source, tmp_path / "out.onnx", "--calibrate", "off")
    assert said["model"] == done["model"]


# Options, and what they make: bytes of rows, kept channels, recent keys.
REWRITES = {
    "default": ((), (56, 68), 32, 0),
    "4 bits": (("--ratio", 0.7, "--key-bits", 4, "--value-bits", 4, "--recent", 16), (32, 40), 20, 16),
    # Padding is filled with channels, unless it is not wanted.
    "bytes": (("--cache-type", "uint8", "--uniform-rows"), (68, 68), 46, 0),
    "exact ratio": (("--cache-type", "uint8", "--uniform-rows", "--exact-ratio"), (68, 68), 32, 0),
}


@pytest.mark.parametrize("case", REWRITES)
@pytest.mark.parametrize("name", NAMES)
def test_inspect_rewritten(name, case, exports, rewritten):
    """What a rewritten export is like, as its report says, too."""
    options, rows, kept, recent = REWRITES[case]
    found = inspect(rewritten(name, "--calibrate", "off", *options))
    before = inspect(exports[name] / "model.onnx")
    for key in ("source", "query_heads", "original_bytes_per_token"):
        assert found[key] == before[key]
    assert (found["rows"]["key_row_bytes"], found["rows"]["value_row_bytes"]) == rows
    assert (found["rows"]["kept_channels"], found["rows"]["recent_window"]) == (kept, recent)
    assert found["bytes_per_token"] == LAYERS * KV_HEADS * sum(rows)
    assert found["recent_bytes"] == LAYERS * KV_HEADS * recent * SIZE * element_bytes(name)
    element = 1 if "uint8" in options else element_bytes(name)
    for layer in found["interface"]["layers"]:
        assert (layer["key"]["width"], layer["value"]["width"]) == tuple(np.array(rows) // element)


def test_inspect_says_it_in_words(exports, rewritten):
    """Without --json the same is said in words."""
    text = spark_ort("inspect", rewritten("optimum-fp32", "--calibrate", "off")).stdout
    assert "4 of decomposed attention" in text and "992 bytes per token" in text and "ratio 0.5" in text
    assert "not compressed" in spark_ort("inspect", exports[BUNDLED]).stdout


def test_inspect_refuses_others(tmp_path):
    """A model without attention, and a file that is no model, are errors."""
    info = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([relu], "g", [info], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "relu.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    for name in ("relu", "text", "missing"):
        done = spark_ort("inspect", tmp_path / f"{name}.onnx", check=False)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and not done.stdout

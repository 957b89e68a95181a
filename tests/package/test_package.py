"""The package as `pip install` leaves it: module, command, types."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import spark_ort

from conftest import ROOT

# ONNX Runtime must be found without help.
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("ORT_DYLIB_PATH", "VIRTUAL_ENV", "SPARK_ORT_LIBRARY")
}
COMMAND = Path(sys.executable).with_name("spark-ort")


def command(*arguments, env=PLAIN):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=300)


def test_version():
    cargo = re.search(r'^version = "(.*)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]
    assert spark_ort.__version__ == cargo == distribution("spark-ort").version
    assert command("--version").stdout == f"spark-ort {cargo}\n"


def test_typed():
    folder = Path(spark_ort.__file__).parent
    assert (folder / "py.typed").is_file()
    for function in (spark_ort.rewrite, spark_ort.inspect, spark_ort.library_path, spark_ort.register):
        assert function.__annotations__["return"] and function.__doc__
    assert all(hasattr(spark_ort, name) for name in spark_ort.__all__)


def test_library_path():
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(spark_ort.library_path())


def test_register():
    """Operators on the CPU; a GPU that is not there is named as such, as often as it is asked for."""
    for gpu in (False, np.False_, "auto"):
        assert spark_ort.register(onnxruntime.SessionOptions(), gpu=gpu) == "CPUExecutionProvider"
    for gpu in (True, True, np.True_, 3):
        with pytest.raises(spark_ort.Error, match="no GPU can be used: .*SparkExecutionProvider"):
            spark_ort.register(onnxruntime.SessionOptions(), gpu=gpu)
    for gpu in ("cuda", -1):
        with pytest.raises(spark_ort.Error, match="'auto' or the number of a device"):
            spark_ort.register(onnxruntime.SessionOptions(), gpu=gpu)
    for gpu in (None, 1.5, [], np.array([1, 2]), np.array([0.5])):
        with pytest.raises(TypeError, match=f"gpu is a {type(gpu).__name__}: .*'auto' or the number of a device"):
            spark_ort.register(onnxruntime.SessionOptions(), gpu=gpu)
    for options in (None, np.zeros(2), "options"):
        with pytest.raises(TypeError, match=f"options are a {type(options).__name__}: .*SessionOptions"):
            spark_ort.register(options)


def test_two_files_in_one_runtime(exports, tmp_path):
    """As two models of a server may have them."""
    spark_ort.rewrite(exports("optimum-fp32") / "model.onnx", tmp_path / "model.onnx", calibrate="off")
    sessions = []
    for library in (spark_ort.library_path(), shutil.copy(spark_ort.library_path(), tmp_path)):
        options = onnxruntime.SessionOptions()
        options.register_custom_ops_library(library)
        sessions.append(onnxruntime.InferenceSession(tmp_path / "model.onnx", options))
    feeds = {i.name: np.zeros((1, 2, 0, 64), np.float32) for i in sessions[0].get_inputs() if i.name.startswith("past")}
    feeds |= {name: np.ones((1, 5), np.int64) for name in ("input_ids", "attention_mask")}
    feeds["position_ids"] = np.arange(5)[None]
    feeds = {i.name: feeds[i.name] for i in sessions[0].get_inputs()}
    first, second = (session.run(["logits"], feeds)[0] for session in sessions)
    np.testing.assert_array_equal(first, second)


def test_rewrite_and_inspect(exports, tmp_path):
    source = exports("optimum-fp32") / "model.onnx"
    report = spark_ort.rewrite(source, tmp_path / "out.onnx", ratio=0.7, key_bits=4, value_bits=4, recent=16, threads=2)
    assert report["output"] == str(tmp_path / "out.onnx") and report["warnings"] == []
    found = spark_ort.inspect(tmp_path / "out.onnx")
    assert found == report["model"]
    assert found["rows"]["kept_channels"] == 20 and found["bytes_per_token"] == 576
    assert found["interface"]["layers"][0]["key_recent"]["past"] == "past_key_values.0.key_recent"
    assert spark_ort.inspect(source)["rows"] is None


def test_recipe(exports, tmp_path):
    """Settings by layer, beside which others are refused."""
    source, recipe, out = exports("optimum-fp32") / "model.onnx", tmp_path / "recipe.json", tmp_path / "out.onnx"
    layers = [{"layer": i, "ratio": 0.5, "key_bits": 8, "value_bits": 8 if i else 4} for i in range(4)]
    recipe.write_text(json.dumps({"spark_recipe": 1, "layers": layers}))
    report = spark_ort.rewrite(source, out, recipe=recipe, calibrate="off")
    assert [rows["value_bits"] for rows in report["model"]["layer_rows"]] == [4, 8, 8, 8]
    with pytest.raises(spark_ort.Error, match="--ratio"):
        spark_ort.rewrite(source, out, recipe=recipe, ratio=0.25, force=True)


def test_basis(exports, tmp_path):
    """Keys in a calibrated basis, beside which the options of pruned channels are refused."""
    source, out = exports("genai-cpu-fp32") / "model.onnx", tmp_path / "out.onnx"
    report = spark_ort.rewrite(source, out, basis="calibrated", key_bytes=28, calibration_tokens=600)
    rows = report["model"]["rows"]
    assert (rows["row_format"], rows["key_row_bytes"]) == (3, 28) and sum(rows["planes"].values()) <= rows["head_dim"]
    with pytest.raises(spark_ort.Error, match="--ratio"):
        spark_ort.rewrite(source, out, basis="calibrated", ratio=0.25, force=True)


def test_every_option_arrives(exports, tmp_path):
    """Each argument of rewrite() is an option of the command, and none of the command's is missing."""
    help_text = command("rewrite", "--help").stdout
    options = set(re.findall(r"^\s+(?:-\w, )?--([a-z-]+)", help_text, re.MULTILINE)) - {"json", "help", "version"}
    code = spark_ort.rewrite.__code__
    names = code.co_varnames[2 : code.co_argcount + code.co_kwonlyargcount]
    assert {name.replace("_", "-") for name in names} == options
    report = spark_ort.rewrite(
        exports("optimum-fp32") / "model.onnx", tmp_path / "-out.onnx", ratio=0.25, key_bits=16, value_bits=4,
        recovery="none", recent=3, cache_type="uint8", uniform_rows=True, calibrate="random", calibration_tokens=64,
        tokenizer=exports("optimum-fp32") / "tokenizer.json", data="link", library=spark_ort.library_path(), force=True,
        dry_run=False, no_trial=True, threads=1,
    )
    rows = report["model"]["rows"]
    assert (rows["ratio"], rows["key_bits"], rows["value_bits"], rows["recovery"]) == (0.25, 16, 4, "none")
    assert (rows["recent_window"], rows["cache_type"]) == (3, "uint8")
    assert rows["key_row_bytes"] == rows["value_row_bytes"] and "64 random tokens" in report["model"]["calibration"]


def test_errors(exports, tmp_path):
    with pytest.raises(spark_ort.Error, match="none.onnx"):
        spark_ort.inspect(tmp_path / "none.onnx")
    with pytest.raises(spark_ort.Error, match="--ratio"):
        spark_ort.rewrite(exports("optimum-fp32") / "model.onnx", tmp_path / "out.onnx", ratio=1.5)
    assert not list(tmp_path.iterdir())


def test_doctor():
    done = command("doctor")
    assert done.returncode == 0, done.stdout
    for text in (
        onnxruntime.__version__,
        "CPUExecutionProvider",
        spark_ort.library_path(),
        "went through both operators",
        "runs on       CPUExecutionProvider",
        "not on        SparkExecutionProvider: no GPU; HIP: none",
    ):
        assert text in done.stdout
    assert "PROBLEM" not in done.stdout


def test_doctor_names_problems(tmp_path):
    """A path that the processor lacks, no ONNX Runtime, a file that is no library."""
    done = command("doctor", env={**PLAIN, "SPARK_ORT_CPU": "sse9"})
    assert done.returncode == 1 and "SPARK_ORT_CPU=sse9" in done.stdout
    done = command("doctor", env={**PLAIN, "ORT_DYLIB_PATH": str(tmp_path / "none.so")})
    assert done.returncode == 1 and "none.so" in done.stdout and "ONNX Runtime  PROBLEM" in done.stdout
    other = tmp_path / "other.so"
    other.write_text("no library")
    done = command("doctor", "--library", other)
    assert done.returncode == 1 and "trial run     PROBLEM" in done.stdout
    assert command("doctor", "--library", tmp_path / "none.so").returncode == 1


def test_only_the_c_library_is_linked():
    """Neither file needs more than glibc and libgcc; one for other machines no symbol that glibc 2.28 lacks."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    for_others = "manylinux" in distribution("spark-ort").read_text("WHEEL")
    for name in ("libspark_ort.so", "spark-ort"):
        path = Path(spark_ort.library_path()).with_name(name)
        text = subprocess.run([readelf, "-dV", path], capture_output=True, text=True, check=True).stdout
        libraries = set(re.findall(r"NEEDED.*\[(.*?)\]", text))
        assert libraries <= {f"lib{l}" for l in ("c.so.6", "m.so.6", "pthread.so.0", "dl.so.2", "gcc_s.so.1")} | {
            "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
        versions = [tuple(map(int, v.split("."))) for v in re.findall(r"GLIBC_([\d.]+)", text)]
        assert versions and (not for_others or max(versions) <= (2, 28)), (name, max(versions))

"""What users copy from examples/ runs as it stands."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import spark_ort

from conftest import ROOT

EXAMPLES = ROOT / "examples"
# Where a package of ONNX Runtime for C++ may have put its headers.
HEADERS = [os.environ.get("ORT_INCLUDE"), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"]
HEAD_SIZE = 64


def runtime():
    return next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


def run(*command, **variables):
    """What a command prints."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env={**os.environ, **variables}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def model(exports, tmp_path_factory):
    """A float32 model as the default rewrites it."""
    target = tmp_path_factory.mktemp("model") / "model.onnx"
    spark_ort.rewrite(exports("optimum-fp32") / "model.onnx", target, threads=2)
    return target


@pytest.fixture(scope="module")
def prompt(prompts):
    return [str(token) for token in prompts[1]["tokens"]]


@pytest.fixture(scope="module")
def answer(prompts):
    return prompts[1]["answer"]


def tokens(text):
    return [int(token) for token in text.split()]


@pytest.mark.parametrize(
    "name", ["genai-cpu-fp32", "genai-cuda-fp16", "genai-cpu-int4", "optimum-fp32", "dynamo23-fp32"]
)
def test_plain_loop(name, exports, prompt, answer, tmp_path):
    """One loop for originals and rewritten models, of every element type."""
    spark_ort.rewrite(exports(name) / "model.onnx", tmp_path / "model.onnx", calibrate="off")
    for path in (exports(name) / "model.onnx", tmp_path / "model.onnx"):
        told = run(sys.executable, EXAMPLES / "plain_loop.py", path, HEAD_SIZE, len(answer), *prompt)
        assert tokens(told) == answer


def test_plain_loop_in_rust(model, prompt, answer):
    program = os.environ.get("SPARK_ORT_RUST_EXAMPLE")
    if not program:
        pytest.skip("SPARK_ORT_RUST_EXAMPLE names no built example")
    command = [program, spark_ort.library_path(), model, HEAD_SIZE, len(answer), *prompt]
    assert tokens(run(*command, ORT_DYLIB_PATH=str(runtime()))) == answer


def test_plain_loop_in_cpp(model, prompt, answer, tmp_path):
    include = next((i for i in HEADERS if i and Path(i, "onnxruntime_cxx_api.h").is_file()), None)
    compiler = shutil.which("c++")
    if include is None or compiler is None:
        pytest.skip("no C++ compiler" if include else "no onnxruntime_cxx_api.h; ORT_INCLUDE names its folder")
    program = tmp_path / "plain_loop"
    run(compiler, "-std=c++17", f"-I{include}", EXAMPLES / "plain_loop.cpp", runtime(), "-o", program)
    command = [program, spark_ort.library_path(), model, HEAD_SIZE, len(answer), *prompt]
    assert tokens(run(*command, LD_LIBRARY_PATH=str(runtime().parent))) == answer


def test_genai_generate(folder):
    text = "The KV cache of a language model"
    told = [run(sys.executable, EXAMPLES / "genai_generate.py", folder("genai-cpu-fp32", kind), 24, text)
            for kind in ("original", "exact")]
    assert told[0] == told[1] and len(told[0]) > 20


def test_triton_entry(model, tmp_path):
    """The configuration is one by Triton's own schema, with what its documentation asks for custom operators. No
    server runs here."""
    run(sys.executable, EXAMPLES / "triton_entry.py", model, tmp_path, "llama", "/srv/models")
    text = (tmp_path / "llama/config.pbtxt").read_text()
    # The schema comes with Triton's client; of the client itself nothing is needed.
    package = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(package, "grpc/model_config_pb2.py"))
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    from google.protobuf import text_format

    config = text_format.Parse(text, schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("llama", "onnxruntime", 0)
    assert list(config.model_operations.op_library_filename) == ["/srv/models/llama/1/libspark_ort.so"]
    assert {path.name for path in (tmp_path / "llama/1").iterdir()} >= {"model.onnx", "libspark_ort.so"}
    cache = {i.name: (i.data_type, list(i.dims)) for i in config.input if i.name.startswith("past_key_values.")}
    assert len(cache) == 8 and all(
        kind == schema.TYPE_FP32 and dims[:3] == [-1, 2, -1] for kind, dims in cache.values()
    )
    layers = spark_ort.inspect(tmp_path / "llama/1/model.onnx")["interface"]["layers"]
    present = {o.name: list(o.dims) for o in config.output}
    assert json.dumps([present[l["key"]["present"]][3] for l in layers]) == json.dumps(
        [l["key"]["width"] for l in layers]
    )

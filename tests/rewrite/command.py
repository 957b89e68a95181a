"""The program `spark-ort`, and sessions on the models it writes.

SPARK_ORT_BINARY names the program, SPARK_ORT_LIBRARY the library; by default both are in target/release.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2


def library_path():
    """Path of the operator library."""
    return built(os.environ.get("SPARK_ORT_LIBRARY", "target/release/libspark_ort.so"))


def binary_path():
    """Path of the program; without SPARK_ORT_BINARY it is beside the library."""
    return built(os.environ.get("SPARK_ORT_BINARY") or library_path().with_name("spark-ort"))


def built(path):
    path = ROOT / path
    if not path.exists():
        pytest.fail(f"{path} is not there: run make build", pytrace=False)
    return path


def runtime_path():
    """Path of the ONNX Runtime that the program opens: the one of this Python's package."""
    return next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


def environment(**changes):
    """This process's environment with an ONNX Runtime in it; `changes` set variables, or unset those that are None."""
    variables = {"ORT_DYLIB_PATH": str(runtime_path()), **os.environ, **changes}
    return {name: str(value) for name, value in variables.items() if value is not None}


def spark_ort(*arguments, check=True, env=None, timeout=120, **options):
    """Runs the program and returns what it answered, as text. With `check`, failing is this test's failure."""
    command = [str(argument) for argument in (binary_path(), *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env or environment(), timeout=timeout, **options)
    if done.returncode < 0:
        pytest.fail(
            f"{' '.join(command)}\ndied of {signal.Signals(-done.returncode).name}\n{done.stderr}", pytrace=False
        )
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\nexit status {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return done


def rewrite(source, target, *options, **settings):
    """Rewrites a model and returns the report. `settings` are those of spark_ort()."""
    done = spark_ort("rewrite", source, target, "--json", "-", "--threads", THREADS, *options, **settings)
    return json.loads(done.stdout) if done.returncode == 0 else done


def inspect(model):
    """What the program says of a model."""
    return json.loads(spark_ort("inspect", model, "--json").stdout)


def session(model, library=None, threads=THREADS, level=None):
    """A quiet session on the CPU of a path or a ModelProto, with the operators; `level` is that of graph
    optimisation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if level is not None:
        options.graph_optimization_level = level
    options.register_custom_ops_library(str(library or library_path()))
    model = str(model) if isinstance(model, (str, Path)) else model.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

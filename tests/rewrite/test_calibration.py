"""Calibration measures the same whatever the export, and decides nothing but query_saliency."""

import shutil
import signal
import subprocess

import numpy as np
import onnx
import pytest
from .exports.build import BUNDLED, NAMES
from .exports.prompts import FILLER

from .command import binary_path, environment, rewrite, spark_ort

SALIENCY = 11  # the input of both operators
FEWER = ("--calibration-tokens", 1024)
# Largest relative difference of a channel's saliency to optimum-fp32's: the order of sums; float16; activations of 8
# bits.
CLOSE = {"fp32": 1e-3, "fp16": 0.02, "int4": 0.05}


def load(path):
    return onnx.load(path, load_external_data=False)


def operators(model, kind=("SparkPrune", "SparkAttention")):
    return [node for node in model.graph.node if node.domain == "ai.spark" and node.op_type in kind]


def saliency(model):
    """`[layers,Hk,D]`"""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [[n.input[SALIENCY] for n in operators(model, (kind,))] for kind in ("SparkPrune", "SparkAttention")]
    assert sorted(names[0]) == sorted(names[1])
    return np.stack([onnx.numpy_helper.to_array(tensors[name]) for name in names[0]])


def without_saliency(model):
    """The model's bytes without what calibration may decide."""
    names = {node.input[SALIENCY] for node in operators(model) if len(node.input) > SALIENCY} - {""}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for node in operators(model):
        inputs = [name if i != SALIENCY else "" for i, name in enumerate(node.input)]
        while not inputs[-1]:
            inputs.pop()
        node.input[:] = inputs
    return model.SerializeToString(deterministic=True)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(FILLER))
    return path


@pytest.fixture
def bare(exports, tmp_path):
    """A model alone in its folder."""
    folder = tmp_path / "bare"
    folder.mkdir()
    return shutil.copy(exports["dynamo23-fp32"] / "model.onnx", folder)


@pytest.mark.parametrize("name", ["dynamo23-fp32", BUNDLED])
def test_only_saliency_depends_on_it(name, exports, text, tmp_path):
    """Calibrated on a text, on random tokens or not at all, a model differs in nothing else."""
    models, measured, on = {}, {}, {}
    for how in ("off", "random", text, "auto"):
        target = tmp_path / "out" / "model.onnx"
        target.parent.mkdir(exist_ok=True)
        report = rewrite(exports[name] / "model.onnx", target, "--force", *FEWER, "--calibrate", how)
        model = load(target)
        on[how] = report["model"]["calibration"]
        measured[how] = None if how == "off" else saliency(model)
        models[how] = without_saliency(model)
    assert len(set(models.values())) == 1
    assert on["off"] is None
    assert "1024 random tokens" in on["random"]
    assert "tokens" in on[text] and str(text) in on[text]
    assert "1024 tokens" in on["auto"] and "bundled" in on["auto"]
    assert not np.allclose(measured["random"], measured[text])


@pytest.mark.parametrize("name", NAMES)
def test_exports_agree(name, rewritten, figure):
    """Every pattern of attention, calibrated by the same code, has the same saliency, of geometric mean 1 per head."""
    found, expected = (saliency(load(rewritten(n, *FEWER))) for n in (name, "optimum-fp32"))
    assert found.shape == (4, 2, 64)
    np.testing.assert_allclose(np.log(found).mean(-1), 0, atol=1e-4)
    error = np.abs(found / expected - 1).max()
    figure(f"{name}: saliency differs by up to {error:.1e} from optimum-fp32's")
    assert error < CLOSE[name.split("-")[-1]]


def test_not_calibrated_warns(exports, tmp_path):
    """Leaving calibration out is said to cost accuracy."""
    report = rewrite(exports["dynamo23-fp32"] / "model.onnx", tmp_path / "out.onnx", "--calibrate", "off")
    assert any("calibrated" in warning for warning in report["warnings"])
    assert all(
        len(node.input) <= SALIENCY or not node.input[SALIENCY] for node in operators(load(tmp_path / "out.onnx"))
    )


def test_random_without_tokenizer(bare, tmp_path):
    """Where there is no tokenizer, random tokens are read."""
    report = rewrite(bare, tmp_path / "out.onnx", *FEWER)
    assert "random" in report["model"]["calibration"]


def test_named_tokenizer(bare, text, exports, tmp_path):
    """A tokenizer may lie elsewhere."""
    tokenizer = exports["dynamo23-fp32"] / "tokenizer.json"
    report = rewrite(bare, tmp_path / "out.onnx", "--calibrate", text, "--tokenizer", tokenizer)
    assert str(text) in report["model"]["calibration"]


def refused(*arguments, **options):
    done = spark_ort("rewrite", *arguments, check=False, **options)
    assert done.returncode == 1
    return done.stderr


def test_text_without_tokenizer(bare, text, tmp_path):
    """A text without a tokenizer is refused; the error says how to name one."""
    error = refused(bare, tmp_path / "out.onnx", "--calibrate", text)
    assert "--tokenizer" in error and "tokenizer.json" in error
    assert not (tmp_path / "out.onnx").exists()


def test_texts_that_say_nothing(exports, tmp_path):
    """A text that is missing or too short is refused by name."""
    short = tmp_path / "short.txt"
    short.write_text("Hello.")
    for path in (short, tmp_path / "none.txt"):
        error = refused(exports["dynamo23-fp32"] / "model.onnx", tmp_path / "out.onnx", "--calibrate", path)
        assert str(path) in error and not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("given", ["a file that is no library", None])
def test_without_onnx_runtime(given, exports, tmp_path):
    """Without an ONNX Runtime, calibration fails with the reason and the way out, which works; nothing is written."""
    path = tmp_path / "libonnxruntime.so"
    path.write_text("no library")
    env = environment(ORT_DYLIB_PATH=path if given else None, PATH=tmp_path / "empty", LD_LIBRARY_PATH=None)
    source, folder = exports["dynamo23-fp32"] / "model.onnx", tmp_path / "out"
    folder.mkdir()
    error = refused(source, folder / "model.onnx", env=env)
    assert "ONNX Runtime" in error and "--calibrate off" in error
    assert (str(path) if given else "python3") in error
    assert not list(folder.iterdir())
    spark_ort("rewrite", source, folder / "model.onnx", "--calibrate", "off", env=env)
    assert [file.name for file in folder.iterdir()] == ["model.onnx"]


def test_interrupted(exports, tmp_path):
    """Ctrl-C ends a long calibration, and nothing is left behind."""
    source = exports["dynamo23-fp32"] / "model.onnx"
    arguments = ("rewrite", source, tmp_path / "out.onnx", "--calibrate", "random", "--calibration-tokens", 10**7)
    command = [str(word) for word in (binary_path(), *arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert "calibrating" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130 and "nothing was written" in error
    assert not list(tmp_path.iterdir())

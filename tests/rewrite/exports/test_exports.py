"""The exports are what they claim to be: `python -m pytest tests/rewrite/exports`."""

import json
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest

from .build import BUNDLED, EXPORTS, GIVEN, GRAPHS, NAMES, ROOT, build_all, data_files
from .drive import Driver, decode
from .prompts import load

PROMPTS = load()
# Attention spelt out in ONNX operators goes by the mask, wherever it has its zeros.
DECOMPOSED = [name for name in NAMES if not name.startswith("genai")]
# Largest difference of a logit to optimum-fp32's; logits reach 22. All others are built from the weights of 4 bits, but
# MatMulNBits rounds what it multiplies by them to 8 bits. Among the original exports int4 alone has rounded weights.
BETWEEN = {"fp32": 1e-3, "fp16": 0.1, "int4": 8.0 if GIVEN else 1.0}
# Between a model and itself, asked in another way: sums in another order, then rounded to float16 or 8 bits.
WITHIN = {"fp32": 1e-3, "fp16": 0.1, "int4": 0.3}


def precision(name):
    return name.split("-")[-1]


@cache
def session(name):
    return onnxruntime.InferenceSession(build_all()[name] / "model.onnx", providers=["CPUExecutionProvider"])


@cache
def logits(name, index):
    """Of every token of a prompt and its answer, at once."""
    prompt = PROMPTS[index]
    return Driver(session(name)).feed([prompt["tokens"] + prompt["answer"]])[0]


@pytest.mark.parametrize("name", NAMES)
def test_answers(name):
    for prompt in PROMPTS:
        tokens, _ = decode(session(name), [prompt["tokens"]], steps=len(prompt["answer"]))
        assert tokens[0].tolist() == prompt["answer"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree(name):
    for index in (0, 1):
        error = np.abs(logits(name, index) - logits("optimum-fp32", index)).max()
        assert error < BETWEEN[precision(name)]


@pytest.mark.parametrize("name, padding", [(n, "right") for n in NAMES] + [(n, "left") for n in DECOMPOSED])
def test_padded_batch(name, padding):
    """A batch of different lengths gives each sequence what it gets alone, in the prompt and after it."""
    chosen = [0, 1, 3]
    prompts, forced = [PROMPTS[i]["tokens"] for i in chosen], [PROMPTS[i]["answer"] for i in chosen]
    _, found = decode(session(name), prompts, forced=forced, padding=padding)
    for row, index in enumerate(chosen):
        alone = logits(name, index)[len(prompts[row]) - 1 : -1]
        assert np.abs(found[row] - alone).max() < WITHIN[precision(name)]


@pytest.mark.parametrize("name", NAMES)
def test_prompt_in_parts(name):
    prompt = PROMPTS[0]["tokens"]
    driver = Driver(session(name))
    found = np.concatenate([driver.feed([part])[0] for part in (prompt[:200], prompt[200:-1], prompt[-1:])])
    assert np.abs(found - logits(name, 0)[: len(prompt)]).max() < WITHIN[precision(name)]


def without_weights(model):
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= 512:
            tensor.ClearField("raw_data")
    return model.SerializeToString()


def test_built_twice_at_once(tmp_path):
    """Two processes that build into one folder both end with complete exports, and nothing else is left there."""
    command = [sys.executable, "-m", "tests.rewrite.exports.build", tmp_path]
    builders = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for builder in builders:
        printed, _ = builder.communicate()
        assert builder.returncode == 0 and printed.split() == [str(tmp_path / name) for name in NAMES]
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES, ".lock", ".made-from"}
    recipe = json.loads((GRAPHS / "recipe.json").read_text())
    for name in NAMES:
        folder = tmp_path / name
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        data = data_files(model)
        assert {path.name for path in folder.iterdir()} == {*recipe[name]["files"], "model.onnx", *data}
        assert all((folder / file).stat().st_size == size for file, size in data.items())
        if GIVEN:
            original = onnx.load(EXPORTS[name] / "model.onnx", load_external_data=False)
            assert without_weights(model) == without_weights(original)


def test_built_again_only_when_needed(tmp_path):
    def built():
        return {name: (folder / "model.onnx").stat().st_mtime_ns for name, folder in build_all(tmp_path).items()}

    first = built()
    assert built() == first
    (tmp_path / ".made-from").write_text("other sources")
    second = built()
    assert all(second[name] > first[name] for name in NAMES)
    shutil.rmtree(tmp_path / BUNDLED)
    assert built()[BUNDLED] > second[BUNDLED]

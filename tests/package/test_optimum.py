"""Optimum and transformers as they come from PyPI run rewritten models as they run the originals:
`.venv-optimum/bin/python -m pytest tests/package/test_optimum.py`, which `make test-hosts` does."""

import functools
import json
import os
import shutil
from pathlib import Path

import onnxruntime
import pytest
import spark_ort

torch = pytest.importorskip("torch", reason="Optimum needs torch, several GB: make test-hosts installs both")
from optimum.onnxruntime import ORTModelForCausalLM  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(os.environ.get("SPARK_TEST_MODELS") or ROOT / "target/exports") / "optimum-fp32"
PROMPTS = json.loads((ROOT / "tests/rewrite/exports/prompts.json").read_text())
EXACT = {"ratio": 0, "key_bits": 16, "value_bits": 16}
PAD, NEW = 1, 24
BINDING = pytest.mark.parametrize("binding", [False, True], ids=["copies", "io_binding"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(kind, uniform): a folder with the model and all that Optimum wants beside it."""

    @functools.cache
    def make(kind, uniform):
        if kind == "original":
            return SOURCE
        target = tmp_path_factory.mktemp(kind)
        for file in SOURCE.glob("*.json"):
            shutil.copy(file, target)
        spark_ort.rewrite(
            SOURCE / "model.onnx",
            target / "model.onnx",
            uniform_rows=uniform,
            threads=2,
            **(EXACT if kind == "exact" else {}),
        )
        return target

    return make


@pytest.fixture
def load(folder):
    """load(kind, binding): a model; with I/O binding its cache is allocated by the width that it is told."""

    def model(kind, binding):
        path = folder(kind, binding)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        options.register_custom_ops_library(spark_ort.library_path())
        loaded = ORTModelForCausalLM.from_pretrained(path, session_options=options, use_io_binding=binding or None)
        assert loaded.use_io_binding is binding
        if binding and kind != "original":
            loaded.embed_size_per_head = spark_ort.inspect(path / "model.onnx")["interface"]["layers"][0]["key"][
                "width"
            ]
        return loaded

    return model


def left_padded(prompts):
    """Tokens and mask `[B,L]`."""
    width = max(len(p["tokens"]) for p in prompts)
    tokens = torch.tensor([[PAD] * (width - len(p["tokens"])) + p["tokens"] for p in prompts])
    lengths = torch.tensor([[len(p["tokens"])] for p in prompts])
    return tokens, (torch.arange(width)[None] >= width - lengths).long()


def generate(model, prompts, **options):
    """What is said after each prompt."""
    tokens, mask = left_padded(prompts)
    torch.manual_seed(0)
    told = model.generate(
        tokens, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=PAD, **options
    )
    return told[:, tokens.shape[1] :].tolist()


MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
    "beam": {"num_beams": 4, "do_sample": False},
}


@BINDING
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_generate(mode, batch, binding, load):
    """Without pruning the text is the original's, padded on the left or not; as the default prunes, answers stay
    right."""
    prompts = PROMPTS[:batch]
    expected = generate(load("original", binding), prompts, **MODES[mode])
    assert generate(load("exact", binding), prompts, **MODES[mode]) == expected
    told = generate(load("pruned", binding), prompts, **MODES[mode])
    for prompt, before, after in zip(prompts, expected, told):
        answer = prompt["answer"]
        if before[: len(answer)] == answer:
            assert after[: len(answer)] == answer
    assert sum(before[:7] == prompt["answer"] for before, prompt in zip(expected, prompts)) >= batch - 1


@BINDING
def test_the_cache_is_smaller(binding, load):
    """What Optimum hands to transformers as the cache."""
    sizes = {}
    for kind in ("original", "pruned"):
        model = load(kind, binding)
        tokens, mask = left_padded(PROMPTS[:1])
        cache = model(input_ids=tokens, attention_mask=mask, use_cache=True).past_key_values
        tensors = [tensor for layer in cache for tensor in layer]
        assert len(tensors) == 8
        sizes[kind] = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / tokens.shape[1]
    assert sizes == {"original": 4096, "pruned": 1088 if binding else 992}

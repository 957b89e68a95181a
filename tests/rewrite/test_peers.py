"""What `make bench-genai` compares with: copies of a model for more positions and with GenAI's quantised caches, and
what llama-bench says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "graphs/genai-cpu-int4"
TOKENS = np.random.default_rng(3).integers(2, 500, (1, 65))


def tool(name, *arguments):
    command = [sys.executable, ROOT / "tools/genai" / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def tables(folder):
    initializers = onnx.load(folder / "model.onnx").graph.initializer
    return [numpy_helper.to_array(i) for i in initializers if i.name in ("cos_cache", "sin_cache")]


def decoded(folder):
    """Log probabilities behind a last token that reads the others from the cache, and a row of the cache in bytes."""
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    past = {}
    for info in session.get_inputs():
        if info.name.startswith("past"):
            kind = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}[info.type]
            width = info.shape[3] if isinstance(info.shape[3], int) else 64
            past[info.name] = np.zeros((1, info.shape[1], 0, width), kind)
    names = [info.name for info in session.get_outputs()]
    for tokens in (TOKENS[:, :-1], TOKENS[:, -1:]):
        rows = next(iter(past.values())).shape[2]
        mask = np.ones((1, rows + tokens.shape[1]), np.int64)
        found = dict(zip(names, session.run(names, {"input_ids": tokens, "attention_mask": mask, **past})))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
    logits = found["logits"][0, -1].astype(np.float64)
    rows = next(iter(past.values()))
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum()), rows.nbytes // (rows.shape[1] * rows.shape[2])


def test_more_positions(tmp_path):
    tool("variant.py", BUNDLED, tmp_path / "out", 9000)
    for before, after in zip(tables(BUNDLED), tables(tmp_path / "out")):
        assert len(before) < len(after) == 9000
        # The angles of the first table were rounded to float32.
        np.testing.assert_allclose(after[: len(before)], before, atol=1e-3)
    assert json.loads((tmp_path / "out/genai_config.json").read_text())["model"]["context_length"] == 9000


def test_quantised_caches(tmp_path):
    expected, row = decoded(BUNDLED)
    errors = []
    for cache, width in (("int8", row // 4), ("int4", row // 8)):
        tool("variant.py", BUNDLED, tmp_path / cache, 100, cache)
        found, bytes_of_row = decoded(tmp_path / cache)
        assert bytes_of_row == width
        errors.append((np.exp(expected) * (expected - found)).sum())
    assert 0 < errors[0] < 0.01 and errors[0] < errors[1] < 0.5


def test_figures_of_llama_bench(tmp_path):
    program = tmp_path / "llama-bench"
    program.write_text("""#!/bin/sh
echo "llama_kv_cache: size =   12.50 MiB (  1024 cells, 2 layers)" >&2
echo "llama-bench: benchmark 1/1: prompt run 1/1" >&2; sleep 0.4
echo "llama-bench: benchmark 1/1: generation run 1/1" >&2; sleep 0.2
echo '{"avg_ns": 600000000, "n_ubatch": 512}'
""")
    program.chmod(0o755)
    found = json.loads(tool("llama.py", program, "model.gguf", 1000, 20, 1, "f16"))
    assert (found["context"], found["chunk"], found["cache"]) == (1000, 512, 12.5 * 2**20)
    assert found["prompt_rate"] == pytest.approx(1000 / 0.4, rel=0.3)
    assert found["decode_rate"] == pytest.approx(20 / 0.2, rel=0.5)
    program.write_text("#!/bin/sh\necho 'no such model' >&2; exit 1\n")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        tool("llama.py", program, "model.gguf", 1000, 20, 1, "f16")
    assert "no such model" in failed.value.stderr

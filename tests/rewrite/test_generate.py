"""`spark-ort generate` continues prompts with models, rewritten or not."""

import json
import os
import signal
import subprocess

import pytest
from .exports.build import BUNDLED
from .exports.prompts import load

from .command import binary_path, environment, rewrite, spark_ort

PROMPT = load()[0]
IDS = " ".join(map(str, PROMPT["tokens"]))
ANSWER = PROMPT["answer"]
# Bytes of the cache per token: 4 layers of 2 heads, of key and value.
BEFORE, AFTER, AFTER_IN_FOLDER = 4 * 2 * 2 * 64 * 4, 4 * 2 * (56 + 68), 4 * 2 * (68 + 68)


@pytest.fixture(scope="session")
def pruned_folder(exports, tmp_path_factory):
    """A rewritten GenAI folder."""
    folder = tmp_path_factory.mktemp("genai") / "spark"
    rewrite(exports[BUNDLED], folder, "--calibrate", "off")
    return folder


@pytest.fixture
def model(request, exports, rewritten, pruned_folder):
    """The path that a test names, and bytes per token."""
    return {
        "file": (exports["optimum-fp32"] / "model.onnx", BEFORE),
        "folder of one file": (exports["dynamo23-fp32"], BEFORE),
        "GenAI folder": (exports[BUNDLED], BEFORE),
        "rewritten file": (rewritten("optimum-fp32"), AFTER),
        "rewritten GenAI folder": (pruned_folder, AFTER_IN_FOLDER),
    }[request.param]


MODELS = ["file", "folder of one file", "GenAI folder", "rewritten file", "rewritten GenAI folder"]


def generate(*arguments, **options):
    return spark_ort("generate", *arguments, "--threads", 2, **options)


@pytest.mark.parametrize("model", MODELS, indirect=True)
def test_answers_a_passkey(model):
    """Ids go in and come out; figures say how long the cache was and what a token takes."""
    path, bytes_per_token = model
    done = generate(path, "--ids", "--prompt", IDS, "-n", len(ANSWER))
    assert [int(word) for word in done.stdout.split()] == ANSWER
    tokens = len(PROMPT["tokens"]) + len(ANSWER) - 1
    assert f"{tokens} tokens" in done.stderr and f"{bytes_per_token} bytes per token" in done.stderr


@pytest.mark.parametrize("options", [(), ("--no-shared-buffer",)])
def test_json(options, pruned_folder):
    """The same as JSON, in place of text, with the cache in one buffer or growing."""
    done = generate(pruned_folder, "--ids", "--prompt", IDS, "-n", len(ANSWER), "--json", "-", *options)
    found = json.loads(done.stdout)
    assert found["tokens"] == ANSWER and found["finished_by"] == "length"
    statistics = found["statistics"]
    assert statistics["prompt_tokens"] == len(PROMPT["tokens"]) and statistics["decoded_tokens"] == len(ANSWER) - 1
    assert statistics["cache_bytes"] == statistics["cache_tokens"] * AFTER_IN_FOLDER
    assert statistics["shared_buffer"] == (not options) and not statistics["interrupted"]


def test_text(pruned_folder, tmp_path):
    """Text goes in and comes out; from an argument, a file or stdin it is the same."""
    prompt = "The secret number of maple is 40713. Remember it.\nWhat is the secret number of maple? It is"
    file = tmp_path / "prompt.txt"
    file.write_text(prompt + "\n")
    found = [
        generate(pruned_folder, "-n", 7, "--prompt", prompt),
        generate(pruned_folder, "-n", 7, "--prompt-file", file),
        generate(pruned_folder, "-n", 7, "--prompt-file", "-", input=prompt),
    ]
    assert {done.stdout.rstrip("\n") for done in found} == {" 40713."}


def test_sampling(pruned_folder):
    """A seed decides what is sampled."""
    common = (
        pruned_folder,
        "--prompt",
        "The",
        "-n",
        12,
        "--temperature",
        1.5,
        "--top-k",
        50,
        "--top-p",
        0.95,
        "--seed",
    )
    first, again, other = (generate(*common, seed).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_compare(pruned_folder, exports, tmp_path):
    """Both models' figures, and how often they agree, as text and as JSON."""
    report = tmp_path / "report.json"
    done = generate(pruned_folder, "--compare", exports[BUNDLED], "--ids", "--prompt", IDS, "-n", 7, "--json", report)
    assert [int(word) for word in done.stdout.split()] == ANSWER
    lines = {line.split("  ")[0]: line for line in done.stderr.splitlines()}
    assert lines["cache, bytes per token"].split()[-4:] == [str(BEFORE), str(AFTER_IN_FOLDER), "26.6", "%"]
    assert "(7/7)" in done.stderr and "agree" in done.stderr and "KL divergence" in done.stderr
    found = json.loads(report.read_text())
    assert found["original"]["tokens"] == ANSWER
    compared = found["model"]
    assert (compared["all"]["tokens"], compared["all"]["agreeing"], compared["first"]["tokens"]) == (7, 7, 1)
    # Attention within the prompt is exact; int4 rounds what it multiplies to 8 bits.
    assert compared["first"]["mean_kl"] < 1e-3 and 0 < compared["all"]["mean_kl"] < 0.05
    assert compared["statistics"]["cache_bytes_per_token"] == AFTER_IN_FOLDER


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--prompt", ""), "prompt is empty"),
        (("--ids", "--prompt", "  "), "no tokens"),
        (("--ids", "--prompt", "5 six"), "'six'"),
        (("--ids", "--prompt", "5 99999"), "99999"),
        (("--ids", "--prompt", "5 " * 8192), "context of 8192"),
        (("--prompt-file", "missing.txt"), "missing.txt"),
        (("--prompt", "a", "--top-k", 5), "--temperature"),
        (("--prompt", "a", "--tokenizer", "missing.json"), "missing.json"),
    ],
)
def test_errors(arguments, said, pruned_folder, tmp_path):
    """What cannot be continued is refused with the reason, and nothing is printed as text."""
    done = generate(pruned_folder, *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 1 and said in done.stderr and not done.stdout


def test_missing_model(tmp_path):
    """The error names a missing model."""
    done = generate(tmp_path / "none", "--prompt", "a", check=False)
    assert done.returncode == 1 and str(tmp_path / "none") in done.stderr


def test_no_tokenizer(rewritten):
    """A text needs a tokenizer; the error names both ways out."""
    done = generate(rewritten("optimum-fp32"), "--prompt", "a", check=False)
    assert done.returncode == 1 and "--tokenizer" in done.stderr and "--ids" in done.stderr


def test_interrupted(exports, tmp_path):
    """Ctrl-C ends a long text, and the figures so far are shown."""
    report = tmp_path / "report.json"
    arguments = (exports["optimum-fp32"], "--ids", "--prompt", "5 6 7", "-n", 10**6, "--ignore-eos", "--json", report)
    command = [str(word) for word in (binary_path(), "generate", *arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        try:
            first = os.read(process.stdout.fileno(), 1)
            process.send_signal(signal.SIGINT)
            rest, error = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert b"interrupted" in error and b"bytes per token" in error
    found = json.loads(report.read_text())
    assert found["finished_by"] == "interrupted" and found["statistics"]["interrupted"]
    assert found["tokens"] == [int(word) for word in (first + rest).split()]
    assert found["statistics"]["cache_tokens"] >= 3 + len(found["tokens"]) - 1

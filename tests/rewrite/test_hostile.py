"""Files, outputs and signals that mean harm: an error with status 1, soon, and nothing left behind."""

import json
import os
import pty
import shutil
import signal
import subprocess

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from .command import binary_path, environment, spark_ort
from .exports.build import BUNDLED
from .graphs.builder import Shape, decoder
from .graphs.decomposed import attention
from .graphs.refused import OFF, assert_refused, check_refused, small, write


@pytest.fixture
def folder(exports, tmp_path):
    """A GenAI folder."""
    return shutil.copytree(exports[BUNDLED], tmp_path / "in")


@pytest.mark.parametrize("options", [[], "x", 3, True, {"custom_ops_library": 3}, {"custom_ops_library": ["evil.so"]}])
def test_session_options(folder, tmp_path, options):
    """Session options of another type are refused by name."""
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"] = options
    (folder / "genai_config.json").write_text(json.dumps(config))
    check_refused(tmp_path, folder, "genai_config.json", target=tmp_path / "out")


@pytest.mark.parametrize(
    "arguments", [["rewrite", "{in}", "{out}", *OFF], ["inspect", "{in}"], ["inspect", "{in}", "--json"], ["doctor"]]
)
def test_stdout_full_or_closed(folder, tmp_path, arguments):
    """A full disk behind stdout is an error; a reader that closes the pipe is not."""
    words = [str(binary_path()), *(w.format(**{"in": folder, "out": tmp_path / "out"}) for w in arguments)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=60)
    assert done.returncode == 1 and "error: cannot write to stdout" in done.stderr and "panicked" not in done.stderr
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    ends = os.pipe()
    os.close(ends[0])
    done = subprocess.run(words, stdout=ends[1], stderr=subprocess.PIPE, text=True, env=environment(), timeout=60)
    os.close(ends[1])
    assert done.returncode in (0, 141) and "error" not in done.stderr
    with open("/dev/full", "w") as full:
        done = subprocess.run([words[0], "inspect", folder], stdout=subprocess.DEVNULL, stderr=full, timeout=60)
    assert done.returncode == 0


@pytest.mark.parametrize("what", ["data", "file", "folder"])
def test_links_that_leave_the_folder(folder, tmp_path, what):
    """What a link of a model's folder has from elsewhere does not get into OUT."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/secret").write_bytes((folder / "model.onnx.data").read_bytes())
    if what == "data":
        (folder / "model.onnx.data").unlink()
        (folder / "model.onnx.data").symlink_to(tmp_path / "private/secret")
    else:
        (folder / "notes").symlink_to(tmp_path / "private" / ("secret" if what == "file" else ""))
    check_refused(tmp_path, folder, "leads out of the model's folder", target=tmp_path / "out")
    if what == "data":
        check_refused(tmp_path, folder / "model.onnx", "leads out of the model's folder", target=tmp_path / "out.onnx")


@pytest.mark.parametrize("kind", ["pipe", "device", "proc"])
@pytest.mark.parametrize("what", ["model", "config", "tokenizer", "data"])
def test_what_is_no_file(folder, tmp_path, kind, what):
    """Pipes, devices and the kernel's files are named and not opened."""
    name = {
        "model": "model.onnx",
        "config": "genai_config.json",
        "tokenizer": "tokenizer.json",
        "data": "model.onnx.data",
    }
    (folder / name[what]).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name[what])
    else:
        (folder / name[what]).symlink_to("/dev/zero" if kind == "device" else "/proc/self/status")
    options = [] if what == "tokenizer" else OFF
    done = spark_ort("rewrite", folder, tmp_path / "out", *options, check=False, timeout=10)
    assert_refused(done, name[what])
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["model.onnx", "genai_config.json", "tokenizer.json", "model.onnx.data"])
def test_links_in_a_circle(folder, name):
    """What the file system says of a file, not that it is not there."""
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    done = spark_ort("generate", folder, "--prompt", "text", check=False)
    assert done.returncode == 1 and name in done.stderr and "symbolic links" in done.stderr, done.stderr
    assert "there is no" not in done.stderr and "is missing" not in done.stderr


@pytest.mark.parametrize("value", ["sse9", os.fsdecode(b"avx2\xff")])
@pytest.mark.parametrize(
    "arguments",
    [
        ["rewrite", "{in}", "{out}"],
        ["generate", "{in}", "--prompt", "text"],
        ["eval", "{in}", "--text", "none"],
        ["tune", "{in}", "--text", "none", "--budget", "0.2", "--output", "{out}"],
        ["bench", "attention"],
        ["bench", "model", "{in}", "{in}"],
    ],
)
def test_a_wrong_instruction_set(folder, tmp_path, arguments, value):
    """Every command that runs kernels says so before it does anything."""
    words = [word.format(**{"in": folder, "out": tmp_path / "out"}) for word in arguments]
    done = spark_ort(*words, check=False, env=environment(SPARK_ORT_CPU=value), timeout=10)
    assert done.returncode == 1 and done.stderr.startswith("error: SPARK_ORT_CPU="), done.stderr
    assert "it is no instruction set; this processor has scalar, portable" in done.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_python_that_hangs(folder, tmp_path):
    """A Python that does not answer is left behind."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python3").write_text("#!/bin/sh\nexec /bin/sleep 1000\n")
    (tmp_path / "bin/python3").chmod(0o755)
    env = environment(ORT_DYLIB_PATH=None, VIRTUAL_ENV=None, PATH=tmp_path / "bin", LD_LIBRARY_PATH=None)
    done = spark_ort("rewrite", folder, tmp_path / "out", check=False, env=env, timeout=60)
    assert done.returncode == 1 and "did not answer" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals(exports, tmp_path, number):
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""
    arguments = (
        "rewrite",
        exports["dynamo23-fp32"] / "model.onnx",
        tmp_path / "out.onnx",
        "--calibrate",
        "random",
        "--calibration-tokens",
        10**7,
    )
    command = [str(word) for word in (binary_path(), *arguments)]

    def heed():
        """These tests may run under nohup, whose children ignore SIGHUP."""
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(), preexec_fn=heed) as process:
        try:
            assert "calibrating" in process.stderr.readline()
            process.send_signal(number)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number and "nothing was written" in error
    assert not list(tmp_path.iterdir())


def test_broken_tokenizer_is_said(folder, tmp_path):
    """A tokenizer that is broken is not silently left out of calibration."""
    (folder / "tokenizer.json").write_text("{}")
    check_refused(tmp_path, folder, "tokenizer.json is malformed", "random", target=tmp_path / "out", options=())


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan"), -float("inf")])
def test_scale(tmp_path, scale):
    """A scale that SparkAttention would take for another one is refused."""
    model = small()
    attention = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
    for old in [a for a in attention.attribute if a.name == "scale"]:
        attention.attribute.remove(old)
    attention.attribute.append(helper.make_attribute("scale", scale))
    source = write(tmp_path, model)
    if scale == 0.0:
        # GroupQueryAttention takes that for no window.
        spark_ort("rewrite", source, tmp_path / "out.onnx", *OFF)
    else:
        check_refused(tmp_path, source, "scale")


@pytest.mark.parametrize("factors", [[0.0], [float("inf")], [1e-30, 1e-30], [1e30, 1e30]])
def test_scale_of_scores(tmp_path, factors):
    """So is the product of factors that becomes one, where scores are scaled by nodes."""
    model = decoder(attention(scale="none"), Shape(layers=1))
    softmax = next(n for n, node in enumerate(model.graph.node) if node.op_type == "Softmax")
    scores = [node for node in model.graph.node[:softmax] if node.op_type == "MatMul"][-1]
    place = list(model.graph.node).index(scores)
    output, scores.output[0] = scores.output[0], "scores 0"
    for number, factor in enumerate(factors):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), f"factor {number}"))
        target = output if number == len(factors) - 1 else f"scores {number + 1}"
        node = helper.make_node("Mul", [f"scores {number}", f"factor {number}"], [target], f"scale {number}")
        model.graph.node.insert(place + 1 + number, node)
    check_refused(tmp_path, write(tmp_path, model), "a scale of scores")


def test_text_in_a_terminal(folder):
    """Tokens that spell what a terminal obeys are spelt out in a terminal."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    evil = {"type": "Replace", "pattern": {"Regex": "[a-z ]"}, "content": "\x1b[2J"}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], evil]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    try:
        main, end = pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminal is to be had here: {error}")
    command = [binary_path(), "generate", folder, "--prompt", "The cache of a model", "-n", "8"]
    done = subprocess.run(command, stdout=end, stderr=subprocess.PIPE, env=environment(), timeout=60)
    os.close(end)
    shown = os.read(main, 1 << 16)
    os.close(main)
    assert done.returncode == 0, done.stderr
    assert b"\\u{1b}[2J" in shown and b"\x1b" not in shown


def test_names_that_move_the_cursor(tmp_path):
    """Control characters in names are spelt out."""
    model = small()
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            node.name = "evil\x1b[2J\r\u202e"
            node.domain = "com.microsoft"
            node.op_type = "PagedAttention"
    source = write(tmp_path, model)
    done = check_refused(tmp_path, source, "\\u{1b}[2J")
    assert not {"\x1b", "\r", "\u202e"} & set(done.stderr)


def test_sizes_that_overflow(tmp_path):
    """inspect adds and multiplies what a rewritten model says of itself without an overflow."""
    source = write(tmp_path, small())
    spark_ort("rewrite", source, tmp_path / "out.onnx", *OFF)
    model = onnx.load(tmp_path / "out.onnx")
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("key_row_bytes", "value_row_bytes", "kv_num_heads", "num_heads"):
                attribute.i = (1 << 63) - 1
    onnx.save(model, tmp_path / "large.onnx")
    done = spark_ort("inspect", tmp_path / "large.onnx", check=False)
    assert done.returncode in (0, 1) and "fault" not in done.stderr and "panicked" not in done.stderr


def test_a_working_folder_that_was_removed(tmp_path):
    """Paths that begin there lead nowhere, and are refused."""
    source, gone = write(tmp_path, small()), tmp_path / "gone"
    gone.mkdir()
    command = f'cd "{gone}" && rmdir "{gone}" && exec "{binary_path()}" rewrite "{source}" out.onnx --json x.json'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 1 and "overflowed" not in done.stderr, done.stderr

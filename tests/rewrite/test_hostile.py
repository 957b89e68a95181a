"""Files, outputs and signals that mean harm: an error with status 1, soon, in little memory, and nothing left behind."""

import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .command import binary_path, environment, spark_ort
from .exports.build import BUNDLED
from .graphs.builder import Shape, decoder
from .graphs.decomposed import attention
from .graphs.refused import OFF, assert_refused, check_refused, small, write


@pytest.fixture
def folder(exports, tmp_path):
    """A GenAI folder."""
    return shutil.copytree(exports[BUNDLED], tmp_path / "in")


def peak(*arguments, timeout=60):
    """(the process as it ended, most bytes of memory)."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
        "sys.exit(done.returncode)\n"
    )
    command = ["python3", "-S", "-c", code, *map(str, (binary_path(), *arguments))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    return done, int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("options", [[], "x", 3, True, {"custom_ops_library": 3}, {"custom_ops_library": ["evil.so"]}])
def test_session_options(folder, tmp_path, options):
    """Session options of another type are refused by name."""
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"] = options
    (folder / "genai_config.json").write_text(json.dumps(config))
    check_refused(tmp_path, folder, "genai_config.json", target=tmp_path / "out")


@pytest.mark.parametrize("arguments", [["rewrite", "{in}", "{out}", *OFF], ["inspect", "{in}"], ["inspect", "{in}", "--json"], ["doctor"]])
def test_stdout_full_or_closed(folder, tmp_path, arguments):
    """A full disk behind stdout is an error, a reader that has seen enough is none."""
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


def masked(*nodes, initializers=()):
    """A model whose scores a mask is added to that `nodes` make as 'mask'."""
    model = decoder(attention(), Shape(layers=1))
    place, softmax = next((i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Softmax")
    scores, softmax.input[0] = softmax.input[0], "masked scores"
    new = [*nodes, helper.make_node("Add", [scores, "mask"], ["masked scores"], "add mask")]
    for number, node in enumerate(new):
        model.graph.node.insert(place + number, node)
    model.graph.initializer.extend(initializers)
    return model


def numbers(name, values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


MASKS = {
    "Concat of unlike ranks": ([helper.make_node("Concat", ["flat", "square"], ["mask"], axis=1)], [numbers("flat", [1]), numbers("square", [[1]])]),
    "Concat of less rank": ([helper.make_node("Concat", ["square", "flat"], ["mask"], axis=1)], [numbers("flat", [1]), numbers("square", [[1]])]),
    "ConstantOfShape": ([helper.make_node("ConstantOfShape", ["size"], ["mask"])], [numbers("size", [1 << 62, 1 << 62, 0])]),
    "Tile": ([helper.make_node("Tile", ["square", "size"], ["mask"])], [numbers("square", [[1]]), numbers("size", [1 << 40, 1 << 40])]),
    "Expand": ([helper.make_node("Expand", ["square", "size"], ["mask"])], [numbers("square", [[1]]), numbers("size", [1 << 40, 1 << 40])]),
    "Gather of Gather": (
        [helper.make_node("Gather", [f"g{n}", f"g{n}"], [f"g{n + 1}" if n < 59 else "mask"]) for n in range(60)],
        [numbers("g0", [[0]])],
    ),
    "chain": (
        [helper.make_node("ConstantOfShape", ["size"], ["m0"])]
        + [helper.make_node("Add", [f"m{n}", "one"], [f"m{n + 1}" if n < 59 else "mask"]) for n in range(60)],
        [numbers("size", [2048, 2048]), numpy_helper.from_array(np.float32(1), "one")],
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_grow(tmp_path, name):
    """What a mask is made of is followed within limits: no panic, and no memory to speak of."""
    nodes, initializers = MASKS[name]
    source = write(tmp_path, masked(*nodes, initializers=initializers))
    done, memory = peak("rewrite", source, tmp_path / "out.onnx", *OFF)
    # A mask that cannot be followed may go to the operator as it is.
    assert done.returncode in (0, 1) and "fault" not in done.stderr and "panicked" not in done.stderr
    assert memory < 1 << 30


def test_a_file_of_empty_nodes(tmp_path):
    """A file whose messages take a hundred times its size in memory is refused before they do."""
    nodes = bytes([1 << 3 | 2, 0]) * (20 << 20)
    length = len(nodes)
    header = bytes([7 << 3 | 2]) + bytes((length >> 7 * n & 0x7F) | (0x80 if length >> 7 * (n + 1) else 0) for n in range(4))
    (tmp_path / "in.onnx").write_bytes(header + nodes)
    begin = time.monotonic()
    done, memory = peak("inspect", tmp_path / "in.onnx")
    assert done.returncode == 1 and "is not read" in done.stderr
    assert memory < 200 << 20 and time.monotonic() - begin < 10


def test_large_tokenizer(folder, tmp_path):
    """A tokenizer.json of gigabytes is refused."""
    with open(folder / "tokenizer.json", "wb") as file:
        file.truncate(3 << 30)
    done, memory = peak("generate", folder, "--prompt", "text")
    assert done.returncode == 1 and "larger than" in done.stderr and memory < 600 << 20


@pytest.mark.parametrize("kind", ["pipe", "device", "proc"])
@pytest.mark.parametrize("what", ["model", "config", "tokenizer", "data"])
def test_what_is_no_file(folder, tmp_path, kind, what):
    """Pipes, devices and the kernel's files are named and not opened."""
    name = {"model": "model.onnx", "config": "genai_config.json", "tokenizer": "tokenizer.json", "data": "model.onnx.data"}
    (folder / name[what]).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name[what])
    else:
        (folder / name[what]).symlink_to("/dev/zero" if kind == "device" else "/proc/self/status")
    options = [] if what == "tokenizer" else OFF
    done = spark_ort("rewrite", folder, tmp_path / "out", *options, check=False, timeout=10)
    assert_refused(done, name[what])
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
    arguments = ("rewrite", exports["dynamo23-fp32"] / "model.onnx", tmp_path / "out.onnx", "--calibrate", "random", "--calibration-tokens", 10**7)
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
    assert process.returncode == 130 and "nothing was written" in error
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
        # To GroupQueryAttention that is none.
        spark_ort("rewrite", source, tmp_path / "out.onnx", *OFF)
    else:
        check_refused(tmp_path, source, "scale")


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


def test_the_library_stays_loaded():
    """The library stays loaded, so that nothing is lost each time that a session ends."""
    flags = subprocess.run(["readelf", "-d", binary_path().with_name("libspark_ort.so")], capture_output=True, text=True)
    if flags.returncode == 0:
        assert "NODELETE" in flags.stdout

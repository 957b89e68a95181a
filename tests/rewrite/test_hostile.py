"""Files, outputs and signals that mean harm: an error with status 1, soon, in little memory, and nothing left behind."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .command import binary_path, environment, spark_ort
from .exports.build import BUNDLED
from .graphs.builder import Shape, decoder
from .graphs.decomposed import as_is, attention
from .graphs.refused import OFF, assert_refused, check_refused, small, write


@pytest.fixture
def folder(exports, tmp_path):
    """A GenAI folder."""
    return shutil.copytree(exports[BUNDLED], tmp_path / "in")


def measured(*arguments, timeout=120):
    """(the process as it ended, most bytes of memory, seconds that it computed)."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)\n"
        "sys.exit(done.returncode)\n"
    )
    command = ["python3", "-S", "-c", code, *map(str, (binary_path(), *arguments))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
    memory, seconds = done.stdout.splitlines()[-1].split()
    return done, int(memory), float(seconds)


def peak(*arguments, timeout=60):
    """(the process as it ended, most bytes of memory)."""
    return measured(*arguments, timeout=timeout)[:2]


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
    "Max of many": (
        [helper.make_node("ConstantOfShape", ["size"], ["m"]), helper.make_node("Max", ["m", *["one"] * 20_000], ["mask"])],
        [numbers("size", [2048, 2048]), numpy_helper.from_array(np.float32(1), "one")],
    ),
    "many": (
        [helper.make_node("ConstantOfShape", ["size"], [f"c{n}"]) for n in range(10_000)]
        + [helper.make_node("Add", [f"m{n}", f"c{n}"], [f"m{n + 1}" if n < 9_999 else "mask"]) for n in range(10_000)],
        [numbers("size", [2048, 2048]), numpy_helper.from_array(np.float32(1), "m0")],
    ),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_grow(tmp_path, name):
    """What a mask is made of is followed within limits: no panic, and no memory to speak of."""
    nodes, initializers = MASKS[name]
    source = write(tmp_path, masked(*nodes, initializers=initializers))
    done, memory, seconds = measured("rewrite", source, tmp_path / "out.onnx", *OFF)
    # A mask that cannot be followed may go to the operator as it is.
    assert done.returncode in (0, 1) and "fault" not in done.stderr and "panicked" not in done.stderr
    assert memory < 1 << 30 and seconds < 10


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


def field(number, content):
    """A field of a message, as protobuf writes it."""
    length = len(content)
    size = bytes((length >> 7 * n & 0x7F) | (0x80 if length >> 7 * (n + 1) else 0) for n in range(5) if n == 0 or length >> 7 * n)
    return bytes([number << 3 | 2]) + size + content


@pytest.mark.parametrize("list_of", ["dims", "int64_data", "attribute"])
def test_a_file_of_small_numbers(tmp_path, list_of):
    """The same of lists of numbers that take a byte of the file each."""
    many = bytes(120 << 20)
    graph = {
        "dims": lambda: field(5, field(1, many)),
        "int64_data": lambda: field(5, field(7, many)),
        "attribute": lambda: field(1, field(5, field(8, many))),
    }[list_of]()
    (tmp_path / "in.onnx").write_bytes(field(7, graph))
    done, memory = peak("inspect", tmp_path / "in.onnx")
    assert done.returncode == 1 and "is not read" in done.stderr
    assert memory < 200 << 20


def layered(model, count):
    """`model`, of one layer, with so many that share its weights."""
    graph, layers = model.graph, onnx.ModelProto()
    layers.CopyFrom(model)
    weights = {tensor.name for tensor in graph.initializer}
    whole = layers.graph
    del whole.node[:], whole.input[:], whole.output[:]
    last = next(node for node in graph.node if "logits" in node.output)
    first, hidden = graph.node[0], graph.node[0].output[0]
    inner = [node for node in graph.node if node is not last and node is not first]
    whole.node.append(first)
    whole.input.extend(i for i in graph.input if "past" not in i.name)
    whole.output.append(graph.output[0])
    before = hidden
    for number in range(count):

        def renamed(name):
            shared = not name or name in weights or name in ("input_ids", "attention_mask")
            return name if shared else before if name == hidden else f"{name}.{number}"

        for node in inner:
            copy = whole.node.add()
            copy.CopyFrom(node)
            copy.name = f"{node.name}.{number}"
            copy.input[:] = [renamed(name) for name in node.input]
            copy.output[:] = [renamed(name) for name in node.output]
        for infos, new in ((graph.input, whole.input), (graph.output, whole.output)):
            for info in infos:
                if "past" in info.name or "present" in info.name:
                    new.add().CopyFrom(info)
                    new[-1].name = f"{info.name}.{number}"
        before = renamed(last.input[0])
    whole.node.append(last)
    whole.node[-1].input[0] = before
    return layers


def test_many_layers(tmp_path):
    """Twenty thousand layers take four times as long as five thousand."""
    seconds = {}
    for count in (5_000, 20_000):
        source, target = write(tmp_path, layered(small(), count)), tmp_path / f"{count}.onnx"
        done, _, rewriting = measured("rewrite", source, target, *OFF)
        assert done.returncode == 0, done.stderr
        seconds[count] = [rewriting]
        for model in (source, target):
            done, _, inspecting = measured("inspect", model)
            assert done.returncode == 0, done.stderr
            seconds[count].append(inspecting)
    for few, many in zip(*seconds.values()):
        assert many < 8 * few + 1, seconds


def test_many_large_caches(tmp_path):
    """Caches of many heads, all of different sizes, are not numbered whole."""
    model = decoder(attention(repeat=as_is), Shape(1, 1, 32, 1))
    for number in range(100):
        heads = 1000 + number
        past, new, present = f"past.{number}", f"new.{number}", f"present.{number}"
        model.graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", heads, "past" if name == past else "tokens", 256])
            for name in (past, new)
        )
        model.graph.node.append(helper.make_node("Concat", [past, new], [present], axis=2))
        model.graph.output.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, ["batch", heads, "total", 256]))
    done, memory, seconds = measured("inspect", write(tmp_path, model))
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert memory < 1 << 30 and seconds < 10


def test_large_tokenizer(folder, tmp_path):
    """A tokenizer.json of gigabytes is refused."""
    with open(folder / "tokenizer.json", "wb") as file:
        file.truncate(3 << 30)
    done, memory = peak("generate", folder, "--prompt", "text")
    assert done.returncode == 1 and "larger than" in done.stderr and memory < 600 << 20


def test_tokenizer_of_many_values(folder, tmp_path):
    """So is one whose values take many times its size."""
    (folder / "tokenizer.json").write_bytes(b'{"model": [' + b"0," * (60 << 20) + b"0]}")
    done, memory = peak("generate", folder, "--prompt", "text")
    assert done.returncode == 1 and "values" in done.stderr and memory < 400 << 20


def test_files_without_end(folder):
    """A prompt that never ends, and a configuration of gigabytes, are refused as well."""
    done, memory = peak("generate", folder, "--prompt-file", "/dev/zero")
    assert done.returncode == 1 and "larger than" in done.stderr and memory < 800 << 20
    with open(folder / "genai_config.json", "wb") as file:
        file.truncate(3 << 30)
    done, memory = peak("inspect", folder)
    assert done.returncode == 1 and "larger than" in done.stderr and memory < 100 << 20


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
    main, end = pty.openpty()
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


def test_the_library_stays_loaded():
    """The library stays loaded, so that nothing is lost each time that a session ends."""
    flags = subprocess.run(["readelf", "-d", binary_path().with_name("libspark_ort.so")], capture_output=True, text=True)
    if flags.returncode == 0:
        assert "NODELETE" in flags.stdout


def test_sessions_leave_no_memory():
    """Sessions that come and go with the library do not make the process grow by what each load of it would leave."""
    code = f"""
import onnxruntime, sys
def once():
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library({str(binary_path().with_name("libspark_ort.so"))!r})
    onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for _ in range(30):
    once()
before = held()
for _ in range(200):
    once()
print(held() - before)
"""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            "identity",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(model.SerializeToString())
        file.flush()
        done = subprocess.run([sys.executable, "-c", code, file.name], capture_output=True, text=True, check=True)
    # 17.7 KB each would be 3.5 MB.
    assert int(done.stdout) < 1 << 20

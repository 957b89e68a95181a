"""Files that would take much time or memory: an error, or an answer in proportion to their size."""

import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .command import binary_path, environment
from .exports.build import BUNDLED
from .graphs.builder import Shape, decoder
from .graphs.decomposed import as_is, attention
from .graphs.refused import OFF, small, write


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
    "Concat of unlike ranks": (
        [helper.make_node("Concat", ["flat", "square"], ["mask"], axis=1)],
        [numbers("flat", [1]), numbers("square", [[1]])],
    ),
    "Concat of less rank": (
        [helper.make_node("Concat", ["square", "flat"], ["mask"], axis=1)],
        [numbers("flat", [1]), numbers("square", [[1]])],
    ),
    "ConstantOfShape": (
        [helper.make_node("ConstantOfShape", ["size"], ["mask"])],
        [numbers("size", [1 << 62, 1 << 62, 0])],
    ),
    "Tile": (
        [helper.make_node("Tile", ["square", "size"], ["mask"])],
        [numbers("square", [[1]]), numbers("size", [1 << 40, 1 << 40])],
    ),
    "Expand": (
        [helper.make_node("Expand", ["square", "size"], ["mask"])],
        [numbers("square", [[1]]), numbers("size", [1 << 40, 1 << 40])],
    ),
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
        [
            helper.make_node("ConstantOfShape", ["size"], ["m"]),
            helper.make_node("Max", ["m", *["one"] * 20_000], ["mask"]),
        ],
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
    # Without the trial of what was written, in which ONNX Runtime takes its own time.
    done, memory, seconds = measured("rewrite", "--no-trial", source, tmp_path / "out.onnx", *OFF)
    # A mask that cannot be followed may go to the operator as it is.
    assert done.returncode in (0, 1) and "fault" not in done.stderr and "panicked" not in done.stderr
    assert memory < 1 << 30 and seconds < 10


def test_a_file_of_empty_nodes(tmp_path):
    """A file whose messages take a hundred times its size in memory is refused before they do."""
    nodes = bytes([1 << 3 | 2, 0]) * (20 << 20)
    length = len(nodes)
    header = bytes([7 << 3 | 2]) + bytes(
        (length >> 7 * n & 0x7F) | (0x80 if length >> 7 * (n + 1) else 0) for n in range(4)
    )
    (tmp_path / "in.onnx").write_bytes(header + nodes)
    begin = time.monotonic()
    done, memory = peak("inspect", tmp_path / "in.onnx")
    assert done.returncode == 1 and "is not read" in done.stderr
    assert memory < 200 << 20 and time.monotonic() - begin < 10


def field(number, content):
    """A field of a message, as protobuf writes it."""
    length = len(content)
    size = bytes(
        (length >> 7 * n & 0x7F) | (0x80 if length >> 7 * (n + 1) else 0) for n in range(5) if n == 0 or length >> 7 * n
    )
    return bytes([number << 3 | 2]) + size + content


@pytest.mark.parametrize("list_of", ["dims", "int64_data", "attribute"])
def test_a_file_of_small_numbers(tmp_path, list_of):
    """The same of lists of numbers that take a byte of the file each."""
    many = bytes(160 << 20)
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
    """Twenty thousand layers take no more than their share of time, and memory by the size of the file."""
    seconds = {}
    for count in (1_250, 20_000):
        source, target = write(tmp_path, layered(small(), count)), tmp_path / f"{count}.onnx"
        done, memory, rewriting = measured("rewrite", source, target, *OFF)
        assert done.returncode == 0, done.stderr
        assert memory < (256 << 20) + 40 * source.stat().st_size
        seconds[count] = [rewriting]
        for model in (source, target):
            done, memory, inspecting = measured("inspect", model)
            assert done.returncode == 0, done.stderr
            assert memory < (256 << 20) + 40 * source.stat().st_size
            seconds[count].append(inspecting)
    for few, many in zip(*seconds.values()):
        assert many < 32 * few + 1, seconds


def test_many_large_caches(tmp_path):
    """Caches of many heads, all of different sizes, are not numbered whole."""
    model = decoder(attention(repeat=as_is), Shape(1, 1, 32, 1))
    for number in range(100):
        heads = 1000 + number
        past, new, present = f"past.{number}", f"new.{number}", f"present.{number}"
        model.graph.input.extend(
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, ["batch", heads, "past" if name == past else "tokens", 256]
            )
            for name in (past, new)
        )
        model.graph.node.append(helper.make_node("Concat", [past, new], [present], axis=2))
        model.graph.output.append(
            helper.make_tensor_value_info(present, TensorProto.FLOAT, ["batch", heads, "total", 256])
        )
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


@pytest.mark.parametrize("command", ["inspect", "rewrite", "generate"])
def test_a_sparse_model_of_gigabytes(tmp_path, command):
    """More than protobuf allows is refused by its size."""
    with open(tmp_path / "in.onnx", "wb") as file:
        file.truncate(30 << 30)
    more = {"inspect": [], "rewrite": [tmp_path / "out.onnx"], "generate": ["--ids", "--prompt", "1"]}[command]
    begin = time.monotonic()
    done, memory = peak(command, tmp_path / "in.onnx", *more)
    assert done.returncode == 1 and f"has {30 << 30} bytes, and an .onnx file has 2 GiB at most" in done.stderr
    assert memory < 100 << 20 and time.monotonic() - begin < 5


def test_files_without_end(folder):
    """A prompt that never ends, and a configuration of gigabytes, are refused as well."""
    done, memory = peak("generate", folder, "--prompt-file", "/dev/zero")
    assert done.returncode == 1 and "larger than" in done.stderr and memory < 800 << 20
    with open(folder / "genai_config.json", "wb") as file:
        file.truncate(3 << 30)
    done, memory = peak("inspect", folder)
    assert done.returncode == 1 and "larger than" in done.stderr and memory < 100 << 20


def test_the_library_stays_loaded():
    """The library stays loaded, so that nothing is lost each time that a session ends."""
    flags = subprocess.run(
        ["readelf", "-d", binary_path().with_name("libspark_ort.so")], capture_output=True, text=True
    )
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

"""Data beside the .onnx file: linked, copied or left where it is, never read, never changed; and models beyond 2 GB."""

import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ..command import binary_path, rewrite, session, spark_ort
from .compare import calls, difference, logits
from .refused import OFF, check_refused, small, write

LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off".split()
MEGABYTE = 1 << 20
# What the program needs for any model.
BASE = 40 * MEGABYTE


def external(folder, location="model.onnx.data", name="model.onnx"):
    """A model with its weights in a file of its own, whatever `location` says of it."""
    folder.mkdir(exist_ok=True)
    model = small()
    data = bytearray()
    for tensor in model.graph.initializer:
        if tensor.raw_data and len(tensor.raw_data) > 1000:
            data += bytes(-len(data) % 64)
            place_outside(tensor, location, len(data), len(tensor.raw_data))
            data += tensor.raw_data
            tensor.ClearField("raw_data")
    path = folder / location
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    (folder / name).write_bytes(model.SerializeToString())
    return folder / name, path


def place_outside(tensor, location, offset=None, length=None):
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": length}
    del tensor.external_data[:]
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def identity(path):
    """What changes when a file is replaced or written to."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size, path.read_bytes()


def check_same(source, target):
    """Both models answer alike."""
    conversation = calls(1, None, False)
    expected, _ = logits(session(source), conversation)
    found, _ = logits(session(target), conversation)
    assert difference(found, expected)[0] < 5e-3


@pytest.mark.parametrize("location", ["model.onnx.data", "weights/part/model.bin", "./model.data"])
@pytest.mark.parametrize("how", [[], ["--data", "link"], ["--data", "copy"]])
def test_elsewhere(tmp_path, location, how):
    """In another folder the data is a copy by default, or the same file, at the same place."""
    source, data = external(tmp_path / "from", location)
    before = identity(data)
    (tmp_path / "to").mkdir()
    rewrite(source, tmp_path / "to/out.onnx", *LOSSLESS, *how)
    there = tmp_path / "to" / location
    assert (there.stat().st_ino == data.stat().st_ino) == ("link" in how)
    assert there.read_bytes() == data.read_bytes()
    assert identity(data) == before
    assert len(list((tmp_path / "to").iterdir())) == 2
    check_same(source, tmp_path / "to/out.onnx")


@pytest.mark.parametrize("location", ["model.onnx.data", "weights/model.bin"])
@pytest.mark.parametrize("how", ["link", "copy"])
def test_in_place(tmp_path, location, how):
    """In the same folder both models use the one data file, which stays as it is."""
    source, data = external(tmp_path / "from", location)
    before, names = identity(data), set((tmp_path / "from").rglob("*"))
    rewrite(source, source.with_name("out.onnx"), *LOSSLESS, "--data", how)
    assert identity(data) == before
    assert set((tmp_path / "from").rglob("*")) == names | {source.with_name("out.onnx")}
    check_same(source, source.with_name("out.onnx"))


@pytest.mark.parametrize("same_folder", [True, False])
@pytest.mark.parametrize("how", ["link", "copy"])
def test_data_behind_a_link(tmp_path, same_folder, how):
    """Data that IN has by a symbolic link, as caches of downloads have all files, is there for OUT too, and the link
    stays."""
    source, data = external(tmp_path / "from")
    (tmp_path / "blobs").mkdir()
    for file in (source, data):
        file.rename(tmp_path / "blobs" / file.name)
        file.symlink_to(f"../blobs/{file.name}")
    before = identity(tmp_path / "blobs" / data.name)
    (tmp_path / "to").mkdir()
    target = tmp_path / ("from" if same_folder else "to") / "out.onnx"
    rewrite(source, target, *LOSSLESS, "--data", how)
    assert data.is_symlink()
    assert identity(tmp_path / "blobs" / data.name) == before
    assert (target.parent / data.name).read_bytes() == before[-1]
    if not same_folder:
        assert not (target.parent / data.name).is_symlink()


def test_other_data_in_the_way(tmp_path):
    """Data of another model in OUT's folder is never replaced; with --force the new data gets another name."""
    source, data = external(tmp_path / "from")
    (tmp_path / "to").mkdir()
    other = tmp_path / "to" / data.name
    other.write_text("precious")
    check_refused(tmp_path, source, str(other), "exists", "--force", target=tmp_path / "to/out.onnx")
    rewrite(source, tmp_path / "to/out.onnx", *LOSSLESS, "--force")
    assert other.read_text() == "precious"
    assert other.with_name(f"{data.name}.2").read_bytes() == data.read_bytes()
    check_same(source, tmp_path / "to/out.onnx")


def test_data_of_the_replaced_model(tmp_path):
    """Data that only the replaced model had goes with it; what a third model needs stays, and is said to."""
    source, data = external(tmp_path / "from")
    target, third = tmp_path / "to/out.onnx", tmp_path / "to/third.onnx"
    place = target.parent / data.name
    target.parent.mkdir()

    def change():
        data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])

    rewrite(source, target, *LOSSLESS)
    assert rewrite(source, target, *LOSSLESS, "--force")["warnings"] == rewrite(source, third, *OFF)["warnings"]
    assert set(target.parent.iterdir()) == {target, third, place}
    first = place.read_bytes()
    change()
    said = rewrite(source, target, *LOSSLESS, "--force")["warnings"]
    assert any("third.onnx" in line and data.name in line for line in said)
    assert place.read_bytes() == first
    assert place.with_name(f"{data.name}.2").read_bytes() == data.read_bytes()
    check_same(source, target)
    third.unlink()
    change()
    rewrite(source, target, *LOSSLESS, "--force")
    assert {path.name for path in target.parent.iterdir()} == {"out.onnx", data.name}
    assert place.read_bytes() == data.read_bytes()
    check_same(source, target)


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("folder", ["from", "to"])
def test_output_named_like_data(tmp_path, folder, force):
    """OUT cannot be where the model's own data goes or is."""
    source, data = external(tmp_path / "from")
    (tmp_path / "to").mkdir()
    target = tmp_path / folder / data.name
    check_refused(tmp_path, source, str(target), target=target, options=[*OFF, *force])


@pytest.mark.parametrize("location", ["../model.data", "weights/../../model.data", "/etc/hostname", ".", "", "a/.."])
def test_location_outside(tmp_path, location):
    """Data outside the model's folder is refused, the tensor and the place named."""
    source, _ = external(tmp_path / "from")
    model = onnx.load(source, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    place_outside(tensor, location, 0, 8)
    source.write_bytes(model.SerializeToString())
    (tmp_path / "model.data").write_bytes(bytes(100))
    (tmp_path / "from/weights").mkdir()
    (tmp_path / "from/a").mkdir()
    check_refused(tmp_path, source, tensor.name, location, "model.onnx")


def test_data_missing(tmp_path):
    """The error names missing data, and the tensor that needs it."""
    source, data = external(tmp_path / "from")
    data.unlink()
    check_refused(tmp_path, source, str(data), "missing", "weight_1")


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_data_short(tmp_path, kept):
    """Data that ends before a tensor does is named, with the tensor."""
    source, data = external(tmp_path / "from")
    data.write_bytes(data.read_bytes()[:kept])
    check_refused(tmp_path, source, str(data), "cut short", "weight")


def test_data_short_without_length(tmp_path):
    """The same where the tensor's shape alone says how long it is."""
    source, data = external(tmp_path / "from")
    model = onnx.load(source, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in [e for e in tensor.external_data if e.key == "length"]:
            tensor.external_data.remove(entry)
    source.write_bytes(model.SerializeToString())
    data.write_bytes(data.read_bytes()[:-1])
    check_refused(tmp_path, source, str(data), "cut short", "weight")


@pytest.mark.parametrize("entry, value", [("offset", "-8"), ("offset", "many"), ("length", "99999999999999999999")])
def test_data_numbers(tmp_path, entry, value):
    """Offsets and lengths that are no numbers, or too large, are refused."""
    source, data = external(tmp_path / "from")
    model = onnx.load(source, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    next(e for e in tensor.external_data if e.key == entry).value = value
    source.write_bytes(model.SerializeToString())
    check_refused(tmp_path, source, tensor.name)


PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(done.returncode)
"""


def peak(*arguments):
    """(most bytes of memory, seconds) of a rewrite."""
    # A process starts with the peak of the one that starts it: here a small one.
    command = [sys.executable, "-S", "-c", PEAK, binary_path(), "rewrite", *arguments, *OFF]
    start = time.monotonic()
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout), time.monotonic() - start


def test_more_than_4_gb(tmp_path):
    """A model larger than protobuf can hold is rewritten in seconds and little memory: its data is never read."""
    source, data = external(tmp_path / "from")
    model = onnx.load(source, load_external_data=False)
    size = 5 << 30
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[size // 4096, 1024])
    place_outside(table, "table.data", 0, size)
    late = TensorProto(name="late", data_type=TensorProto.FLOAT, dims=[256])
    place_outside(late, "table.data", size, 1024)
    model.graph.initializer.extend([table, late])
    model.graph.node.append(helper.make_node("Gather", ["table", "input_ids"], ["rows"], "rows_of_table"))
    model.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, None))
    source.write_bytes(model.SerializeToString())
    with open(source.with_name("table.data"), "wb") as file:
        file.truncate(size + 1024)
    (tmp_path / "to").mkdir()
    memory, seconds = peak(source, tmp_path / "to/out.onnx", "--data", "link")
    assert memory < 3 * source.stat().st_size + BASE
    assert seconds < 10
    assert (tmp_path / "to/table.data").stat().st_ino == source.with_name("table.data").stat().st_ino
    found = {t.name: t for t in onnx.load(tmp_path / "to/out.onnx", load_external_data=False).graph.initializer}
    assert (found["table"], found["late"]) == (table, late)


@pytest.mark.parametrize("megabytes, typed", [(60, False), (20, True)])
def test_memory_of_embedded_weights(tmp_path, megabytes, typed):
    """Weights within the .onnx file are held once, or little more."""
    model = small()
    weights = np.random.default_rng(0).standard_normal((megabytes // 4, MEGABYTE)).astype(np.float32)
    tensor = numpy_helper.from_array(weights, "table")
    if typed:
        tensor.ClearField("raw_data")
        tensor.float_data.extend(weights.ravel())
    model.graph.initializer.append(tensor)
    model.graph.node.append(helper.make_node("Gather", ["table", "input_ids"], ["rows"], "rows_of_table"))
    model.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, None))
    source = write(tmp_path, model)
    memory, _ = peak(source, tmp_path / "out.onnx", "--no-trial")
    assert memory < 3 * source.stat().st_size + BASE
    found = {t.name: t for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert found["table"] == tensor


@pytest.mark.parametrize("command", ["generate", "eval", "bench", "tune"])
def test_data_that_is_not_there_is_named_before_a_model_is_run(tmp_path, command):
    """With the bytes that a tensor needs, and those that there are."""
    source, data = external(tmp_path / "from")
    arguments = {
        "generate": ["generate", source, "--ids", "--prompt", "1 2"],
        "eval": ["eval", source, "--text", source],
        "bench": ["bench", "model", source, source],
        "tune": ["tune", source, "--text", source, "--budget", "0.5", "--output", tmp_path / "recipe.json"],
    }[command]
    size = data.stat().st_size
    with open(data, "ab") as file:
        file.truncate(size - 100)
    done = spark_ort(*arguments, check=False)
    assert done.returncode == 1 and f"{data} has {size - 100} bytes, tensor '" in done.stderr, done.stderr
    assert f"needs {size}: the file is cut short" in done.stderr and "cannot load" not in done.stderr
    data.unlink()
    done = spark_ort(*arguments, check=False)
    assert done.returncode == 1 and f"{data} is missing, where {source} has the data of" in done.stderr, done.stderr


def test_data_that_nothing_reads_may_be_missing(tmp_path):
    source, _ = external(tmp_path / "from")
    model = onnx.load(source, load_external_data=False)
    unread = model.graph.initializer.add(name="unread", dims=[4], data_type=1, data_location=1)
    unread.external_data.add(key="location", value="gone.bin")
    onnx.save(model, source)
    done = spark_ort("generate", source, "--ids", "--prompt", "1 2", "-n", 1, check=False)
    assert "is missing" not in done.stderr, done.stderr


def test_data_behind_a_link_is_run(tmp_path):
    """What a rewrite would not copy may still be run, as ONNX Runtime does."""
    source, data = external(tmp_path / "from")
    (tmp_path / "elsewhere").mkdir()
    data.rename(tmp_path / "elsewhere/data")
    data.symlink_to(tmp_path / "elsewhere/data")
    done = spark_ort("generate", source, "--ids", "--prompt", "1 2", "-n", 1, check=False)
    assert "leads out" not in done.stderr and "is missing" not in done.stderr, done.stderr

"""Files and places that are not as they must be: an error that names the file, no crash, and nothing is written."""

import json
import os
import resource
import signal

import numpy as np
import onnx
import pytest

from ..command import spark_ort

from .refused import OFF, assert_refused, check_refused, small, snapshot, write

CONFIG = {"model": {"decoder": {"filename": "model.onnx", "session_options": {}}}}


@pytest.fixture(scope="module")
def model():
    """The bytes of a model that can be rewritten."""
    return small().SerializeToString()


def folder_of(path, model, config=CONFIG):
    """A GenAI folder."""
    path.mkdir()
    (path / "model.onnx").write_bytes(model)
    if config is not None:
        (path / "genai_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("share", np.linspace(0, 1, 40, endpoint=False))
def test_truncated(tmp_path, model, share):
    """A file that is cut anywhere is refused by its name."""
    source = tmp_path / "model.onnx"
    source.write_bytes(model[: int(share * len(model))])
    check_refused(tmp_path, source, "model.onnx")


@pytest.mark.parametrize("cut", range(1, 12))
def test_truncated_at_the_end(tmp_path, model, cut):
    """The last bytes hold the operator sets: without them the file may still be protobuf, but is no model."""
    source = tmp_path / "model.onnx"
    source.write_bytes(model[:-cut])
    done = spark_ort("rewrite", source, tmp_path / "out.onnx", *OFF, check=False)
    assert done.returncode in (0, 1) and "panicked" not in done.stderr
    if done.returncode:
        assert_refused(done, "model.onnx")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(tmp_path, seed):
    """What is no model is refused by its name."""
    source = tmp_path / "model.onnx"
    source.write_bytes(np.random.default_rng(seed).bytes(1000))
    check_refused(tmp_path, source, "model.onnx")


@pytest.mark.parametrize("content", [b"", b"\0", b"{}", b"GGUF\3\0\0\0", b"\x08\x0a"])
def test_other_files(tmp_path, content):
    """So is an empty file, and one of another kind."""
    source = tmp_path / "model.onnx"
    source.write_bytes(content)
    check_refused(tmp_path, source, "model.onnx")


@pytest.mark.parametrize("block", range(10))
def test_flipped_bytes(tmp_path, model, block):
    """Whatever bytes are wrong, the program ends soon, by itself, and says so or not."""
    structure = len(model) if block % 2 else 4000
    for seed in range(20 * block, 20 * block + 20):
        rng = np.random.default_rng(seed)
        broken = bytearray(model)
        for place in rng.integers(0, structure, rng.integers(1, 9)):
            broken[place] = rng.integers(256)
        source, target = tmp_path / f"model_{seed}.onnx", tmp_path / "out.onnx"
        source.write_bytes(broken)
        done = spark_ort("rewrite", source, target, *OFF, check=False, timeout=10)
        assert "panicked" not in done.stderr, f"seed {seed}: {done.stderr}"
        assert done.returncode in (0, 1), f"seed {seed}: {done.stderr}"
        if done.returncode == 1:
            assert done.stderr.startswith("error: "), f"seed {seed}: {done.stderr}"
            assert not target.exists()
        target.unlink(missing_ok=True)
        source.unlink()
        assert not list(tmp_path.iterdir()), f"seed {seed}"


@pytest.mark.parametrize("depth", [50, 5000])
def test_deep_nesting(tmp_path, depth):
    """Graphs within graphs, however deep, do not overflow the stack."""

    def field(number, content):
        size, length = len(content), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        # GraphProto.node, NodeProto.attribute, AttributeProto.g
        graph = field(1, field(5, field(6, graph)))
    source = tmp_path / "model.onnx"
    source.write_bytes(field(7, graph))
    check_refused(tmp_path, source, "model")


def test_missing(tmp_path):
    """The error names a missing file."""
    check_refused(tmp_path, tmp_path / "nowhere.onnx", "nowhere.onnx", "No such file")


def test_no_genai_folder(tmp_path, model):
    """A folder without genai_config.json is not a GenAI folder."""
    source = folder_of(tmp_path / "plain", model, None)
    check_refused(tmp_path, source, "plain", "genai_config.json", target=tmp_path / "out")


@pytest.mark.parametrize(
    "config, words",
    [
        ("", ["JSON"]),
        ('{"model": ', ["JSON"]),
        ("[1, 2]", ["model.decoder.filename"]),
        ({}, ["model.decoder.filename"]),
        ({"model": {"decoder": {}}}, ["model.decoder.filename"]),
        ({"model": {"decoder": {"filename": 3}}}, ["model.decoder.filename"]),
        ({"model": {"decoder": {"filename": ""}}}, ["model.decoder.filename"]),
        ({"model": {"decoder": {"filename": "../model.onnx"}}}, ["../model.onnx"]),
        ({"model": {"decoder": {"filename": "/model.onnx"}}}, ["/model.onnx"]),
        ({"model": {"decoder": {"filename": ".."}}}, [".."]),
        ({"model": {"decoder": {"filename": "other.onnx"}}}, ["other.onnx", "No such file"]),
        ({"model": {"encoder": {}, "decoder": {"filename": "model.onnx"}}}, ["encoder"]),
        ({"model": {"decoder": {"filename": "model.onnx", "pipeline": []}}}, ["pipeline"]),
        (
            {"model": {"decoder": {"filename": "model.onnx", "session_options": {"custom_ops_library": "a.so"}}}},
            ["custom_ops_library", "a.so"],
        ),
    ],
)
def test_genai_config(tmp_path, model, config, words):
    """A configuration that does not name the decoder's file, or names more than that, is refused by its name."""
    source = folder_of(tmp_path / "genai", model, config)
    place = [] if words[-1] == "No such file" else ["genai_config.json"]
    check_refused(tmp_path, source, *place, *words, target=tmp_path / "out")


def test_recent_keys_of_genai(tmp_path, model):
    """GenAI cannot feed recent keys."""
    source, options = folder_of(tmp_path / "genai", model), ["--recent", "4", "--recent-in", "inputs", *OFF]
    check_refused(tmp_path, source, "--recent-in", "GenAI", target=tmp_path / "out", options=options)


@pytest.mark.parametrize("entry", ["loop", "pipe", "dangling"])
def test_odd_entries_of_a_folder(tmp_path, model, entry):
    """What cannot be copied is named, or left out, but not waited for and not followed without end."""
    source = folder_of(tmp_path / "genai", model)
    if entry == "pipe":
        os.mkfifo(source / "odd")
    else:
        (source / "odd").symlink_to("." if entry == "loop" else "nowhere")
    done = spark_ort("rewrite", source, tmp_path / "out", *OFF, check=False, timeout=5)
    if done.returncode == 0:
        assert {p.name for p in (tmp_path / "out").iterdir()} >= {"model.onnx", "genai_config.json"}
        assert not (tmp_path / "out/odd/odd").exists()
    else:
        assert_refused(done, "odd")
        assert list(tmp_path.iterdir()) == [source]


def test_missing_library(tmp_path, model):
    """A folder cannot be complete without the operator library."""
    source = folder_of(tmp_path / "genai", model)
    options = ["--library", tmp_path / "nowhere.so", *OFF]
    check_refused(tmp_path, source, "--library", "nowhere.so", target=tmp_path / "out", options=options)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_output_exists(tmp_path, model, kind):
    """What is at OUT stays, unless --force replaces it; then nothing else changes."""
    if kind == "file":
        source, target = write(tmp_path, small()), tmp_path / "out.onnx"
        target.write_text("precious")
    else:
        source, target = folder_of(tmp_path / "genai", model), tmp_path / "out"
        target.mkdir()
        (target / "precious").write_text("precious")
    check_refused(tmp_path, source, target.name, "exists", "--force", target=target)
    before = set(tmp_path.iterdir())
    spark_ort("rewrite", source, target, "--force", *OFF)
    assert set(tmp_path.iterdir()) == before
    made = target if kind == "file" else target / "model.onnx"
    assert "SparkAttention" in {n.op_type for n in onnx.load(made).graph.node}
    assert not (target / "precious").exists()


def test_output_is_input(tmp_path):
    """IN is never overwritten, by whatever name OUT calls it."""
    source = write(tmp_path, small())
    (tmp_path / "link.onnx").symlink_to(source)
    os.link(source, tmp_path / "hard.onnx")
    for name in ("model.onnx", "link.onnx", "hard.onnx", "../" + tmp_path.name + "/model.onnx"):
        for options in (OFF, (*OFF, "--force")):
            check_refused(tmp_path, source, "is the input", target=tmp_path / name, options=options)


def test_dangling_link(tmp_path):
    """A link that leads nowhere is something at OUT as well."""
    source, target = write(tmp_path, small()), tmp_path / "out.onnx"
    target.symlink_to(tmp_path / "nowhere.onnx")
    check_refused(tmp_path, source, "exists", target=target)


def test_output_of_another_kind(tmp_path, model):
    """A file goes to a file, a folder to a folder."""
    folder, file = folder_of(tmp_path / "genai", model), write(tmp_path, small())
    (tmp_path / "empty").mkdir()
    check_refused(tmp_path, file, "is a folder", target=tmp_path / "empty", options=(*OFF, "--force"))
    check_refused(tmp_path, folder, "is a file", target=file, options=(*OFF, "--force"))


def test_output_inside_input(tmp_path, model):
    """A folder is not copied into itself."""
    source = folder_of(tmp_path / "genai", model)
    (source / "inner").mkdir()
    for name in ("genai/out", "genai/inner/out", "genai"):
        check_refused(tmp_path, source, "input", target=tmp_path / name)


def test_no_folder_for_output(tmp_path):
    """OUT's folder must be a folder."""
    source = write(tmp_path, small())
    check_refused(tmp_path, source, "model.onnx", target=source / "out.onnx")


def test_read_only_folder(tmp_path):
    """A folder that takes no files is named."""
    source, folder = write(tmp_path, small()), tmp_path / "closed"
    folder.mkdir(mode=0o500)
    # Modes do not bind root, and /proc takes no files from anyone.
    target = folder / "out.onnx" if os.getuid() else "/proc/out.onnx"
    check_refused(tmp_path, source, str(target).rsplit("/", 1)[0], target=target)


def limited(size):
    """Makes a process's writes beyond `size` bytes of a file fail, as on a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return dict(preexec_fn=limit, restore_signals=False)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("size", [0, 1000, 10_000])
def test_full_disk(tmp_path, model, kind, size):
    """A model that does not fit on the disk is not left there in part."""
    source = write(tmp_path, small()) if kind == "file" else folder_of(tmp_path / "genai", model)
    before = snapshot(tmp_path)
    done = spark_ort("rewrite", source, tmp_path / "out", *OFF, check=False, **limited(size))
    assert_refused(done, str(tmp_path), "File too large")
    assert snapshot(tmp_path) == before

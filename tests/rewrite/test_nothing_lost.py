"""Nothing is lost: IN stays as it is, and OUT replaces only what it was told to replace."""

import json
import os
import shutil
import stat
import subprocess

import onnx
import pytest

from .command import binary_path, environment, library_path, rewrite, session, spark_ort
from .exports.build import BUNDLED
from .graphs.refused import OFF, check_refused, small, snapshot, write
from .graphs.test_external_data import external


@pytest.fixture
def folder(exports, tmp_path):
    """A GenAI folder with external data, in a folder of its own."""
    return shutil.copytree(exports[BUNDLED], tmp_path / "outer/in")


def rename_data(folder, name):
    """Gives the external data another name."""
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    (folder / "model.onnx.data").rename(folder / name)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("link", ["", "of IN", "of OUT", "of OUT's folder"])
def test_output_around_the_input(folder, tmp_path, link):
    """A folder that has IN within it is not replaced by IN's rewrite, whatever link leads to either."""
    source, target = folder, tmp_path / "outer"
    (target / "note.txt").write_text("precious")
    if link == "of IN":
        (tmp_path / "link").symlink_to(folder)
        source = tmp_path / "link"
    elif link == "of OUT":
        (tmp_path / "link").symlink_to(target)
        target = tmp_path / "link"
    elif link:
        (tmp_path / "link").symlink_to(tmp_path)
        target = tmp_path / "link/outer"
    check_refused(tmp_path, source, "input inside it", target=target, options=(*OFF, "--force"))


def test_input_is_a_link_in_the_output(folder, tmp_path):
    """Nor does a link inside OUT go that IN is named by, or a file that a link of IN leads to."""
    outer = tmp_path / "other"
    outer.mkdir()
    (outer / "link").symlink_to(folder)
    check_refused(tmp_path, outer / "link", "input inside it", target=outer, options=(*OFF, "--force"))
    (outer / "data").write_text("precious")
    (folder / "data").symlink_to(outer / "data")
    check_refused(tmp_path, folder, "link into the output", target=outer, options=(*OFF, "--force"))


@pytest.mark.parametrize("option", ["--calibrate", "--tokenizer", "--library"])
def test_files_of_options_in_the_output(folder, tmp_path, option):
    """A file that an option names does not go with the folder that OUT replaces."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "file").write_text("precious")
    check_refused(tmp_path, folder, option, "replaced", target=target, options=(option, target / "file", "--force"))


@pytest.mark.parametrize("kind", ["folder", "file", "data"])
def test_output_appears_meanwhile(exports, tmp_path, kind):
    """What appears at OUT while a rewrite calibrates stays, and the rewrite fails."""
    source = exports[BUNDLED] if kind == "folder" else exports[BUNDLED] / "model.onnx"
    target = tmp_path / "out"
    appears = {"folder": target / "thesis.txt", "file": target, "data": tmp_path / "model.onnx.data"}[kind]
    command = [binary_path(), "rewrite", source, target, "--calibrate", "random", "--calibration-tokens", 512]
    with subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert "calibrating" in process.stderr.readline()
            appears.parent.mkdir(exist_ok=True)
            appears.write_text("precious")
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1 and "exists since" in error
    assert appears.read_text() == "precious"
    assert {p for p in tmp_path.rglob("*") if p.is_file()} == {appears}


@pytest.mark.parametrize("other", ["genai-cpu-int4", "genai-cpu-fp32"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_two_at_once(exports, tmp_path, kind, other):
    """Of two rewrites to one OUT one fails, and OUT is whole, the other one's graph with its data."""
    inputs = [shutil.copytree(exports[name], tmp_path / f"in{n}") for n, name in enumerate([BUNDLED, other])]
    shutil.copy(inputs[0] / "genai_config.json", inputs[1])
    sources = inputs if kind == "folder" else [path / "model.onnx" for path in inputs]
    for round in range(3):
        target = tmp_path / f"to {round}/out"
        target.parent.mkdir()
        commands = [[str(word) for word in (binary_path(), "rewrite", source, target, *OFF)] for source in sources]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        runs = [subprocess.Popen(command, **quiet) for command in commands]
        assert sorted(run.wait(60) for run in runs) == [0, 1]
        session(target / "model.onnx" if kind == "folder" else target)
        assert len(list(target.parent.iterdir())) <= 2


@pytest.mark.parametrize("name", ["libspark_ort.so", "genai_config.json", "libspark_ort.so/part"])
@pytest.mark.parametrize("how", ["copy", "link"])
def test_data_named_like_another_file(folder, tmp_path, name, how):
    """Data that has the name of a file that OUT gets is refused; nothing is written through a link."""
    (folder / "genai_config.json").rename(folder / "kept") if name == "genai_config.json" else None
    (folder / name).parent.mkdir(exist_ok=True)
    if name == "genai_config.json":
        # The configuration is read before: the data is one, too.
        rename_data(folder, name)
        (folder / name).write_bytes((folder / "kept").read_bytes().ljust((folder / name).stat().st_size))
    else:
        rename_data(folder, name)
    check_refused(tmp_path, folder, name, target=tmp_path / "out", options=(*OFF, "--data", how))


def test_model_named_like_another_file(folder, tmp_path):
    """The same of the model itself."""
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "libspark_ort.so"
    (folder / "genai_config.json").write_text(json.dumps(config))
    (folder / "model.onnx").rename(folder / "libspark_ort.so")
    check_refused(tmp_path, folder, "libspark_ort.so", target=tmp_path / "out")


@pytest.mark.parametrize("how", ["copy", "link"])
def test_older_library_in_the_folder(folder, tmp_path, how):
    """A library that IN has without need stays as it is; OUT gets the one that it needs."""
    (folder / "libspark_ort.so").write_text("older")
    rewrite(folder, tmp_path / "out", *OFF, "--data", how)
    assert (folder / "libspark_ort.so").read_text() == "older"
    assert (tmp_path / "out/libspark_ort.so").read_bytes() == library_path().read_bytes()


@pytest.mark.parametrize("mask, around", [(0o022, 0o1777), (0o077, 0o1777), (0o002, 0o700)])
def test_modes(folder, tmp_path, mask, around):
    """OUT has the mode that new folders of this user have, whatever that of the folder around it."""
    inner = tmp_path / "inner"
    inner.mkdir()
    inner.chmod(around)
    (folder / "tokenizer.json").chmod(0o666)
    (folder / "sub").mkdir(mode=0o777)
    (folder / "sub/file").write_text("")
    rewrite(folder, inner / "out", *OFF, umask=mask)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [inner / "out", *(inner / "out").rglob("*")]}
    for path, mode in modes.items():
        if path.is_dir():
            assert mode == 0o777 & ~mask
        else:
            assert mode & mask == 0 and mode & 0o400
    assert modes[inner / "out/tokenizer.json"] == 0o666 & ~mask


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_report_over_a_file(folder, tmp_path, kind):
    """The report is not written over what is read or made."""
    folder.joinpath("text.txt").write_text("word " * 500)
    (tmp_path / "to").mkdir()
    (tmp_path / "link.json").symlink_to(folder / "model.onnx.data")
    source, target = (
        (folder, tmp_path / "to/out") if kind == "folder" else (folder / "model.onnx", tmp_path / "to/out.onnx")
    )
    reports = [folder / "model.onnx", folder / "model.onnx.data", tmp_path / "link.json", target]
    if kind == "folder":
        reports += [folder / "new.json", folder / "genai_config.json", target / "model.onnx"]
    else:
        reports += [tmp_path / "to/model.onnx.data", folder / "tokenizer.json"]
    for report in reports:
        check_refused(tmp_path, source, "--json", target=target, options=(*OFF, "--json", report))
    text = ("--calibrate", folder / "text.txt", "--json", folder / "text.txt")
    check_refused(tmp_path, source, "--json", target=target, options=text)
    spark_ort("rewrite", source, target, *OFF, "--json", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["output"] == str(target)


def test_names_of_working_files(tmp_path):
    """Data may have any name, those that a rewrite makes for itself included."""
    for name in (".calibration.onnx", ".model.onnx", "model.onnx", "made"):
        source, data = external(tmp_path / f"from {name}", name, "in.onnx")
        target = tmp_path / f"to {name}"
        target.mkdir()
        rewrite(source, target / "out.onnx", *OFF)
        assert (target / name).read_bytes() == data.read_bytes()


def test_a_name_that_is_no_utf8(exports, tmp_path):
    """A model is written there, and the report says so, as far as JSON can."""
    source = exports["optimum-fp32"] / "model.onnx"
    target = os.fsdecode(os.fsencode(tmp_path) + b"/out-\xe9.onnx")
    report = json.loads(spark_ort("rewrite", source, target, *OFF, "--json", "-").stdout)
    assert report["output"].endswith("/out-\ufffd.onnx") and os.path.isfile(target)


def test_data_that_is_there_already(tmp_path):
    """Data that a run before left where it goes is used, and is no reason to refuse."""
    source, data = external(tmp_path / "from")
    (tmp_path / "to").mkdir()
    shutil.copy(data, tmp_path / "to")
    before = (tmp_path / "to" / data.name).stat()
    rewrite(source, tmp_path / "to/out.onnx", *OFF)
    after = (tmp_path / "to" / data.name).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(list((tmp_path / "to").iterdir())) == 2


def test_long_names(exports, tmp_path):
    """Names as long as the file system allows, and names that are not UTF-8."""
    for number, name in enumerate([b"x" * 250, b"\xff\xfe name"]):
        source = os.fsdecode(os.fsencode(tmp_path) + f"/{number}".encode() + name[:240])
        shutil.copytree(exports[BUNDLED], source)
        target = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        spark_ort("rewrite", source, target, *OFF, errors="surrogateescape")
        assert "libspark_ort.so" in os.listdir(target)
        spark_ort("rewrite", source + "/model.onnx", target + ".onnx", *OFF, errors="surrogateescape")


def test_force_replaces_a_link_only(folder, tmp_path):
    """A link at OUT is replaced, not what it leads to."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "other")
    before = snapshot(tmp_path / "other")
    rewrite(folder, tmp_path / "out", *OFF, "--force")
    assert not (tmp_path / "out").is_symlink() and snapshot(tmp_path / "other") == before
    small_source = write(tmp_path, small())
    (tmp_path / "out.onnx").symlink_to(tmp_path / "other/precious")
    rewrite(small_source, tmp_path / "out.onnx", *OFF, "--force")
    assert not (tmp_path / "out.onnx").is_symlink() and snapshot(tmp_path / "other") == before

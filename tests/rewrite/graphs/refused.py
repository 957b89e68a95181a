"""What every refusal must be like."""

import os

import onnx

from ..command import spark_ort

from .builder import Shape, decoder
from .fused import group_query

OFF = ("--calibrate", "off")


def small(**settings):
    """A model of one layer that can be rewritten."""
    return decoder(group_query(), Shape(2, 1, 32, 1), **settings)


def write(folder, model, name="model.onnx"):
    onnx.save(model, folder / name)
    return folder / name


def snapshot(folder):
    """Everything in a folder and below: what it is, and what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder)] = (content, status.st_mtime_ns if path.is_file() else None, status.st_mode)
    return found


def check_refused(folder, source, *words, target=None, options=OFF, **settings):
    """Rewriting `source` fails with an error that has all of `words`, and changes nothing in `folder`."""
    before = snapshot(folder)
    target = folder / "out.onnx" if target is None else target
    done = spark_ort("rewrite", source, target, *options, check=False, **settings)
    assert_refused(done, *words)
    assert snapshot(folder) == before
    return done


def assert_refused(done, *words):
    assert done.returncode == 1, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    # What was done until then may be told before.
    told = done.stderr.removeprefix("writing ...\n")
    assert told.startswith("error: "), done.stderr
    assert "panicked" not in done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, f"{missing} not in: {done.stderr}"
    assert not done.stdout


def refuse(folder, model, *words):
    """The model is refused, also when it is only asked about."""
    source = write(folder, model)
    done = check_refused(folder, source, *words)
    dry = check_refused(folder, source, *words, options=(*OFF, "--dry-run"))
    assert done.stderr == dry.stderr

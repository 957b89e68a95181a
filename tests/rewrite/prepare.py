"""Rewrites the exports for tests/onnxruntime/rewritten.py: `PYTHONPATH=tests python -m rewrite.prepare FOLDER`."""

import json
import sys
from pathlib import Path

from .exports.build import build_all
from .exports.prompts import load

from .command import rewrite

EXACT = ("--ratio", 0, "--key-bits", 16, "--value-bits", 16)


def prepare(folder):
    """Writes `exact` and `pruned` models of each export, and what to run: {"prompt", "models": {name: {kind:
    path}}}."""
    models = {}
    for name, original in build_all().items():
        models[name] = {"original": str(original / "model.onnx")}
        for kind, options in [("exact", EXACT), ("pruned", ())]:
            target = folder / name / kind / "model.onnx"
            target.parent.mkdir(parents=True)
            rewrite(original / "model.onnx", target, "--calibrate", "off", *options)
            models[name][kind] = str(target)
    (folder / "models.json").write_text(json.dumps({"prompt": load()[0], "models": models}))


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))

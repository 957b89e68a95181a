"""Runs the exports that tests/rewrite/prepare.py rewrote, in whatever ONNX Runtime this Python has, beside the
originals.

    python rewritten.py LIBRARY FOLDER

Needs NumPy and ONNX Runtime, nothing else. Where an original does not load, its rewritten models are left out.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime as ort

import replay

sys.path.append(str(pathlib.Path(__file__).parents[1]))
from rewrite.exports.drive import decode  # noqa: E402

STEPS = 32
# Largest difference of logits without pruning, as tests/rewrite/test_logits.py explains.
BOUNDS = {"fp32": 0.02, "fp16": 0.04, "int4": 0.6}


def reason(error):
    """The end of an error's first line; before it are places in ONNX Runtime's sources."""
    return str(error).splitlines()[0][-200:]


def problems(name, paths, original, library, prompt):
    """What is wrong with the rewritten models of an export."""
    tokens, answer = prompt["tokens"], prompt["answer"]
    exact, pruned = (replay.load(paths[kind], library) for kind in ("exact", "pruned"))
    expected, found = (
        decode(model, [tokens[:-STEPS]], forced=[tokens[-STEPS:]])[1] for model in (original, exact)
    )
    error = np.abs(found - expected).max()
    if not error < BOUNDS[name.split("-")[-1]]:
        yield f"logits differ by up to {error:.2g}"
    told = decode(pruned, [tokens], steps=len(answer))[0][0].tolist()
    if told != answer:
        yield f"the pruned one answers {told}, not {answer}"


def main(library, folder):
    about = json.loads(pathlib.Path(folder, "models.json").read_text())
    failed, run = 0, 0
    for name, paths in about["models"].items():
        try:
            original = replay.load(paths["original"], library)
        except Exception as error:  # Each host has exceptions of its own.
            print(f"skipped: {name}, whose original does not load: {reason(error)}")
            continue
        try:
            wrong = list(problems(name, paths, original, library, about["prompt"]))
        except Exception as error:
            wrong = [f"{type(error).__name__}: {reason(error)}"]
        for text in wrong:
            print(f"{name}: {text}")
        failed, run = failed + bool(wrong), run + 1
    print(f"ONNX Runtime {ort.__version__}: {run - failed} of {run} rewritten exports right")
    return int(failed > 0 or run == 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

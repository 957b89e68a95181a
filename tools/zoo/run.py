"""Every family by every exporter, rewritten and compared; the table goes to docs/zoo.md."""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from pathlib import Path

from exporters import dynamo, genai, optimum, packages
from families import FAMILIES, make

ROOT = Path(__file__).resolve().parents[2]
LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off --recent 0".split()
# Share of the greatest logit. Rows hold float16 numbers; float16 models round everything.
WITHIN = {"fp32": 5e-3, "fp16": 2e-2}


EXPORTERS = {
    "GenAI cpu": (genai("cpu", "fp32"), "fp32"),
    "GenAI cuda": (genai("cuda", "fp16"), "fp16"),
    "GenAI dml": (genai("dml", "fp16"), "fp16"),
    "GenAI webgpu": (genai("webgpu", "fp16"), "fp16"),
    "Optimum": (optimum, "fp32"),
    "torch 18": (dynamo(18), "fp32"),
    "torch 23": (dynamo(23), "fp32"),
    "torch 24": (dynamo(24), "fp32"),
}


def last_line(text):
    """The line of a message that names the error, else the last one, without the names of temporary folders."""
    text = re.sub(re.escape(tempfile.gettempdir()) + r"/\w+/", "", str(text))
    # As torch.onnx says it, between advice and a stack.
    if summary := re.search(r"## Exception summary\s+<class '(?:\w+\.)*(\w+)'>: (.*)", text):
        return f"{summary[1]}: {summary[2]}".replace("|", "/")[:240]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.search(r"Error\b.*: |refused|cannot be rewritten", line)]
    return ((named or lines or ["no message"])[-1]).replace("|", "/")[:240]


def without_windows(model):
    """A copy of `model` whose caches hold all tokens: without that ONNX Runtime's CPU wants room for the window at
    once."""
    import onnx

    graph = onnx.load(model, load_external_data=False)
    nodes = [node for node in graph.graph.node if node.op_type == "GroupQueryAttention"]
    windowed = [(node, a) for node in nodes for a in node.attribute if a.name == "sliding_window_cache"]
    if not windowed:
        return model
    for node, attribute in windowed:
        node.attribute.remove(attribute)
    copy = model.with_name("whole.onnx")
    onnx.save(graph, copy)
    return copy


def apart(function, *arguments):
    """Runs `function` in a process of its own and gives what it returns, or the last line of its error."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(False)

    def work():
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        try:
            theirs.send((True, function(*arguments)))
        except BaseException as error:
            done = isinstance(error, SystemExit) and not error.code
            theirs.send((done, None if done else f"{type(error).__name__}: {error}"))

    process = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        result = (False, "the process died")
    process.join()
    return result


def tried(exporter, source, folder, program, library):
    """One cell of the table."""
    from compare import difference, logits

    export, precision = EXPORTERS[exporter]
    made, problem = apart(export, source, folder)
    model = folder / "model.onnx"
    if not made or not model.exists():
        return f"not built: {last_line(problem)}"
    rewritten = folder / "rewritten.onnx"
    done = subprocess.run([program, "rewrite", model, rewritten, *LOSSLESS], capture_output=True, text=True)
    if done.returncode:
        return f"refused: {last_line(done.stderr.removeprefix('error: the model cannot be rewritten: '))}"
    runs, found = apart(logits, rewritten, library)
    known, expected = apart(logits, without_windows(model))
    if not known:
        answer = "the rewritten one does" if runs else "nor does the rewritten one"
        return f"rewritten; the original does not run on the CPU ({last_line(expected)[-120:]}), {answer}"
    if not runs:
        return f"FAILS: {last_line(found)}"
    error = difference(found, expected)
    return f"{'agrees' if error < WITHIN[precision] else 'DIFFERS'}, {error:.1e}"


def page(results):
    """docs/zoo.md from all results so far."""
    exporters = [name for name in EXPORTERS if any(name in cells for cells in results["cells"].values())]
    rows = [
        f"| {family} | {' | '.join(results['cells'][family].get(name, 'not run') for name in exporters)} |"
        for family in FAMILIES
        if family in results["cells"]
    ]
    versions = "\n".join(f"- {name}: {versions}" for name, versions in results["versions"].items())
    return f"""# What exporters write, rewritten

Made by `make zoo`: models of two layers with random weights, exported, rewritten at ratio 0 with 16 bits, and both run
on the CPU over a prompt of 14 tokens and three more. A number is the greatest difference of a logit as a share of the
greatest logit; it agrees below 5e-3, in float16 (cuda, dml, webgpu) below 2e-2. "torch 18" is `torch.onnx.export` with
`dynamo=True` to opset 18. What an exporter itself cannot build is said, with the last line of its error.

| family | {' | '.join(exporters)} |
|{'---|' * (len(exporters) + 1)}
{chr(10).join(rows)}

Packages:

{versions}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/zoo.md")
    parser.add_argument("--results", type=Path, default=ROOT / "target/zoo.json", help="kept between runs")
    parser.add_argument("--release", type=Path, default=ROOT / "target/release")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--exporters", nargs="*", default=list(EXPORTERS), choices=list(EXPORTERS))
    options = parser.parse_args()
    # Exports take an hour: what cannot be written is said before.
    for file in (options.output, options.results):
        if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
            parser.error(f"{file} cannot be written: name a file in a folder that can be written to")
    os.environ["HF_HUB_OFFLINE"] = "1"
    known = json.loads(options.results.read_text()) if options.results.exists() else {}
    results = {"versions": {}, "cells": {}, **known}
    # Once, for all that are forked off.
    results["versions"][", ".join(options.exporters)] = packages(options.exporters)

    program, library = options.release / "spark-ort", options.release / "libspark_ort.so"
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            made, problem = apart(make, family, source)
            for number, exporter in enumerate(options.exporters):
                target = Path(folder) / str(number)
                cell = f"not built: {last_line(problem)}"
                if made:
                    cell = tried(exporter, source, target, program, library)
                results["cells"].setdefault(family, {})[exporter] = cell
                print(f"{family}, {exporter}: {cell}", flush=True)
        options.results.write_text(json.dumps(results, indent=1))
        options.output.write_text(page(results))


if __name__ == "__main__":
    main()

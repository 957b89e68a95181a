"""Every family by every exporter, rewritten and compared; the table goes to docs/zoo.md."""

import argparse
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from families import FAMILIES, make

ROOT = Path(__file__).resolve().parents[2]
LOSSLESS = "--ratio 0 --key-bits 16 --value-bits 16 --calibrate off --recent 0".split()
# Share of the greatest logit. Rows hold float16 numbers; float16 models round everything.
WITHIN = {"fp32": 5e-3, "fp16": 2e-2}


def genai(provider, precision):
    """The model builder of ONNX Runtime GenAI."""

    def export(source, target):
        from onnxruntime_genai.models import builder

        options = ["-m", source, "-i", source, "-o", target, "-p", precision, "-e", provider, "-c", target / "cache"]
        sys.argv = ["builder", *map(str, options)]
        runpy.run_path(builder.__file__, run_name="__main__")

    return export, precision


def optimum():
    """Optimum's export to ONNX."""

    def export(source, target):
        from optimum.exporters.onnx import main_export

        main_export(str(source), target, task="text-generation-with-past", do_validation=False)

    return export, "fp32"


EXPORTERS = {
    "GenAI cpu": genai("cpu", "fp32"),
    "GenAI cuda": genai("cuda", "fp16"),
    "GenAI dml": genai("dml", "fp16"),
    "GenAI webgpu": genai("webgpu", "fp16"),
    "Optimum": optimum(),
}


def last_line(text):
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return (lines[-1] if lines else "no message").replace("|", "/")[:160]


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


def tried(family, exporter, source, folder, program, library):
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
    known, expected = apart(logits, model)
    if not known:
        return "rewritten; the original does not run on the CPU" + (", this does" if runs else "")
    if not runs:
        return f"FAILS: {last_line(found)}"
    error = difference(found, expected)
    return f"{'agrees' if error < WITHIN[precision] else 'DIFFERS'}, {error:.1e}"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/zoo.md")
    parser.add_argument("--release", type=Path, default=ROOT / "target/release")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--exporters", nargs="*", default=list(EXPORTERS), choices=list(EXPORTERS))
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Once, for all that are forked off.
    import onnxruntime_genai.models.builder  # noqa: F401
    import optimum.exporters.onnx  # noqa: F401
    import torch
    import transformers

    torch.set_num_threads(1)
    program, library = options.release / "spark-ort", options.release / "libspark_ort.so"
    rows = []
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            made, problem = apart(make, family, source)
            cells = []
            for number, exporter in enumerate(options.exporters):
                target = Path(folder) / str(number)
                cell = f"not built: {last_line(problem)}"
                if made:
                    cell = tried(family, exporter, source, target, program, library)
                cells.append(cell)
                print(f"{family}, {exporter}: {cell}", flush=True)
        rows.append(f"| {family} | {' | '.join(cells)} |")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    options.output.write_text(
        f"""# What exporters write, rewritten

Made by `make zoo`: models of two layers with random weights ({versions}), exported, rewritten at ratio 0 with 16 bits,
and both run on the CPU over a prompt of 14 tokens and three more. A number is the greatest difference of a logit as a
share of the greatest logit; it agrees below 5e-3, in float16 (cuda, dml, webgpu) below 2e-2. What an exporter itself
cannot build is said.

| family | {' | '.join(options.exporters)} |
|{'---|' * (len(options.exporters) + 1)}
{chr(10).join(rows)}
"""
    )


if __name__ == "__main__":
    main()

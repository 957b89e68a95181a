"""What the program `spark-ort` does, called from Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from ._types import Inspection, Report


class Error(RuntimeError):
    """What the program said on failure: which node, file or option stands in the way, and what to do."""


def file(name: str) -> str:
    """Path of a compiled file: in the package, or where cargo put it if the package is a source folder."""
    package = Path(__file__).resolve().parent
    places = [package / name]
    if (package.parents[1] / "Cargo.toml").is_file():
        places.append(package.parents[1] / "target" / "release" / name)
    for place in places:
        if place.is_file():
            return str(place)
    raise FileNotFoundError(f"{name} is neither {' nor '.join(map(str, places))}; install the package again")


def library_path() -> str:
    """Path of libspark_ort.so, for `SessionOptions.register_custom_ops_library`.

    One file serves one ONNX Runtime in a process; a process that has two gives each a copy of its own.
    """
    return file("libspark_ort.so")


def environment() -> dict[str, str]:
    """This process's environment, in which the program finds the ONNX Runtime that this Python would import."""
    variables = dict(os.environ)
    if "ORT_DYLIB_PATH" not in variables:
        found = find_spec("onnxruntime")
        for folder in (found and found.submodule_search_locations) or []:
            # Where the package has no such file, the program looks elsewhere and says where.
            for runtime in sorted(Path(folder, "capi").glob("libonnxruntime.so*")):
                variables["ORT_DYLIB_PATH"] = str(runtime)
    return variables


def _answer(*arguments: str) -> Any:
    """The JSON that the program answers."""
    done = subprocess.run([file("spark-ort"), *arguments], capture_output=True, text=True, env=environment())
    if done.returncode != 0:
        # Before it come lines of progress.
        problem = re.split("^error: ", done.stderr, maxsplit=1, flags=re.MULTILINE)[-1].strip()
        raise Error(problem or f"spark-ort ended with status {done.returncode}")
    return json.loads(done.stdout)


def rewrite(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    ratio: float = 0.5,
    key_bits: Literal[16, 8, 4] = 8,
    value_bits: Literal[16, 8, 4] = 8,
    row_format: Literal[1, 2] = 1,
    basis: Literal["calibrated"] | None = None,
    key_bytes: int | None = None,
    recipe: str | os.PathLike[str] | None = None,
    recovery: Literal["mean", "none", "exponential", "normal"] = "mean",
    recent: int | None = None,
    recent_in: Literal["auto", "buffer", "inputs"] = "auto",
    cache_type: Literal["same", "uint8"] = "same",
    uniform_rows: bool = False,
    exact_ratio: bool = False,
    calibrate: str | os.PathLike[str] = "auto",
    calibration_tokens: int = 4096,
    tokenizer: str | os.PathLike[str] | None = None,
    data: Literal["copy", "link"] = "copy",
    library: str | os.PathLike[str] | None = None,
    provider: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    no_trial: bool = False,
    threads: int | None = None,
) -> Report:
    """Rewrites a model so that its KV cache is stored pruned, as `spark-ort rewrite` does.

    Args:
        source: an .onnx file or an ONNX Runtime GenAI folder; never changed.
        target: where the rewritten one goes, of the same kind.
        ratio: share of key channels to prune, 0 to below 1; fewer are pruned where padded rows have room for more.
        key_bits: bits of a kept key channel.
        value_bits: bits of a value channel.
        row_format: how rows are laid out; 2 is more accurate at 4 bits.
        basis: "calibrated": keys in a basis that calibration finds, with 8, 4 or 2 bits a direction, instead of pruned
            channels; ratio, key_bits, row_format and recovery keep their defaults then.
        key_bytes: bytes of a key row in a basis, a multiple of 4; None: half a byte a channel.
        recipe: a file in which `spark-ort tune` says these four for each layer; they keep their defaults then.
        recovery: what a pruned channel reads as: its sign times their root mean square, or times a magnitude drawn
            from an exponential or half-normal distribution of theirs, or zero.
        recent: keep the last so many keys dense as well; None: 64 in a GenAI folder, else 0.
        recent_in: where: in free rows of the buffer that past and present share, or in one more input and output of
            each layer; "auto": in the buffer in a GenAI folder, in inputs elsewhere.
        cache_type: element type of the cache tensors, the original's or bytes.
        uniform_rows: pad key and value rows to one size, as a GenAI folder always has them.
        exact_ratio: prune exactly `ratio`, even where key rows are padded and have room for more channels.
        calibrate: a text file, "random" for random tokens, "off", or "auto" for a bundled text.
        calibration_tokens: measure on at most so many tokens.
        tokenizer: tokenizer.json for calibration, or its folder; None: the one beside the model.
        data: how external data comes to another folder.
        library: the libspark_ort.so that a GenAI folder gets; None: library_path().
        provider: name this execution provider in a GenAI folder too, after those that it names: "cuda", or
            "SparkExecutionProvider".
        force: replace target if it exists.
        dry_run: only say whether the model can be rewritten and what would come out.
        no_trial: do not run one token through what was written.
        threads: threads for calibration; None: one per physical core.

    Raises:
        Error: the model cannot be rewritten, and why; nothing was written.
    """
    options: dict[str, object] = {
        "ratio": ratio,
        "key-bits": key_bits,
        "value-bits": value_bits,
        "row-format": row_format,
        "basis": basis,
        "key-bytes": key_bytes,
        "recovery": recovery,
        "recent": recent,
        "recent-in": recent_in,
        "cache-type": cache_type,
        "calibrate": os.fspath(calibrate),
        "calibration-tokens": calibration_tokens,
        "tokenizer": tokenizer and os.fspath(tokenizer),
        "data": data,
        "library": os.fspath(library or library_path()),
        "provider": provider,
        "threads": threads,
    }
    # The program refuses those that say something else beside a recipe or a basis.
    defaults: dict[str, object] = {}
    if recipe is not None:
        defaults = {"ratio": 0.5, "key-bits": 8, "value-bits": 8, "row-format": 1}
        options["recipe"] = os.fspath(recipe)
    if basis is not None:
        defaults |= {"ratio": 0.5, "key-bits": 8, "row-format": 1, "recovery": "mean"}
    options = {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}
    # One argument each, so that a value may begin with a dash.
    arguments = [f"--{name}={value}" for name, value in options.items() if value is not None]
    flags = {"uniform-rows": uniform_rows, "exact-ratio": exact_ratio, "force": force}
    flags |= {"dry-run": dry_run, "no-trial": no_trial}
    arguments += [f"--{name}" for name, wanted in flags.items() if wanted]
    report: Report = _answer("rewrite", *arguments, "--json=-", "--", os.fspath(source), os.fspath(target))
    return report


def inspect(model: str | os.PathLike[str]) -> Inspection:
    """What a model's attention and cache are like, rewritten or not, as `spark-ort inspect` says.

    Args:
        model: an .onnx file, an ONNX Runtime GenAI folder, or a folder with one .onnx file.

    Raises:
        Error: the model can be neither run nor rewritten, and why.
    """
    inspection: Inspection = _answer("inspect", "--json", "--", os.fspath(model))
    return inspection

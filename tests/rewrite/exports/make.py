"""Makes graphs/ from the folder of the original exports: `python -m tests.rewrite.exports.make MODELS`.

It needs to run only when the exports change. Prompts are made anew where the package `tokenizers` is installed.
"""

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx

from . import prompts
from .build import BUNDLED, GRAPHS, NAMES, bundled_weights, data_files, derive, external, initializers

# Initializers of fewer bytes stay in the graph: shapes, scalars, inverse frequencies.
SMALL = 512
# Quantising to 4 bits in blocks of 32 costs about this much, relative to the norm; another matrix is off by about 1.4.
QUANTISED = 0.15


def forms(weights, shape):
    """Every way to get an array of a shape from the bundled weights, as entries of the recipe."""
    for name, array in weights.items():
        if array.shape == shape:
            yield {"source": name}
        if array.ndim == len(shape) == 2:
            if array.T.shape == shape:
                yield {"source": name, "transpose": True}
            rows, width = shape
            if array.shape[0] == rows and array.shape[1] > width:
                for start in range(0, array.shape[1] - width + 1, width):
                    yield {"source": name, "columns": [start, start + width]}


def match(weights, array):
    """(entry, its relative error, that of the next best) for the bundled weight that an original one is."""
    wanted = array.astype(np.float32)
    norm = np.linalg.norm(wanted)
    found = [
        (float(np.linalg.norm(derive(weights, **form).astype(array.dtype).astype(np.float32) - wanted) / norm), form)
        for form in forms(weights, array.shape)
    ]
    (best, form), *others = sorted(found, key=lambda pair: pair[0])
    return form, best, others[0][0] if others else float("inf")


def without_post_processor(path):
    content = json.loads(path.read_text())
    post = content.pop("post_processor")
    assert post is None or not post["special_tokens"], path
    return content


def small_files(folder, name, stored):
    """{file: path within graphs/} of what lies beside an export's model; a content is stored once."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("model.onnx"):
            continue
        if path.name == "tokenizer.json":
            # transformers 5 writes a post processor that adds nothing.
            bundled = GRAPHS / BUNDLED / path.name
            assert without_post_processor(path) == without_post_processor(bundled), path
            files[path.name] = f"{BUNDLED}/{path.name}"
            continue
        content = path.read_bytes()
        if content not in stored:
            shutil.copyfile(path, GRAPHS / name / path.name)
            stored[content] = f"{name}/{path.name}"
        files[path.name] = stored[content]
    return files


def skeleton(folder, weights, quantised):
    """(the model's bytes without large weights, the entries of those weights, how well each matched)."""
    original = (folder / "model.onnx").read_bytes()
    model = onnx.ModelProto.FromString(original)
    # Building writes the model by protobuf too, so what it does not know of must survive that.
    assert model.SerializeToString() == original, folder
    arrays, entries, matches = initializers(folder), {}, []
    for tensor in model.graph.initializer:
        array = arrays[tensor.name]
        if array.nbytes < SMALL:
            assert not external(tensor), tensor.name
            continue
        assert tensor.HasField("raw_data") or external(tensor), tensor.name
        form, best, second = match(weights, array)
        kind = "quantised" if form["source"] in quantised else "exact"
        limit = {"quantised": QUANTISED, "exact": 0}[kind]
        assert best <= limit and second > max(5 * best, 0.01), (tensor.name, form, best, second)
        assert form not in entries.values(), tensor.name
        matches.append((kind, best, second, f"{folder.name}: {tensor.name}"))
        entries[tensor.name] = form
        tensor.ClearField("raw_data")
    # Offsets stay as they are, so nothing may lie between or beyond the weights.
    for name, size in data_files(model).items():
        places = [p for t in model.graph.initializer if (p := external(t)) and p[0] == name]
        assert sum(p[2] for p in places) == size == (folder / name).stat().st_size, (folder, name)
    # Only the tables of the rotation may be missing, where the graph computes them.
    used = {form["source"] for form in entries.values()}
    assert set(weights) - used <= {"cos_cache", "sin_cache"}, folder
    return model.SerializeToString(), entries, matches


def make(models):
    bundled = GRAPHS / BUNDLED
    shutil.rmtree(bundled, ignore_errors=True)
    bundled.mkdir(parents=True)
    for path in (models / BUNDLED).iterdir():
        shutil.copyfile(path, bundled / path.name)
    stored = {path.read_bytes(): f"{BUNDLED}/{path.name}" for path in bundled.iterdir()}
    weights = bundled_weights()
    quantised = set(weights) - set(initializers(bundled))
    recipe, matches = {}, []
    for name in NAMES:
        if name == BUNDLED:
            recipe[name] = {"files": {path.name: f"{BUNDLED}/{path.name}" for path in sorted(bundled.iterdir())}}
            continue
        shutil.rmtree(GRAPHS / name, ignore_errors=True)
        (GRAPHS / name).mkdir()
        graph, entries, found = skeleton(models / name, weights, quantised)
        (GRAPHS / name / "model.onnx.gz").write_bytes(gzip.compress(graph, 9, mtime=0))
        files = small_files(models / name, name, stored)
        recipe[name] = {"files": files, "graph": f"{name}/model.onnx.gz", "weights": entries}
        matches += found
    # A weight a line, so that it can be read and compared.
    text = re.sub(r'\{\s*"source"[^}]*\}', lambda entry: " ".join(entry[0].split()), json.dumps(recipe, indent=1))
    (GRAPHS / "recipe.json").write_text(text + "\n")
    for kind in ("exact", "quantised"):
        rows = [row[1:] for row in matches if row[0] == kind]
        worst, nearest = max(rows), min(rows, key=lambda row: row[1])
        print(f"{len(rows)} {kind} weights: error at most {worst[0]:.3f} ({worst[2]}),", end=" ")
        print(f"of another one at least {nearest[1]:.3f} ({nearest[2]})")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
    prompts.make()

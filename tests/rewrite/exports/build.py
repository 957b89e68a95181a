"""Builds the exports of the small LLaMA as complete model folders: `python -m tests.rewrite.exports.build [OUT]`.

graphs/ holds one export whole and of the others the graph without its weights; graphs/recipe.json says how each weight
follows from the whole one. SPARK_TEST_MODELS names a folder to take all exports from instead, as they are.
"""

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[3]
GRAPHS = ROOT / "graphs"
BUNDLED = "genai-cpu-int4"
NAMES = (
    "optimum-fp32",
    "dynamo18-fp32",
    "dynamo23-fp32",
    "genai-cpu-fp32",
    BUNDLED,
    "genai-cuda-fp16",
    "genai-dml-fp16",
)
GIVEN = os.environ.get("SPARK_TEST_MODELS")
# Each export's folder; build_all() sees to it that they are there.
EXPORTS = {name: Path(GIVEN or ROOT / "target/exports") / name for name in NAMES}


def data_files(model):
    """The files that a model's external initializers lie in, with their sizes: {location: bytes}."""
    ends = {}
    for tensor in model.graph.initializer:
        if place := external(tensor):
            ends[place[0]] = max(ends.get(place[0], 0), place[1] + place[2])
    return ends


def external(tensor):
    """(location, offset, length) of an external initializer, None for an embedded one."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    entry = {e.key: e.value for e in tensor.external_data}
    return entry["location"], int(entry["offset"]), int(entry["length"])


def initializers(folder):
    """{name: array} of every initializer of the model in a folder."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    data = {name: (folder / name).read_bytes() for name in data_files(model)}
    arrays = {}
    for tensor in model.graph.initializer:
        if place := external(tensor):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            raw = data[place[0]][place[1] : place[1] + place[2]]
            arrays[tensor.name] = np.frombuffer(raw, dtype).reshape(tensor.dims)
        else:
            arrays[tensor.name] = onnx.numpy_helper.to_array(tensor)
    return arrays


def dequantise(packed, scales, width):
    """The matrix `[width,N]` that MatMulNBits multiplies by, from `[N,blocks,bytes]` of 4 bits without zero points."""
    # The low half of a byte comes first; 8 stands for zero.
    values = np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1).astype(np.float32) - 8
    # Blocks fill up the last one, which may reach beyond the matrix.
    return np.ascontiguousarray((values * scales[..., None]).reshape(len(packed), -1)[:, :width].T)


def bundled_weights(folder=GRAPHS / BUNDLED):
    """{name: float32 array} of the bundled export, its quantised matrices as `[inputs,outputs]`."""
    arrays = initializers(folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            attributes = {a.name: a.i for a in node.attribute}
            _, packed, scales = node.input
            assert attributes["bits"] == 4, node.name
            name = packed.removesuffix("_Q4")
            arrays[name] = dequantise(arrays.pop(packed), arrays.pop(scales), attributes["K"])
    return arrays


def derive(weights, source, columns=None, transpose=False):
    """A weight as an entry of the recipe says."""
    array = weights[source]
    if columns:
        array = array[:, columns[0] : columns[1]]
    return array.T if transpose else array


def write_export(folder, entry, weights):
    """Writes one export, an entry of the recipe, into an empty folder."""
    for name, source in entry["files"].items():
        shutil.copyfile(GRAPHS / source, folder / name)
    if "graph" not in entry:
        return
    model = onnx.ModelProto.FromString(gzip.decompress((GRAPHS / entry["graph"]).read_bytes()))
    data = {name: bytearray(size) for name, size in data_files(model).items()}
    for tensor in model.graph.initializer:
        if tensor.name not in entry["weights"]:
            continue
        array = derive(weights, **entry["weights"][tensor.name])
        assert list(array.shape) == list(tensor.dims), tensor.name
        raw = array.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes()
        if place := external(tensor):
            assert len(raw) == place[2], tensor.name
            data[place[0]][place[1] : place[1] + place[2]] = raw
        else:
            tensor.raw_data = raw
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for name, content in data.items():
        (folder / name).write_bytes(content)


def fingerprint():
    """Of everything that the exports are built from."""
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted(p for p in GRAPHS.rglob("*") if p.is_file() and p.name != "README.md")]:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def build_all(out=None):
    """{name: folder} of all exports, built where missing or out of date; `out` names another place for them."""
    if out is None and GIVEN:
        return EXPORTS
    folders = {name: Path(out) / name for name in NAMES} if out is not None else EXPORTS
    out = folders[BUNDLED].parent
    out.mkdir(parents=True, exist_ok=True)
    stamp, made_from = out / ".made-from", fingerprint()
    with open(out / ".lock", "w") as lock:
        # Processes that build at once take turns, and the later ones find the work done.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == made_from and all(f.is_dir() for f in folders.values()):
            return folders
        stamp.unlink(missing_ok=True)
        recipe, weights = json.loads((GRAPHS / "recipe.json").read_text()), bundled_weights()
        for name, folder in folders.items():
            # A folder is never seen half written.
            new = out / f".{name}.new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            write_export(new, recipe[name], weights)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        stamp.write_text(made_from)
    return folders


if __name__ == "__main__":
    for built in build_all(*sys.argv[1:2]).values():
        print(built)

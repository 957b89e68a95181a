"""Writes a Triton model repository entry for a rewritten model, to be served by Triton's ONNX Runtime backend.

    python triton_entry.py MODEL.onnx REPOSITORY NAME [FOLDER_ON_SERVER]

The entry holds the model, its data and libspark_ort.so. Triton hands the library's path to ONNX Runtime as it stands,
so it must be what the server sees: FOLDER_ON_SERVER is where the server has REPOSITORY, by default /models. The client
carries the cache: it sends present.* back as past_key_values.*.
"""

import shutil
import sys
from pathlib import Path

import onnxruntime as ort
import spark_ort

TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
}


def tensors(kind, described):
    entries = []
    for tensor in described:
        dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in tensor.shape)
        entries.append(f'  {{ name: "{tensor.name}" data_type: {TYPES[tensor.type]} dims: [ {dims} ] }}')
    return f"{kind} [\n" + ",\n".join(entries) + "\n]\n"


def configuration(session, name, library):
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\n'
        # Dimensions are given whole: the first one is the batch.
        + "max_batch_size: 0\n"
        + tensors("input", session.get_inputs())
        + tensors("output", session.get_outputs())
        + f'model_operations {{ op_library_filename: [ "{library}" ] }}\n'
    )


def main(model, repository, name, on_server="/models"):
    options = ort.SessionOptions()
    options.register_custom_ops_library(spark_ort.library_path())
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    version = Path(repository, name, "1")
    version.mkdir(parents=True)
    shutil.copy(model, version / "model.onnx")
    for data in Path(model).parent.glob(f"{Path(model).stem}*data"):
        shutil.copy(data, version)
    library = Path(shutil.copy(spark_ort.library_path(), version)).name
    text = configuration(session, name, f"{on_server}/{name}/1/{library}")
    (version.parent / "config.pbtxt").write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Two copies of ONNX Runtime in one process, as a Python program has that uses onnxruntime and, beside it, a program
library that opens libonnxruntime.so: the Python package carries one inside its module and one as a file."""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys

import onnxruntime

LIBRARY = pathlib.Path(os.environ.get("SPARK_ORT_LIBRARY", "target/release/libspark_ort.so"))

# Entries of OrtApiBase and OrtApi, the same in every version: onnxruntime_c_api.h.
GET_API, GET_ERROR_MESSAGE, CREATE_SESSION_OPTIONS = 0, 2, 10


def entry(table, index, result, *arguments):
    address = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[index]
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def register(path):
    """What RegisterCustomOps of the library at `path` answers to libonnxruntime.so: None, or the error's text."""
    runtime = ctypes.CDLL(str(next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))))
    runtime.OrtGetApiBase.restype = ctypes.c_void_p
    base = runtime.OrtGetApiBase()
    api = entry(base, GET_API, ctypes.c_void_p, ctypes.c_uint32)(18)
    options = ctypes.c_void_p()
    assert not entry(api, CREATE_SESSION_OPTIONS, ctypes.c_void_p, ctypes.c_void_p)(ctypes.byref(options))
    library = ctypes.CDLL(str(path))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    library.RegisterCustomOps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    status = library.RegisterCustomOps(options, base)
    return entry(api, GET_ERROR_MESSAGE, ctypes.c_char_p, ctypes.c_void_p)(status).decode() if status else None


def both(folder):
    """Registers one file with the runtime inside the Python module, then it and a copy with the other."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(LIBRARY))
    same = register(LIBRARY)
    copy = register(shutil.copy(LIBRARY, folder))
    assert same == "libspark_ort: this file already serves another ONNX Runtime in this process; load a copy of it", same
    assert copy is None, copy


def test_each_runtime_needs_a_copy_of_its_own(tmp_path):
    # In a process of its own: what is loaded stays loaded.
    subprocess.run([sys.executable, __file__, tmp_path], check=True)


def test_a_runtime_that_is_too_old_is_told(tmp_path):
    subprocess.run([sys.executable, __file__, tmp_path, "old"], check=True)


def too_old():
    """A table of tables that knows only the first version, as ONNX Runtime 1.17 answers 18."""
    runtime = ctypes.CDLL(str(next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))))
    runtime.OrtGetApiBase.restype = ctypes.c_void_p
    first = entry(runtime.OrtGetApiBase(), GET_API, ctypes.c_void_p, ctypes.c_uint32)(1)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda version: first if version == 1 else None)
    get_version = ctypes.CFUNCTYPE(ctypes.c_char_p)(lambda: b"1.17.3")
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(f, ctypes.c_void_p) for f in (get_api, get_version)))
    library = ctypes.CDLL(str(LIBRARY))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    status = library.RegisterCustomOps(None, base)
    text = entry(first, GET_ERROR_MESSAGE, ctypes.c_char_p, ctypes.c_void_p)(status)
    assert text == b"libspark_ort: ONNX Runtime 1.18 or newer is needed, this is 1.17.3", text


if __name__ == "__main__":
    too_old() if sys.argv[2:] == ["old"] else both(sys.argv[1])

"""Two copies of ONNX Runtime in one process, as a Python program has that uses onnxruntime and, beside it, a program
library that opens libonnxruntime.so: the Python package carries one inside its module and one as a file."""

import ctypes
import pathlib
import shutil
import subprocess
import sys

import onnxruntime
from test_replay import LIBRARY

# Entries of OrtApiBase and OrtApi, the same in every version: onnxruntime_c_api.h.
GET_API, GET_ERROR_MESSAGE, CREATE_SESSION_OPTIONS = 0, 2, 10


def entry(table, index, result, *arguments):
    address = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[index]
    return ctypes.CFUNCTYPE(result, *arguments)(address)


def runtime():
    """The OrtApiBase of libonnxruntime.so."""
    library = ctypes.CDLL(str(next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))))
    library.OrtGetApiBase.restype = ctypes.c_void_p
    return library.OrtGetApiBase()


def tables(base, version):
    """The OrtApi of a version."""
    return entry(base, GET_API, ctypes.c_void_p, ctypes.c_uint32)(version)


def register(path, options, base):
    """What RegisterCustomOps of the library at `path` answers: None, or the error's text."""
    library = ctypes.CDLL(str(path))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    library.RegisterCustomOps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    status = library.RegisterCustomOps(options, base)
    message = entry(tables(base, 1), GET_ERROR_MESSAGE, ctypes.c_char_p, ctypes.c_void_p)
    return message(status).decode() if status else None


def both(folder):
    """Registers one file with the runtime inside the Python module, then it and a copy with the other."""
    # Kept: the library is unloaded with the last options that hold it.
    module_options = onnxruntime.SessionOptions()
    module_options.register_custom_ops_library(str(LIBRARY))
    base, options = runtime(), ctypes.c_void_p()
    create = entry(tables(base, 18), CREATE_SESSION_OPTIONS, ctypes.c_void_p, ctypes.c_void_p)
    assert not create(ctypes.byref(options))
    same = register(LIBRARY, options, base)
    copy = register(shutil.copy(LIBRARY, folder), options, base)
    assert (
        same == "libspark_ort: this file already serves another ONNX Runtime in this process; load a copy of it"
    ), same
    assert copy is None, copy


def test_each_runtime_needs_a_copy_of_its_own(tmp_path):
    # In a process of its own: what is loaded stays loaded.
    subprocess.run([sys.executable, __file__, tmp_path], check=True)


def test_a_runtime_that_is_too_old_is_told(tmp_path):
    subprocess.run([sys.executable, __file__, tmp_path, "old"], check=True)


def too_old():
    """A table of tables that knows only the first version, as ONNX Runtime 1.17 answers 18."""
    first = tables(runtime(), 1)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda version: first if version == 1 else None)
    get_version = ctypes.CFUNCTYPE(ctypes.c_char_p)(lambda: b"1.17.3")
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(f, ctypes.c_void_p) for f in (get_api, get_version)))
    text = register(LIBRARY, None, ctypes.addressof(base))
    assert text == "libspark_ort: ONNX Runtime 1.18 or newer is needed, this is 1.17.3", text


if __name__ == "__main__":
    too_old() if sys.argv[2:] == ["old"] else both(sys.argv[1])

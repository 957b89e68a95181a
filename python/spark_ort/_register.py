"""The operators, and an execution provider with a GPU, given to a session."""

from __future__ import annotations

import ctypes
import operator
import threading
from functools import cache
from typing import TYPE_CHECKING, Literal

from ._command import Error, library_path

if TYPE_CHECKING:
    import onnxruntime

CPU, CUDA, ROCM = "CPUExecutionProvider", "CUDAExecutionProvider", "ROCMExecutionProvider"
PROVIDER = "SparkExecutionProvider"
NAME = "spark_ort"
# Drivers: their libraries, and the functions that start them and count devices.
DRIVERS = {
    "AMD": (["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"], "hipInit", "hipGetDeviceCount"),
    "NVIDIA": (["libcuda.so.1"], "cuInit", "cuDeviceGetCount"),
}

_lock = threading.Lock()


@cache
def _load() -> None:
    """Makes the provider known to ONNX Runtime, which refuses a second time."""
    import onnxruntime as ort

    ort.register_execution_provider_library(NAME, library_path())


def _no_gpu(vendor: str) -> str | None:
    """Why there is no GPU of this vendor, or None if there is one."""
    libraries, start, count = DRIVERS[vendor]
    for name in libraries:
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        number = ctypes.c_int(0)
        # Both are functions of C that return 0 on success.
        if getattr(driver, start)(0) == 0 and getattr(driver, count)(ctypes.byref(number)) == 0 and number.value > 0:
            return None
        return f"{name} finds no {vendor} GPU"
    return f"no driver of an {vendor} GPU ({libraries[0]})"


def _problems() -> dict[str, str | None]:
    """The providers with a GPU in order of preference, and why each cannot be used here; None: it can. `spark-ort
    doctor` shows the same."""
    import onnxruntime as ort

    amd, nvidia = _no_gpu("AMD"), _no_gpu("NVIDIA")
    built_in = ort.get_available_providers()
    problems: dict[str, str | None] = {}
    for provider, why in ((CUDA, nvidia), (ROCM, amd)):
        problems[provider] = why if provider in built_in else "this ONNX Runtime does not have it"
    problems[PROVIDER] = f"{amd}; {nvidia}" if amd and nvidia else None
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24):
        problems[PROVIDER] = f"ONNX Runtime 1.24 or later loads it, this is {ort.__version__}"
    return problems


def register(options: onnxruntime.SessionOptions, *, gpu: bool | int | Literal["auto"] = False) -> str:
    """Gives `options` the operators, so that a session made with it runs rewritten models.

    Args:
        options: of a session to be made. With `gpu`, make it without the argument `providers`.
        gpu: False: both operators run on the CPU, or wherever the session's providers have them. True: on a GPU, by
            the first of CUDAExecutionProvider, ROCMExecutionProvider and this library's own SparkExecutionProvider
            that this ONNX Runtime and machine have. A number: likewise, on the device of this number. "auto": on a GPU
            if there is one, else on the CPU.

    Returns:
        The name of the provider that was added, or "CPUExecutionProvider". ONNX Runtime up to 1.22 takes providers
        only from the argument `providers` of a session: name it there.

    Raises:
        Error: no such provider or device, or no such `gpu`; the message says why not of each.
        TypeError: `options` are no SessionOptions, or `gpu` is neither a word nor a whole number.
    """
    import numpy as np
    import onnxruntime as ort

    if isinstance(gpu, np.bool_):
        gpu = bool(gpu)
    if not isinstance(options, ort.SessionOptions):
        raise TypeError(f"options are a {type(options).__name__}: an onnxruntime.SessionOptions is expected")
    # What is neither is an error on machines without a GPU too.
    expected = "False, True, 'auto' or the number of a device, from 0 on, is expected"
    try:
        number = 0 if gpu is True or isinstance(gpu, str) else operator.index(gpu)
    except TypeError:
        raise TypeError(f"gpu is a {type(gpu).__name__}: {expected}") from None
    if number < 0 or (isinstance(gpu, str) and gpu != "auto"):
        raise Error(f"gpu is {gpu!r}: {expected}")
    problems: dict[str, str | None] = {} if gpu is False else _problems()
    usable = [provider for provider, problem in problems.items() if problem is None]
    if gpu is False or (isinstance(gpu, str) and not usable):
        options.register_custom_ops_library(library_path())
        return CPU
    if not usable:
        raise Error("no GPU can be used: " + "; ".join(f"{name}: {why}" for name, why in problems.items()))
    if usable[0] != PROVIDER:
        options.register_custom_ops_library(library_path())
        if hasattr(options, "add_provider"):
            options.add_provider(usable[0], {"device_id": str(number)})
        return usable[0]
    with _lock:
        _load()
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    if not 0 <= number < len(devices):
        raise Error(f"{PROVIDER} has {len(devices)} devices here, and number {number} is asked for")
    options.register_custom_ops_library(library_path())
    options.add_provider_for_devices([devices[number]], {})
    return PROVIDER

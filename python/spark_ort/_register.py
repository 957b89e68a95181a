"""The operators, and a GPU's execution provider, given to a session."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

from ._command import Error, library_path

if TYPE_CHECKING:
    import onnxruntime

PROVIDER = "SparkExecutionProvider"
NAME = "spark_ort"

_lock = threading.Lock()


@cache
def _load() -> None:
    """Makes the provider known to ONNX Runtime, which refuses a second time."""
    import onnxruntime as ort

    ort.register_execution_provider_library(NAME, library_path())


def register(options: onnxruntime.SessionOptions, *, gpu: bool | int = False) -> str:
    """Gives `options` the operators, so that a session made with it runs rewritten models.

    Args:
        options: of a session to be made. With `gpu`, make it without the argument `providers`.
        gpu: False: both operators run on the CPU, or wherever the session's providers have them, as
            ROCMExecutionProvider does. True: on the first device of this library's own execution provider, which
            ONNX Runtime 1.24 and later can load. A number: on the device of this number among the provider's.

    Returns:
        The name of the provider that was added, or "CPUExecutionProvider".

    Raises:
        Error: this ONNX Runtime loads no providers, or finds no such device.
    """
    import onnxruntime as ort

    if gpu is False:
        options.register_custom_ops_library(library_path())
        return "CPUExecutionProvider"
    if not hasattr(ort, "register_execution_provider_library"):
        raise Error(f"ONNX Runtime {ort.__version__} loads no execution providers: 1.24 or later is needed for a GPU")
    with _lock:
        _load()
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    number = 0 if gpu is True else gpu
    if not 0 <= number < len(devices):
        found = f"{len(devices)} devices" if devices else "no device"
        raise Error(
            f"{PROVIDER} has {found} here, and number {number} is asked for: it needs a driver of an AMD GPU "
            "(libamdhip64) or an NVIDIA GPU (libcuda.so.1); `spark-ort doctor` says what it finds"
        )
    options.register_custom_ops_library(library_path())
    options.add_provider_for_devices([devices[number]], {})
    return PROVIDER

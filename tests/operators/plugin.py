"""SparkExecutionProvider in tests that are written for providers which ONNX Runtime has built in.

Importing this registers the library, makes `onnxruntime.InferenceSession(..., providers=["SparkExecutionProvider"])`
run on the provider's first device (or option device_id), with no node allowed elsewhere unless other providers are
named, and lets "cuda" name its memory, as it names ROCMExecutionProvider's.
"""

import os

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_inference_collection as collection

NAME = "SparkExecutionProvider"

AMD = 0x1002
DEVICES = []


def register():
    """Registers the library, and finds the provider's devices."""
    ort.register_execution_provider_library("spark", os.environ["SPARK_ORT_LIBRARY"])
    DEVICES[:] = [d for d in ort.get_ep_devices() if d.ep_name == NAME]


register()
VENDOR = DEVICES[0].device.vendor_id if DEVICES else AMD

_make = collection.OrtDevice.make
PLAIN_SESSION = ort.InferenceSession


def _device(name, id=0, vendor=-1):
    return _make("gpu", id, VENDOR) if name == "cuda" else _make(name, id, vendor)


class Session(PLAIN_SESSION):
    """A session whose providers may include this one."""

    def __init__(self, model, options=None, providers=None, **more):
        named = [(p, {}) if isinstance(p, str) else p for p in providers or []]
        mine = [given for name, given in named if name == NAME]
        if not mine:
            super().__init__(model, options, providers=providers, **more)
            return
        options = options or ort.SessionOptions()
        if len(named) == 1:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        options.add_provider_for_devices([DEVICES[int(mine[0].get("device_id", 0))]], {})
        super().__init__(model, options, **more)


collection.OrtDevice.make = staticmethod(_device)
ort.InferenceSession = Session

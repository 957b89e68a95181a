"""SparK-ORT: language models whose KV cache ONNX Runtime stores pruned.

    import onnxruntime, spark_ort

    spark_ort.rewrite("model.onnx", "small.onnx")
    options = onnxruntime.SessionOptions()
    spark_ort.register(options)
    session = onnxruntime.InferenceSession("small.onnx", options)
"""

from importlib.metadata import version as _version

from ._command import Error, inspect, library_path, rewrite
from ._register import register
from ._types import CacheLayer, CachePair, Inspection, Interface, Report, Rows

__all__ = [
    "CacheLayer",
    "CachePair",
    "Error",
    "Inspection",
    "Interface",
    "Report",
    "Rows",
    "__version__",
    "inspect",
    "library_path",
    "register",
    "rewrite",
]

__version__: str = _version("spark-ort")

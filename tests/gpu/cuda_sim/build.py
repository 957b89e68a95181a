"""Builds stand-ins for NVIDIA's libraries.

    python build.py PROVIDER FOLDER

PROVIDER is libonnxruntime_providers_cuda.so, whose libraries of CUDA 13 are made too; "none" for it makes the driver
and NVRTC alone. The driver has the kernels of ops in it, and runs them by emulation. Beside them comes libneighbour.so,
an execution provider on the same device.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from stand_ins import Library, build, compile_library, kernels, unless_made

DRIVER = Library("libcuda.so.1", [HERE / name for name in ("driver.cpp", "memory.cpp", "streams.cpp")], r"cu[A-Z]")
OTHERS = [HERE / "libraries.cpp"]
LIBRARIES = [
    Library("libcublas.so.13", OTHERS, r"cublas(?!Lt)", ["-DSIM_CUBLAS"]),
    Library("libcublasLt.so.13", OTHERS, r"cublasLt", ["-DSIM_CUBLASLT"]),
    Library("libcurand.so.10", OTHERS, r"curand"),
]


def main(provider, folder):
    folder = pathlib.Path(folder)

    def make():
        # Waves are of 32.
        DRIVER.options = kernels(["fiber", "machine", "wave32"], folder)
        build(DRIVER, provider, folder)
        compile_library(folder / "libnvrtc.so.13", [HERE / "nvrtc.cpp"], [])
        by_driver = [f"-L{folder}", "-l:libcuda.so.1"]
        compile_library(folder / "libneighbour.so", [HERE / "neighbour.cpp"], by_driver)
        if provider == "none":
            return
        runtime = Library("libcudart.so.13", [HERE / "runtime.cpp"], r"(__)?cuda", by_driver, "libcudart.so.13")
        for library in [runtime, *LIBRARIES]:
            build(library, provider, folder)

    unless_made(folder, HERE.iterdir(), provider, make)


if __name__ == "__main__":
    main(*sys.argv[1:])

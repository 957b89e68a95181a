"""Builds stand-in ROCm libraries for ONNX Runtime's ROCm execution provider.

    python build.py PROVIDER FOLDER

PROVIDER is libonnxruntime_providers_rocm.so; "none" for it makes HIP alone, for hosts without that provider. Beside
them comes libspark_emulation.so, which runs the kernels of ops.
"""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from stand_ins import OPS, Library, build, compile_library, kernels, unless_made

RUNTIME = ["runtime.cpp", "memory.cpp", "streams.cpp", "modules.cpp", "emulation.cpp"]
HIP = Library("libamdhip64.so.7", [HERE / name for name in RUNTIME], r"(__)?hip(?!blas|fft)", version="hip_4.2")
OTHERS = [HERE / "libraries.cpp"]
LIBRARIES = [
    Library("libhipblas.so.3", OTHERS, r"hipblas|rocblas", ["-DSIM_HIPBLAS"]),
    Library("libMIOpen.so.1", OTHERS, r"miopen", ["-DSIM_MIOPEN"]),
    Library("libhipfft.so.0", OTHERS, r"hipfft"),
    Library("librocm_smi64.so.1", OTHERS, r"rsmi"),
    Library("libroctracer64.so.4", OTHERS, r"roctracer"),
]
# An older HIP whose hipRTC compiles without a device.
OLDER_HIP = "libamdhip64.so.5"


def emulation(path):
    """The kernels for the host."""
    objects = kernels(sorted(source.stem for source in (OPS / "emulation").glob("*.cpp")), path.parent)
    beside = path.with_suffix(".new")
    subprocess.run(["g++", "-shared", "-o", beside, *objects], check=True)
    beside.rename(path)


def main(provider, folder):
    folder = pathlib.Path(folder)

    def make():
        for library in [HIP, *(LIBRARIES if provider != "none" else [])]:
            build(library, provider, folder)
        emulation(folder / "libspark_emulation.so")
        loads = [sys.executable, "-c", f"import ctypes; ctypes.CDLL('{OLDER_HIP}')"]
        if subprocess.run(loads, capture_output=True).returncode == 0:
            compile_library(folder / "libhiprtc.so.7", [HERE / "hiprtc.cpp"], [f'-DSIM_OLDER_HIP="{OLDER_HIP}"'])
            print(f"libhiprtc.so.7: by {OLDER_HIP}")
        else:
            print(f"no {OLDER_HIP} on this machine: no libhiprtc.so.7")

    unless_made(folder, HERE.iterdir(), provider, make)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The kernels as NVIDIA GPUs get them, where nvcc is at hand: `tools/cuda.sh build` brings one."""

import ctypes
import ctypes.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def nvcc() -> str | None:
    """The one on the PATH, else that of .venv-cuda."""
    ours = ROOT.glob(".venv-cuda/lib/python*/site-packages/nvidia/cu13/bin/nvcc")
    return shutil.which("nvcc") or next(map(str, ours), None)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_no_warnings_and_no_spills(arch: str, tmp_path: Path) -> None:
    compiler = nvcc()
    if compiler is None:
        pytest.skip(f"{arch} not compiled: no nvcc here (tools/cuda.sh build gets it from PyPI)")
    # As tools/cuda.sh has them.
    options = ["-std=c++17", "-O3", "--fmad=false", "-Werror", "all-warnings", "-Xptxas", "-v"]
    target = f"arch={arch.replace('sm', 'compute')},code={arch}"
    command = [compiler, "-x", "cu", *options, "-gencode", target, "-cubin", "-o", tmp_path / "spark.cubin"]
    run = subprocess.run([*command, ROOT / "ops/spark.hip"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    report = run.stdout + run.stderr
    found = dict(re.findall(r"Function properties for (\w+)\n\s+(.*)\n", report))
    kernels = set(re.findall(r"^SPARK_KERNEL\((\w+),", (ROOT / "ops/spark.hip").read_text(), re.MULTILINE))
    # Kernels for AMD's matrix cores are left out here.
    assert found and found.keys() <= kernels, report
    for name, properties in found.items():
        # Four blocks of those share a multiprocessor. What spills is needed after the loops over stored rows.
        most = 128 if re.fullmatch("spark_decode_quantised_.*x4", name) else 0
        numbers = [int(n) for n in re.findall(r"\d+", properties)]
        assert max(numbers) <= most, f"{name}: {properties}"


def test_builtins_are_those_of_nvrtc() -> None:
    """Of CUDA 12.4, the oldest that compiles the kernels. __builtin_offsetof came after 13.0. Few machines have one."""
    known = {"__builtin_bit_cast", "__builtin_expect", "__builtin_unreachable"}
    ops = ROOT / "ops"
    for source in [*ops.glob("*.h"), *ops.glob("format/*.h"), ops / "device/cuda.h"]:
        text = re.sub(r"#ifndef __CUDACC_RTC__\n.*?#endif", "", source.read_text(), flags=re.DOTALL)
        assert set(re.findall(r"__builtin_\w+", text)) <= known, source.name


def nvrtc() -> ctypes.CDLL | None:
    """The one that the loader finds, else that of .venv-cuda, if it has one."""
    ours = ROOT.glob(".venv-cuda/lib/python*/site-packages/nvidia/cu13/lib/libnvrtc.so.13")
    found = ctypes.util.find_library("nvrtc") or next(map(str, ours), None)
    return ctypes.CDLL(found) if found else None


def test_nvrtc_compiles_them() -> None:
    """With names and options as src/gpu/rtc.rs gives them: no header but the project's own is there."""
    library = nvrtc()
    if library is None:
        pytest.skip("no NVRTC here (nvidia-cuda-nvrtc on PyPI)")
    ops = ROOT / "ops"
    names = [str(p.relative_to(ops)) for p in [*ops.glob("*.h"), *ops.glob("format/*.h"), ops / "device/cuda.h"]]
    strings = ctypes.c_char_p * len(names)
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    contents = strings(*[(ops / name).read_bytes() for name in names])
    main = (ops / "spark.hip").read_bytes()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), main, b"spark.hip", len(names), contents, strings(*map(str.encode, names))
    )
    assert made == 0
    # Without -w: there is nothing to warn of.
    options = [b"-std=c++17", b"--fmad=false", b"--gpu-architecture=sm_90"]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    assert library.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetProgramLog(program, log) == 0
    assert status == 0 and "error" not in log.value.decode(), log.value.decode()[:4000]
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    assert size.value > 100_000

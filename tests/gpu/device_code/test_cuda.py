"""The kernels as NVIDIA GPUs get them, where nvcc is at hand: `tools/cuda.sh build` brings one."""

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
    # Kernels for matrix cores are left out here.
    assert found and found.keys() <= kernels, report
    for name, properties in found.items():
        numbers = [int(n) for n in re.findall(r"\d+", properties)]
        assert numbers == [0, 0, 0], f"{name}: {properties}"

"""The kernels as AMD GPUs get them: compiled for each architecture that a toolchain at hand reaches, and what the code
objects say of registers, scratch memory and LDS."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .code_object import Kernel, instruction_words, kernels
from .loops import assembly, blocks, kinds, turn

SOURCES = Path(__file__).parents[3] / "ops"
# Kernels of AMD GPUs, and of NVIDIA's tensor cores, some of which have the same names.
ALL = (SOURCES / "spark.hip").read_text()
[OF_TENSOR_CORES] = re.findall(r"^#ifdef SPARK_MMA\n(SPARK_KERNEL.*?)^#endif", ALL, re.MULTILINE | re.DOTALL)
OF_AMD = ALL.replace(OF_TENSOR_CORES, "")


def kernels_in(text: str) -> dict[str, tuple[int, int]]:
    """Name, most threads, waves a SIMD that the cost model of src/gpu/plan counts on."""
    found = re.findall(r"^SPARK_KERNEL\((\w+), (\d+), (\d+)\)", text, re.MULTILINE)
    return {name: (int(threads), int(waves)) for name, threads, waves in found}


DECLARED = kernels_in(OF_AMD)
SIZE_OF_CALL = int(re.search(r"sizeof\(SparkCall\) == (\d+)", (SOURCES / "call.h").read_text())[1])
# Registers of a lane on one SIMD, and how many a wave takes at least at a time (LLVM AMDGPU usage, and the compiler's
# own occupancy tables).
CDNA_VGPRS, CDNA_GRANULE = 512, 8
# The upper halves of the first words of V_MFMA_F32_16X16X16F16 and V_MFMA_F32_16X16X4F32 (VOP3P opcodes 0x4d, 0x45),
# and how many of them a tile takes in the kernels of prompts (ops/prefill_matrix.h): both products' tiles, of 16 keys
# by 16 queries by 32 channels and of 16 channels by 16 queries by 32 keys, times 2 instructions for float16, 8 for
# float32.
MFMA = {"f16": 0xD3CD, "f32": 0xD3C5}
MATRIX_INSTRUCTIONS = {"f16_64": 64, "f16_128": 128, "f16_256": 64, "f32_64": 256, "f32_128": 128, "f32_256": 256}


def declared(cdna: bool) -> dict[str, tuple[int, int]]:
    """The kernels of CDNA or other GPUs, of DECLARED: prefill with matrix cores, or without, and decoding with them."""
    without = {name for name in DECLARED if re.fullmatch(r"spark_prefill_\d+", name)}
    prefill = {name for name in DECLARED if "_matrix_" in name}
    assert prefill == {f"spark_prefill_matrix_{kind}" for kind in MATRIX_INSTRUCTIONS} and without
    matrix = prefill | {name for name in DECLARED if re.search("_quantised_|_unpack_|_round_", name)}
    return {name: of for name, of in DECLARED.items() if name not in (without if cdna else matrix)}


def newest_clang() -> str | None:
    """A clang from 19 on with its linker: these sources need no device libraries. tools/amd_code.sh brings one."""
    for version in range(22, 18, -1):
        if shutil.which(f"clang-{version}") and shutil.which(f"ld.lld-{version}"):
            return f"clang-{version}"
    return None


def knows(compiler: str, arch: str) -> bool:
    """Whether clang knows the GPU."""
    command = [compiler, "--target=amdgcn-amd-amdhsa", "-print-supported-cpus"]
    run = subprocess.run(command, capture_output=True, text=True)
    return arch in run.stderr.split()


def compile_with(compiler: str, arch: str, output: Path) -> list[Kernel]:
    """The kernels as `compiler` makes them for `arch`; warnings are errors."""
    options = [f"--offload-arch={arch}", "-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "--no-gpu-bundle-output"]
    if compiler == "hipcc":
        # hipcc links with whatever it finds in this variable too.
        command = ["hipcc", "--genco", *options]
    else:
        command = [compiler, "-x", "hip", "-nogpuinc", "-nogpulib", "--cuda-device-only", "-c", *options]
    run = subprocess.run([*command, str(SOURCES / "spark.hip"), "-o", str(output)], capture_output=True, text=True)
    assert run.returncode == 0, f"{' '.join(command)}:\n{run.stderr[-4000:]}"
    return kernels(output)


@pytest.mark.parametrize(
    ("toolchain", "arch"),
    [("hipcc", "gfx90a"), *(("clang", arch) for arch in ("gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1201"))],
)
def test_resources(toolchain: str, arch: str, tmp_path: Path) -> None:
    compiler = shutil.which("hipcc") and "hipcc" if toolchain == "hipcc" else newest_clang()
    if compiler is None:
        packages = "hipcc" if toolchain == "hipcc" else "clang-19 and lld-19"
        pytest.skip(f"{arch} not compiled: {packages} (Debian packages) are not installed; or run tools/amd_code.sh")
    if toolchain == "clang" and not knows(compiler, arch):
        pytest.skip(f"{arch} not compiled: {compiler} does not know it; run tools/amd_code.sh")
    found = {k.name: k for k in compile_with(compiler, arch, tmp_path / "spark.co")}
    cdna = arch.startswith("gfx9")
    assert found.keys() == declared(cdna).keys()
    for name, kernel in found.items():
        threads, waves = DECLARED[name]
        assert kernel.wave_size == (64 if cdna else 32), name
        assert kernel.scratch == 0 and kernel.vgpr_spills == 0, f"{name} spills to scratch memory: {kernel}"
        assert kernel.static_lds == 0, f"{name}: all LDS is asked for at launch"
        assert kernel.arguments == SIZE_OF_CALL, name
        assert kernel.most_threads == threads, name
        if cdna:
            # One file of registers holds VGPRs and AGPRs.
            registers = -(-(kernel.vgprs + kernel.agprs) // CDNA_GRANULE) * CDNA_GRANULE
            assert CDNA_VGPRS // registers >= waves, f"{name}: {registers} registers, for {waves} waves a SIMD"
        if "_matrix_" in name:
            kind = name.removeprefix("spark_prefill_matrix_")
            words = instruction_words(tmp_path / "spark.co", name)
            assert sum(word >> 16 == MFMA[kind[:3]] for word in words) >= MATRIX_INSTRUCTIONS[kind], name


def test_a_plan_counts_on_what_is_declared() -> None:
    """`decode_blocks` and MATRIX_BLOCKS of src/gpu/plan: a block has one wave on each SIMD."""
    for name, (_, waves) in DECLARED.items():
        if decode := re.fullmatch(r"spark_decode_(\w+_)?(\d+)x(\d+)", name):
            kind, octets, columns = decode[1], int(decode[2]), int(decode[3])
            assert waves == (2 if columns > 4 or kind == "quantised_" and octets > 8 else 3), name
        if "_matrix_" in name:
            assert waves == 2, f"{name}: MATRIX_BLOCKS of src/gpu/plan"
    for name, (_, waves) in kernels_in(OF_TENSOR_CORES).items():
        if decode := re.fullmatch(r"spark_decode_quantised_\w*?\d+x(\d+)", name):
            assert waves == (2 if int(decode[1]) > 4 else 4), name


# Vector instructions and products of a row pair, rounded up, that docs/performance.md derives the kernels' speed from.
@pytest.mark.parametrize(
    ("compiler", "arch", "kernel", "setting", "inner", "vector", "matrix"),
    [
        ("clang-15", "gfx90a", "spark_decode_quantised_16x4", {"key8", "value8"}, 2, 20, 2.0),
        ("clang-15", "gfx90a", "spark_decode_quantised_16x4", {"key4", "value4"}, 1, 23, 2.5),
        ("clang-15", "gfx90a", "spark_decode_quantised_planes_16x4", {"value8", "directions of 4 bits"}, 2, 19, 1.25),
        ("clang-15", "gfx90a", "spark_decode_16x4", {"key16", "value16"}, 2, 78, 0),
        ("clang-19", "gfx942", "spark_decode_quantised_16x4", {"key8", "value8"}, 2, 19, 1.25),
        ("clang-19", "gfx942", "spark_decode_quantised_16x4", {"key4", "value4"}, 1, 24, 1.75),
        ("clang-19", "gfx942", "spark_decode_16x4", {"key16", "value16"}, 2, 79, 0),
        *(
            ("clang-22", arch, *counted)
            for arch in ("gfx942", "gfx950")
            for counted in (
                ("spark_decode_quantised_16x4", {"key8", "value8"}, 2, 19, 1.25),
                ("spark_decode_quantised_16x4", {"key4", "value4"}, 1, 23, 1.75),
                ("spark_decode_quantised_planes_16x4", {"value8", "directions of 4 bits"}, 2, 18, 0.875),
                ("spark_decode_16x4", {"key16", "value16"}, 2, 77, 0),
            )
        ),
    ],
)
def test_instructions_of_a_row(
    compiler: str, arch: str, kernel: str, setting: set[str], inner: int, vector: float, matrix: float
) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} on this machine")
    rows, opcodes = turn(blocks(assembly(compiler, arch, kernel), kernel), setting, inner)
    counted = kinds(opcodes)
    assert counted.get("matrix", 0) / rows == matrix
    assert vector - 5 < counted["vector"] / rows <= vector, "docs/performance.md says otherwise"


@pytest.mark.parametrize(("compiler", "arch", "cycles"), [("clang-15", "gfx90a", 8), ("clang-19", "gfx942", 4)])
def test_products_take_what_is_counted(compiler: str, arch: str, cycles: int) -> None:
    """LLVM's model of a processor says of matrix instructions what docs/performance.md takes from AMD's peak rates."""
    model = next(filter(shutil.which, (f"llvm-mca-{version}" for version in range(22, 18, -1))), None)
    if model is None or not shutil.which(compiler):
        pytest.skip(f"no {compiler}, or no llvm-mca of LLVM 19 or newer (Debian package llvm-19), on this machine")
    text = assembly(compiler, arch, "spark_decode_quantised_16x4")
    products = {line.split()[0]: line for line in text.splitlines() if line.lstrip().startswith("v_mfma")}
    command = [model, "-mtriple=amdgcn-amd-amdhsa", f"-mcpu={arch}", "-iterations=1"]
    lines = "".join(f"{line}\n" for line in products.values())
    run = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    # Micro-operations, latency, reciprocal throughput.
    said = re.findall(r"^ *\d+ +\d+ +([\d.]+) .*(v_mfma\w+)", run.stdout, re.MULTILINE)
    assert {(opcode, float(each)) for each, opcode in said} == {(opcode, cycles) for opcode in products}
    assert len(products) > 1

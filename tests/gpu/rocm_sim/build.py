"""Builds stand-in ROCm libraries for ONNX Runtime's ROCm execution provider.

    python build.py PROVIDER FOLDER

PROVIDER is libonnxruntime_providers_rocm.so; what it needs, with versions of symbols, is read from it. Functions that
no source here defines say their name on standard error and fail. "none" for it makes HIP alone, for hosts without that
provider. Beside them comes libspark_emulation.so, which runs
the kernels of ops. What is there and made from the same is kept.
"""

import concurrent.futures
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
OPS = HERE.parents[2] / "ops"
RUNTIME = ["runtime.cpp", "memory.cpp", "streams.cpp", "modules.cpp", "emulation.cpp"]
# Name of the library: sources, preprocessor option, and whose symbols of the provider it has.
LIBRARIES = {
    "libamdhip64.so.7": (RUNTIME, [], r"(__)?hip(?!blas|fft)"),
    "libhipblas.so.3": (["libraries.cpp"], ["-DSIM_HIPBLAS"], r"hipblas|rocblas"),
    "libMIOpen.so.1": (["libraries.cpp"], ["-DSIM_MIOPEN"], r"miopen"),
    "libhipfft.so.0": (["libraries.cpp"], [], r"hipfft"),
    "librocm_smi64.so.1": (["libraries.cpp"], [], r"rsmi"),
    "libroctracer64.so.4": (["libraries.cpp"], [], r"roctracer"),
}
# The version of HIP symbols that the provider does not use and we do.
DEFAULT_VERSION = "hip_4.2"
# An older HIP whose hipRTC compiles without a device.
OLDER_HIP = "libamdhip64.so.5"
OPTIONS = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]

STUB = """EXPORT int {name}() {{
    fprintf(stderr, "stand-in ROCm libraries: {name} is not there\\n");
    return 801;
}}
"""


def wanted(provider):
    """(name, version or None) of the functions that the provider takes from other libraries."""
    if provider == "none":
        return
    table = subprocess.run(["readelf", "-W", "--dyn-syms", provider], check=True, capture_output=True, text=True).stdout
    for line in table.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[6] == "UND":
            name, _, version = fields[7].partition("@")
            yield name, version or None


def defined(sources, options):
    text = "".join(subprocess.run(["g++", "-std=c++17", "-E", *options, HERE / source], check=True, capture_output=True,
                                  text=True).stdout for source in sources)
    return set(re.findall(r"^extern \"C\" __attribute__\(\(visibility\(\"default\"\)\)\) [^(;]*?(\w+)\(", text, re.M))


def build(name, provider, folder):
    sources, options, pattern = LIBRARIES[name]
    here = defined(sources, options)
    theirs = {symbol: version for symbol, version in wanted(provider) if re.match(pattern, symbol)}
    with tempfile.TemporaryDirectory() as temporary:
        temporary = pathlib.Path(temporary)
        stubs = temporary / "stubs.cpp"
        missing = sorted(theirs.keys() - here)
        stubs.write_text('#include <cstdio>\n#include "sim.h"\n' + "".join(STUB.format(name=s) for s in missing))
        versions = {}
        for symbol in here | theirs.keys():
            version = theirs.get(symbol) or (DEFAULT_VERSION if name.startswith("libamdhip") else None)
            versions.setdefault(version, []).append(symbol)
        link = []
        if None not in versions and versions:
            script = temporary / "versions.map"
            nodes = sorted(versions)
            script.write_text("".join(
                f"{node} {{ global: {' '.join(f'{s};' for s in sorted(versions[node]))} "
                f"{'local: *;' if node == nodes[0] else ''} }};\n" for node in nodes))
            link = [f"-Wl,--version-script={script}"]
        compile_library(folder / name, [*(HERE / s for s in sources), stubs], [*options, f"-I{HERE}", *link])
    return len(here), len(missing)


def compile_library(path, sources, options):
    beside = path.with_suffix(".new")
    subprocess.run(["g++", *OPTIONS, *options, f"-Wl,-soname,{path.name}", "-o", beside, *sources, "-ldl", "-pthread"],
                   check=True)
    beside.rename(path)


def emulation(path):
    """The kernels for the host. Sums and products round as on a GPU: none are fused that the source does not fuse."""
    with tempfile.TemporaryDirectory() as temporary, concurrent.futures.ThreadPoolExecutor() as pool:
        objects = {source: pathlib.Path(temporary, source.stem + ".o") for source in (OPS / "emulation").glob("*.cpp")}
        compile_one = ["g++", "-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-c", "-o"]
        list(pool.map(lambda pair: subprocess.run([*compile_one, pair[1], pair[0]], check=True), objects.items()))
        beside = path.with_suffix(".new")
        subprocess.run(["g++", "-shared", "-o", beside, *objects.values()], check=True)
        beside.rename(path)


def made_from(provider):
    files = [*HERE.iterdir(), *OPS.rglob("*")]
    state = hashlib.sha256(repr(sorted(wanted(provider), key=str)).encode())
    for file in sorted(f for f in files if f.is_file()):
        state.update(str(file).encode() + b"\0" + file.read_bytes())
    return state.hexdigest()


def main(provider, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp, state = folder / "made-from", made_from(provider)
    if stamp.exists() and stamp.read_text() == state:
        return
    stamp.unlink(missing_ok=True)
    for name in LIBRARIES if provider != "none" else ["libamdhip64.so.7"]:
        made, missing = build(name, provider, folder)
        print(f"{name}: {made} functions, {missing} that only say their name")
    emulation(folder / "libspark_emulation.so")
    loads = [sys.executable, "-c", f"import ctypes; ctypes.CDLL('{OLDER_HIP}')"]
    if subprocess.run(loads, capture_output=True).returncode == 0:
        compile_library(
            folder / "libhiprtc.so.7", [HERE / "hiprtc.cpp"], [f'-DSIM_OLDER_HIP="{OLDER_HIP}"', f"-I{HERE}"]
        )
        print(f"libhiprtc.so.7: by {OLDER_HIP}")
    else:
        print(f"no {OLDER_HIP} on this machine: no libhiprtc.so.7")
    stamp.write_text(state)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Builds stand-ins for the libraries of a GPU's vendor that an execution provider of ONNX Runtime needs. What the
provider takes from them, with versions of symbols, is read from it. Functions that no source defines say their name on
standard error and fail. What is there and made from the same is kept.
"""

import concurrent.futures
import dataclasses
import fcntl
import hashlib
import pathlib
import re
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
OPS = HERE.parents[1] / "ops"
OPTIONS = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# Sums and products round as on a GPU: none are fused that the source does not fuse.
KERNELS = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]

STUB = """extern "C" __attribute__((visibility("default"))) int {name}() {{
    fprintf(stderr, "stand-in libraries: {name} is not there\\n");
    return 801;
}}
"""


@dataclasses.dataclass
class Library:
    """`name` as the loader knows it; `pattern` matches the provider's symbols that are this library's, and
    `version` is that of symbols which the provider does not use and we do."""

    name: str
    sources: list
    pattern: str
    options: list = dataclasses.field(default_factory=list)
    version: str | None = None


def wanted(provider):
    """(name, version or None) of the functions that the provider takes from other libraries; "none" takes none."""
    if provider == "none":
        return
    table = subprocess.run(["readelf", "-W", "--dyn-syms", provider], check=True, capture_output=True, text=True).stdout
    for line in table.splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[6] == "UND":
            name, _, version = fields[7].partition("@")
            yield name, version or None


def defined(sources, options):
    """Names of the functions that the sources export."""
    text = "".join(subprocess.run(["g++", "-std=c++17", "-E", *options, source], check=True, capture_output=True,
                                  text=True).stdout for source in sources)
    return set(re.findall(r"^extern \"C\" __attribute__\(\(visibility\(\"default\"\)\)\) [^(;]*?(\w+)\(", text, re.M))


def build(library, provider, folder):
    """Compiles `library` into `folder`."""
    here = defined(library.sources, library.options)
    theirs = {symbol: version for symbol, version in wanted(provider) if re.match(library.pattern, symbol)}
    missing = sorted(theirs.keys() - here)
    with tempfile.TemporaryDirectory() as temporary:
        stubs = pathlib.Path(temporary, "stubs.cpp")
        stubs.write_text("#include <cstdio>\n" + "".join(STUB.format(name=s) for s in missing))
        versions = {}
        for symbol in here | theirs.keys():
            versions.setdefault(theirs.get(symbol) or library.version, []).append(symbol)
        link = []
        if None not in versions and versions:
            script = pathlib.Path(temporary, "versions.map")
            nodes = sorted(versions)
            script.write_text("".join(
                f"{node} {{ global: {' '.join(f'{s};' for s in sorted(versions[node]))} "
                f"{'local: *;' if node == nodes[0] else ''} }};\n" for node in nodes))
            link = [f"-Wl,--version-script={script}"]
        compile_library(folder / library.name, [*library.sources, stubs], [*library.options, *link])
    print(f"{library.name}: {len(here)} functions, {len(missing)} that only say their name")


def compile_library(path, sources, options):
    beside = path.with_suffix(".new")
    subprocess.run(["g++", *OPTIONS, f"-Wl,-soname,{path.name}", "-o", beside, *sources, *options, "-ldl", "-pthread"],
                   check=True)
    beside.rename(path)


def kernel_sources():
    """Path and content of what the kernels are compiled from."""
    return [str(file).encode() + b"\0" + file.read_bytes() for file in sorted(OPS.rglob("*")) if file.is_file()]


def kernels(names, folder):
    """Objects of these parts of ops/emulation. All stand-ins beside `folder` share them: some take half a minute."""
    folder = folder.parent / "emulation"
    folder.mkdir(parents=True, exist_ok=True)
    state = hashlib.sha256(b"\0".join([repr(KERNELS).encode(), *kernel_sources()])).hexdigest()[:16]

    def compile_one(name):
        path = folder / f"{name}-{state}.o"
        if not path.exists():
            beside = path.with_suffix(".new")
            subprocess.run(["g++", *KERNELS, "-c", "-o", beside, OPS / "emulation" / f"{name}.cpp"], check=True)
            beside.rename(path)
        return path

    with open(folder / "lock", "w") as lock, concurrent.futures.ThreadPoolExecutor() as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return list(pool.map(compile_one, names))


def unless_made(folder, files, provider, make):
    """Calls `make` unless `folder` was made from the same."""
    folder.mkdir(parents=True, exist_ok=True)
    state = hashlib.sha256(repr(sorted(wanted(provider), key=str)).encode())
    for file in sorted(f for f in [*files, *HERE.glob("*.*")] if f.is_file()):
        state.update(str(file).encode() + b"\0" + file.read_bytes())
    state.update(b"\0".join(kernel_sources()))
    stamp = folder / "made-from"
    if stamp.exists() and stamp.read_text() == state.hexdigest():
        return
    stamp.unlink(missing_ok=True)
    make()
    stamp.write_text(state.hexdigest())

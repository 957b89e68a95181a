#!/usr/bin/env bash
# tools/amd_code.sh [PYTEST OPTION...]: the kernels as clang 22 makes them for AMD GPUs, those included that Debian 12's
# compilers do not know: registers, scratch memory, LDS, matrix instructions. No GPU is needed, and none is used.
# The clang is the one within the Python package ziglang, which has all of LLVM's targets and its linker.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

venv_or_skip .venv-clang tests/gpu/device_code/clang.txt
venv
zig=$(.venv-clang/bin/python -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent / "zig")')

# Under the names of Debian's packages, in .venv-clang/bin. The compiler calls its linker `lld -flavor gnu`.
names=$PWD/.venv-clang/bin
command_named() {
    printf '#!/bin/sh\n%s\nexec "%s" %s "$@"\n' "$3" "$zig" "$2" >"$names/$1"
    chmod +x "$names/$1"
}
command_named clang-22 clang :
command_named ld.lld-22 ld.lld :
command_named lld ld.lld 'shift 2'
PATH=$names:$PATH .venv/bin/python -m pytest -q -rs tests/gpu/device_code/test_device_code.py -k clang "$@"

#!/usr/bin/env bash
# The installed package in other people's programs. `tools/hosts.sh installed`, which `make test` runs, covers ONNX
# Runtime GenAI, plain loops and the documentation. Without an argument, Optimum (needs torch) and every version of ONNX
# Runtime follow, and the wheel is the one for other machines too. shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

[[ ${1:-} == "" || $1 == installed ]] || die "usage: $0 [installed]"

venv
need_cxx "The C++ example"
[[ ${1:-} == "" ]] || export SPARK_ORT_MANYLINUX=
say "models"
.venv/bin/python -m tests.rewrite.exports.build
make_installed .venv-hosts tests/package/requirements.txt --no-deps
say "example: plain_loop.rs"
cargo build --release --example plain_loop
SPARK_ORT_RUST_EXAMPLE=$(dirname "$(library_path)")/examples/plain_loop
export SPARK_ORT_RUST_EXAMPLE
say "tests/package"
# The installed package must find its library and ONNX Runtime by itself.
unset SPARK_ORT_LIBRARY ORT_DYLIB_PATH
.venv-hosts/bin/python -m pytest -q -rs tests/package
[[ ${1:-} == "" ]] || exit 0

make_venv .venv-optimum tests/package/optimum.txt
.venv-optimum/bin/python -m pip install --quiet --force-reinstall --no-index --no-deps "$wheel"
say "tests/package/test_optimum.py"
.venv-optimum/bin/python -m pytest -q -rs tests/package/test_optimum.py tests/package/test_documentation.py
say "versions of ONNX Runtime"
tools/versions.sh

#!/usr/bin/env bash
# tools/rocm.sh [PYTEST OPTION...]: the operators on ONNX Runtime's own ROCm execution provider, over stand-in ROCm
# libraries that emulate the kernels. No GPU is needed, and none is used. Without options it runs tests/gpu/rocm, then
# the tests of tests/operators that check results. shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

[[ $(uname -m) == x86_64 ]] || skip "the ONNX Runtime package with the ROCm execution provider exists for x86_64 only"
need_python
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
    skip "the ONNX Runtime package with ROCm exists for Python 3.11 and 3.12 only, this is $("$PYTHON" --version)"
if ! command -v g++ >/dev/null || ! command -v readelf >/dev/null; then
    install_packages "The stand-in ROCm libraries need a C++ compiler" g++ binutils || skip "no C++ compiler"
fi
# Not `make_venv || skip`: bash ignores `set -e` within a condition. As in tools/versions.sh, without dependencies.
set +e
(
    set -e
    make_venv .venv-rocm tests/gpu/rocm/requirements.txt --no-deps
)
status=$?
set -e
((status == 0)) || skip "the packages of tests/gpu/rocm/requirements.txt cannot be installed here"
python=$PWD/.venv-rocm/bin/python

if [[ -z ${SPARK_ORT_LIBRARY:-} ]]; then
    build
    SPARK_ORT_LIBRARY=$(library_path)
fi
# The stand-in device is a gfx90a.
grep -q 'amdgcn-amd-amdhsa--gfx90a' "$SPARK_ORT_LIBRARY" ||
    skip "$SPARK_ORT_LIBRARY carries no kernels for gfx90a: it was built without hipcc"

simulated=$(dirname "$SPARK_ORT_LIBRARY")/rocm_sim
provider=$("$python" -c '
import importlib.util, pathlib
folder = pathlib.Path(importlib.util.find_spec("onnxruntime").origin).parent
print(folder / "capi/libonnxruntime_providers_rocm.so")')
"$python" tests/gpu/rocm_sim/build.py "$provider" "$simulated"

venv
exports=$(mktemp -d)
trap 'rm -rf "$exports"' EXIT
export SPARK_ORT_LIBRARY SPARK_TEST_EXPORTS=$exports
PYTHONPATH=tests .venv/bin/python -m rewrite.prepare "$exports"

export LD_LIBRARY_PATH=$simulated${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# The CPU results that the GPU is compared with must be float32 too.
export SPARK_ORT_CPU=portable
export SPARK_EMULATION=$simulated/libspark_emulation.so SPARK_TEST_PROVIDER=ROCMExecutionProvider
if (($# > 0)); then
    "$python" -m pytest "$@"
    exit
fi
"$python" -m pytest -q -rs tests/gpu/rocm tests/operators/test_{reference,golden,splitting,foreign_numbers}.py

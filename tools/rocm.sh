#!/usr/bin/env bash
# tools/rocm.sh [PYTEST OPTION...]: the operators on ONNX Runtime's own ROCm execution provider, over stand-in ROCm
# libraries that emulate the kernels. No GPU is needed, and none is used. Without options it runs tests/gpu/providers,
# then results of the official code. shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

[[ $(uname -m) == x86_64 ]] || skip "the ONNX Runtime package with the ROCm execution provider exists for x86_64 only"
need_python
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
    skip "the ONNX Runtime package with ROCm exists for Python 3.11 and 3.12 only, this is $("$PYTHON" --version)"
if ! command -v g++ >/dev/null || ! command -v readelf >/dev/null; then
    install_packages "The stand-in ROCm libraries need a C++ compiler" g++ binutils || skip "no C++ compiler"
fi
venv_or_skip .venv-rocm tests/gpu/providers/rocm-1.22.2.txt
python=$PWD/.venv-rocm/bin/python

need_library
# The stand-in device is a gfx90a.
grep -q 'amdgcn-amd-amdhsa--gfx90a' "$SPARK_ORT_LIBRARY" ||
    skip "$SPARK_ORT_LIBRARY carries no kernels for gfx90a: it was built without hipcc"

simulated=$(dirname "$SPARK_ORT_LIBRARY")/rocm_sim
provider=$(provider_library "$python" rocm)
"$python" tests/gpu/rocm_sim/build.py "$provider" "$simulated"

venv
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
PYTHONPATH=tests .venv/bin/python -m rewrite.prepare "$scratch/exports"

# Kernels that are compiled are not looked for in, or left in, the user's own cache.
export SPARK_TEST_EXPORTS=$scratch/exports XDG_CACHE_HOME=$scratch/cache
export LD_LIBRARY_PATH=$simulated${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# The CPU results that the GPU is compared with must be float32 too.
export SPARK_ORT_CPU=portable
export SPARK_EMULATION=$simulated/libspark_emulation.so SPARK_TEST_PROVIDER=ROCMExecutionProvider
if (($# > 0)); then
    "$python" -m pytest "$@"
    exit
fi
# The kernels' other tests run on the same stand-in for HIP in tools/plugin.sh.
"$python" -m pytest -q -rs tests/gpu/providers tests/operators/test_golden.py

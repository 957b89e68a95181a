#!/usr/bin/env bash
# tools/cuda_ep.sh [PYTEST OPTION...]: the operators on ONNX Runtime's own CUDA execution provider, over stand-ins for
# NVIDIA's libraries that emulate the kernels. No GPU is needed, and none is used. Without options it runs
# tests/gpu/providers, then results of the official code. shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

[[ $(uname -m) == x86_64 ]] || skip "the ONNX Runtime package with the CUDA execution provider exists for x86_64 only"
if ! command -v g++ >/dev/null || ! command -v readelf >/dev/null; then
    install_packages "The stand-ins for NVIDIA's libraries need a C++ compiler" g++ binutils || skip "no C++ compiler"
fi
venv_or_skip .venv-cuda-ep tests/gpu/providers/cuda-1.31.1.txt
python=$PWD/.venv-cuda-ep/bin/python

need_library
simulated=$(dirname "$SPARK_ORT_LIBRARY")/cuda_sim
provider=$(provider_library "$python" cuda)
"$python" tests/gpu/cuda_sim/build.py "$provider" "$simulated"

# Kernels that are compiled are not looked for in, or left in, the user's own cache.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export XDG_CACHE_HOME=$scratch
export LD_LIBRARY_PATH=$simulated${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# The CPU results that the GPU is compared with must be float32 too.
export SPARK_ORT_CPU=portable SPARK_TEST_PROVIDER=CUDAExecutionProvider
if (($# > 0)); then
    "$python" -m pytest "$@"
    exit
fi
# The kernels' other tests run on the same stand-in for the driver in tools/plugin.sh.
"$python" -m pytest -q -rs tests/gpu/providers tests/operators/test_golden.py

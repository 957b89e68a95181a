#!/usr/bin/env bash
# tools/plugin.sh [PYTEST OPTION...]: the operators on the library's own execution provider, SparkExecutionProvider, in genuine ONNX
# Runtime, on a stand-in for HIP that executes the kernels by emulation. No GPU is needed, and none is used. Without options:
# tests/gpu/rocm and the parts of tests/operators that say what kernels compute.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if ! command -v g++ >/dev/null; then
    install_packages "The stand-in for HIP needs a C++ compiler" g++ || skip "no C++ compiler"
fi
venv
if [[ -z ${SPARK_ORT_LIBRARY:-} ]]; then
    build
    SPARK_ORT_LIBRARY=$(library_path)
fi
# What the stand-in device is.
grep -q 'amdgcn-amd-amdhsa--gfx90a' "$SPARK_ORT_LIBRARY" ||
    skip "$SPARK_ORT_LIBRARY carries no kernels for gfx90a: it was built without hipcc"
simulated=$(dirname "$SPARK_ORT_LIBRARY")/plugin_sim
python3 tests/gpu/rocm_sim/build.py none "$simulated"

export SPARK_ORT_LIBRARY LD_LIBRARY_PATH=$simulated${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# What the GPU is compared with is to compute in float32 too.
export SPARK_ORT_CPU=portable
export SPARK_EMULATION=$simulated/libspark_emulation.so SPARK_TEST_PROVIDER=SparkExecutionProvider
if (($# > 0)); then
    .venv/bin/python -m pytest "$@"
    exit
fi
.venv/bin/python -m pytest -q -rs tests/gpu/rocm/test_{plugin,decoding,failures}.py \
    tests/operators/test_{golden,splitting,foreign_numbers}.py

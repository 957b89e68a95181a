#!/usr/bin/env bash
# tools/plugin.sh [PYTEST OPTION...]: the operators on the library's own execution provider, SparkExecutionProvider, in
# genuine ONNX Runtime, on stand-ins for GPU drivers that execute the kernels by emulation. No GPU is needed, and none
# is used: the CUDA driver's stand-in; `tools/plugin.sh hip` takes HIP's, with a library that carries kernels for
# gfx90a. With other options: pytest with them on the CUDA driver's.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if ! command -v g++ >/dev/null; then
    install_packages "The stand-ins for GPU drivers need a C++ compiler" g++ || skip "no C++ compiler"
fi
venv
if [[ -z ${SPARK_ORT_LIBRARY:-} ]]; then
    build
    SPARK_ORT_LIBRARY=$(library_path)
fi
folder=$(dirname "$SPARK_ORT_LIBRARY")
export SPARK_ORT_LIBRARY SPARK_TEST_PROVIDER=SparkExecutionProvider
# What the GPU is compared with is to compute in float32 too.
export SPARK_ORT_CPU=portable

# The stand-ins for libcuda and NVRTC.
cuda=$folder/plugin_cuda
mkdir -p "$cuda"
options=(-std=c++17 -O1 -fPIC -ffp-contract=off -fvisibility=hidden -Wall -Wextra -Werror)
g++ "${options[@]}" -shared -Wl,-soname,libcuda.so.1 -o "$cuda/libcuda.so.1" \
    ops/emulation/{fiber,machine,wave32}.cpp tests/gpu/cuda/stand_in.cpp -pthread
g++ "${options[@]}" -shared -Wl,-soname,libnvrtc.so.13 -o "$cuda/libnvrtc.so.13" tests/gpu/cuda/nvrtc.cpp
caches=$(mktemp -d)
trap 'rm -rf "$caches"' EXIT
export XDG_CACHE_HOME=$caches

on_cuda() { LD_LIBRARY_PATH=$cuda${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$@"; }

if [[ ${1:-} == hip ]]; then
    grep -q 'amdgcn-amd-amdhsa--gfx90a' "$SPARK_ORT_LIBRARY" ||
        skip "$SPARK_ORT_LIBRARY carries no kernels for gfx90a: it was built without hipcc"
    simulated=$folder/plugin_hip
    "$PYTHON" tests/gpu/rocm_sim/build.py none "$simulated"
    export LD_LIBRARY_PATH=$simulated${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export SPARK_EMULATION=$simulated/libspark_emulation.so
    .venv/bin/python -m pytest -q -rs tests/gpu/rocm/test_{plugin,decoding}.py tests/operators/test_golden.py
    exit
fi
if (($# > 0)); then
    on_cuda .venv/bin/python -m pytest "$@"
    exit
fi
kernels=(tests/operators/test_{golden,splitting,foreign_numbers,tail}.py)
say "the CUDA driver, newest ONNX Runtime"
on_cuda .venv/bin/python -m pytest -q -rs tests/gpu/rocm/test_plugin.py "${kernels[@]}"
on_cuda .venv/bin/python -m pytest -q tests/gpu/rocm/test_decoding.py -k 'results_are or more_sequences or bfloat16'
for requirements in tests/gpu/plugin/ort-*.txt; do
    version=${requirements#*/ort-}
    version=${version%.txt}
    say "the CUDA driver, ONNX Runtime $version"
    # Without their dependencies: ONNX Runtime's Python package imports only NumPy.
    make_venv ".venv-plugin-$version" "$requirements" --no-deps
    on_cuda ".venv-plugin-$version/bin/python" -m pytest -q -rs tests/gpu/rocm/test_plugin.py
done

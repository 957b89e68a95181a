#!/usr/bin/env bash
# tools/plugin.sh [cuda|hip] [PYTEST OPTION...]: the operators on the library's own execution provider,
# SparkExecutionProvider, in genuine ONNX Runtime, on stand-ins for GPU drivers that execute the kernels by emulation.
# No GPU is needed, and none is used. `cuda`: only the stand-in for the CUDA driver; `hip`: only that for HIP, for which
# the library must carry kernels for gfx90a. With other options: pytest with them. shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if ! command -v g++ >/dev/null; then
    install_packages "The stand-ins for GPU drivers need a C++ compiler" g++ || skip "no C++ compiler"
fi
drivers="cuda hip"
if [[ ${1:-} == cuda || ${1:-} == hip ]]; then
    drivers=$1
    shift
fi
venv
need_library
folder=$(dirname "$SPARK_ORT_LIBRARY")
# What the GPU is compared with is to compute in float32 too.
export SPARK_TEST_PROVIDER=SparkExecutionProvider SPARK_ORT_CPU=portable
# Kernels that are compiled are not looked for in, or left in, the user's own cache.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export XDG_CACHE_HOME=$scratch

suites=tests/gpu/providers
# run PYTHON PYTEST-OPTION...: tests with this Python on the stand-in for $driver.
run() {
    local python=$1 paths=$folder/plugin_$driver
    shift
    [[ $driver == cuda ]] || local -x SPARK_EMULATION=$paths/libspark_emulation.so
    LD_LIBRARY_PATH=$paths${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "$python/bin/python" -m pytest -q -rs "$@"
}

# all: what there is for $driver, in every version of ONNX Runtime.
all() {
    local kernels=(test_{golden,splitting,foreign_numbers,tail,row_format_2,row_format_3}.py) requirements version unfit
    [[ $driver == cuda ]] || kernels=(test_{reference,golden,splitting,foreign_numbers}.py)
    say "$driver, newest ONNX Runtime"
    # What hipRTC compiles is the same in every provider: tools/rocm.sh takes its time for it.
    run .venv "$suites" "${kernels[@]/#/tests/operators/}" --deselect "$suites/test_code.py" \
        --deselect "$suites/test_decoding.py::test_waves_of_32"
    for requirements in "$suites"/plugin-*.txt; do
        version=${requirements#*/plugin-}
        version=${version%.txt}
        # AMD's package.
        [[ $version != migraphx-* || $(uname -m) == x86_64 ]] || continue
        say "$driver, ONNX Runtime $version"
        make_venv ".venv-plugin-$version" "$requirements" --no-deps
        # Python of these versions cannot bind memory of a device by its address, and AMD's package makes values on an
        # AMD GPU by MIGraphX alone.
        unfit='not addresses and not memory_to_unpack'
        [[ $driver-$version != hip-migraphx-* ]] || unfit+=' and not rewritten_folder'
        run ".venv-plugin-$version" "$suites"/test_{plugin,failures}.py -k "$unfit"
    done
}

tests=()
for driver in $drivers; do
    if [[ $driver == hip ]] && ! grep -q 'amdgcn-amd-amdhsa--gfx90a' "$SPARK_ORT_LIBRARY"; then
        [[ $drivers != hip ]] || skip "$SPARK_ORT_LIBRARY carries no kernels for gfx90a: it was built without hipcc"
        printf 'without HIP: %s carries no kernels for gfx90a\n' "$SPARK_ORT_LIBRARY"
        continue
    fi
    "$PYTHON" "tests/gpu/${driver/hip/rocm}_sim/build.py" none "$folder/plugin_$driver"
    if (($# > 0)); then
        run .venv "$@"
        continue
    fi
    # Side by side: most of it is processes that wait for one core.
    (all) >"$scratch/$driver.txt" 2>&1 &
    tests+=("$driver $!")
done
failed=
for started in "${tests[@]}"; do
    read -r driver process <<<"$started"
    wait "$process" || failed=1
    cat "$scratch/$driver.txt"
done
[[ -z $failed ]]

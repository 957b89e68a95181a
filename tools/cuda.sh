#!/usr/bin/env bash
# The kernels on an NVIDIA GPU: checked against the CPU's, and timed. The library itself runs on AMD GPUs and CPUs.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

usage='usage: tools/cuda.sh build | run [--out FOLDER] [OPTION...] | rehearse

build      Makes target/cuda: the kernels of ops for sm_80, sm_90 and, as PTX, for what comes later; the tests of the
           kernels; the timings. Needs no GPU. nvcc, 12.4 or later, is $NVCC, the one on the PATH, the one in
           /usr/local/cuda, or comes from PyPI (.venv-cuda, 320 MB).
run        On the first GPU: the tests of the kernels, then the timings. Needs this folder with target/cuda, built here
           or carried along (git ignores it) from a machine of the same architecture; no compiler, no network. OPTIONs
           go to the timings (target/cuda/timings --help). Figures go to the standard output and to FOLDER/cuda.json
           (target/cuda/results if not given). Dense attention is timed where $SPARK_TORCH_PYTHON, or python3, has
           PyTorch with CUDA.
           SPARK_CUDA_SANITIZE=1: also NVIDIA'"'"'s compute-sanitizer (memcheck, racecheck), on a part of the tests.
           Ends with status 77 where there is no driver or no GPU.
rehearse   All that run does, on a stand-in for the driver that runs the kernels by emulation, with small shapes. Needs
           no GPU and no nvcc. Its times mean nothing.'

built=target/cuda

# What the build is made from.
sources() {
    find Cargo.toml Cargo.lock build.rs src ops benches/cuda tools/spark-ort/bench/basis.rs tests/support \
        tests/gpu/{cuda,emulation,kernels} -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}

find_nvcc() {
    nvcc=${NVCC:-$(command -v nvcc || true)}
    [[ -n $nvcc ]] || nvcc=/usr/local/cuda/bin/nvcc
    if [[ ! -x $nvcc ]]; then
        make_venv .venv-cuda tools/cuda.txt --no-deps
        nvcc=$(printf '%s' .venv-cuda/lib/python*/site-packages/nvidia/cu13/bin/nvcc)
    fi
    need_cxx nvcc
}

# The tests of the kernels and the timings, as programs in $built.
programs() {
    need_rust
    say "cargo build: tests of the kernels, timings"
    rm -rf "$built/tests" "$built/timings"
    mkdir -p "$built/tests"
    cargo build --release --test gpu --bench cuda --message-format=json-render-diagnostics |
        "$PYTHON" -c '
import json, shutil, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable") and message["target"]["kind"] == ["test"]:
        shutil.copy(message["executable"], sys.argv[1] + "/tests/" + message["target"]["name"])
    elif message.get("executable") and message["target"]["kind"] == ["bench"]:
        shutil.copy(message["executable"], sys.argv[1] + "/timings")' "$built"
    cp benches/cuda/sdpa.py "$built"
}

build_all() {
    find_nvcc
    mkdir -p "$built"
    rm -f "$built/made-from"
    # Masks must come out as on the CPU: nothing is fused that the source does not fuse.
    local options=(-std=c++17 -O3 --fmad=false -Werror all-warnings -fatbin
        -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
        -gencode arch=compute_90,code=compute_90)
    say "$nvcc"
    "$nvcc" "${options[@]}" -x cu -o "$built/spark.fatbin" ops/spark.hip
    "$nvcc" "${options[@]}" -o "$built/read.fatbin" benches/cuda/read.cu
    programs
    # That the stand-in, and with it what calls it, is like NVIDIA's header.
    local header
    header=$(find "$(dirname "$(readlink -f "$nvcc")")/.." -name cuda.h -path '*include*' | head -n 1)
    [[ -z $header ]] ||
        g++ -std=c++17 -Werror -fsyntax-only -I "$(dirname "$header")" tests/gpu/cuda_sim/{driver,memory,streams}.cpp
    sources >"$built/made-from"
    du -sh "$built"
}

# check FILTERS [COMMAND...]: runs those tests of the kernels whose names have one of FILTERS in them (all, if empty),
# each program by COMMAND if given, and notices when there are none.
check() {
    local filters passed=0 program output
    read -ra filters <<<"$1"
    shift
    output=$(mktemp)
    for program in "$built"/tests/*; do
        # What the emulation traps would end the GPU's context, and it alone counts conflicts of banks.
        SPARK_TEST_GPU=cuda "$@" "$program" --skip traps:: --skip banks_ "${filters[@]}" 2>&1 | tee "$output"
        passed=$((passed + $(sed -n 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$output")))
    done
    rm "$output"
    ((passed > 0)) || die "no test was run"
}

run() {
    local out=$built/results
    if [[ ${1:-} == --out ]]; then
        out=${2:?"--out needs a folder"}
        shift 2
    fi
    [[ -f $built/made-from ]] || die "$built is missing or half built: tools/cuda.sh build, on a machine with Rust"
    [[ $(sources) == "$(<"$built/made-from")" ]] || die "$built was built from other sources: tools/cuda.sh build"
    export SPARK_CUDA_CODE=$built/spark.fatbin
    "$built/timings" --probe || skip "no CUDA GPU"
    say "tests of the kernels against the CPU's"
    # A test that fails does not keep the others from being known. Not `check ||`: bash ignores `set -e` within a
    # condition.
    local status
    set +e
    (
        set -e
        check ''
    )
    status=$?
    set -e
    say "timings"
    mkdir -p "$out"
    "$built/timings" --read-code "$built/read.fatbin" --dense "$built/sdpa.py" \
        --python "${SPARK_TORCH_PYTHON:-python3}" --json "$out/cuda.json" "$@"
    if [[ -n ${SPARK_CUDA_SANITIZE:-} ]]; then
        local tool
        for tool in memcheck racecheck; do
            say "compute-sanitizer --tool $tool"
            check 'pieces_of_a_long_cache ties_are_broken any_bytes' \
                compute-sanitizer --tool "$tool" --error-exitcode 1 --target-processes all
        done
    fi
    ((status == 0)) || die "tests of the kernels failed, see above"
}

rehearse() {
    need_python
    need_cxx "The stand-in for the driver"
    programs
    local folder=$built/stand-in
    say "$folder"
    "$PYTHON" tests/gpu/cuda_sim/build.py none "$folder"
    # A fatbin with nothing in it: magic, version, bytes of the header, bytes after it.
    printf '\x50\xed\x55\xba\x01\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00' >"$folder/empty.fatbin"
    export SPARK_CUDA_CODE=$folder/empty.fatbin LD_LIBRARY_PATH=$PWD/$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    "$built/timings" --probe
    check 'pieces_of_a_long_cache ties_are_broken large_batches'
    "$built/timings" --read-code "$folder/empty.fatbin" --dense "$built/sdpa.py" \
        --python "${SPARK_TORCH_PYTHON:-python3}" --json "$folder/cuda.json" --dense-device cpu \
        --contexts 70,300 --batches 1,2 --prompts 24 --heads 4/1 --head-dim 64 --rounds 3 --working-set 1 \
        --most-layers 8 --chunk 128
}

command=${1:-}
shift || true
case $command in
build) build_all ;;
run) run "$@" ;;
rehearse) rehearse ;;
--help | -h) printf '%s\n' "$usage" ;;
*) die "$usage" ;;
esac

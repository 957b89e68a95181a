#!/usr/bin/env bash
# Everything that must hold, in one command. A failed step does not stop the steps that do not depend on it; the summary
# at the end says what passed, what failed and what was skipped.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

summary=()
failures=0

# step NAME COMMAND...: runs the command in a subshell of its own and sets `outcome`.
step() {
    local name=$1 start=$SECONDS status
    shift
    say "$name"
    # Not `if (...)`: bash ignores `set -e` within a condition.
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    case $status in
    0) outcome=passed ;;
    "$SKIPPED") outcome=skipped ;;
    *)
        outcome=FAILED
        failures=$((failures + 1))
        ;;
    esac
    summary+=("$(printf '%-8s %5d s  %s' "$outcome" $((SECONDS - start)) "$name")")
}

finish() {
    local status=$?
    say "summary"
    printf '%s\n' "${summary[@]}"
    if ((failures > 0 || status != 0)); then
        printf '\nmake test: FAILED\n'
        exit 1
    fi
    printf '\nmake test: passed\n'
}
trap finish EXIT

# needed NAME COMMAND...: a step that all later ones depend on.
needed() {
    step "$@"
    [[ $outcome == passed ]] || exit 1
}

format() {
    cargo fmt --version >/dev/null 2>&1 || skip "this Rust toolchain has no rustfmt"
    cargo fmt --check
}

lints() {
    cargo clippy --version >/dev/null 2>&1 || skip "this Rust toolchain has no clippy"
    cargo clippy --all-targets -- -D warnings
    # The operators alone, for hosts that rewrite nothing.
    cargo clippy --lib --no-default-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib
}

# Malformed calls to the kernels, and to the library through ONNX Runtime: valgrind also sees accesses out of bounds
# that happen to do no harm.
memory() {
    command -v valgrind >/dev/null || install_packages "The memory check needs valgrind" valgrind ||
        skip "no valgrind on this machine"
    local binary
    for binary in $(cargo test --release --test robustness --test host --no-run --message-format=json |
        .venv/bin/python -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message.get("executable") and "test" in message["target"]["kind"]:
        print(message["executable"])'); do
        # Fewer rounds, since valgrind makes each many times slower.
        SPARK_TEST_FEW=1 valgrind --error-exitcode=99 --quiet --suppressions=tests/operators/valgrind.supp \
            "$binary" --test-threads=1
    done
}

# Debian packages that this run will install, before it installs the first one.
announce() {
    local missing=()
    command -v cc >/dev/null || missing+=("gcc libc6-dev (to link Rust programs)")
    command -v c++ >/dev/null || missing+=("g++ (the emulated GPU, the C++ example)")
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || missing+=("python3-venv")
    command -v hipcc >/dev/null || missing+=("hipcc (kernels for AMD GPUs, about 1 GB)")
    command -v readelf >/dev/null || missing+=("binutils (symbols of the library)")
    command -v valgrind >/dev/null || missing+=("valgrind (the memory check)")
    ((${#missing[@]})) || return 0
    if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        printf 'Will be installed by apt-get, each before the step that needs it:\n'
    else
        printf 'Missing; steps that need these are skipped or fail:\n'
    fi
    printf '    %s\n' "${missing[@]}"
}

cxx_at_hand() {
    need_cxx "The emulated GPU" || skip "no C++ compiler on this machine: the GPU kernels are not tested"
}

# The kernels are compiled for GPUs that this machine need not have.
hipcc_at_hand() {
    command -v hipcc >/dev/null || install_packages "Kernels for AMD GPUs need a compiler" hipcc ||
        skip "no hipcc on this machine: the library is built without kernels for GPUs"
}

announce
needed "Rust" need_rust
needed "Python packages" venv
step "format: cargo fmt --check" format
step "lints, features and documentation: clippy, doc" lints
step "layout of the sources: tests/structure" .venv/bin/python -m pytest -q tests/structure
step "compiler for AMD GPUs: hipcc" hipcc_at_hand
if [[ $outcome == passed ]]; then
    # All that the tests need; other builds cover every processor that the compilers know.
    export SPARK_HIP_ARCHS=gfx90a
fi
needed "library: cargo build --release" cargo build --release

SPARK_ORT_LIBRARY=$(library_path)
ORT_DYLIB_PATH=$(.venv/bin/python -c '
import pathlib, onnxruntime
print(next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")))')
export SPARK_ORT_LIBRARY ORT_DYLIB_PATH

needed "models: tests/rewrite/exports" .venv/bin/python -m pytest -q -rs tests/rewrite/exports
step "C++ compiler" cxx_at_hand
if [[ $outcome == passed ]]; then
    # Everything that the Rust tests need is there: none may skip itself.
    export SPARK_TEST_REQUIRE=1
fi
step "Rust tests" cargo test --release
step "operators against references: tests/operators" .venv/bin/python -m pytest -q -rs tests/operators
# To float32 accuracy, which the fastest path does not have for quantised rows.
step "the same on the portable path" env SPARK_ORT_CPU=portable .venv/bin/python -m pytest -q -rs tests/operators
step "rewriter and command line: tests/rewrite" \
    .venv/bin/python -m pytest -q -rs tests/rewrite --ignore tests/rewrite/exports
step "ONNX Runtime at hand: tests/onnxruntime" .venv/bin/python -m pytest -q -rs tests/onnxruntime
step "installed package: GenAI, plain loops, documentation" tools/hosts.sh installed
# The oldest supported version, the last one with ROCm, and the first in which the library infers shapes.
for version in 1.18.1 1.22.2 1.24.4; do
    step "ONNX Runtime $version" tools/versions.sh "$version"
done
step "code for AMD GPUs: tests/gpu/device_code" .venv/bin/python -m pytest -q -rs tests/gpu/device_code
step "ROCm execution provider, on stand-ins: tools/rocm.sh" tools/rocm.sh
step "CUDA execution provider, on stand-ins: tools/cuda_ep.sh" tools/cuda_ep.sh
step "execution provider of our own, on stand-ins: tools/plugin.sh" tools/plugin.sh
step "mutants of files, rows and calls: fuzz" env SECONDS_OF_FUZZING=45 tools/fuzz.sh
step "memory: valgrind on hostile calls" memory

#!/usr/bin/env bash
# Everything that must hold, in one command. A step that fails does not stop the ones that do not need it; the
# summary at the end says what passed, failed and was skipped.
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

# needed NAME COMMAND...: a step without which the later ones make no sense.
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
}

# What is malformed goes to the kernels, and through ONNX Runtime to the library: valgrind sees reads and writes out of
# bounds that happen to do no harm.
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
        # Fewer rounds: valgrind makes each many times slower.
        SPARK_TEST_FEW=1 valgrind --error-exitcode=99 --quiet --suppressions=tests/operators/valgrind.supp \
            "$binary" --test-threads=1
    done
}

# The kernels are compiled for GPUs that need not be there.
hipcc_at_hand() {
    command -v hipcc >/dev/null || install_packages "Kernels for AMD GPUs need a compiler" hipcc ||
        skip "no hipcc on this machine: the library is built without kernels for GPUs"
}

needed "Rust" need_rust
needed "Python packages" venv
step "format: cargo fmt --check" format
step "lints: cargo clippy" lints
step "compiler for AMD GPUs: hipcc" hipcc_at_hand
if [[ $outcome == passed ]]; then
    # What the tests need; other builds take every processor that the compilers know.
    export SPARK_HIP_ARCHS=gfx90a
fi
needed "library: cargo build --release" cargo build --release

SPARK_ORT_LIBRARY=$(library_path)
ORT_DYLIB_PATH=$(.venv/bin/python -c '
import pathlib, onnxruntime
print(next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")))')
export SPARK_ORT_LIBRARY ORT_DYLIB_PATH

needed "models: tests/rewrite/exports" .venv/bin/python -m pytest -q -rs tests/rewrite/exports
step "Rust tests" cargo test --release
step "operators against references: tests/operators" .venv/bin/python -m pytest -q -rs tests/operators
# To float32 accuracy, which the fastest path has not for quantised rows.
step "the same on the portable path" env SPARK_ORT_CPU=portable .venv/bin/python -m pytest -q -rs tests/operators
step "rewriter and command line: tests/rewrite" .venv/bin/python -m pytest -q -rs tests/rewrite --ignore tests/rewrite/exports
step "ONNX Runtime at hand: tests/onnxruntime" .venv/bin/python -m pytest -q -rs tests/onnxruntime
step "installed package: GenAI, plain loops, documentation" tools/hosts.sh installed
# The oldest that is supported, the last one with ROCm, the first minor version in which the library infers shapes.
for version in 1.18.1 1.22.2 1.24.4; do
    step "ONNX Runtime $version" tools/versions.sh "$version"
done
step "code for AMD GPUs: tests/gpu/device_code" .venv/bin/python -m pytest -q -rs tests/gpu/device_code
step "ROCm execution provider: tests/gpu/rocm" tools/rocm.sh
step "memory: valgrind on hostile calls" memory

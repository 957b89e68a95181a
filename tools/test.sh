#!/usr/bin/env bash
# Everything that must hold, in one command. A failed step does not stop the steps that do not depend on it; the summary
# at the end says what passed, what failed and what was skipped.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

summary=()
declare -A outcomes
failures=0

# ended NUMBER NAME STATUS START: a step has ended; its line of the summary, and `outcome`.
ended() {
    case $3 in
    0) outcome=passed ;;
    "$SKIPPED") outcome=skipped ;;
    *)
        outcome=FAILED
        failures=$((failures + 1))
        ;;
    esac
    outcomes[$2]=$outcome
    summary[$1]=$(printf '%-8s %5d s  %s' "$outcome" $((SECONDS - $4)) "$2")
}

# step NAME COMMAND...: runs the command in a subshell of its own and sets `outcome`.
step() {
    local name=$1 start=$SECONDS number=${#summary[@]} status
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
    ended "$number" "$name" "$status" "$start"
}

# Steps that run side by side, by process: number, begin and name.
running=()
logs=$(mktemp -d)

# beside NAME COMMAND...: a step beside another one: most keep one core busy. What it prints is shown when it ends.
beside() {
    local name=$1 number=${#summary[@]}
    shift
    while ((${#running[@]} >= 2)); do
        await_one
    done
    say "begun: $name"
    summary+=("unfinished        $name")
    # A process group, which `finish` can end as a whole.
    set -m
    (
        set -e
        "$@"
    ) </dev/null >"$logs/$number" 2>&1 &
    set +m
    running[$!]="$number $SECONDS $name"
}

# await_one: until one of the steps that run has ended.
await_one() {
    local process= status=0 number start name
    wait -n -p process "${!running[@]}" || status=$?
    [[ -n $process ]] || die "a step has ended unseen"
    read -r number start name <<<"${running[$process]}"
    unset "running[$process]"
    say "$name"
    cat "$logs/$number"
    ended "$number" "$name" "$status" "$start"
}

await_all() {
    while ((${#running[@]})); do
        await_one
    done
}

finish() {
    local status=$? process number start name
    for process in "${!running[@]}"; do
        kill -- "-$process" 2>/dev/null || true
        read -r number start name <<<"${running[$process]}"
        say "$name, unfinished after $((SECONDS - start)) s"
        cat "$logs/$number"
    done
    rm -rf "$logs"
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
    # Else each of these compiles the kernels for AMD GPUs, which takes minutes.
    export SPARK_HIP_ARCHS=none
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
step "layout of the sources: tests/structure" .venv/bin/python -m pytest -q tests/structure
step "compiler for AMD GPUs: hipcc" hipcc_at_hand
if [[ $outcome == passed ]]; then
    # All that the tests need; other builds cover every processor that the compilers know.
    export SPARK_HIP_ARCHS=gfx90a
fi
# Cargo keeps what these make in folders of their own.
beside "library: cargo build --release" cargo build --release
beside "lints, features and documentation: clippy, doc" lints
step "C++ compiler" cxx_at_hand
if [[ $outcome == passed ]]; then
    # Everything that the Rust tests need is there: none may skip itself.
    export SPARK_TEST_REQUIRE=1
fi
# Takes the core that the lints leave, since most of a library is compiled by one.
beside "code for AMD GPUs: tests/gpu/device_code" .venv/bin/python -m pytest -q -rs tests/gpu/device_code
await_all
[[ ${outcomes["library: cargo build --release"]} == passed ]] || exit 1

SPARK_ORT_LIBRARY=$(library_path)
ORT_DYLIB_PATH=$(.venv/bin/python -c '
import pathlib, onnxruntime
print(next(pathlib.Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")))')
export SPARK_ORT_LIBRARY ORT_DYLIB_PATH

needed "models: tests/rewrite/exports" .venv/bin/python -m pytest -q -rs tests/rewrite/exports
# The long ones first. What compiles in the release folder waits for cargo's lock, so it comes after the Rust tests.
beside "Rust tests" cargo test --release
beside "rewriter and command line: tests/rewrite" \
    .venv/bin/python -m pytest -q -rs tests/rewrite --ignore tests/rewrite/exports
beside "execution provider of our own, on stand-ins: tools/plugin.sh" tools/plugin.sh
beside "ROCm execution provider, on stand-ins: tools/rocm.sh" tools/rocm.sh
beside "CUDA execution provider, on stand-ins: tools/cuda_ep.sh" tools/cuda_ep.sh
beside "installed package: GenAI, plain loops, documentation" tools/hosts.sh installed
beside "mutants of files, rows and calls: fuzz" env SECONDS_OF_FUZZING=45 tools/fuzz.sh
beside "operators against references: tests/operators" .venv/bin/python -m pytest -q -rs tests/operators
# To float32 accuracy, which the fastest path does not have for quantised rows.
beside "the same on the portable path" env SPARK_ORT_CPU=portable .venv/bin/python -m pytest -q -rs tests/operators
beside "memory: valgrind on hostile calls" memory
# The oldest supported version, the last one with ROCm, and the first in which the library infers shapes.
for version in 1.18.1 1.22.2 1.24.4; do
    beside "ONNX Runtime $version" tools/versions.sh "$version"
done
beside "ONNX Runtime at hand: tests/onnxruntime" .venv/bin/python -m pytest -q -rs tests/onnxruntime
await_all

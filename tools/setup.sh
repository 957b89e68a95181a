#!/usr/bin/env bash
# What the project's commands need before they can run. Run it as `tools/setup.sh build|venv|wheel|layer`, or source it
# for its functions. It changes to the project's folder, wherever it is called from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}

# A step that cannot run here ends with this status: neither passed nor failed.
SKIPPED=77

say() { printf '\n== %s\n' "$*"; }

die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

skip() {
    printf 'skipped: %s\n' "$*"
    exit "$SKIPPED"
}

# install_packages REASON PACKAGE...: installs Debian packages as root, and says so first. Any other user is told what
# to install.
install_packages() {
    local reason=$1
    shift
    if ! command -v apt-get >/dev/null; then
        printf '%s: install what Debian calls %s, then run the command again.\n' "$reason" "$*" >&2
        return 1
    fi
    if [[ $EUID -ne 0 ]]; then
        printf '%s. Run this, then the command again:\n    sudo apt-get install %s\n' "$reason" "$*" >&2
        return 1
    fi
    say "$reason: installing $* (apt-get)"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    # The second try is for a machine whose package lists are missing or out of date.
    "${apt[@]}" install --no-install-recommends "$@" ||
        { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "$@"; }
}

need_rust() {
    command -v cargo >/dev/null || die "cargo is not on the PATH. Rust is needed: https://rustup.rs"
    # Cargo links with a C compiler, which a Rust toolchain does not bring along.
    command -v cc >/dev/null || install_packages "Rust needs a C linker" gcc libc6-dev
}

need_cxx() {
    command -v c++ >/dev/null || install_packages "$1 needs a C++ compiler" g++
}

need_python() {
    command -v "$PYTHON" >/dev/null || install_packages "Python is needed" python3 python3-venv
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$PYTHON" --version) is too old, 3.11 or later is needed. PYTHON=/path/to/python3 names another one."
    # Debian keeps the module that puts pip into a new environment in a package of its own.
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
        install_packages "$PYTHON cannot make virtual environments" python3-venv
}

# make_venv FOLDER REQUIREMENTS [PIP OPTION...]: a virtual environment with exactly these packages. A stamp, written
# last, records what it was made from, so an interrupted or outdated environment is made again.
make_venv() {
    local venv=$1 requirements=$2 stamp=$1/.made-from made_from
    shift 2
    need_python
    made_from=$({ "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)' && cat "$requirements"; } | sha256sum)
    (
        # Commands that run at the same time take turns.
        flock 9
        if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$made_from" ]]; then
            exit
        fi
        say "making $venv from $requirements"
        rm -rf "$venv"
        "$PYTHON" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet "$@" --requirement "$requirements"
        printf '%s\n' "$made_from" >"$stamp.new"
        mv "$stamp.new" "$stamp"
    ) 9>"$venv.lock"
}

venv() { make_venv .venv tools/requirements.txt; }

# Where cargo puts the library, which need not be target: cargo's configuration may name another folder.
library_path() {
    cargo metadata --format-version 1 --no-deps |
        "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"] + "/release/libspark_ort.so")'
}

# venv_or_skip FOLDER REQUIREMENTS: for packages that exist for some machines only. Without their dependencies: ONNX
# Runtime's Python package imports only NumPy.
venv_or_skip() {
    local status
    # Not `make_venv || skip`: bash ignores `set -e` within a condition.
    set +e
    (
        set -e
        make_venv "$@" --no-deps
    )
    status=$?
    set -e
    ((status == 0)) || skip "the packages of $2 cannot be installed here"
}

# provider_library PYTHON NAME: the path of an execution provider in that Python's ONNX Runtime.
provider_library() {
    "$1" -c '
import importlib.util, pathlib, sys
folder = pathlib.Path(importlib.util.find_spec("onnxruntime").origin).parent
print(folder / f"capi/libonnxruntime_providers_{sys.argv[1]}.so")' "$2"
}

# need_library: sets and exports SPARK_ORT_LIBRARY, built where the environment names none.
need_library() {
    if [[ -z ${SPARK_ORT_LIBRARY:-} ]]; then
        build
        SPARK_ORT_LIBRARY=$(library_path)
    fi
    export SPARK_ORT_LIBRARY
}

build() {
    need_rust
    say "cargo build --release"
    cargo build --release
}

# The wheel for any Linux with glibc 2.28 or later: Debian 10, Ubuntu 18.10, RHEL 8. Sets `wheel` to its path. With
# SPARK_ORT_MANYLINUX= it is for this machine, and nothing is compiled a second time.
wheel() {
    need_rust
    make_venv .venv-wheel tools/wheel.txt --no-deps
    local folder glibc=${SPARK_ORT_MANYLINUX-2_28}
    folder=$(dirname "$(dirname "$(library_path)")")/wheels
    say "$folder"
    rm -rf "$folder"
    PATH=$PWD/.venv-wheel/bin:$PATH SPARK_ORT_MANYLINUX=$glibc \
        .venv-wheel/bin/python -m pip wheel --quiet . --no-build-isolation --no-deps --wheel-dir "$folder"
    wheel=$(printf '%s' "$folder"/spark_ort-*.whl)
    printf '%s\n' "$wheel"
}

# make_installed FOLDER REQUIREMENTS [PIP OPTION...]: a virtual environment with these packages and the wheel.
make_installed() {
    make_venv "$@"
    wheel
    "$1/bin/python" -m pip install --quiet --force-reinstall --no-index --no-deps "$wheel"
}

# The real model that accuracy is measured on: the GenAI folder that SPARK_EVAL_MODEL names, else SmolLM2-135M, built
# once. Sets `model`, and `text` to what it reads.
eval_model() {
    text=${SPARK_EVAL_TEXT:-src/rewrite/calibration.txt}
    [[ -f $text ]] || die "there is no text $text, which SPARK_EVAL_TEXT names"
    model=${SPARK_EVAL_MODEL:-}
    if [[ -n $model ]]; then
        [[ -f $model/genai_config.json ]] || die "SPARK_EVAL_MODEL=$model is no folder of ONNX Runtime GenAI"
        return
    fi
    model=../shared/models/smollm2-135m-int4
    [[ ! -f $model/genai_config.json ]] || return 0
    need_rust
    model=$(dirname "$(dirname "$(library_path)")")/smollm2-135m-int4
    [[ ! -f $model/genai_config.json ]] || return 0
    say "SmolLM2-135M: its weights, and PyTorch and GenAI's builder in .venv-eval (several GB)"
    make_venv .venv-eval tools/eval/requirements.txt
    rm -rf "$model.partial"
    .venv-eval/bin/python tools/eval/make_model.py "$model.partial"
    mv "$model.partial" "$model"
}

# What measures in GenAI: the command, both environments, and the folder NAME in target. Sets `release` and `work`.
genai() {
    build
    venv
    make_venv .venv-hosts tests/package/requirements.txt --no-deps
    release=$(dirname "$(library_path)")
    work=$(dirname "$release")/$1
    mkdir -p "$work"
}

layer() {
    build
    venv
    SPARK_ORT_LIBRARY=$(library_path) .venv/bin/python tools/layer.py
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    case ${1:-} in
    build | venv | wheel | layer) "$1" ;;
    *) die "usage: $0 build|venv|wheel|layer" ;;
    esac
fi

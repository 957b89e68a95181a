#!/usr/bin/env bash
# tools/versions.sh [VERSION...]: runs the library and rewritten models in these versions of ONNX Runtime, by default in
# every version that has a tests/onnxruntime/ort-VERSION.txt. Each version has a virtual environment of its own. The
# models and the expected outputs come from the version of tools/requirements.txt. shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

if (($# == 0)); then
    for requirements in tests/onnxruntime/ort-*.txt; do
        version=${requirements#tests/onnxruntime/ort-}
        set -- "$@" "${version%.txt}"
    done
fi

need_python
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' ||
    skip "old ONNX Runtime packages exist for Python 3.11 and 3.12 only, this is $("$PYTHON" --version)"

venv
need_library
cases=$(mktemp -d)
trap 'rm -rf "$cases"' EXIT
.venv/bin/python tests/onnxruntime/cases.py "$SPARK_ORT_LIBRARY" "$cases"
PYTHONPATH=tests .venv/bin/python -m rewrite.prepare "$cases/exports"

failures=0
for version in "$@"; do
    if [[ $version == 1.22.2 && $(uname -m) != x86_64 ]]; then
        reason="the package of ONNX Runtime 1.22.2 exists for x86_64 only"
        (($# > 1)) || skip "$reason"
        printf 'skipped: %s\n' "$reason"
        continue
    fi
    # No dependencies: ONNX Runtime's Python package imports only NumPy.
    make_venv ".venv-ort-$version" "tests/onnxruntime/ort-$version.txt" --no-deps
    python=.venv-ort-$version/bin/python
    "$python" tests/onnxruntime/replay.py "$SPARK_ORT_LIBRARY" "$cases" || failures=$((failures + 1))
    "$python" tests/onnxruntime/rewritten.py "$SPARK_ORT_LIBRARY" "$cases/exports" || failures=$((failures + 1))
done
((failures == 0))

#!/usr/bin/env bash
# Models of many families by the stock exporters, rewritten and compared: makes docs/zoo.md. Installs PyTorch and the
# exporters (several GB) into .venv-zoo, or into the folder that $SPARK_ZOO_VENV names, and says so. Options go to
# tools/zoo/run.py (--help).
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

venv=${SPARK_ZOO_VENV:-.venv-zoo}
if [[ ! -x $venv/bin/optimum-cli ]]; then
    say "PyTorch and exporters (several GB) into $venv"
    make_venv "$venv" tools/zoo/requirements.txt
fi
need_rust
[[ -n ${SPARK_ZOO_RELEASE:-} ]] || cargo build --release
ORT_DYLIB_PATH=$(printf '%s\n' "$PWD/$venv" "$venv" | while read -r folder; do
    ls "$folder"/lib/python*/site-packages/onnxruntime/capi/libonnxruntime.so.* 2>/dev/null | head -1
done | head -1)
export ORT_DYLIB_PATH
exec "$venv/bin/python" tools/zoo/run.py --release "${SPARK_ZOO_RELEASE:-target/release}" "$@"

#!/usr/bin/env bash
# tools/eval_genai.sh [OPTION...]: what rewritten folders lose in ONNX Runtime GenAI itself. SPARK_EVAL_MODEL and
# SPARK_EVAL_TEXT are those of tools/eval.sh; options are those of tools/genai/accuracy.py.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

eval_model
genai eval_genai

# rewrite NAME OPTION...
rewrite() {
    local name=$1
    shift
    say "$name: spark-ort rewrite $*"
    VIRTUAL_ENV=$PWD/.venv "$release/spark-ort" rewrite "$model" "$work/$name" --force --data link "$@"
}

rewrite 0-16-16 --ratio 0 --key-bits 16 --value-bits 16
rewrite 0.5-8-8+0 --recent 0
rewrite 0.5-8-8+16 --recent 16
rewrite 0.5-8-8+64
rewrite 0.7-4-4+0 --ratio 0.7 --key-bits 4 --value-bits 4 --recent 0
rewrite 0.7-4-4+16 --ratio 0.7 --key-bits 4 --value-bits 4 --recent 16
rewrite 0.7-4-4+64 --ratio 0.7 --key-bits 4 --value-bits 4
rewrite 0.7-4-4+64-v2 --ratio 0.7 --key-bits 4 --value-bits 4 --row-format 2
say "tools/genai/accuracy.py --text $text $*"
.venv-hosts/bin/python tools/genai/accuracy.py "$model" "$work"/* --text "$text" "$@"

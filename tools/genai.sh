#!/usr/bin/env bash
# tools/genai.sh [CONTEXT...]: tokens per second and peak memory of a LLaMA of 1.2 B parameters with random int4 weights
# in ONNX Runtime GenAI, original and rewritten. CONTEXT is the number of prompt tokens; 2048 and 8192 by default.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

(($#)) || set -- 2048 8192
NEW=${NEW:-48}
genai genai

say "making the model"
.venv/bin/python tools/genai/make_model.py "$work/llama-1b"

measure() {
    local name=$1 context
    shift
    for context in "$@"; do
        .venv-hosts/bin/python tools/genai/measure.py "$work/$name" "$context" "$NEW" | tee -a "$work/$name.json"
    done
}

# rewrite NAME OPTION...: calibrating random weights measures nothing, but costs what a calibrated model costs.
rewrite() {
    local name=$1
    shift
    VIRTUAL_ENV=$PWD/.venv "$release/spark-ort" rewrite "$work/llama-1b" "$work/$name" --force --data link \
        --calibrate random --calibration-tokens 256 "$@"
}

rewrite spark-8 --ratio 0.5 --key-bits 8 --value-bits 8
rewrite spark-4 --ratio 0.7 --key-bits 4 --value-bits 4
rm -f "$work"/*.json
for context in "$@"; do
    say "$context tokens, and $NEW more"
    # In turns, so that other load on the machine affects all alike.
    for name in llama-1b spark-8 spark-4; do
        measure "$name" "$context"
    done
done
say "ONNX Runtime GenAI, $(nproc) cores, $NEW tokens decoded"
.venv-hosts/bin/python tools/genai/table.py "original=$work/llama-1b.json" "rewritten, 0.5/8/8=$work/spark-8.json" \
    "rewritten, 0.7/4/4=$work/spark-4.json"

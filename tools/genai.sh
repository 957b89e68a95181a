#!/usr/bin/env bash
# tools/genai.sh [CONTEXT...]: tokens per second and peak memory of a LLaMA of 1.2 B parameters with random int4 weights
# in ONNX Runtime GenAI, original and rewritten. CONTEXT is the number of prompt tokens; 2048 and 8192 by default.
# MODEL names a GenAI folder to be measured instead, CHUNK how many tokens of a prompt are read at once besides all,
# NEW how many tokens are decoded.
[ -z "${MODEL:-}" ] || MODEL=$(realpath "$MODEL")
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

(($#)) || set -- 2048 8192
NEW=${NEW:-48}
genai genai

original=${MODEL:-$work/llama-1b}
if [ -z "${MODEL:-}" ]; then
    say "making the model"
    .venv/bin/python tools/genai/make_model.py "$original"
fi

# measure NAME FOLDER CONTEXT
measure() {
    local chunk
    for chunk in 0 ${CHUNK:-}; do
        .venv-hosts/bin/python tools/genai/measure.py "$2" "$3" "$NEW" "$chunk" | tee -a "$work/$1.json"
    done
}

# rewrite NAME OPTION...: calibrating random weights measures nothing, but costs what a calibrated model costs.
rewrite() {
    local name=$1
    shift
    VIRTUAL_ENV=$PWD/.venv "$release/spark-ort" rewrite "$original" "$work/$name" --force --data link \
        --calibrate random --calibration-tokens 256 "$@"
}

rewrite spark-8 --ratio 0.5 --key-bits 8 --value-bits 8
rewrite spark-4 --ratio 0.7 --key-bits 4 --value-bits 4
rm -f "$work"/*.json
for context in "$@"; do
    say "$context tokens, and $NEW more"
    # In turns, so that other load on the machine affects all alike.
    measure original "$original" "$context"
    measure spark-8 "$work/spark-8" "$context"
    measure spark-4 "$work/spark-4" "$context"
done
say "ONNX Runtime GenAI, $(nproc) cores, $NEW tokens decoded"
.venv-hosts/bin/python tools/genai/table.py "original=$work/original.json" "rewritten, 0.5/8/8=$work/spark-8.json" \
    "rewritten, 0.7/4/4=$work/spark-4.json"

#!/usr/bin/env bash
# The whole job on the bundled model: rewrite it, generate with the original and the rewritten model, compare.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

build
venv
spark_ort=$(dirname "$(library_path)")/spark-ort
# The command line takes ONNX Runtime from the active virtual environment.
export VIRTUAL_ENV=$PWD/.venv
original=graphs/genai-cpu-int4
out=target/demo
rm -rf "$out"
mkdir -p "$out"

show() {
    say "$(printf '%q ' spark-ort "$@")"
    "$spark_ort" "$@"
}

show inspect "$original"
show rewrite "$original" "$out/default"
show generate "$out/default" --compare "$original" --prompt-file graphs/prompt.txt --max-new-tokens 48
show rewrite "$original/model.onnx" "$out/small.onnx" --ratio 0.7 --key-bits 4 --value-bits 4 --recent 16
show generate "$out/small.onnx" --compare "$original" --prompt-file graphs/prompt.txt --max-new-tokens 48 \
    --tokenizer "$original/tokenizer.json"

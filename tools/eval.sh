#!/usr/bin/env bash
# tools/eval.sh [OPTION...]: what a compressed cache costs a real model, with `spark-ort eval`. SPARK_EVAL_MODEL names
# the model, a folder of ONNX Runtime GenAI, else SmolLM2-135M is fetched and built (PyTorch: several GB);
# SPARK_EVAL_TEXT the text to read; options are further ones of `spark-ort eval`.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

eval_model
build
venv
release=$(dirname "$(library_path)")
report=$(dirname "$release")/eval.json
(($#)) || set -- --contexts 1024 --settings 0/16/16,0.5/8/8,0.5/8/8+64,0.7/4/4,0.7/4/4+64 --rivals all
say "spark-ort eval $model --text $text --shared-buffer $*"
VIRTUAL_ENV=$PWD/.venv "$release/spark-ort" eval "$model" --text "$text" --shared-buffer --json "$report" "$@"
printf '\n%s\n' "$report"

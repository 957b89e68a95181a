#!/usr/bin/env bash
# tools/eval.sh [OPTION...]: what a compressed cache costs a real model, with `spark-ort eval`. SPARK_EVAL_MODEL names
# the model, a folder of ONNX Runtime GenAI; SPARK_EVAL_TEXT the text to read; options are further ones of `spark-ort
# eval`.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

model=${SPARK_EVAL_MODEL:-../shared/models/smollm2-135m-int4}
[[ -f $model/genai_config.json ]] ||
    die "no GenAI folder at $model. Build one and name it with SPARK_EVAL_MODEL, such as from a folder of transformers:
    python -m onnxruntime_genai.models.builder -i MODEL -o FOLDER -p int4 -e cpu"
text=${SPARK_EVAL_TEXT:-src/rewrite/calibration.txt}
[[ -f $text ]] || die "there is no text $text, which SPARK_EVAL_TEXT names"
build
venv
release=$(dirname "$(library_path)")
report=$(dirname "$release")/eval.json
(($#)) || set -- --contexts 1024 --settings 0/16/16,0.5/8/8,0.5/8/8+64,0.7/4/4,0.7/4/4+64 --rivals all
say "spark-ort eval $model --text $text --shared-buffer $*"
VIRTUAL_ENV=$PWD/.venv "$release/spark-ort" eval "$model" --text "$text" --shared-buffer --json "$report" "$@"
printf '\n%s\n' "$report"

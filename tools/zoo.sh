#!/usr/bin/env bash
# Models of many families by the stock exporters, rewritten and compared: makes docs/zoo.md. Installs PyTorch and the
# exporters (several GB) into .venv-zoo, and the newer Transformers that GenAI's builder needs into .venv-zoo-genai; or
# into the folders that $SPARK_ZOO_VENV and $SPARK_ZOO_GENAI_VENV name. Options go to tools/zoo/run.py (--help), twice.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

venv=${SPARK_ZOO_VENV:-.venv-zoo}
genai=${SPARK_ZOO_GENAI_VENV:-.venv-zoo-genai}
# Environments that the variables name are used as they are.
if [[ -z ${SPARK_ZOO_VENV:-} ]]; then
    say "PyTorch and exporters (several GB) into $venv"
    make_venv "$venv" tools/zoo/requirements.txt
fi
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
if [[ -z ${SPARK_ZOO_GENAI_VENV:-} ]]; then
    make_venv "$genai" tools/zoo/genai.txt
    # All else is that of the other environment.
    echo "$packages" >"$("$genai/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/zoo.pth"
fi
need_rust
[[ -n ${SPARK_ZOO_RELEASE:-} ]] || cargo build --release
ORT_DYLIB_PATH=$(printf '%s\n' "$packages"/onnxruntime/capi/libonnxruntime.so.*)
export ORT_DYLIB_PATH
release=${SPARK_ZOO_RELEASE:-target/release}
"$genai/bin/python" tools/zoo/run.py --release "$release" \
    --exporters "GenAI cpu" "GenAI cuda" "GenAI dml" "GenAI webgpu" "$@"
"$venv/bin/python" tools/zoo/run.py --release "$release" --exporters Optimum "torch 18" "torch 23" "torch 24" "$@"

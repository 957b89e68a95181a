"""Measures llama.cpp with its own llama-bench: prints one line of JSON, like measure.py.

    python llama.py LLAMA_BENCH MODEL.gguf CONTEXT NEW THREADS CACHE

CONTEXT tokens are the prompt, NEW more are decoded after it. CACHE is the type of keys and values, f16 or q8_0.
"""

import json
import re
import resource
import subprocess
import sys
import time

MIB = 2**20


def main(program, model, context, new, threads, cache):
    context, new = int(context), int(new)
    command = [
        program, "-m", model, "-pg", f"{context},{new}", "-p", "0", "-n", "0", "-r", "1", "--no-warmup", "-t", threads,
        # Quantised values need the attention kernel that keeps no scores; for others the usual one is faster.
        "-fa", "0" if cache == "f16" else "1", "-ctk", cache, "-ctv", cache, "-ngl", "0",
        "-o", "jsonl", "--progress", "-v",
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, at = [], {}
    for line in child.stderr:
        log.append(line)
        step = re.search(r"(prompt|generation) run 1/1", line)
        if step:
            at[step[1]] = time.perf_counter()
    found = child.stdout.read()
    size = re.search(r"llama_kv_cache: size = +([\d.]+) MiB", "".join(log))
    if child.wait() or not size or len(at) < 2:
        sys.exit(f"{' '.join(command)}\nended with {child.returncode} after\n{''.join(log[-20:])}")
    prompt_seconds = at["generation"] - at["prompt"]
    decode_seconds = json.loads(found)["avg_ns"] / 1e9 - prompt_seconds
    print(json.dumps({
        "context": context, "chunk": json.loads(found)["n_ubatch"],
        "prompt_rate": context / prompt_seconds, "decode_rate": new / decode_seconds,
        "peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, "cache": float(size[1]) * MIB,
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])

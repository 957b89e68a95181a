"""Measures a model folder in ONNX Runtime GenAI, in a process of its own: prints one line of JSON.

    python measure.py FOLDER CONTEXT NEW [CHUNK [THREADS]]

CONTEXT tokens are the prompt, read at once (CHUNK 0) or in chunks of CHUNK tokens, NEW more are generated one by one.
Past and present share a buffer for all, as genai_config.json has it.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og


def memory(field):
    """Bytes that the kernel says this process has (VmRSS) or had at most (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main(folder, context, new, chunk=0, threads=0):
    context, new, chunk, threads = int(context), int(new), int(chunk), int(threads)
    config = og.Config(folder)
    if chunk:
        config.overlay(json.dumps({"search": {"chunk_size": chunk}}))
    if threads:
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)
    loaded, load_peak = memory("VmRSS"), memory("VmHWM")
    # From here on, what loading took at most is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    parameters = og.GeneratorParams(model)
    # No end is looked for before the length is reached.
    parameters.set_search_options(max_length=context + new, min_length=context + new, do_sample=False)
    generator = og.Generator(model, parameters)
    prompt = np.random.default_rng(1).integers(2, 2000, context).astype(np.int32)
    start = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()
    prompt_seconds = time.perf_counter() - start
    steps = []
    while not generator.is_done():
        start = time.perf_counter()
        generator.generate_next_token()
        steps.append(time.perf_counter() - start)
    peak = memory("VmHWM")
    assert len(generator.get_sequence(0)) == context + new
    layers = json.loads(Path(folder, "genai_config.json").read_text())["model"]["decoder"]["num_hidden_layers"]
    # A copy, made after the peak is known; its rows are those of the buffer.
    cache = 2 * layers * generator.get_output("present.0.key").nbytes
    print(json.dumps({
        "context": context, "chunk": chunk,
        "prompt_rate": context / prompt_seconds, "decode_rate": 1 / float(np.median(steps)),
        "loaded": loaded, "load_peak": load_peak, "peak": peak, "cache": cache,
    }))


if __name__ == "__main__":
    main(*sys.argv[1:])

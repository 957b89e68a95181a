"""Continues a prompt with any exported language model, knowing only the names of its inputs.

    python plain_loop.py MODEL HEAD_SIZE NEW ID [ID ...]

Rewritten models and others alike: whatever is called past_key_values.* starts empty, as wide as the original's heads,
and present.* is fed back to it.
"""

import sys

import numpy as np
import onnxruntime as ort
import spark_ort

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def load(path):
    options = ort.SessionOptions()
    options.register_custom_ops_library(spark_ort.library_path())  # the only line that is new
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def generate(session, head_size, prompt, new):
    """The likeliest `new` tokens after a prompt, a list of ids."""
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    cache = {}
    for name, i in inputs.items():
        if name.startswith("past_key_values."):
            width = i.shape[3] if isinstance(i.shape[3], int) else head_size
            cache[name] = np.zeros((1, i.shape[1], 0, width), TYPES[i.type])
    tokens, told = np.array([prompt], np.int64), []
    for _ in range(new):
        total = len(prompt) + len(told)
        known = {
            "input_ids": tokens,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - tokens.shape[1], total)[None],
        }
        feeds = {name: value for name, value in known.items() if name in inputs}
        results = dict(zip(outputs, session.run(None, feeds | cache)))
        cache = {name: results[name.replace("past_key_values", "present")] for name in cache}
        told.append(int(results["logits"][0, -1].argmax()))
        tokens = np.array([told[-1:]], np.int64)
    return told


if __name__ == "__main__":
    model, head_size, new, *ids = sys.argv[1:]
    print(*generate(load(model), int(head_size), [int(i) for i in ids], int(new)))

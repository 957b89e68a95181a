"""The original and the rewritten model over a prompt and what follows it."""

import numpy as np
import onnxruntime

from families import SIZES, VOCABULARY

CALLS = (14, 1, 1, 1)
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def logits(path, library=None):
    """The logits of a conversation, one array a call."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if library:
        options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    rng, states, past, results = np.random.default_rng(1), {}, 0, []
    for new in CALLS:
        feeds = {}
        for given in session.get_inputs():
            dtype = TYPES[given.type]
            if given.name == "input_ids":
                feeds[given.name] = rng.integers(3, VOCABULARY, (1, new)).astype(dtype)
            elif given.name == "attention_mask":
                feeds[given.name] = np.ones((1, past + new), dtype)
            elif given.name == "position_ids":
                places = np.arange(past, past + new, dtype=dtype)[None]
                # Of time, height and width, which are alike for text.
                feeds[given.name] = np.stack([places] * 3) if len(given.shape) == 3 else places
            elif given.name in states:
                feeds[given.name] = states[given.name]
            else:
                cache = len(given.shape) == 4 and "conv" not in given.name
                shape = [d if isinstance(d, int) else int(axis == 0) for axis, d in enumerate(given.shape)]
                if cache and not isinstance(given.shape[2], int):
                    shape[2:] = 0, shape[3] or SIZES["head_dim"]
                feeds[given.name] = np.zeros(shape, dtype)
        values = dict(zip(outputs, session.run(None, feeds)))
        results.append(values["logits"].astype(np.float32))
        for name, value in values.items():
            for state in (name.replace("present", "past_key_values", 1), name.replace("present", "past", 1)):
                if name != "logits" and state in feeds:
                    states[state] = value
        past += new
    return results


def difference(found, expected):
    """The greatest difference as a share of the greatest logit."""
    greatest = max(np.abs(e).max() for e in expected)
    return float(max(np.abs(f - e).max() for f, e in zip(found, expected, strict=True)) / greatest)

"""A model and its rewritten self over a prompt and what follows it."""

import numpy as np

from ..exports.drive import Driver

from .builder import VOCABULARY

# More tokens than any window of a variant that can be run past it.
PROMPT, CHUNK, STEPS = 14, 20, 4
# Share of the greatest logit: keys and values are rounded to float16 in rows; float16 models round everything.
WITHIN = {np.float32: 5e-3, np.float16: 2e-2}


def calls(batch, padding, chunk, static=None, seed=1):
    """Calls of a conversation: (tokens `[B,L]`, mask `[B,L]` of 0 and 1)."""
    rng = np.random.default_rng(seed)
    if "tokens" in (static or {}):
        sizes = [1] * 6
    else:
        sizes = [PROMPT] + [CHUNK] * chunk + [1] * STEPS
    result = []
    for number, size in enumerate(sizes):
        mask = np.ones((batch, size), np.int64)
        if number == 0 and padding and batch > 1:
            # The second sequence is shorter.
            mask[1, slice(0, 5) if padding == "left" else slice(-5, None)] = 0
        result.append((rng.integers(0, VOCABULARY, (batch, size)), mask))
    return result


def logits(session, conversation, **settings):
    """Logits of all tokens that are no padding, call by call; and the driver as it is in the end."""
    driver = Driver(session, **settings)
    return [driver.feed(tokens, mask)[mask.astype(bool)] for tokens, mask in conversation], driver


def difference(ours, theirs):
    """The greatest difference as a share of the greatest logit, and where it is: the number of the call."""
    scale = max(np.abs(t).max() for t in theirs)
    assert np.isfinite(scale), "the original's logits are no numbers"
    errors = [np.abs(o - t).max() / scale for o, t in zip(ours, theirs, strict=True)]
    worst = int(np.argmax(errors)) if np.isfinite(errors).all() else int(np.argmin(np.isfinite(errors)))
    return float(errors[worst]), worst


def dead_nodes(graph):
    """Nodes none of whose outputs is read or put out."""
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                read |= {i for n in inner.node for i in n.input}
    return [n.name for n in graph.node if not read & set(n.output)]


def unread_initializers(graph):
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    return [i.name for i in graph.initializer if i.name not in read]

"""Runs an exported language model, prompt and decoded tokens, on any session, with this project's operators or not."""

import numpy as np

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
PAST, PRESENT = "past_key_values.", "present."


class Driver:
    """One batch of sequences: the attention mask and the cache between calls.

    `width` is the last dimension of an empty past whose shape the model leaves open. `feeds` are further inputs of
    every call.
    """

    def __init__(self, session, width=64, feeds=None):
        self.session, self.width, self.feeds = session, width, feeds or {}
        self.inputs = {i.name: i for i in session.get_inputs()}
        self.names = [o.name for o in session.get_outputs()]
        self.mask = self.cache = None
        self.outputs = {}

    def empty(self, batch):
        """A cache without tokens, of every sort that the model has: keys, values, recent keys."""
        cache = {}
        for name, described in self.inputs.items():
            if name.startswith(PAST):
                heads, width = described.shape[1], described.shape[3]
                width = width if isinstance(width, int) else self.width
                cache[name] = np.zeros((batch, heads, 0, width), DTYPES[described.type])
        return cache

    def feed(self, tokens, mask=None):
        """Logits `[B,L,V]` of new tokens `[B,L]`; a mask `[B,L]` of 0 and 1 tells which are not padding."""
        tokens = np.asarray(tokens, np.int64)
        mask = np.ones_like(tokens) if mask is None else np.asarray(mask, np.int64)
        if self.cache is None:
            self.mask, self.cache = mask, self.empty(len(tokens))
        else:
            # Padding keeps its place in the mask. GroupQueryAttention graphs take a row's sum as its length.
            self.mask = np.concatenate([self.mask, mask], 1)
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -tokens.shape[1] :]
        known = {"input_ids": tokens, "attention_mask": self.mask, "position_ids": positions}
        feeds = {name: array for name, array in known.items() if name in self.inputs}
        results = self.session.run(self.names, {**feeds, **self.cache, **self.feeds})
        self.outputs = dict(zip(self.names, results))
        self.cache = {name: self.outputs[PRESENT + name.removeprefix(PAST)] for name in self.cache}
        return self.outputs["logits"].astype(np.float32)

    def prompt(self, prompts, padding="right"):
        """Logits `[B,V]` after first prompts, lists of ids that may differ in length.

        Padding on the right suits GroupQueryAttention, which knows no other, and attention that goes by the mask;
        padding on the left suits only the latter.
        """
        lengths = np.array([len(p) for p in prompts])
        width = lengths.max()
        tokens, mask = np.zeros((2, len(prompts), width), np.int64)
        for row, ids in enumerate(prompts):
            place = slice(len(ids)) if padding == "right" else slice(width - len(ids), width)
            tokens[row, place], mask[row, place] = ids, 1
        logits = self.feed(tokens, mask)
        return logits[np.arange(len(prompts)), lengths - 1 if padding == "right" else -1]


def decode(session, prompts, steps=None, forced=None, padding="right", **options):
    """(tokens `[B,steps]`, logits `[B,steps,V]`): greedy, or along the `forced` tokens `[B,steps]`.

    logits[:, i] is what tokens[:, i] was chosen from, or for forced tokens could have been.
    """
    driver = Driver(session, **options)
    if forced is not None:
        forced = np.asarray(forced)
        steps = forced.shape[1]
    logits, tokens = [driver.prompt(prompts, padding)], []
    while True:
        tokens.append(logits[-1].argmax(-1) if forced is None else forced[:, len(tokens)])
        if len(tokens) == steps:
            return np.stack(tokens, 1), np.stack(logits, 1)
        logits.append(driver.feed(tokens[-1][:, None])[:, -1])

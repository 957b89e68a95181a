"""Passkey prompts in any number, and how models answer them."""

from dataclasses import dataclass

import numpy as np
from .exports.drive import Driver
from .exports.prompts import load

PROMPTS = load()
SPACE, FULL_STOP, DIGITS = 222, 15, range(17, 27)
LENGTH = 5
# So many tokens before the answer are fed one by one, as text, so that there is more to compare than answers.
TEXT = 16


def numbers(tokens):
    """Where the secret numbers of a prompt are."""
    width = LENGTH + 2
    windows = [tokens[i : i + width] for i in range(len(tokens) - width + 1)]
    return [
        slice(i + 1, i + 1 + LENGTH)
        for i, (first, *digits, last) in enumerate(windows)
        if (first, last) == (SPACE, FULL_STOP) and all(d in DIGITS for d in digits)
    ]


def variants(index, count, seed=0):
    """`count` texts `[count,tokens]` that are prompt `index` with other numbers, and its answer, at their end."""
    prompt, answer = PROMPTS[index]["tokens"], PROMPTS[index]["answer"]
    places = numbers(prompt)
    asked = [prompt[p] for p in places].index(answer[1:-1])
    texts = np.repeat([prompt + answer], count, 0)
    drawn = np.random.default_rng([seed, index]).choice(DIGITS, (count, len(places), LENGTH))
    for number, place in enumerate(places):
        texts[:, place] = drawn[:, number]
    texts[:, len(prompt) + 1 : len(prompt) + 1 + LENGTH] = drawn[:, asked]
    return texts


def predictions(session, texts, text=TEXT):
    """Logits `[B,text+answer,V]` before the last tokens of texts, which are fed one by one after all others at once."""
    answer = LENGTH + 2
    start = texts.shape[1] - answer - text
    driver = Driver(session)
    logits = [driver.feed(texts[:, :start])[:, -1:]]
    logits += [driver.feed(texts[:, i : i + 1]) for i in range(start, texts.shape[1] - 1)]
    return np.concatenate(logits, 1)


def log_softmax(logits):
    logits = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@dataclass
class Score:
    """How a model predicts the last tokens of passkey texts."""

    right: np.ndarray  # of each text, whether the whole answer is
    agreement: float  # share of tokens predicted as the original predicts them
    divergence: float  # mean KL(original || model), in nats
    loss: float  # mean of -log p(token)

    @property
    def answered(self):
        return int(self.right.sum())

    def __str__(self):
        return (
            f"passkeys {self.answered}/{len(self.right)}, next-token agreement {self.agreement:.3f}, "
            f"KL {self.divergence:.4f}, loss {self.loss:.3f}"
        )


def score(originals, models, texts):
    """Score of predictions, given as lists of arrays, each of texts `[B,tokens]`, as those of the original are."""
    right, agreement, divergence, loss = [], [], [], []
    for p, q, batch in zip(map(log_softmax, originals), map(log_softmax, models), texts):
        wanted = batch[:, -p.shape[1] :]
        same = q.argmax(-1) == wanted
        right.append(same[:, -LENGTH - 2 :].all(1))
        agreement.append((p.argmax(-1) == q.argmax(-1)).ravel())
        divergence.append((np.exp(p) * (p - q)).sum(-1).ravel())
        loss.append(-np.take_along_axis(q, wanted[..., None], -1).ravel())
    means = [float(np.concatenate(values).mean()) for values in (agreement, divergence, loss)]
    return Score(np.concatenate(right), *means)


def assert_as_good(found, before):
    """Answers lost and gained could be chance: their difference is within two standard deviations."""
    lost, gained = (before.right & ~found.right).sum(), (found.right & ~before.right).sum()
    assert before.answered > 0.8 * len(before.right)
    assert lost - gained <= 2 * np.sqrt(lost + gained)

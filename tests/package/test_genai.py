"""ONNX Runtime GenAI as it comes from PyPI runs rewritten folders as it runs the originals."""

import functools
import json

import numpy as np
import onnxruntime_genai as og
import pytest

# A float32 model, whose greedy text is the same without pruning, and one of 4-bit weights.
FLOAT, QUANTISED = "genai-cpu-fp32", "genai-cpu-int4"
SHARED = pytest.mark.parametrize("shared", [True, False], ids=["shared", "growing"])
NEW = 48
FULL_STOP, NEW_LINE = 15, 200


@functools.cache
def load(folder, shared):
    """The model of a folder, as its configuration says or with a cache that grows by copies."""
    config = og.Config(str(folder))
    if not shared:
        config.overlay('{"search": {"past_present_share_buffer": false}}')
    return og.Model(config)


def generator(model, length, batch=1, beams=1):
    """A greedy generator, or one that searches along beams, of `length` tokens at most that no token ends early."""
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(
        max_length=length, min_length=length, batch_size=batch, num_beams=beams, do_sample=False
    )
    return og.Generator(model, parameters)


def finish(running, batch=1):
    """Generates to the end; the sequences."""
    while not running.is_done():
        running.generate_next_token()
    return [running.get_sequence(i).tolist() for i in range(batch)]


def continued(model, tokens, new=NEW):
    """The likeliest continuation of a prompt."""
    running = generator(model, len(tokens) + new)
    running.append_tokens(np.array(tokens, np.int32))
    return finish(running)[0][len(tokens) :]


def predictions(model, tokens, told):
    """The logits [len(told), vocabulary] from which each of the tokens `told` after a prompt is predicted."""
    running = generator(model, len(tokens) + len(told) + 1)
    running.append_tokens(np.array(tokens, np.int32))
    logits = []
    for token in told:
        logits.append(running.get_logits()[0, -1].astype(np.float64))
        running.append_tokens(np.array([token], np.int32))
    return np.array(logits)


def agreement(model, tokens, told):
    """The share of tokens `told` after a prompt that this model predicts as well."""
    return np.mean(predictions(model, tokens, told).argmax(-1) == told)


def confidence(model, tokens, told):
    """The least probability that the model gives to one of the tokens `told` after a prompt."""
    logits = predictions(model, tokens, told)
    logits -= logits.max(-1, keepdims=True)
    return np.min(np.exp(logits[range(len(told)), told]) / np.exp(logits).sum(-1))


@SHARED
def test_nothing_pruned_gives_the_same_text(shared, folder, prompts):
    original, exact = (load(folder(FLOAT, kind), shared) for kind in ("original", "exact"))
    for prompt in prompts:
        assert continued(exact, prompt["tokens"]) == continued(original, prompt["tokens"])


@SHARED
@pytest.mark.parametrize("name", [FLOAT, QUANTISED])
def test_the_default_gives_nearly_the_same(name, shared, folder, prompts):
    """Where the original is sure of the answer from the cache, so is the pruned one; most other tokens are the same."""
    original, pruned = (load(folder(name, kind), shared) for kind in ("original", "pruned"))
    shares, sure = [], 0
    for prompt in prompts:
        tokens, answer = prompt["tokens"], prompt["answer"]
        shares.append(agreement(pruned, tokens, continued(original, tokens)))
        # One prompt's answer has a digit to which the original gives 0.53: a coin, not a memory.
        if confidence(original, tokens, answer) > 0.9:
            sure += 1
            assert continued(pruned, tokens, len(answer)) == answer
            assert confidence(pruned, tokens, answer) > 0.9
    assert sure >= len(prompts) - 1
    assert np.mean(shares) > 0.95, shares


@SHARED
def test_the_cache_is_smaller(shared, folder, prompts):
    """What GenAI itself says of the cache that it holds: 17 float32 for a row instead of 64."""
    widths = {}
    for kind in ("original", "pruned"):
        running = generator(load(folder(FLOAT, kind), shared), 400)
        running.append_tokens(np.array(prompts[0]["tokens"], np.int32))
        running.generate_next_token()
        shapes = [running.get_output(f"present.{i}.{part}").shape for i in range(4) for part in ("key", "value")]
        assert len(set(shapes)) == 1 and shapes[0][:2] == (1, 2)
        assert shapes[0][2] == (400 if shared else len(prompts[0]["tokens"]))
        widths[kind] = shapes[0][3]
    assert widths == {"original": 64, "pruned": 17}


@SHARED
def test_a_batch_of_unequal_prompts(shared, folder, prompts):
    """GenAI pads the shorter prompt."""
    first, second = prompts[0]["tokens"], prompts[1]["tokens"]
    width = max(len(first), len(second))
    padded = np.full((2, width), 1, np.int32)
    for row, tokens in zip(padded, (first, second)):
        row[: len(tokens)] = tokens

    def run(kind):
        running = generator(load(folder(FLOAT, kind), shared), width + NEW, batch=2)
        running.append_tokens(padded)
        return finish(running, 2)

    expected = run("original")
    assert run("exact") == expected
    for told, prompt in zip(run("pruned"), prompts):
        # The padding stays between a prompt and its continuation.
        assert told[width : width + len(prompt["answer"])] == prompt["answer"]


def chat(folder, shared, tokens):
    """A question is answered, up to the token that ends a turn, and asked again behind it: both answers."""
    config = og.Config(str(folder))
    # This model says no end of its own: a full stop shall be it. GenAI leaves that token out of the sequence.
    config.overlay(json.dumps({"model": {"eos_token_id": FULL_STOP}, "search": {"past_present_share_buffer": shared}}))
    parameters = og.GeneratorParams(model := og.Model(config))
    question = tokens[len(tokens) - 1 - tokens[::-1].index(NEW_LINE) :]
    parameters.set_search_options(max_length=len(tokens) + len(question) + 40, do_sample=False)
    running = og.Generator(model, parameters)
    answers = []
    for turn in (tokens, question):
        running.append_tokens(np.array(turn, np.int32))
        before = running.token_count()
        while not running.is_done():
            running.generate_next_token()
        answers.append(running.get_sequence(0)[before:].tolist())
    return answers


@SHARED
def test_chat(shared, folder, prompts):
    """Tokens are appended to a filled cache, so the same question is answered again, from the pruned rows."""
    for prompt in prompts[:3]:
        expected = chat(folder(FLOAT, "original"), shared, prompt["tokens"])
        assert expected == [prompt["answer"][:-1]] * 2
        for kind in ("exact", "pruned"):
            assert chat(folder(FLOAT, kind), shared, prompt["tokens"]) == expected, kind


def rewound(model, tokens, back):
    """What follows a prompt after a wrong turn, taken back to the first `back` tokens."""
    running = generator(model, len(tokens) + NEW)
    running.append_tokens(np.array(tokens[:-20], np.int32))
    running.append_tokens(np.arange(300, 320, dtype=np.int32))
    for _ in range(5):
        running.generate_next_token()
    running.rewind_to(back)
    running.append_tokens(np.array(tokens[back:], np.int32))
    return finish(running)[0][len(tokens) :]


@SHARED
def test_rewind_to(shared, folder, prompts):
    tokens, answer = prompts[1]["tokens"], prompts[1]["answer"]
    for back in (0, len(tokens) - 30):
        expected = rewound(load(folder(FLOAT, "original"), shared), tokens, back)
        assert expected[: len(answer)] == answer
        assert rewound(load(folder(FLOAT, "exact"), shared), tokens, back) == expected
        assert rewound(load(folder(FLOAT, "pruned"), shared), tokens, back)[: len(answer)] == answer


def test_beam_search(folder, prompts):
    """Beams are reordered between steps, and their rows with them."""
    tokens, answer = prompts[0]["tokens"], prompts[0]["answer"]

    def run(kind):
        running = generator(load(folder(FLOAT, kind), True), len(tokens) + 24, beams=4)
        running.append_tokens(np.array(tokens, np.int32))
        return finish(running)[0][len(tokens) :]

    expected = run("original")
    assert expected[: len(answer)] == answer
    assert run("exact") == expected
    assert run("pruned")[: len(answer)] == answer


def test_several_generators_at_once(folder, prompts):
    """The cache is GenAI's, none is in the operators: generators of one model do not disturb each other."""
    model = load(folder(FLOAT, "pruned"), True)
    alone = [continued(model, prompt["tokens"], 12) for prompt in prompts[:2]]
    running = [generator(model, len(prompt["tokens"]) + 12) for prompt in prompts[:2]]
    for each, prompt in zip(running, prompts):
        each.append_tokens(np.array(prompt["tokens"], np.int32))
    while not all(each.is_done() for each in running):
        for each in running:
            if not each.is_done():
                each.generate_next_token()
    assert [each.get_sequence(0)[-12:].tolist() for each in running] == alone

"""Recent keys in GenAI's own buffer: what they bring, and what GenAI does to buffers, through its logits."""

import functools
import json

import numpy as np
import onnxruntime_genai as og
import pytest
import spark_ort

NAME = "genai-cpu-fp32"
STRONG = {"ratio": 0.7, "key_bits": 4, "value_bits": 4, "threads": 2}
# The prompt, and how many tokens follow it that are known.
PROMPT, KNOWN = 640, 72


@pytest.fixture(scope="session")
def models(exports, tmp_path_factory):
    """models(kind, **search): GenAI models: the original, one at a quarter of the memory, and that without recent
    keys."""

    @functools.cache
    def folder(kind):
        if kind == "original":
            return exports(NAME)
        target = tmp_path_factory.mktemp("recent") / kind
        spark_ort.rewrite(exports(NAME), target, **STRONG, **({"recent": 0} if kind == "without" else {}))
        return target

    def model(kind, **search):
        config = og.Config(str(folder(kind)))
        config.overlay(json.dumps({"search": search}))
        return og.Model(config)

    return model


@pytest.fixture(scope="session")
def text(prompts):
    """Tokens of running text."""
    return [token for prompt in prompts for token in prompt["tokens"]][: PROMPT + KNOWN]


def generator(model, room=2000, batch=1):
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=room, min_length=room, batch_size=batch, do_sample=False)
    return og.Generator(model, parameters)


def logits(running):
    """Log probabilities of the next token, `[V]`."""
    x = np.array(running.get_logits())[0, -1].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def append(running, tokens):
    running.append_tokens(np.array(tokens, np.int32))


def along(running, tokens):
    """Predictions before each of the tokens that are appended one by one, `[tokens, V]`."""
    found = []
    for token in tokens:
        found.append(logits(running))
        append(running, [token])
    return np.array(found)


def divergence(p, q):
    """Mean KL divergence in nats."""
    return (np.exp(p) * (p - q)).sum(-1).mean()


def continued(model, text, room=2000):
    running = generator(model, room)
    append(running, text[:PROMPT])
    return along(running, text[PROMPT:])


@pytest.fixture(scope="session")
def expected(models, text):
    """The original's predictions."""
    return continued(models("original"), text)


@pytest.mark.parametrize("chunk", [None, 128, 100])
def test_decoding_is_as_accurate_as_recent_keys_make_it(chunk, models, text, expected):
    search = {"chunk_size": chunk} if chunk else {}
    found, before = (divergence(expected, continued(models(kind, **search), text)) for kind in ("with", "without"))
    assert found < before / 4, (found, before)


def test_a_buffer_of_just_the_length(models, text, expected):
    """The last rows leave less and less room; the very last token is predicted as without recent keys."""
    tight, roomy, without = (
        continued(models(kind), text, room)
        for kind, room in (("with", PROMPT + KNOWN), ("with", 2000), ("without", 2000))
    )
    assert divergence(expected, roomy) < divergence(expected, tight) < divergence(expected, without)


def test_growing_caches_are_as_without(models, text):
    a, b = (continued(models(kind, past_present_share_buffer=False), text) for kind in ("with", "without"))
    assert (a == b).all()


@pytest.mark.parametrize("back", [1, 30, 200])
def test_rewind_to(back, models, text, expected):
    """Other tokens are taken back, and their keys with them: what is known follows as if they had not been."""
    found = {}
    for kind in ("with", "without"):
        running = generator(models(kind))
        append(running, text[: PROMPT - back])
        append(running, text[7 : 7 + back])
        for _ in range(9):
            running.generate_next_token()
        running.rewind_to(PROMPT - back)
        append(running, text[PROMPT - back : PROMPT])
        found[kind] = divergence(expected, along(running, text[PROMPT:]))
    assert found["with"] < found["without"] / 3, found


def test_tokens_appended_to_a_filled_cache(models, text, expected):
    """Turns of a conversation, some longer than what is kept of recent keys, some shorter."""
    found = {}
    for kind in ("with", "without"):
        running, at = generator(models(kind)), 0
        for turn in (300, 5, 100, 1, 30, 204):
            append(running, text[at : at + turn])
            at += turn
        assert at == PROMPT
        found[kind] = divergence(expected, along(running, text[PROMPT:]))
    assert found["with"] < found["without"] / 4, found


def test_a_batch_is_as_its_sequences_alone(models, text):
    """Two prompts of one length; each sequence has a tail of its own. (GenAI appends no known tokens to a batch.)"""
    model, prompts, room = models("with"), (text[:400], text[200:600]), 480

    def sequences(prompts):
        running = generator(model, room, batch=len(prompts))
        append(running, prompts)
        while not running.is_done():
            running.generate_next_token()
        return [running.get_sequence(i).tolist() for i in range(len(prompts))]

    assert sequences(prompts) == [sequences([prompt])[0] for prompt in prompts]


def test_beams(models, text):
    """GenAI shares no buffer among beams: they are as without recent keys."""
    found = []
    for kind in ("with", "without"):
        model = models(kind)
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=PROMPT + 20, num_beams=3, do_sample=False)
        running = og.Generator(model, parameters)
        append(running, text[:PROMPT])
        while not running.is_done():
            running.generate_next_token()
        found.append(running.get_sequence(0).tolist())
    assert found[0] == found[1]

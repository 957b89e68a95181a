"""One session used by several threads at once, and one with several threads inside, give the same bits."""

import threading

import numpy as np
import pytest

from . import cases, models
from .reference import Settings

STEPS = 24


def settings():
    return Settings(6, 2, 64, 20, key_bits=8, value_bits=4, recent_window=6, do_rotary=1)


def new_session(s, threads=1):
    names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"]
    names += ["cos_cache", "sin_cache", "past_key_recent", "query_saliency"]
    return models.session(models.spark(s, names, "f32", "u8"), threads)


def conversation(sess, s, seed, shared):
    """A prompt of unequal lengths and STEPS decoded tokens on a cache of its own; returns every output's bytes."""
    rng = np.random.default_rng(seed)
    B, capacity = 2, 80
    feeds = dict(cases.rotary_tables(s, np.float32))
    feeds["query_saliency"] = np.exp(rng.normal(size=(s.Hk, s.D))).astype(np.float32)
    cache = models.empty_cache(s, B, "u8", capacity if shared else 0)
    if shared:
        cache = {k: models.as_value(v) for k, v in cache.items()}
    recent, past, record = np.zeros((B, s.Hk, 0, s.D), np.float32), np.zeros(B, int), []
    for L in (20 + 4 * (seed % 3), *[1] * STEPS):
        valid = np.array([L, max(1, L - 5)])
        total = past + valid
        call = dict(feeds, **cases.new_tokens(rng, s, "f32", B, L), past_key_recent=recent)
        call["seqlens_k"] = (total - 1).astype(np.int32)
        call["total_sequence_length"] = np.array(L if not past.any() else total.max(), np.int32)
        if shared:
            out = models.run_shared(sess, call, cache)
        else:
            out = models.run(sess, {**call, **cache})
            cache = {"past_key": out["present_key"], "past_value": out["present_value"]}
        recent, past = out["present_key_recent"], total
        record.append(out["output"].tobytes())
    end = [models.as_array(x) for x in cache.values()]
    return b"".join(record + [x.tobytes() for x in end])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_threads_share_a_session(count, shared):
    s = settings()
    sess = new_session(s)
    alone = [conversation(sess, s, seed, shared) for seed in range(count)]
    assert len(set(alone)) == count
    for _ in range(2):
        together, start = [None] * count, threading.Barrier(count)

        def work(i, together=together, start=start):
            start.wait()
            together[i] = conversation(sess, s, i, shared)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        assert together == alone


@pytest.mark.parametrize("shared", [False, True])
def test_number_of_threads_does_not_matter(shared):
    s = settings()
    results = {conversation(new_session(s, threads), s, 1, shared) for threads in (1, 2)}
    assert len(results) == 1


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("L,P", [(1, 400), (64, 100)])
def test_threads_of_a_large_call(L, P, T):
    """Enough work that a kernel which divides it would."""
    s = Settings(8, 4, 128, 30, key_bits=4, value_bits=4)
    feeds = cases.call(2, s, T, "u8", B=2, L=L, P=P)
    one, two = (models.run(models.session(models.spark(s, feeds, T, "u8"), threads), feeds) for threads in (1, 2))
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name

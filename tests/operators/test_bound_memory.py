"""Outputs bound to memory of the host's: only a whole shared buffer may be an input's too."""

import dataclasses

import numpy as np
import pytest

from . import cases, models
from .cases import PAST
from .reference import Settings

S = Settings(4, 2, 32, 10, key_bits=8, value_bits=8, recent_window=4)


def bound(sess, feeds, outputs):
    """Runs with outputs bound to memory of the test's own, by name; feeds and outputs are arrays, used in place."""
    models.run_bound(sess, feeds, {n: models.as_value(x) for n, x in outputs.items()})


def test_recent_keys_may_not_share_memory():
    """past_key_recent and present_key_recent in one buffer, which a shared cache may be."""
    feeds = cases.call(0, S, "f32", "u8", B=2, L=1, P=9, recent=True)
    sess = models.session(models.spark(S, list(feeds), "f32", "u8", attention=False))
    recent = feeds["past_key_recent"].copy()
    with pytest.raises(Exception, match="_node': output present_key_recent: shares memory with past_key_recent"):
        bound(sess, dict(feeds, past_key_recent=recent), {"present_key_recent": recent})
    assert np.array_equal(recent, feeds["past_key_recent"])


# Output, and what it is bound over: an input (the cache with a row more, or from its second row on) or another output.
OVERLAPS = {
    "longer": ("present_key", "past_key"),
    "later": ("present_key", "past_key"),
    "crossed": ("present_value", "past_key"),
    "query": ("output", "query"),
    "saliency": ("observed_saliency", "query_saliency"),
    "both caches": ("present_value", "present_key"),
}


@pytest.mark.parametrize("how", OVERLAPS)
def test_outputs_may_not_overwrite_inputs(how):
    """Bound memory that overlaps is refused before a byte of it is written; only a whole shared buffer is not."""
    s = dataclasses.replace(S, Hk=1, recent_window=0, key_row_bytes=256, value_row_bytes=256)
    feeds = cases.call(0, s, "f32", "u8", B=1, L=1, P=9, saliency=True)
    memory = np.zeros((1, 1, 11, 256), np.uint8)
    memory[:, :, :9] = feeds["past_key"]
    feeds["past_key"] = memory[:, :, :9]
    feeds["query_saliency"] = feeds["query_saliency"].reshape(1, 32).astype(np.float32)
    name, over = OVERLAPS[how]
    outputs = {name: memory[:, :, 1:] if how == "later" else memory[:, :, :10]}
    if over in ("query", "query_saliency"):
        outputs = {name: feeds[over].reshape(1, 1, -1) if name == "observed_saliency" else feeds[over]}
    elif over == "present_key":
        outputs = dict.fromkeys((name, over), np.zeros((1, 1, 10, 256), np.uint8))
    before = {n: x.copy() for n, x in outputs.items()}
    sess = models.session(models.spark(s, list(feeds), "f32", "u8"))
    with pytest.raises(Exception, match=f"_node': output {name}: shares .*{over}"):
        bound(sess, feeds, outputs)
    for n, x in outputs.items():
        assert np.array_equal(x, before[n])


def test_a_total_beyond_the_shared_buffer():
    """Past and new tokens fit the rule for lengths, but not the memory bound to the present cache."""
    s = dataclasses.replace(S, recent_window=0)
    feeds = cases.call(0, s, "f32", "u8", B=2, L=1, P=9, mode="step")
    feeds["seqlens_k"], feeds["total_sequence_length"] = np.array([9, 9], np.int32), np.array([10], np.int32)
    sess = models.session(models.spark(s, list(feeds), "f32", "u8", attention=False))
    cache = {n.replace("past", "present"): feeds[n] for n in PAST}
    with pytest.raises(Exception, match="_node': output present_key: rows .*total_sequence_length 10"):
        bound(sess, feeds, cache)

"""Recent keys in the tail of a shared buffer: every call against the reference, whatever the host did to the buffer."""

import threading

import numpy as np
import onnxruntime as ort
import pytest

from . import cases, models, tail
from .compare import check_attention, check_prune, close
from .reference import Settings

LAYERS = {
    "default": Settings(4, 2, 64, 32, key_bits=8, value_bits=8, do_rotary=1, tail_window=16),
    "uniform": Settings(4, 2, 64, 20, key_bits=4, value_bits=4, key_row_bytes=40, value_row_bytes=40, tail_window=8),
    "16 bits": Settings(6, 2, 96, 20, key_bits=16, value_bits=16, do_rotary=1, tail_window=32),
    "window": Settings(4, 4, 32, 10, key_bits=4, value_bits=8, local_window_size=12, softcap=5.0, tail_window=24),
    "no recovery": Settings(8, 1, 128, 30, key_bits=8, value_bits=4, recovery="none", do_rotary=1, tail_window=13),
    "widest": Settings(2, 1, 256, 100, key_bits=4, value_bits=4, tail_window=64),
    "basis": Settings(
        6, 2, 64, 50, value_bits=4, recovery="none", row_format=3, planes=(9, 20), do_rotary=1, tail_window=16
    ),
    "narrow": Settings(3, 3, 40, 11, key_bits=8, value_bits=16, do_rotary=1, rotary_interleaved=1, tail_window=6),
}

if models.DEVICE != "cpu":
    # Providers with a GPU refuse row format 3.
    del LAYERS["basis"]


class Host:
    """A host with one shared buffer for a batch, filled with random bytes, whose every call is compared."""

    def __init__(self, s, T="f32", B=2, P=96, seed=0, mode=ort.ExecutionMode.ORT_SEQUENTIAL):
        self.s, self.T, self.B, self.rng = s, T, B, np.random.default_rng(seed)
        self.constant = {"query_saliency": np.exp(self.rng.normal(size=(s.Hk, s.D)) * 0.7).astype(np.float32)}
        self.constant.update(cases.bases(seed, s))
        if s.do_rotary:
            self.constant.update(cases.rotary_tables(s, models.DTYPES[T]))
        self.spread = cases.channel_spread(self.rng, s.Hk, s.D)
        names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total_sequence_length"]
        wired = ("present_key", "present_value")
        self.session = models.session(
            models.spark(s, [*names, *self.constant], T, "u8", prune_outputs=wired), mode=mode
        )
        self.cache, bytes_of_a_host = {}, np.random.default_rng(seed + 1)
        for name, x in models.empty_cache(s, B, "u8", P).items():
            self.cache[name] = bytes_of_a_host.integers(0, 256, x.shape, np.uint8)
        self.past = np.zeros(B, int)

    def call(self, L, valid=None, check=True):
        """Feeds L new random tokens, of which `valid` of each sequence count, and returns the output."""
        valid = np.full(self.B, L) if valid is None else np.array(valid)
        total = self.past + valid
        feeds = {**self.constant, **cases.new_tokens(self.rng, self.s, self.T, self.B, L, spread=self.spread)}
        feeds["seqlens_k"] = (total - 1).astype(np.int32)
        feeds["total_sequence_length"] = np.array(L if not self.past.any() else total.max(), np.int32)
        feeds.update({n: x.copy() for n, x in self.cache.items()})
        shared = {n: models.as_value(x) for n, x in self.cache.items()}
        out = models.run_shared(self.session, feeds, shared)
        self.cache = {n: models.as_array(x) for n, x in shared.items()}
        if check:
            out.update(present_key=self.cache["past_key"], present_value=self.cache["past_value"])
            check_prune(self.s, feeds, out, shared=True)
            check_attention(self.s, feeds, out["output"])
        self.past = total
        return out["output"]

    def dense(self, b=0):
        """How many recent keys of each KV head of a sequence the tail holds."""
        return [len(tail.recent(self.s, self.cache, b, h, self.past[b])) for h in range(self.s.Hk)]


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_buffer_that_fills_to_its_last_row(layer, T):
    s = LAYERS[layer]
    host = Host(s, T)
    host.call(30, [30, 21])
    for L in (20, 1, 3, 1):
        host.call(L)
        assert host.dense() == [min(host.past[0], tail.kept(s, 96 - host.past[0]))] * s.Hk
    while host.past.max() < 96:
        host.call(1)
    assert host.dense() == [0] * s.Hk
    assert host.past.tolist() == [96, 87]


@pytest.mark.parametrize("layer", ["default", "16 bits", "no recovery"])
def test_outputs_are_those_of_dense_recent_keys(layer):
    """With a tail as long as the sequence, the output is that of dense keys, as past_key_recent gives it."""
    s = LAYERS[layer]
    wide = Settings(**{**vars(s), "tail_window": 64, "value_bits": 16, "recovery": "mean"})
    lossless = Settings(**{**vars(wide), "kept": s.D, "key_bits": 16, "tail_window": 0})
    none = Settings(**{**vars(wide), "tail_window": 0})
    outputs = []
    for settings in (wide, lossless, none):
        host = Host(settings, P=300)
        host.call(30)
        outputs.append(np.concatenate([host.call(L) for L in (1, 1, 5, 1, 12, 1)], 1))
    close(outputs[0], outputs[1], 2e-3)
    assert np.abs(outputs[2] - outputs[1]).max() > 10 * np.abs(outputs[0] - outputs[1]).max()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_tail_of_other_bytes_costs_accuracy_alone(layer):
    s = LAYERS[layer]
    host = Host(s, P=200)
    host.call(30)
    host.call(1)
    kinds = (
        lambda free: host.rng.integers(0, 256, free.shape, np.uint8),
        lambda free: np.zeros_like(free),
        lambda free: np.full_like(free, 255),
        lambda free: np.roll(free, 2, -1),
        lambda free: free[..., ::-1],
    )
    for kind in kinds:
        for x in host.cache.values():
            for b, past in enumerate(host.past):
                x[b, :, past:] = kind(x[b, :, past:])
        host.call(1)
        assert host.dense() == [1] * s.Hk
        host.call(9)


def test_a_sequence_that_is_rewound():
    """What the tail still holds of tokens that are no more is not taken for the keys that took their places."""
    s = LAYERS["default"]
    host = Host(s, P=200)
    host.call(40)
    for back in (1, 5, 16, 30, 60):
        host.past = np.maximum(host.past - back, 1)
        host.call(1)
        host.call(3)
        host.call(20)


def test_sequences_that_change_places():
    s = LAYERS["uniform"]
    host = Host(s, P=120, B=3)
    host.call(40, [40, 31, 3])
    host.call(1)
    for order in ([0, 0, 0], [2, 0, 1], [1, 1, 2]):
        host.cache = {n: np.ascontiguousarray(x[order]) for n, x in host.cache.items()}
        host.past = host.past[order]
        host.call(1)
        host.call(4)


def test_a_buffer_copied_to_a_larger_one():
    """A host that copies rows, and not what lies behind them, loses the recent keys and nothing else."""
    s = LAYERS["default"]
    host = Host(s, P=60)
    host.call(40)
    larger = {n: host.rng.integers(0, 256, (2, s.Hk, 150, x.shape[3]), np.uint8) for n, x in host.cache.items()}
    for n, x in larger.items():
        x[:, :, :40] = host.cache[n][:, :, :40]
    host.cache = larger
    assert host.dense() == [0] * s.Hk
    for _ in range(4):
        host.call(1)
    assert host.dense() == [4] * s.Hk


@pytest.mark.parametrize("chunk", [1, 7, 16, 33])
def test_chunks_of_a_prompt(chunk):
    s = LAYERS["default"]
    host = Host(s, "f16", P=200)
    for _ in range(99 // chunk):
        host.call(chunk)
    assert host.dense(1) == [min(host.past[1], 16)] * s.Hk


def test_growing_caches_have_no_tail():
    """Without free rows everything is as with tail_window 0, and what the host gives as past_key_recent is used."""
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=8, tail_window=8, recent_window=8)
    for recent in (False, True):
        for mode in ("plain", "step", "prompt"):
            feeds = cases.call(5, s, "f32", "u8", B=3, L=4, P=30, mode=mode, recent=recent)
            outputs = ("present_key", "present_value")
            out = models.run(models.session(models.spark(s, feeds, "f32", "u8", prune_outputs=outputs)), feeds)
            check_prune(s, feeds, out)
            check_attention(s, feeds, out["output"])


def test_given_recent_keys_win():
    s = Settings(4, 2, 64, 20, key_bits=8, value_bits=8, tail_window=16, recent_window=8)
    feeds = cases.call(5, s, "f32", "u8", B=2, L=4, P=60, mode="step", recent=True, garbage=True, shared=True)
    sess = models.session(models.spark(s, feeds, "f32", "u8", prune_outputs=("present_key", "present_value")))
    shared = {n: models.as_value(feeds[n].copy()) for n in ("past_key", "past_value")}
    out = models.run_shared(sess, feeds, shared)
    out.update({n.replace("past", "present"): models.as_array(x) for n, x in shared.items()})
    check_prune(s, feeds, out, shared=True)
    check_attention(s, feeds, out["output"])


@pytest.mark.parametrize("shared", ["past_key", "past_value"])
def test_one_shared_buffer_has_no_tail(shared):
    """A tail lies in both buffers: where the host shares one of them only, rows alone are written."""
    s = LAYERS["default"]
    feeds = cases.call(5, s, "f32", "u8", B=2, L=4, P=60, mode="step", garbage=True, shared=True)
    sess = models.session(models.spark(s, feeds, "f32", "u8", prune_outputs=("present_key", "present_value")))
    cache = {shared: models.as_value(feeds[shared].copy())}
    out = models.run_shared(sess, feeds, cache)
    after = models.as_array(cache[shared])
    used = feeds["seqlens_k"].reshape(-1) + 1
    for b, total in enumerate(used):
        assert (after[b, :, total:] == feeds[shared][b, :, total:]).all()
        assert (after[b, :, : total - 4] == feeds[shared][b, :, : total - 4]).all()
        assert (after[b, :, total - 4 : total] != feeds[shared][b, :, total - 4 : total]).any()
    check_attention(s, feeds, out["output"])


def test_without_the_output_of_attention_nothing_is_written():
    s = LAYERS["default"]
    feeds = {k: v for k, v in cases.call(1, s, "f32", "u8").items()}
    sess = models.session(models.spark(s, feeds, "f32", "u8", attention=False))
    with pytest.raises(Exception, match=r"SparkPrune node 'SparkPrune_node'.*tail_window.*input 12 \(after\)"):
        models.run(sess, feeds)


@pytest.mark.parametrize("layer", ["default", "uniform"])
def test_execution_modes_and_threads_agree(layer):
    """ONNX Runtime's parallel mode runs both operators at once if it may; several hosts share one session."""
    s = LAYERS[layer]

    def conversation(mode, seed, record):
        host = Host(s, P=90, seed=seed, mode=mode)
        outputs = [host.call(40, [40, 30], check=False)] + [host.call(L, check=False) for L in (20, *[1] * 20)]
        record[mode, seed] = np.concatenate(outputs, 1)

    record = {}
    both = (ort.ExecutionMode.ORT_SEQUENTIAL, ort.ExecutionMode.ORT_PARALLEL)
    threads = [threading.Thread(target=conversation, args=(mode, seed, record)) for mode in both for seed in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for seed in range(3):
        assert (record[both[0], seed] == record[both[1], seed]).all()

"""The golden tensors of the official implementation (golden/README.md), by the reference and by the operators."""

from pathlib import Path

import numpy as np
import pytest

from . import models, reference, rows
from .compare import close
from .reference import Settings

FILES = sorted((Path(__file__).resolve().parent / "golden").glob("*.npz"))
WINDOW = 32


def entries(path):
    """Batch entries of a file as dictionaries with a leading dimension of 1."""
    with np.load(path) as z:
        arrays = {k: z[k] for k in z.files}
    ratio = float(arrays.pop("ratio"))
    for b in range(len(arrays["keys"])):
        yield {k: v[b : b + 1] for k, v in arrays.items()}, ratio


def settings(g, ratio, **more):
    D = g["keys"].shape[3]
    # The official ratios are exact multiples of 0.1; float32 and float64 floors agree on them.
    return Settings(g["query"].shape[1], g["keys"].shape[1], D, D - int(np.floor(ratio * D)), **more)


def official_saliency(g):
    """n of the window queries `[Hk,D]`, computed here in float64."""
    q = g["window_queries"].astype(np.float64)
    Hk = g["keys"].shape[1]
    qbar = q.reshape(1, Hk, q.shape[1] // Hk, WINDOW, -1).mean(2)
    return np.sqrt((qbar[0] ** 2).sum(1)).astype(np.float32)


def prompt_feeds(g, s, dtype):
    """The file's keys and values as a prompt whose last queries are the window's; the earlier ones must not matter."""
    S = g["keys"].shape[2]
    query = np.random.default_rng(1).normal(size=(1, s.Hq, S, s.D)).astype(dtype)
    query[:, :, -WINDOW:] = g["window_queries"]
    feeds = {"query": query, "key": g["keys"].astype(dtype), "value": g["values"].astype(dtype)}
    return dict(feeds, query_saliency=official_saliency(g), **models.empty_cache(s, 1, "u8"))


def decode_feeds(g, s, dtype, cache, saliency):
    """The decoding query over `cache`, its own token (of large key and value) masked away by attention_bias."""
    S = g["keys"].shape[2]
    bias = np.zeros((1, 1, 1, S + 1), dtype)
    bias[..., S] = -np.inf
    own = np.full((1, s.Hk, 1, s.D), 30, dtype)
    feeds = {"query": g["query"].astype(dtype), "key": own, "value": own, "attention_bias": bias}
    return dict(feeds, query_saliency=saliency, past_key=cache["present_key"], past_value=cache["present_value"])


def masks_agree(got, wanted, keys, n):
    """Masks are equal, except in rows where the scores they disagree on are equal."""
    for at in np.argwhere((got != wanted).any(-1)):
        b, h, t = at
        score = keys[b, h, t].astype(np.float64) ** 2 * n[h]
        differing = score[got[b, h, t] != wanted[b, h, t]]
        assert np.ptp(differing) <= 1e-6 * differing.max(), f"another channel kept at {at}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_reference_reproduces_golden(path):
    """The reference itself, without the operators: what the other tests compare with is the official method."""
    for g, ratio in entries(path):
        s = settings(g, ratio)
        pruned = reference.prune(s, prompt_feeds(g, s, np.float16))
        kept = rows.key_fields(pruned.present_key, s.D, s.kept, 16).keep
        masks_agree(kept, g["recovered_zero"] != 0, g["keys"], official_saliency(g))
        c = 1 / np.sqrt(official_saliency(g).astype(np.float64))[:, None]
        close(rows.decode_keys(pruned.present_key, s.D, s.kept, 16, c, "mean"), g["recovered_mean"], 2.0**-11)


def test_files_are_there():
    assert len(FILES) == 12


@pytest.mark.parametrize("T", ["f32", "f16"])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_operators_reproduce_golden(path, T):
    dtype = models.DTYPES[T]
    for g, ratio in entries(path):
        outputs = {}
        for name, s in {
            "dense": settings(g, 0.0),
            "zero": settings(g, ratio, recovery="none"),
            "mean": settings(g, ratio),
        }.items():
            feeds = prompt_feeds(g, s, dtype)
            writer = models.session(models.spark(s, feeds, T, "u8", attention=False))
            cache = models.run(writer, feeds)
            n = cache["observed_saliency"][0]
            close(n, official_saliency(g), 1e-5)
            fields = rows.key_fields(cache["present_key"], s.D, s.kept, 16)
            c = 1 / np.sqrt(n.astype(np.float64))[:, None]
            if name == "dense":
                assert fields.keep.all() and (fields.a == 0).all()
            else:
                masks_agree(fields.keep, g["recovered_zero"] != 0, g["keys"], n)
            wanted = g["keys"] if name == "dense" else g[f"recovered_{name}"]
            got = rows.decode_keys(cache["present_key"], s.D, s.kept, 16, c, s.recovery)
            # Kept float16 keys are stored exactly, recovered ones to float16 rounding of their magnitude.
            assert (np.abs(got - wanted) <= np.abs(wanted) * np.where(fields.keep, 0, 2.0**-10)).all()
            assert (rows.decode_values(cache["present_value"], s.D, 16) == g["values"]).all()

            feeds = decode_feeds(g, s, dtype, cache, feeds["query_saliency"])
            reader = models.session(models.spark(s, feeds, T, "u8", prune=False))
            outputs[name] = models.run(reader, feeds)["output"]
            # float16 rounding of a moves scores of size 20 by about 1e-2 at most, weights and outputs by less.
            close(outputs[name], g[f"out_{name}"], 2e-3)
        assert np.abs(outputs["mean"].astype(float) - outputs["zero"]).max() > 1e-2

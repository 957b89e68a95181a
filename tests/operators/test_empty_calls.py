"""Calls without tokens, sequences or a cache: shapes by the rules, and nothing lost."""

import numpy as np
import pytest

from . import cases, models
from .cases import PAST
from .compare import check_attention, check_prune
from .reference import Settings


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("B,L,P", [(2, 0, 5), (0, 3, 5), (0, 0, 0), (2, 0, 0), (0, 3, 0)])
@pytest.mark.parametrize("T,C", [("f32", "u8"), ("f16", "f16")])
def test_nothing_to_do(B, L, P, rank, T, C):
    """No new tokens or no sequences: shapes by the rules, past rows copied."""
    s = Settings(4, 2, 32, 10)
    feeds = cases.call(0, s, T, C, B=B, L=L, P=P, rank=rank)
    out = models.run(models.session(models.spark(s, feeds, T, C)), feeds)
    assert out["output"].shape == ((B, L, 128) if rank == 3 else (B, 4, L, 32))
    for name in ("key", "value"):
        assert out[f"present_{name}"].shape == (*feeds[f"past_{name}"].shape[:2], P + L, feeds[f"past_{name}"].shape[3])
        assert (out[f"present_{name}"][:, :, :P].tobytes()) == feeds[f"past_{name}"].tobytes()
    assert out["observed_saliency"].shape == (B, 2, 32) and (out["observed_saliency"] == 0).all()
    assert out["present_key_recent"].shape == (B, 2, 0, 32)


@pytest.mark.parametrize("B,L,P", [(2, 0, 5), (0, 3, 5)])
def test_nothing_to_do_packed(B, L, P):
    s = Settings(4, 2, 32, 10)
    feeds = cases.call(0, s, B=B, L=L, P=P, packed=True)
    out = models.run(models.session(models.spark(s, feeds)), feeds)
    assert out["output"].shape == (B, L, 128) and out["present_key"].shape[:3] == (B, 2, P + L)


def test_empty_cache_of_any_width():
    """P = 0: the host's usual empty tensor, of the original head size or any other."""
    s = Settings(4, 2, 64, 10, key_bits=4, value_bits=4)
    for width in (0, 1, 7, 64, 129):
        feeds = cases.call(0, s, "f16", "f16", L=9, P=0)
        feeds.update({n: np.zeros((2, 2, 0, width), np.float16) for n in PAST})
        out = models.run(models.session(models.spark(s, feeds, "f16", "f16")), feeds)
        check_attention(s, feeds, out.pop("output"))
        check_prune(s, feeds, out)

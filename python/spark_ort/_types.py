"""What the program answers, as JSON has it."""

from __future__ import annotations

from typing import Literal, TypedDict

Element = Literal["float32", "float16", "uint8"]


class CachePair(TypedDict):
    """A cache input and the output that follows it, `[B, Hk, rows, width]`."""

    past: str
    present: str
    element: Element
    width: int


class _CacheLayer(TypedDict):
    kv_heads: int
    head_dim: int
    key: CachePair
    value: CachePair


class CacheLayer(_CacheLayer, total=False):
    """The cache of one layer. The last keys are dense in `key_recent`, where there is one, or the last `tail_window` of
    them in free rows of a buffer that past and present share."""

    key_recent: CachePair
    tail_window: int


class Interface(TypedDict):
    """The cache of a model: its layers, and whether past and present may be one buffer with room for more rows."""

    layers: list[CacheLayer]
    shares_buffer: bool


class Planes(TypedDict):
    """How many directions of a key in a calibrated basis have 8, 4 and 2 bits."""

    eight: int
    four: int
    two: int


class _Rows(TypedDict):

    head_dim: int
    ratio: float
    kept_channels: int
    key_bits: int
    value_bits: int
    row_format: int
    key_row_bytes: int
    value_row_bytes: int
    recovery: Literal["mean", "none", "exponential", "normal"]
    recent_window: int
    tail_window: int
    cache_type: Literal["same", "uint8"]


class Rows(_Rows, total=False):
    """How a rewritten model stores its cache. `planes` is there where keys are in a calibrated basis."""

    planes: Planes


class _Inspection(TypedDict):
    source: str
    rows: Rows | None
    calibration: str | None
    query_heads: list[int]
    bytes_per_token: int
    original_bytes_per_token: int
    recent_bytes: int
    interface: Interface


class Inspection(_Inspection, total=False):
    """A model's attention and cache.

    `source` is what the attention is, or was before it was rewritten; `rows` is None in a model that is not rewritten.
    Where layers differ, `layer_rows` has the rows of each, and `rows` those of the first.
    Bytes are over all layers: of the cache per token, and of the dense recent keys of a long sequence.
    """

    layer_rows: list[Rows]


class Report(TypedDict):
    """What a rewrite did: where the model is (None after a dry run), what it is like, what to be careful with, and what
    to add to the host program."""

    output: str | None
    model: Inspection
    warnings: list[str]
    host: str

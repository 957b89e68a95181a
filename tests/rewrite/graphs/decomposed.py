"""Attention as MatMul, Softmax, MatMul, in the spellings that exporters have for its parts."""

import numpy as np
from onnx import TensorProto

from . import masks
from .builder import append, join_heads, projections, split_heads

# Repetition of KV heads for query heads: [B,Hk,S,D] to [B,Hq,S,D].


def expand(graph, rows, shape):
    wide = graph.add("Unsqueeze", rows, np.array([2]))
    sizes = [graph.batch(), np.array([shape.kv_heads]), np.array([shape.groups]), graph.total(), np.array([shape.size])]
    wide = graph.add("Expand", wide, graph.add("Concat", *sizes, axis=0))
    return graph.add("Reshape", wide, np.array([0, shape.query_heads, -1, shape.size]))


def tile(graph, rows, shape):
    wide = graph.add("Tile", graph.add("Unsqueeze", rows, np.array([2])), np.array([1, 1, shape.groups, 1, 1]))
    return graph.add("Reshape", wide, np.array([0, shape.query_heads, -1, shape.size]))


def gather(graph, rows, shape):
    return graph.add("Gather", rows, np.arange(shape.query_heads) // shape.groups, axis=1)


def copies(graph, rows, shape):
    wide = graph.add("Unsqueeze", rows, np.array([2]))
    wide = graph.add("Concat", *[wide] * shape.groups, axis=2)
    return graph.add("Reshape", wide, np.array([0, shape.query_heads, -1, shape.size]))


def split(graph, rows, shape):
    parts = graph.add("Split", rows, np.array([1] * shape.kv_heads), outputs=shape.kv_heads, axis=1)
    return graph.add("Concat", *[p for p in parts for _ in range(shape.groups)], axis=1)


def reshaped_twice(graph, rows, shape):
    """Repetition behind the transposition of the key's layout: [B,S,Hk,D] and back."""
    turned = graph.add("Transpose", rows, perm=[0, 2, 1, 3])
    wide = graph.add("Tile", graph.add("Unsqueeze", turned, np.array([3])), np.array([1, 1, 1, shape.groups, 1]))
    flat = graph.add("Reshape", wide, np.array([0, 0, shape.query_heads, shape.size]))
    return graph.add("Transpose", flat, perm=[0, 2, 1, 3])


def as_is(graph, rows, shape):
    """None: there are as many KV heads, or one that MatMul broadcasts."""
    return rows


def interleaved(graph, rows, shape):
    """Query head h reads KV head h modulo Hk: no operator of this project does so."""
    return graph.add("Gather", rows, np.arange(shape.query_heads) % shape.kv_heads, axis=1)


# Scaling of the scores, by which factor and where.


def by_shape(graph, query):
    """sqrt(D) from the shape of the query."""
    return graph.once(("sqrt", query), lambda: graph.add("Sqrt", graph.cast(graph.size(query, 3))))


def scaled(graph, how, place, tensor, shape, query):
    """`tensor` at `place` (query, key, product) with its part of the factor 1/sqrt(D)."""
    root = shape.size**0.5
    if how == "none" or place not in how.split()[1:]:
        return tensor
    kind, both = how.split()[0], len(how.split()) == 3
    if kind == "Mul":
        return graph.add("Mul", tensor, root**-0.5 if both else 1 / root)
    if kind == "Mul-first":
        return graph.add("Mul", 1 / root, tensor)
    if kind == "Div":
        return graph.add("Div", tensor, root**0.5 if both else root)
    if kind == "Mul-shape":
        # As PyTorch's scaled_dot_product_attention: the root of the scale on each side.
        scale = graph.once("scale", lambda: graph.add("Div", 1.0, by_shape(graph, query)))
        return graph.add("Mul", tensor, graph.add("Sqrt", scale) if both else scale)
    return graph.add("Div", tensor, by_shape(graph, query))


def guard(graph, weights):
    """Zero where a softmax over nothing is not a number."""
    return graph.add("Where", graph.add("IsNaN", weights), 0.0, weights)


def softmax(graph, scores):
    return graph.add("Softmax", scores, axis=-1)


def wide_softmax(graph, scores):
    """Softmax in float32, whatever the scores are."""
    return graph.cast(graph.add("Softmax", graph.cast(scores, TensorProto.FLOAT), axis=-1))


def wide_mask(graph, scores):
    """A float32 mask on scores in float32, whatever the model is."""
    low = np.float32(np.finfo(np.float32).min)
    mask = graph.once("wide mask", lambda: graph.add("Where", masks.padded(graph), np.float32(0), low))
    return graph.cast(graph.add("Add", graph.cast(scores, TensorProto.FLOAT), mask))


def two_masks(graph, scores):
    """Causality added first, then padding."""
    return graph.add("Add", graph.add("Add", scores, masks.trilu(graph)), masks.added(graph, masks.padding(graph)))


def capped(limit=2.0, times=False):
    """A tanh that limits the scores before the mask, as Gemma 2 has it."""

    def how(graph, scores):
        inner = graph.add("Mul", scores, 1 / limit) if times else graph.add("Div", scores, limit)
        scores = graph.add("Mul", graph.add("Tanh", inner), limit)
        return graph.add("Add", scores, masks.added(graph, masks.padded(graph)))

    return how


def masked_fill(graph, scores):
    """Where(hidden, lowest, scores), as torch.Tensor.masked_fill becomes."""
    return graph.add("Where", graph.add("Not", masks.padded(graph)), masks.LOW[graph.dtype], scores)


def attention(
    scale="Mul product",
    mask=masks.padded,
    how="where-add",
    repeat=expand,
    guarded=False,
    softmax=softmax,
    identity=False,
    low=None,
    rotate=None,
    late_transpose=False,
    mask_first=False,
):
    """A layer, see decoder(): `mask` and `how` it goes into the scores, and whatever else varies.

    `how`: "add" a float mask, "where-add" a boolean one as numbers, "where" a boolean one on the scores; or a function
    of graph and scores.
    """

    def layer(graph, number, shape, hidden):
        heads = [shape.query_heads, shape.kv_heads, shape.kv_heads]
        query, key, value = [
            split_heads(graph, t, h, shape.size) for t, h in zip(projections(graph, shape, hidden), heads)
        ]
        if rotate:
            query, key = rotate(graph, query, shape), rotate(graph, key, shape)
        key, value = cached(graph, number, key, value, shape, identity)
        key, value = repeat(graph, key, shape), repeat(graph, value, shape)
        plain = query
        query = scaled(graph, scale, "query", query, shape, plain)
        if late_transpose:
            key = graph.add("Transpose", scaled(graph, scale, "key", key, shape, plain), perm=[0, 1, 3, 2])
        else:
            key = scaled(graph, scale, "key", graph.add("Transpose", key, perm=[0, 1, 3, 2]), shape, plain)
        scores = scaled(graph, scale, "product", graph.add("MatMul", query, key), shape, plain)
        scores = masked(graph, scores, mask, how, low, mask_first)
        weights = softmax(graph, scores)
        weights = guard(graph, weights) if guarded else weights
        return join_heads(graph, graph.add("MatMul", weights, value), shape)

    return layer


def cached(graph, number, key, value, shape, identity=False):
    """Key and value appended to the cache; with `identity` an Identity names what the model puts out."""
    if not identity:
        return append(graph, number, "key", key, shape), append(graph, number, "value", value, shape)
    whole = []
    for part, new in (("key", key), ("value", value)):
        past = graph.past(number, part, shape.kv_heads, shape.size)
        whole.append(graph.add("Concat", past, new, axis=-2))
        graph.add("Identity", whole[-1], outputs=[f"present.{number}.{part}"])
    return whole


def masked(graph, scores, mask, how, low=None, mask_first=False):
    if callable(how):
        return how(graph, scores)
    if mask is None:
        return scores
    tensor = graph.once(("mask", mask, how), lambda: mask(graph))
    if how == "where":
        return graph.add("Where", tensor, scores, float(low or masks.LOW[graph.dtype]))
    if how == "where-add":
        tensor = graph.once(("added", mask), lambda: masks.added(graph, tensor, low))
    return graph.add("Add", *([tensor, scores] if mask_first else [scores, tensor]))


def grouped(mask=masks.causal, softmax=softmax):
    """A layer that groups query heads instead of repeating KV heads: five dimensions."""

    def layer(graph, number, shape, hidden):
        query, key, value = projections(graph, shape, hidden)
        query = split_heads(graph, query, shape.query_heads, shape.size)
        query = graph.add("Reshape", query, np.array([0, shape.kv_heads, shape.groups, -1, shape.size]))
        key, value = [split_heads(graph, t, shape.kv_heads, shape.size) for t in (key, value)]
        key, value = cached(graph, number, key, value, shape)
        key = graph.add("Unsqueeze", graph.add("Transpose", key, perm=[0, 1, 3, 2]), np.array([2]))
        value = graph.add("Unsqueeze", value, np.array([2]))
        scores = graph.add("Mul", graph.add("MatMul", query, key), shape.size**-0.5)
        scores = masked(graph, scores, mask, "where-add")
        result = graph.add("MatMul", softmax(graph, scores), value)
        result = graph.add("Reshape", result, np.array([0, shape.query_heads, -1, shape.size]))
        return join_heads(graph, result, shape)

    return layer


def rotate_half(graph, tensor, shape):
    """Rotation by position, as Hugging Face's LLaMA spells it, positions from position_ids."""

    def angles():
        positions = graph.add("Unsqueeze", graph.cast(graph.positions(), TensorProto.FLOAT), np.array([1, 3]))
        half = 100.0 ** (-np.arange(shape.size // 2) / (shape.size // 2))
        angle = graph.add("Mul", positions, np.concatenate([half, half]).astype(np.float32))
        return [graph.cast(graph.add(f, angle)) for f in ("Cos", "Sin")]

    cos, sin = graph.once("angles", angles)
    first = graph.add("Slice", tensor, np.array([0]), np.array([shape.size // 2]), np.array([3]))
    second = graph.add("Slice", tensor, np.array([shape.size // 2]), np.array([shape.size]), np.array([3]))
    turned = graph.add("Concat", graph.add("Neg", second), first, axis=-1)
    return graph.add("Add", graph.add("Mul", tensor, cos), graph.add("Mul", turned, sin))

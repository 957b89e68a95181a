"""Layers that are spelt in a way that cannot be rewritten."""

import numpy as np

from . import decomposed, masks
from .builder import projections
from .fused import lengths, outputs, pasts
from .variants import without_padding


def scaled_after_mask(graph, scores):
    return graph.add("Mul", graph.add("Add", scores, masks.added(graph, without_padding(graph))), 0.5)


def capped_mask(graph, scores):
    """A tanh that limits the mask too."""
    masked = graph.add("Add", scores, masks.added(graph, masks.padded(graph)))
    return graph.add("Mul", graph.add("Tanh", graph.add("Div", masked, 20.0)), 20.0)


def sink(graph, scores):
    """One more column, as attention sinks have it, whose weight is dropped after the softmax."""
    shape = graph.add("Concat", graph.batch(), np.array([4]), graph.new(), np.array([1]), axis=0)
    weights = graph.add("Softmax", graph.add("Concat", scores, graph.add("Expand", 0.0, shape), axis=-1), axis=-1)
    return graph.add("Slice", weights, np.array([0]), np.array([-1]), np.array([3]))


def over_queries(graph, scores):
    return graph.add("Softmax", scores, axis=-2)


def over_axis_3(graph, scores):
    return graph.add("Softmax", scores, axis=3)


def filled_guard(graph, scores):
    weights = graph.add("Softmax", scores, axis=-1)
    return graph.add("Where", graph.add("IsNaN", weights), 1.0, weights)


def tiled_beyond_memory(graph, rows, shape):
    wide = graph.add("Tile", graph.add("Unsqueeze", rows, np.array([2])), np.array([1, 1, 1 << 40, 1, 1]))
    return graph.add("Reshape", wide, np.array([0, shape.query_heads, -1, shape.size]))


def expanded_beyond_memory(graph, rows, shape):
    wide = graph.add("Expand", graph.add("Unsqueeze", rows, np.array([2])), np.array([1, 1, 1 << 40, 1, 1]))
    return graph.add("Reshape", wide, np.array([0, shape.query_heads, -1, shape.size]))


def tokens_first(graph, number, shape, hidden):
    """A cache `[B,S,H,D]`"""
    query, key, value = projections(graph, shape, hidden)
    query = decomposed.split_heads(graph, query, shape.query_heads, shape.size)
    rows = []
    for part, new in (("key", key), ("value", value)):
        new = graph.add("Reshape", new, np.array([0, 0, shape.kv_heads, shape.size]))
        past = graph.past(number, part, shape.kv_heads, shape.size)
        rows.append(graph.add("Concat", past, new, outputs=[f"present.{number}.{part}"], axis=1))
    key, value = [decomposed.gather(graph, graph.add("Transpose", r, perm=[0, 2, 1, 3]), shape) for r in rows]
    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
    result = graph.add("MatMul", decomposed.softmax(graph, scores), value)
    return decomposed.join_heads(graph, result, shape)


def scattered(graph, number, shape, hidden):
    """A static cache, written by position."""
    query, key, value = projections(graph, shape, hidden)
    query = decomposed.split_heads(graph, query, shape.query_heads, shape.size)
    rows = []
    for part, new in (("key", key), ("value", value)):
        new = decomposed.split_heads(graph, new, shape.kv_heads, shape.size)
        places = graph.add("Unsqueeze", graph.positions(), np.array([1, 3]))
        places = graph.add("Expand", places, graph.add("Shape", new))
        past = graph.past(number, part, shape.kv_heads, shape.size)
        names = dict(outputs=[f"present.{number}.{part}"], name=f"write_{number}_{part}")
        rows.append(graph.add("ScatterElements", past, places, new, axis=2, **names))
    key, value = [decomposed.gather(graph, r, shape) for r in rows]
    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
    result = graph.add("MatMul", decomposed.softmax(graph, scores), value)
    return decomposed.join_heads(graph, result, shape)


def microsoft_attention(graph, number, shape, hidden):
    """com.microsoft Attention beside a layer that could be rewritten."""
    settings = dict(domain="com.microsoft", num_heads=4, name="/encoder/Attention")
    return graph.add("Attention", hidden, graph.weight(24, 3 * 128), graph.weight(3 * 128), **settings)


def crossed(graph, number, shape, hidden):
    """GroupQueryAttention with a key and no value."""
    query, key, _ = projections(graph, shape, hidden)
    inputs = [query, key, None, *pasts(graph, number, shape), *lengths(graph)]
    settings = dict(domain="com.microsoft", num_heads=4, kv_num_heads=2, name="/crossed")
    return graph.add("GroupQueryAttention", *inputs, outputs=outputs(graph, number), **settings)[0]

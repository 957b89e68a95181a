"""Multi-head latent attention, as DeepSeek has it: what is cached makes the keys and values of all heads."""

import numpy as np

from . import masks
from .builder import WIDTH, Shape, decoder, split_heads

LATENT, ROTATED, VALUE = 32, 16, 24


def appended(graph, number, part, new, heads, size):
    past = graph.past(number, part, heads, size)
    return graph.add("Concat", past, new, outputs=[f"present.{number}.{part}"], axis=2)


def projected(graph, hidden, heads, size):
    """`[B,heads,L,size]`"""
    return split_heads(graph, graph.add("MatMul", hidden, graph.weight(WIDTH, heads * size)), heads, size)


def result(graph, shape, scores, value, size):
    scores = graph.add("Mul", scores, np.float32((LATENT + ROTATED) ** -0.5))
    scores = graph.add("Add", scores, graph.add("Where", masks.padded(graph), np.float32(0), np.float32(-1e9)))
    attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    turned = graph.add("Transpose", attended, perm=[0, 2, 1, 3])
    flat = graph.add("Reshape", turned, np.array([0, 0, shape.query_heads * size]))
    # As wide as the projection behind it expects.
    return graph.add("MatMul", flat, graph.weight(shape.query_heads * size, shape.query_heads * shape.size))


def turned(graph, key):
    return graph.add("Transpose", key, perm=[0, 1, 3, 2])


def whole(graph, number, shape, hidden):
    """Keys and values are cached, as Transformers does: keys of more channels than values."""
    heads, size = shape.query_heads, LATENT + ROTATED
    key = appended(graph, number, "key", projected(graph, hidden, heads, size), heads, size)
    value = appended(graph, number, "value", projected(graph, hidden, heads, VALUE), heads, VALUE)
    scores = graph.add("MatMul", projected(graph, hidden, heads, size), turned(graph, key))
    return result(graph, shape, scores, value, VALUE)


def cached(graph, number, hidden):
    """The latent, and the one key that is rotated."""
    latent = appended(graph, number, "key", projected(graph, hidden, 1, LATENT), 1, LATENT)
    return latent, appended(graph, number, "value", projected(graph, hidden, 1, ROTATED), 1, ROTATED)


def expanded(graph, number, shape, hidden):
    """The latent is cached, and each call makes keys and values of it."""
    heads = shape.query_heads
    latent, rotated = cached(graph, number, hidden)
    key, value = [
        split_heads(
            graph,
            graph.add("MatMul", graph.add("Squeeze", latent, np.array([1])), graph.weight(LATENT, heads * size)),
            heads,
            size,
        )
        for size in (LATENT, VALUE)
    ]
    shared = graph.add("Concat", graph.batch(), np.array([heads]), graph.total(), np.array([ROTATED]), axis=0)
    key = graph.add("Concat", key, graph.add("Expand", rotated, shared), axis=-1)
    scores = graph.add("MatMul", projected(graph, hidden, heads, LATENT + ROTATED), turned(graph, key))
    return result(graph, shape, scores, value, VALUE)


def absorbed(graph, number, shape, hidden):
    """The latent is cached, and is key and value itself."""
    latent, rotated = cached(graph, number, hidden)
    products = [
        graph.add("MatMul", projected(graph, hidden, shape.query_heads, size), turned(graph, key))
        for key, size in ((latent, LATENT), (rotated, ROTATED))
    ]
    return result(graph, shape, graph.add("Add", *products), latent, LATENT)


def model(attend):
    """A model whose layers are `attend`, its caches declared as these have them."""
    shape = Shape(4, 4)
    made = decoder(attend, shape)
    heads = {"key": (shape.query_heads, LATENT + ROTATED), "value": (shape.query_heads, VALUE)}
    sizes = heads if attend is whole else {"key": (1, LATENT), "value": (1, ROTATED)}
    for info in [*made.graph.input, *made.graph.output]:
        if part := sizes.get(info.name.rpartition(".")[2]):
            dims = info.type.tensor_type.shape.dim
            dims[1].dim_value, dims[3].dim_value = part
    return made

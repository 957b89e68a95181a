"""Attention as one node: GroupQueryAttention, MultiHeadAttention, ONNX Attention."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from . import decomposed, masks
from .builder import WIDTH, append, projections, split_heads, tables

MICROSOFT = "com.microsoft"


def rotated(graph, tensor, size, heads, interleaved=0):
    """com.microsoft RotaryEmbedding of `[B,L,H*D]`"""
    cos, sin = [graph.constant(t.astype(graph.dtype)) for t in tables(size)]
    settings = dict(domain=MICROSOFT, num_heads=heads, interleaved=interleaved)
    return graph.add("RotaryEmbedding", tensor, graph.positions(), cos, sin, **settings)


def lengths(graph):
    """seqlens_k and total_sequence_length, as the model builder of ONNX Runtime GenAI makes them."""

    def make():
        whole = graph.add("ReduceSum", graph.mask(), np.array([1]), keepdims=0)
        last = graph.cast(graph.add("Sub", whole, np.array(1)), TensorProto.INT32)
        total = graph.cast(graph.scalar(graph.size(graph.mask(), 1)), TensorProto.INT32)
        return last, total

    return graph.once("lengths", make)


def outputs(graph, number):
    return [graph.name("attended"), f"present.{number}.key", f"present.{number}.value"]


def pasts(graph, number, shape):
    return [graph.past(number, part, shape.kv_heads, shape.size) for part in ("key", "value")]


def gains(graph, number, shape):
    """Weights of the normalisation of query and key heads, `[D]` each."""
    draw = np.random.default_rng(1000 + number)
    return [(1 + 0.5 * draw.standard_normal(shape.size)).astype(graph.dtype) for _ in range(2)]


def normalised(graph, tensor, heads, size, weight, epsilon):
    """Each head of `[B,L,H*D]` divided by its root mean square."""
    rows = graph.add("Reshape", tensor, np.array([0, 0, heads, size]))
    rows = graph.add("SimplifiedLayerNormalization", rows, weight, axis=-1, epsilon=epsilon, stash_type=1)
    return graph.add("Reshape", rows, np.array([0, 0, heads * size]))


def rotation_tables(graph, size, kind):
    """cos_cache and sin_cache of `size` channels, made as `kind` says."""
    whole = [t.astype(graph.dtype) for t in tables(size)]
    if kind == "initializer":
        return whole
    if kind == "Constant":
        return [graph.add("Constant", value=numpy_helper.from_array(t)) for t in whole]
    if kind == "Cast":
        return [graph.cast(graph.constant(t.astype(np.float64).astype(np.float16))) for t in whole]

    def branch(name, factor):
        values = [numpy_helper.from_array((t * factor).astype(graph.dtype)) for t in whole]
        nodes = [helper.make_node("Constant", [], [f"{name}_{i}"], value=v) for i, v in enumerate(values)]
        outputs = [helper.make_tensor_value_info(f"{name}_{i}", graph.element, None) for i in range(2)]
        return helper.make_graph(nodes, name, [], outputs)

    def choose():
        # Longer texts have another table.
        long = graph.add("Greater", graph.scalar(graph.size(graph.mask(), 1)), np.array(15))
        return graph.add("If", long, outputs=2, then_branch=branch("long", 1.1), else_branch=branch("short", 1.0))

    return graph.once("tables", choose)


def partly(kind="initializer", size=16, packed=False, positions=False, interleaved=0):
    """A layer of GroupQueryAttention that rotates the first `size` channels of each head."""

    def layer(graph, number, shape, hidden):
        query, key, value = projections(graph, shape, hidden)
        if packed:
            query, key, value = graph.add("Concat", query, key, value, axis=-1), None, None
        cos, sin = graph.once("both tables", lambda: rotation_tables(graph, size, kind))
        places = graph.positions() if positions else None
        inputs = [query, key, value, *pasts(graph, number, shape), *lengths(graph), cos, sin, places]
        settings = dict(
            num_heads=shape.query_heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            name=f"/layers.{number}/GroupQueryAttention",
        )
        settings["rotary_interleaved"] = interleaved
        return graph.add("GroupQueryAttention", *inputs, outputs=outputs(graph, number), domain=MICROSOFT, **settings)[
            0
        ]

    return layer


def group_query(
    packed=False,
    rotary="inside",
    positions=False,
    bias=None,
    interleaved=0,
    norm=None,
    epsilons=(1e-6, 1e-6),
    **attributes,
):
    """A layer of GroupQueryAttention; `rotary`: inside, outside, none; `norm` of query and key heads: inside,
    outside."""

    def layer(graph, number, shape, hidden):
        query, key, value = projections(graph, shape, hidden)
        weights = gains(graph, number, shape)
        if norm == "outside":
            query = normalised(graph, query, shape.query_heads, shape.size, weights[0], epsilons[0])
            key = normalised(graph, key, shape.kv_heads, shape.size, weights[1], epsilons[1])
        if rotary == "outside":
            query = rotated(graph, query, shape.size, shape.query_heads, interleaved)
            key = rotated(graph, key, shape.size, shape.kv_heads, interleaved)
        if packed:
            query, key, value = graph.add("Concat", query, key, value, axis=-1), None, None
        cos, sin, places = None, None, None
        settings = dict(num_heads=shape.query_heads, kv_num_heads=shape.kv_heads, **attributes)
        if rotary == "inside":
            cos, sin = [t.astype(graph.dtype) for t in tables(shape.size)]
            settings.update(do_rotary=1, rotary_interleaved=interleaved)
            places = graph.positions() if positions else None
        added = graph.once("bias", lambda: bias(graph)) if bias else None
        inputs = [query, key, value, *pasts(graph, number, shape), *lengths(graph), cos, sin, places, added]
        if norm == "inside":
            inputs += [None, None, None, *weights]
        return graph.add(
            "GroupQueryAttention",
            *inputs,
            outputs=outputs(graph, number),
            domain=MICROSOFT,
            name=f"/layers.{number}/GroupQueryAttention",
            **settings,
        )[0]

    return layer


def packed_matmul(graph, number, shape, hidden):
    """GroupQueryAttention between MatMuls, as the GenAI builder has it: one for query, key and value."""
    wide = (shape.query_heads + 2 * shape.kv_heads) * shape.size
    packed = graph.add("MatMul", hidden, graph.weight(WIDTH, wide, scale=1.5 * WIDTH**-0.5))
    cos, sin = [t.astype(graph.dtype) for t in tables(shape.size)]
    inputs = [packed, None, None, *pasts(graph, number, shape), *lengths(graph), cos, sin]
    settings = dict(num_heads=shape.query_heads, kv_num_heads=shape.kv_heads, do_rotary=1)
    return graph.add("GroupQueryAttention", *inputs, outputs=outputs(graph, number), domain=MICROSOFT, **settings)[0]


def multi_head(mask=None, behind=None, rotary=False, **attributes):
    """A layer of MultiHeadAttention; `behind`: how KV heads are repeated behind a Concat, else past is on the node."""

    def layer(graph, number, shape, hidden):
        query, key, value = projections(graph, shape, hidden)
        if rotary:
            query = rotated(graph, query, shape.size, shape.query_heads)
            key = rotated(graph, key, shape.size, shape.kv_heads)
        added = graph.once("bias", lambda: mask(graph)) if mask else None
        settings = dict(
            domain=MICROSOFT, num_heads=shape.query_heads, name=f"/layers.{number}/MultiHeadAttention", **attributes
        )
        if not behind:
            inputs = [query, key, value, None, None, added, *pasts(graph, number, shape)]
            return graph.add("MultiHeadAttention", *inputs, outputs=outputs(graph, number), **settings)[0]
        key, value = appended(graph, number, shape, key, value, behind)
        flat = [
            graph.add(
                "Reshape",
                graph.add("Transpose", t, perm=[0, 2, 1, 3]),
                np.array([0, 0, shape.query_heads * shape.size]),
            )
            for t in (key, value)
        ]
        return graph.add("MultiHeadAttention", query, *flat, None, None, added, **settings)

    return layer


def appended(graph, number, shape, key, value, repeat):
    """`[B,L,Hk*D]` to the whole cache with KV heads repeated, `[B,Hq,S,D]`"""
    parts = []
    for part, new in (("key", key), ("value", value)):
        rows = append(graph, number, part, split_heads(graph, new, shape.kv_heads, shape.size), shape)
        parts.append(repeat(graph, rows, shape))
    return parts


def attention(mask=None, four=False, behind=None, **attributes):
    """A layer of ONNX Attention, its tensors flat or, with `four`, `[B,H,L,D]`."""

    def layer(graph, number, shape, hidden):
        heads = [shape.query_heads, shape.kv_heads, shape.kv_heads]
        query, key, value = projections(graph, shape, hidden)
        settings = dict(attributes, name=f"/layers.{number}/Attention")
        if not four and not behind:
            settings.update(q_num_heads=shape.query_heads, kv_num_heads=shape.kv_heads)
        else:
            query = split_heads(graph, query, heads[0], shape.size)
        tensor = graph.once("mask", lambda: mask(graph)) if mask else None
        if behind:
            key, value = appended(graph, number, shape, key, value, behind)
            result = graph.add("Attention", query, key, value, tensor, **settings)
            return decomposed.join_heads(graph, result, shape)
        if four:
            key, value = [split_heads(graph, t, shape.kv_heads, shape.size) for t in (key, value)]
        inputs = [query, key, value, tensor, *pasts(graph, number, shape)]
        result = graph.add("Attention", *inputs, outputs=outputs(graph, number), **settings)[0]
        return decomposed.join_heads(graph, result, shape) if four else result

    return layer


def added_padded(graph):
    """Float `[B,1,L,S]`, padding and causality."""
    return masks.added(graph, masks.padded(graph))

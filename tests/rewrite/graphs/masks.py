"""The ways in which exported models spell masks: functions of a graph that give a tensor.

Boolean ones are true where a key is seen. Float ones are added to scores.
"""

import numpy as np
from onnx import TensorProto

BOOL = TensorProto.BOOL
LOW = {np.float32: -1e9, np.float16: -65504.0}


def rows(graph):
    """Positions of the new tokens `[L,1]`, from shapes."""
    return graph.add("Unsqueeze", graph.range(graph.old(), graph.total()), np.array([1]))


def columns(graph):
    """Positions of all tokens `[1,S]`, from shapes."""
    return graph.add("Unsqueeze", graph.range(np.array([0]), graph.total()), np.array([0]))


def causal(graph):
    """Boolean `[L,S]` from shapes only."""
    return graph.once("causal", lambda: graph.add("LessOrEqual", columns(graph), rows(graph)))


def four(graph, mask):
    """`[L,S]` to `[1,1,L,S]`"""
    return graph.add("Unsqueeze", mask, np.array([0, 1]))


def padding(graph):
    """Boolean `[B,1,1,S]` from attention_mask."""
    return graph.add("Unsqueeze", graph.cast(graph.mask(), BOOL), np.array([1, 2]))


def padded(graph):
    """Boolean `[B,1,L,S]` from shapes and attention_mask."""
    return graph.once("padded", lambda: graph.add("And", four(graph, causal(graph)), padding(graph)))


def added(graph, boolean, low=None):
    """What a boolean mask adds to scores."""
    return graph.add("Where", boolean, 0.0, float(low or LOW[graph.dtype]))


def trilu(graph, upper=True):
    """Float `[L,S]`: the lowest number above the diagonal that P shifts, or ones below it made so."""
    shape = graph.add("Concat", graph.new(), graph.total(), axis=0)
    if upper:
        low = graph.add("Expand", LOW[graph.dtype], shape)
        return graph.add("Trilu", low, graph.scalar(graph.add("Add", graph.old(), np.array([1]))), upper=1)
    ones = graph.add("Trilu", graph.add("Expand", np.array(1), shape), graph.scalar(graph.old()), upper=0)
    return graph.add("Where", graph.cast(ones, BOOL), 0.0, LOW[graph.dtype])


def by_positions(graph):
    """Boolean `[B,1,L,S]` from position_ids."""
    positions = graph.add("Unsqueeze", graph.positions(), np.array([1, 3]))
    return graph.add("LessOrEqual", columns(graph), positions)


def window(graph, length, spelt="initializer"):
    """Boolean `[1,1,L,S]`, causal and no further back than `length` tokens."""
    if spelt == "initializer":
        number = graph.constant(np.array(length))
    elif spelt == "Constant":
        number = graph.add("Constant", value_int=length)
    else:
        # The same number, but nowhere as one: half of it added to itself.
        half = graph.constant(np.array(length // 2))
        number = graph.add("Add", half, half)
    near = graph.add("Greater", columns(graph), graph.add("Sub", rows(graph), number))
    return four(graph, graph.add("And", causal(graph), near))


def window_by_table(graph, length, size=64):
    """The same, cut from a stored matrix, as GPT-Neo keeps its local attention."""
    i, j = np.arange(size)[:, None], np.arange(size)[None]
    table = graph.constant(((j <= i) & (j > i - length))[None, None])
    part = graph.add("Slice", table, graph.old(), graph.total(), np.array([2]))
    return graph.add("Slice", part, np.array([0]), graph.total(), np.array([3]))


def window_by_stored_positions(graph, length, size=64):
    """The same, positions read from a stored range."""
    stored = graph.constant(np.arange(size))
    i = graph.add("Slice", stored, graph.old(), graph.total(), np.array([0]))
    j = graph.add("Slice", stored, np.array([0]), graph.total(), np.array([0]))
    i, j = graph.add("Unsqueeze", i, np.array([1])), graph.add("Unsqueeze", j, np.array([0]))
    near = graph.add("Less", graph.add("Sub", i, j), np.array(length))
    return four(graph, graph.add("And", graph.add("LessOrEqual", j, i), near))


def causal_by_table(graph, size=64):
    """Causal, cut from a stored matrix, as GPT-2 keeps it."""
    return window_by_table(graph, size, size)


def cut(graph, mask, extra=3):
    """A float mask of more columns, of which the first S are taken."""
    sizes = [graph.batch(), np.array([1]), graph.new(), np.array([extra])]
    more = graph.add("Expand", np.array(False), graph.add("Concat", *sizes, axis=0))
    wide = added(graph, graph.add("Concat", mask(graph), more, axis=-1))
    return graph.add("Slice", wide, np.array([0]), graph.total(), np.array([3]))


def cut_from_behind(graph, extra=3):
    """Boolean `[B,1,1,S]`, the last S columns of a wider one whose first are all true."""
    more = graph.add("Expand", np.array(True), graph.add("Concat", graph.batch(), np.array([1, 1, extra]), axis=0))
    wide = graph.add("Concat", more, padding(graph), axis=-1)
    return graph.add("Slice", wide, np.array([extra]), np.array([2**62]), np.array([3]))


def prefix_given(graph):
    """Boolean `[1,1,L,S]`, as prefix(), the number of early tokens an input of the model."""
    early = graph.add("Less", columns(graph), graph.input("prefix_length", TensorProto.INT64, [1]))
    return four(graph, graph.add("Or", causal(graph), early))


def prefix(graph, length):
    """Boolean `[1,1,L,S]`: causal, but all see the first `length` tokens, later ones too."""
    early = graph.add("Less", columns(graph), np.array(length))
    return four(graph, graph.add("Or", causal(graph), early))


def alibi(graph, heads):
    """Float `[1,H,L,S]`: causal, and keys count the less the further away they are."""
    slopes = graph.constant((2.0 ** -np.arange(1, heads + 1))[:, None, None])
    distance = graph.cast(graph.add("Sub", columns(graph), rows(graph)))
    sloped = graph.add("Mul", graph.add("Unsqueeze", distance, np.array([0])), slopes)
    return graph.add("Unsqueeze", graph.add("Add", sloped, added(graph, causal(graph))), np.array([0]))

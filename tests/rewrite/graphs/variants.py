"""Every spelling of attention that the rewriter must know, as small models, and what it must make of each."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np

from . import decomposed, masks
from .builder import Shape, decoder
from .decomposed import attention as spelt_out
from .fused import added_padded, attention, group_query, multi_head, packed_matmul, partly

GQA, MHA, ATTENTION, DECOMPOSED = "GroupQueryAttention", "MultiHeadAttention", "Attention", "decomposed"
EQUAL_HEADS = Shape(4, 4)
# Causality through attention_bias, through the attribute, or neither.
BIAS, CAUSAL, BOTH, NEITHER = (0, True), (1, False), (1, True), (0, False)


@dataclass
class Variant:
    """A model and what the rewriter must make of it."""

    attend: object
    source: str = DECOMPOSED
    # Attribute causal of SparkAttention, and whether it has an attention_bias.
    masking: tuple = CAUSAL
    shape: Shape = field(default_factory=Shape)
    dtype: type = np.float32
    opset: int = 18
    static: dict = None
    # Sides on which sequences of a batch may be padded; without any, they are of one length.
    padding: tuple = ()
    # Whether several tokens may follow the prompt at once; GroupQueryAttention takes them one by one.
    chunk: bool = True
    # Whether the model says what shapes its tensors have.
    inferred: bool = False
    # Inputs that only this model has.
    feeds: dict = None
    # The same layers in a spelling that ONNX Runtime can run on the CPU, where it cannot run the model itself.
    oracle: object = None
    # Greatest difference of a logit, as a share of the greatest logit, where it is not the usual one.
    within: float = None

    def model(self, oracle=False):
        attend = self.oracle if oracle and self.oracle else self.attend
        return decoder(attend, self.shape, self.dtype, self.opset, self.static, self.inferred)


BOTH_SIDES = ("right", "left")
RIGHT = ("right",)
mask_made_wide = partial(masks.window, length=4096)


def gqa(*arguments, **settings):
    names = ("shape", "dtype", "masking", "opset", "oracle", "within")
    more = {n: settings.pop(n) for n in names if n in settings}
    return Variant(group_query(*arguments, **settings), GQA, padding=RIGHT, chunk=False, **more)


def normed(epsilons=(1e-6, 1e-6), given=None, **settings):
    """GroupQueryAttention that normalises the heads of query and key, which ONNX Runtime does not do on the CPU."""
    more = {n: settings.pop(n) for n in ("dtype", "opset") if n in settings}
    oracle = group_query(norm="outside", epsilons=epsilons, **settings)
    return gqa(norm="inside", oracle=oracle, **(given or {}), **settings, **more)


def mha(masking, padding=(), shape=EQUAL_HEADS, dtype=np.float32, **settings):
    return Variant(multi_head(**settings), MHA, masking, shape, dtype, padding=padding)


def onnx(masking, padding=(), shape=None, dtype=np.float32, opset=23, inferred=True, feeds=None, **settings):
    layer = attention(**settings)
    return Variant(
        layer, ATTENTION, masking, shape or Shape(), dtype, opset, padding=padding, inferred=inferred, feeds=feeds
    )


def parts(masking=BOTH, padding=BOTH_SIDES, shape=None, **settings):
    more = {n: settings.pop(n) for n in ("dtype", "static", "chunk", "within", "inferred", "feeds") if n in settings}
    return Variant(spelt_out(**settings), DECOMPOSED, masking, shape or Shape(), padding=padding, **more)


def unpadded(masking, mask, **settings):
    return parts(masking, (), mask=mask, **settings)


def bias_of_heads(graph):
    """A float attention_bias that is no mask: `[1,H,L,S]`."""
    return masks.alibi(graph, 4)


def flat_causal(graph):
    """Float `[L,S]`"""
    return masks.added(graph, masks.causal(graph))


def summed(graph):
    """A mask `[B,1,1,S]` and one `[L,S]` added up before they meet the scores."""
    return graph.add("Add", masks.added(graph, masks.padding(graph)), masks.trilu(graph))


def padding_of_rows(graph):
    """Boolean `[B,1,L,S]` of padding only; ONNX Runtime 1.32 takes no mask of fewer rows than queries."""
    shape = graph.add("Concat", graph.batch(), np.array([1]), graph.new(), graph.total(), axis=0)
    return graph.add("Expand", masks.padding(graph), shape)


def five(mask):
    """The mask `[.,1,L,S]` for scores `[B,Hk,G,L,S]`"""
    return lambda graph: graph.add("Unsqueeze", mask(graph), np.array([1]))


def by_layer(*layers):
    """Layers that differ from each other."""
    return lambda graph, number, shape, hidden: layers[number](graph, number, shape, hidden)


def scaled_mask(graph):
    """Float `[B,1,L,S]`: (1 - mask) times the lowest number."""
    seen = graph.cast(masks.padded(graph))
    return graph.add("Mul", graph.add("Sub", 1.0, seen), masks.LOW[graph.dtype])


def without_padding(graph):
    """Boolean `[1,1,L,S]`"""
    return masks.four(graph, masks.causal(graph))


PREFIX = {"prefix_length": np.array([3])}

SCALES = [f"{how} product" for how in ("Mul", "Mul-first", "Div", "Div-shape", "Mul-shape")]
SCALES += [f"{how} {place}" for how in ("Mul", "Div") for place in ("query", "key", "query key")]
SCALES += ["Mul-shape query", "Div-shape query", "Mul-shape query key"]

REPEATS = [
    decomposed.expand,
    decomposed.tile,
    decomposed.gather,
    decomposed.copies,
    decomposed.split,
    decomposed.reshaped_twice,
]

VARIANTS = {
    "gqa": gqa(),
    "gqa-packed": gqa(packed=True),
    "gqa-rotary-outside": gqa(rotary="outside"),
    "gqa-packed-no-rotary": gqa(packed=True, rotary="none"),
    "gqa-interleaved": gqa(interleaved=1),
    "gqa-interleaved-outside": gqa(rotary="outside", interleaved=1),
    "gqa-positions": gqa(positions=True),
    "gqa-bias": gqa(bias=bias_of_heads, masking=BOTH),
    "gqa-softcap": gqa(softcap=1.5),
    "gqa-window": gqa(local_window_size=6),
    "gqa-scale": gqa(scale=0.35),
    "gqa-not-causal": gqa(causal=0, masking=NEITHER),
    "gqa-known-and-unused": gqa(smooth_softmax=-1, qk_output=0, k_quant_type="NONE", kv_cache_bit_width=0),
    "gqa-norm": normed(),
    "gqa-norm-packed": normed(packed=True),
    "gqa-norm-epsilon": normed((0.5, 0.5), {"qk_norm_epsilon": 0.5}, rotary="none"),
    "gqa-norm-epsilons": normed((0.5, 2.0), {"q_norm_epsilon": 0.5, "qk_norm_epsilon": 2.0}, packed=True),
    "gqa-norm-float16": normed(dtype=np.float16, packed=True),
    "gqa-everything": gqa(positions=True, bias=bias_of_heads, masking=BOTH, softcap=2.0, scale=0.3),
    "gqa-one-kv-head": gqa(shape=Shape(4, 1)),
    "gqa-equal-heads": gqa(shape=EQUAL_HEADS),
    "gqa-128": gqa(shape=Shape(2, 1, 128)),
    "gqa-float16": gqa(dtype=np.float16),
    "gqa-float16-packed": gqa(dtype=np.float16, packed=True),
    "gqa-float16-bias": gqa(dtype=np.float16, positions=True, bias=bias_of_heads, masking=BOTH),
    "gqa-float16-bias-packed": gqa(dtype=np.float16, packed=True, bias=bias_of_heads, masking=BOTH),
    "gqa-float16-no-rotary": gqa(dtype=np.float16, rotary="none"),
    "gqa-float16-isolated": Variant(packed_matmul, GQA, dtype=np.float16, padding=RIGHT, chunk=False),
    **{
        f"gqa-partly-{kind}-{size}": Variant(partly(kind, size), GQA, padding=RIGHT, chunk=False)
        for kind in ("initializer", "Constant", "Cast", "If")
        for size in (16, 32)
    },
    "gqa-partly-packed": Variant(partly(packed=True), GQA, padding=RIGHT, chunk=False),
    "gqa-partly-positions": Variant(partly("If", positions=True, packed=True), GQA, padding=RIGHT, chunk=False),
    "gqa-partly-interleaved": Variant(partly(interleaved=1), GQA, padding=RIGHT, chunk=False),
    "gqa-partly-float16": Variant(partly("If", packed=True), GQA, dtype=np.float16, padding=RIGHT, chunk=False),
    "mha": mha(NEITHER),
    "mha-unidirectional": mha(CAUSAL, unidirectional=1),
    "mha-rotary": mha(CAUSAL, rotary=True, unidirectional=1),
    "mha-bias": mha(BOTH, BOTH_SIDES, mask=added_padded),
    "mha-rotary-bias": mha(BOTH, BOTH_SIDES, mask=added_padded, rotary=True),
    "mha-causal-bias": mha(CAUSAL, mask=lambda g: masks.added(g, without_padding(g))),
    "mha-bias-of-heads": mha(BOTH, mask=bias_of_heads),
    "mha-scale": mha(BOTH, BOTH_SIDES, mask=added_padded, scale=0.4),
    "mha-behind": mha(BOTH, BOTH_SIDES, mask=added_padded, behind=decomposed.expand, shape=Shape()),
    "mha-behind-rotary": mha(BOTH, BOTH_SIDES, mask=added_padded, behind=decomposed.expand, shape=Shape(), rotary=True),
    "mha-behind-tile": mha(BOTH, BOTH_SIDES, mask=added_padded, behind=decomposed.tile, shape=Shape()),
    "mha-behind-equal-heads": mha(BOTH, BOTH_SIDES, mask=added_padded, behind=decomposed.as_is),
    "mha-behind-no-mask": mha(NEITHER, behind=decomposed.expand, shape=Shape()),
    "mha-float16": mha(BOTH, RIGHT, mask=added_padded, rotary=True, dtype=np.float16),
    "attention": onnx(NEITHER),
    "attention-causal": onnx(CAUSAL, is_causal=1),
    "attention-no-shapes": onnx(CAUSAL, is_causal=1, inferred=False),
    "attention-four-no-shapes": onnx(CAUSAL, is_causal=1, four=True, inferred=False),
    "attention-four": onnx(NEITHER, four=True),
    "attention-four-causal": onnx(CAUSAL, four=True, is_causal=1),
    "attention-equal-heads": onnx(CAUSAL, is_causal=1, shape=EQUAL_HEADS),
    "attention-one-kv-head": onnx(CAUSAL, four=True, is_causal=1, shape=Shape(4, 1)),
    "attention-bool": onnx(BOTH, RIGHT, mask=masks.padded),
    "attention-bool-four": onnx(BOTH, RIGHT, mask=masks.padded, four=True),
    "attention-float": onnx(BOTH, BOTH_SIDES, mask=added_padded),
    "attention-float-four": onnx(BOTH, BOTH_SIDES, mask=added_padded, four=True),
    "attention-flat-bool": onnx(CAUSAL, mask=masks.causal),
    "attention-flat-float": onnx(CAUSAL, mask=flat_causal, four=True),
    "attention-flat-window": onnx(BOTH, mask=lambda g: g.add("Squeeze", masks.window(g, 5), np.array([0, 1]))),
    "attention-causal-and-padding": onnx(BOTH, RIGHT, mask=padding_of_rows, is_causal=1),
    "attention-prefix": onnx(BIAS, mask=partial(masks.prefix, length=3)),
    "attention-prefix-given": onnx(BIAS, mask=masks.prefix_given, feeds=PREFIX),
    "attention-behind-prefix-given": onnx(BIAS, mask=masks.prefix_given, behind=decomposed.expand, feeds=PREFIX),
    "attention-alibi": onnx(BOTH, mask=bias_of_heads),
    "attention-scale": onnx(CAUSAL, is_causal=1, scale=0.4),
    "attention-softcap": onnx(CAUSAL, is_causal=1, softcap=1.5),
    "attention-softcap-bool": onnx(BOTH, RIGHT, mask=masks.padded, softcap=1.5),
    "attention-softcap-float": onnx(BOTH, BOTH_SIDES, mask=added_padded, softcap=1.5, opset=24, four=True),
    "attention-softcap-bias": onnx(BOTH, mask=bias_of_heads, softcap=1.5, opset=25),
    "attention-softcap-behind": onnx(BOTH, RIGHT, mask=masks.padded, softcap=1.5, behind=decomposed.expand),
    "attention-behind": onnx(BOTH, RIGHT, mask=masks.padded, behind=decomposed.expand),
    "attention-behind-float": onnx(BOTH, BOTH_SIDES, mask=added_padded, behind=decomposed.tile),
    "attention-behind-equal-heads": onnx(BOTH, RIGHT, mask=masks.padded, behind=decomposed.as_is, shape=EQUAL_HEADS),
    "attention-behind-grouped": onnx(BOTH, RIGHT, mask=masks.padded, behind=decomposed.as_is),
    "attention-behind-no-mask": onnx(NEITHER, behind=decomposed.expand),
    "attention-float16": onnx(BOTH, RIGHT, mask=masks.padded, dtype=np.float16),
    "attention-window": onnx(NEITHER, opset=25, left_window_size=5),
    "attention-window-causal": onnx(CAUSAL, opset=25, left_window_size=4, is_causal=1, right_window_size=2),
    "attention-window-right": onnx(CAUSAL, opset=25, left_window_size=0, right_window_size=0, four=True),
    "attention-opset-24": onnx(BOTH, RIGHT, mask=masks.padded, opset=24),
    # Scores beyond 10 magnify what rounding does.
    "scale none": parts(scale="none", within=2e-2),
    **{f"scale {how}": parts(scale=how) for how in SCALES},
    **{f"repeat {f.__name__}": parts(repeat=f) for f in REPEATS},
    "repeat as_is": parts(repeat=decomposed.as_is, shape=EQUAL_HEADS),
    "repeat none, one KV head": parts(repeat=decomposed.as_is, shape=Shape(4, 1)),
    "key scaled before it is turned": parts(scale="Mul query key", late_transpose=True),
    "grouped": Variant(decomposed.grouped(), masking=CAUSAL),
    "grouped, window": Variant(decomposed.grouped(partial(masks.window, length=5)), masking=BOTH),
    "grouped, mask of five dimensions": Variant(
        decomposed.grouped(five(masks.padded)), masking=BOTH, padding=BOTH_SIDES
    ),
    "grouped, causal mask of five dimensions": Variant(decomposed.grouped(five(without_padding))),
    "mask added": parts(mask=added_padded, how="add"),
    "mask added first": parts(mask=added_padded, how="add", mask_first=True),
    "mask multiplied": parts(mask=scaled_mask, how="add"),
    "mask where": parts(how="where"),
    "mask where, infinite": parts(padding=RIGHT, how="where", low=-np.inf),
    "mask where, infinite, guarded": parts(how="where", low=-np.inf, guarded=True),
    "mask where-add, infinite, guarded": parts(how="where-add", low=-np.inf, guarded=True),
    "mask of shapes": unpadded(CAUSAL, without_padding, how="where-add"),
    "mask of shapes, on the scores": unpadded(CAUSAL, without_padding, how="where"),
    "mask flat": unpadded(CAUSAL, flat_causal, how="add"),
    "mask trilu": unpadded(CAUSAL, masks.trilu, how="add"),
    "mask trilu of ones": unpadded(CAUSAL, partial(masks.trilu, upper=False), how="add"),
    "mask of positions": parts(BOTH, (), mask=masks.by_positions, how="where-add"),
    "mask summed": parts(mask=summed, how="add"),
    "mask table": unpadded(CAUSAL, masks.causal_by_table, how="where"),
    "mask prefix": unpadded(BIAS, partial(masks.prefix, length=3), how="where-add"),
    "mask alibi": unpadded(BOTH, bias_of_heads, how="add"),
    "mask weak": unpadded(BIAS, without_padding, low=-3.0),
    "mask cut": parts(mask=partial(masks.cut, mask=masks.padded), how="add"),
    "mask cut from behind": parts(BIAS, RIGHT, mask=masks.cut_from_behind),
    "masked fill": parts(how=decomposed.masked_fill),
    "capped": parts(how=decomposed.capped()),
    "capped, scaled query": parts(how=decomposed.capped(0.5, times=True), scale="Mul query key"),
    "capped, float16": parts(how=decomposed.capped(), dtype=np.float16, padding=RIGHT),
    "two masks": parts(how=decomposed.two_masks),
    "mask of each layer": Variant(
        by_layer(
            spelt_out(mask=masks.padded), spelt_out(mask=lambda g: g.add("And", masks.padded(g), masks.window(g, 5)))
        ),
        masking=BOTH,
        padding=RIGHT,
    ),
    "two kinds of layers": Variant(
        by_layer(spelt_out(), multi_head(mask=added_padded)), masking=BOTH, shape=EQUAL_HEADS, padding=RIGHT
    ),
    "mask given": parts(BIAS, (), mask=masks.prefix_given, shape=Shape(layers=1), feeds=PREFIX),
    "mask of padding only": parts(BIAS, RIGHT, mask=masks.padding, how="where-add"),
    "no mask": unpadded(NEITHER, None),
    "window 5": unpadded(BOTH, partial(masks.window, length=5), how="where-add"),
    "window 16": unpadded(BOTH, partial(masks.window, length=16), how="where-add"),
    "window 16, on the scores": unpadded(BOTH, partial(masks.window, length=16), how="where"),
    "window 4096": unpadded(BOTH, mask_made_wide, how="where-add"),
    "window 16 in a Constant": unpadded(BOTH, partial(masks.window, length=16, spelt="Constant"), how="where-add"),
    "window 16 as a sum": unpadded(BOTH, partial(masks.window, length=16, spelt="sum"), how="where-add"),
    "window 16 in a table": unpadded(BOTH, partial(masks.window_by_table, length=16), how="where"),
    "window 32 of stored positions": unpadded(
        BOTH, partial(masks.window_by_stored_positions, length=32), how="where-add"
    ),
    "rotary": parts(rotate=decomposed.rotate_half),
    "identity": parts(identity=True),
    "guarded": parts(guarded=True),
    "declared shapes": parts(inferred=True),
    "declared shapes, split": parts(inferred=True, repeat=decomposed.split, how="where"),
    "three groups": parts(shape=Shape(6, 2, layers=1)),
    "head size 64": parts(shape=Shape(2, 1, 64)),
    "head size 128": parts(shape=Shape(2, 1, 128)),
    "head size 40": parts(shape=Shape(2, 1, 40)),
    "float16": parts(padding=RIGHT, dtype=np.float16),
    "float16, float32 softmax": parts(padding=RIGHT, dtype=np.float16, softmax=decomposed.wide_softmax),
    "float16, rotary": parts(padding=RIGHT, dtype=np.float16, rotate=decomposed.rotate_half),
    "float16, float32 mask": parts(padding=RIGHT, dtype=np.float16, how=decomposed.wide_mask),
    "float16, no mask": unpadded(NEITHER, None, dtype=np.float16),
    "static batch": parts(static={"batch": 2}),
    "static tokens": parts(static={"batch": 1, "tokens": 1}, padding=(), chunk=False),
}

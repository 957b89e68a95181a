"""What onnx must know of the operators to check a model: docs/operators.md as schemas."""

from contextlib import contextmanager

import onnx
from onnx.defs import OpSchema

T, C, I = ("T", ["tensor(float)", "tensor(float16)"]), ("C", ["tensor(float)", "tensor(float16)", "tensor(uint8)"]), 1
Option = OpSchema.FormalParameterOption
INPUTS = [
    ("query", "T", True),
    ("key", "T", False),
    ("value", "T", False),
    ("past_key", "C", True),
    ("past_value", "C", True),
    ("seqlens_k", "tensor(int32)", False),
    ("total_sequence_length", "tensor(int32)", False),
    ("cos_cache", "T", False),
    ("sin_cache", "T", False),
    ("position_ids", "tensor(int64)", False),
    ("past_key_recent", "T", False),
    ("query_saliency", "tensor(float)", False),
]
LAST_INPUT = {"SparkPrune": ("after", "T", False), "SparkAttention": ("attention_bias", "T", False)}
OUTPUTS = {
    "SparkPrune": [
        ("present_key", "C", True),
        ("present_value", "C", True),
        ("present_key_recent", "T", False),
        ("observed_saliency", "tensor(float)", False),
    ],
    "SparkAttention": [("output", "T", True)],
}
INTS = {
    "key_bits": 16,
    "value_bits": 16,
    "key_row_bytes": 0,
    "value_row_bytes": 0,
    "recent_window": 0,
    "version": 1,
    "row_format": 1,
    "tail_window": 0,
    "do_rotary": 0,
    "rotary_interleaved": 0,
}
OWN = {
    "SparkPrune": {"observation_window": 32},
    "SparkAttention": {"scale": 0.0, "softcap": 0.0, "local_window_size": -1, "causal": 1},
}


def parameters(entries):
    return [
        OpSchema.FormalParameter(name, kind, param_option=Option.Single if needed else Option.Optional)
        for name, kind, needed in entries
    ]


def attribute(name, default):
    return OpSchema.Attribute(name, onnx.helper.make_attribute(name, default), "")


def dims(info):
    """Dimensions of a tensor's type as numbers, None where they are none."""
    return [d.dim_value if d.HasField("dim_value") else None for d in info.tensor_type.shape.dim]


def infer(operator):
    """Shape inference of `operator`, so that what follows it is checked too."""

    def types(context):
        query, cache = context.get_input_type(0), context.get_input_type(3)
        if operator == "SparkPrune":
            for output in range(2):
                made = onnx.TypeProto()
                made.tensor_type.elem_type = cache.tensor_type.elem_type
                context.set_output_type(output, made)
            return
        made = onnx.TypeProto()
        made.CopyFrom(query)
        packed = context.get_num_inputs() < 2 or context.get_input_type(1) is None
        if packed and dims(query)[-1:] not in ([], [None]):
            heads = [context.get_attribute(n).i for n in ("num_heads", "kv_num_heads")]
            width = dims(query)[-1] * heads[0] // (heads[0] + 2 * heads[1])
            made.tensor_type.shape.dim[-1].dim_value = width
        context.set_output_type(0, made)

    return types


def schema(operator):
    needed = [OpSchema.Attribute(n, OpSchema.AttrType.INT) for n in ("num_heads", "kv_num_heads", "kept_channels")]
    more = {**INTS, "recovery": "mean", **OWN[operator]}
    made = OpSchema(
        operator,
        "ai.spark",
        1,
        inputs=parameters([*INPUTS, LAST_INPUT[operator]]),
        outputs=parameters(OUTPUTS[operator]),
        type_constraints=[(*T, ""), (*C, "")],
        attributes=needed + [attribute(*entry) for entry in more.items()],
    )
    made.set_type_and_shape_inference_function(infer(operator))
    return made


@contextmanager
def registered():
    """onnx knows the operators."""
    for operator in OUTPUTS:
        onnx.defs.register_schema(schema(operator))
    try:
        yield
    finally:
        for operator in OUTPUTS:
            onnx.defs.deregister_schema(operator, 1, "ai.spark")

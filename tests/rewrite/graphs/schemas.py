"""What onnx must know of the operators to check a model."""

from contextlib import contextmanager

import onnx
from onnx.defs import OpSchema

from operators.schema import DOMAIN, OPERATORS, defaults

TYPES = {"T": ["tensor(float)", "tensor(float16)"], "C": ["tensor(float)", "tensor(float16)", "tensor(uint8)"]}
FIXED = {"int32": "tensor(int32)", "int64": "tensor(int64)", "float32": "tensor(float)"}
Option = OpSchema.FormalParameterOption


def parameters(entries):
    return [
        OpSchema.FormalParameter(
            entry["name"],
            FIXED.get(entry["type"], entry["type"]),
            param_option=Option.Single if entry["required"] else Option.Optional,
        )
        for entry in entries
    ]


def attribute(name, default):
    if default is None:
        return OpSchema.Attribute(name, OpSchema.AttrType.INT)
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
    made = OpSchema(
        operator,
        DOMAIN,
        1,
        inputs=parameters(OPERATORS[operator]["inputs"]),
        outputs=parameters(OPERATORS[operator]["outputs"]),
        type_constraints=[(name, kinds, "") for name, kinds in TYPES.items()],
        attributes=[attribute(*entry) for entry in defaults(operator).items()],
    )
    made.set_type_and_shape_inference_function(infer(operator))
    return made


@contextmanager
def registered():
    """onnx knows the operators."""
    for operator in OPERATORS:
        onnx.defs.register_schema(schema(operator))
    try:
        yield
    finally:
        for operator in OPERATORS:
            onnx.defs.deregister_schema(operator, 1, DOMAIN)

//! Nodes that make inputs of the operators: attention_bias from masks, and an empty float16 tensor.

use protobuf::MessageField;

use super::build::{Attribute, Builder, FLOAT16, set_attribute, tensor};
use super::layer::{Bias, Layer};
use crate::onnx::proto::AttributeProto;
use crate::onnx::proto::attribute_proto::AttributeType;

/// Adds the nodes that compute attention_bias of `layer`, the sum of `parts`, and returns its name.
pub fn attention_bias(builder: &mut Builder, layer: &Layer, parts: &[Bias]) -> String {
    let base = format!("{}/attention_bias", layer.name);
    let numbers: Vec<String> = parts.iter().map(|part| numbers(builder, &base, layer.element, part)).collect();
    let sum = numbers.into_iter().reduce(|sum, part| builder.add(&base, "Add", &[&sum, &part]));
    let bias = sum.unwrap_or_default();
    // The sum has the full shape if any part has.
    match parts.iter().all(|part| part.expand) {
        true => expanded(builder, &base, layer, &bias),
        false => bias,
    }
}

/// The values that `part` adds to scores, of type `element`, with at most four dimensions.
fn numbers(builder: &mut Builder, base: &str, element: i32, part: &Bias) -> String {
    let mut current = part.tensor.clone();
    if part.drop_axis {
        let first = builder.int64s(format!("{base}/first"), &[], &[0]);
        current = builder.add(base, "Gather", &[&current, &first]);
        set_attribute(builder.last(), "axis", Attribute::Int(1));
    }
    if let Some(low) = part.masked {
        let zero = builder.scalar(format!("{base}/zero"), element, 0.0);
        let masked = builder.scalar(format!("{base}/masked"), element, low);
        let (yes, no) = if part.hides { (&masked, &zero) } else { (&zero, &masked) };
        current = builder.add(base, "Where", &[&current, yes, no]);
    }
    if part.cast {
        current = builder.add(base, "Cast", &[&current]);
        set_attribute(builder.last(), "to", Attribute::Int(element.into()));
    }
    current
}

/// `bias` with four dimensions and one row per new token.
fn expanded(builder: &mut Builder, base: &str, layer: &Layer, bias: &str) -> String {
    let axis = builder.int64s(format!("{base}/token_axis"), &[1], &[layer.token_axis as i64]);
    let one = builder.int64s(format!("{base}/one"), &[1], &[1]);
    let shape = builder.add(base, "Shape", &[&layer.query]);
    let tokens = builder.add(base, "Gather", &[&shape, &axis]);
    let target = builder.add(base, "Concat", &[&one, &one, &tokens, &one]);
    set_attribute(builder.last(), "axis", Attribute::Int(0));
    builder.add(base, "Expand", &[bias, &target])
}

/// Adds the nodes that make an empty float16 tensor, and returns its name.
///
/// Where the CPU has no float16 kernel for the nodes around it, ONNX Runtime converts a float16 node and all its
/// inputs to float32, including caches, which hold bytes. It leaves a node alone if a float16 input comes from a node
/// that needs no conversion; an empty optional input has no other effect.
pub fn empty_tensor(builder: &mut Builder, layer: &Layer) -> String {
    let base = format!("{}/keep_float16", layer.name);
    let shape = builder.add(&base, "Shape", &[&layer.query]);
    let zeros = builder.add(&base, "Sub", &[&shape, &shape]);
    let output = builder.add(&base, "ConstantOfShape", &[&zeros]);
    let mut value = AttributeProto::new();
    value.set_name("value".into());
    value.set_type(AttributeType::TENSOR);
    value.t = MessageField::some(tensor("", FLOAT16, &[1], vec![0; 2]));
    builder.last().attribute.push(value);
    output
}

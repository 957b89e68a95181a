//! The effect of operators on known elements.

use ndarray::{ArrayD, Axis, IxDyn};

use super::arrays::{MOST_ELEMENTS, bounded, broadcast_to, reshaped, vector};
use super::elementwise::{binary, cast, choose, elementwise, unary};
use super::indexing::{concat, gather, gather_nd, scatter_nd, slice, split, tile, transpose};
use super::quantised;
use super::shapes::{self, axis_of};
use super::value::{Inputs, Value, kinds, need};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

fn optional<'v>(inputs: &Inputs<'v>, index: usize) -> Option<&'v Value> {
    inputs.get(index).copied().flatten()
}

/// Axes from input `index` or from the attribute.
fn axes(node: &NodeProto, inputs: &Inputs<'_>, index: usize) -> Result<Option<Vec<i64>>, String> {
    match optional(inputs, index) {
        Some(v) => v.ints().map(Some),
        None => Ok(node.ints("axes").filter(|a| !a.is_empty()).map(<[i64]>::to_vec)),
    }
}

/// The outputs of `node` for `inputs`, with elements known where possible.
pub(super) fn evaluate(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Vec<Value>, String> {
    if !matches!(node.domain(), "" | "ai.onnx") {
        return shapes::infer(node, inputs);
    }
    if node.op_type() == "Split" {
        return split(node, inputs);
    }
    match one(node, inputs)? {
        Some(value) => Ok(vec![value]),
        None => shapes::infer(node, inputs),
    }
}

/// The output of a single-output operator, `None` if only its shape can be known.
fn one(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Option<Value>, String> {
    let operator = node.op_type();
    if operator == "Constant" {
        return constant(node).map(Some);
    }
    let x = optional(inputs, 0).ok_or("it has no input")?;
    // These read shapes only.
    match operator {
        "Shape" => return Ok(Some(dimensions(node, x))),
        "Size" => {
            let size = x.shape.iter().map(|&d| d as f64).product::<f64>();
            return Ok(Some(Value::known(kinds::INT64, ndarray::arr0(size).into_dyn())));
        }
        _ => {}
    }
    if let Some(f) = binary(operator, kinds::is_integer(x.kind)) {
        return elementwise(operator, inputs, f);
    }
    let Some(data) = &x.data else { return Ok(None) };
    if let Some(value) = unary(operator, x.kind, data) {
        return Ok(Some(value));
    }
    let known = |data| Value::known(x.kind, data);
    match operator {
        "Cast" => Ok(Some(cast(node, data))),
        "Transpose" => transpose(node, x, data).map(Some),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            let shape = shapes::rearranged(node, inputs)?;
            shape.map(|shape| reshaped(data, &shape).map(known)).transpose()
        }
        "Expand" => {
            let shape = shapes::expanded(inputs)?;
            shape.map(|shape| broadcast_to(data, &shape).map(known)).transpose()
        }
        "Tile" => tile(x, data, inputs).map(Some),
        "Concat" => concat(node, x, inputs),
        "Slice" => slice(node, x, data, inputs).map(Some),
        "Gather" => gather(node, x, data, need(inputs, 1)?).map(Some),
        "GatherND" => Ok(gather_nd(node, data, need(inputs, 1)?)?.map(known)),
        "Range" => range(x, inputs).map(Some),
        "ConstantOfShape" => constant_of_shape(node, x).map(Some),
        "Where" => choose(data, inputs),
        "Trilu" => Ok(Some(known(triangle(node, data, inputs)?))),
        "CumSum" => Ok(running_sums(node, data, inputs)?.map(known)),
        "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" => reduce(node, inputs, data).map(Some),
        "ScatterND" => Ok(scatter_nd(node, data, inputs)?.map(known)),
        "QuantizeLinear" | "DequantizeLinear" => quantised::evaluate(node, inputs),
        _ => Ok(None),
    }
}

/// The operator Shape, from `start` to `end`.
fn dimensions(node: &NodeProto, x: &Value) -> Value {
    let rank = x.shape.len() as i64;
    let clamp = |i: i64| (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize;
    let (start, end) = (clamp(node.int("start").unwrap_or(0)), clamp(node.int("end").unwrap_or(rank)));
    let dims = x.shape[start.min(end)..end].iter().map(|&d| d as f64);
    Value::known(kinds::INT64, vector(dims))
}

fn constant(node: &NodeProto) -> Result<Value, String> {
    if let Some(tensor) = node.tensor("value") {
        return Value::constant(tensor);
    }
    let scalar = |kind, x: f64| Ok(Value::known(kind, ndarray::arr0(x).into_dyn()));
    match node.attribute.first().map(|a| (a.name(), a)) {
        Some(("value_int", a)) => scalar(kinds::INT64, a.i() as f64),
        Some(("value_float", a)) => scalar(kinds::FLOAT, a.f().into()),
        Some(("value_ints", a)) => Ok(Value::known(kinds::INT64, vector(a.ints.iter().map(|&x| x as f64)))),
        Some(("value_floats", a)) => Ok(Value::known(kinds::FLOAT, vector(a.floats.iter().map(|&x| x.into())))),
        _ => Err("a constant of another type".into()),
    }
}

fn constant_of_shape(node: &NodeProto, shape: &Value) -> Result<Value, String> {
    let shape = shape.ints()?.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = bounded(shape.map_err(|e| e.to_string())?)?;
    let fill = node.tensor("value").map(Value::constant).transpose()?;
    let kind = fill.as_ref().map_or(kinds::FLOAT, |f| f.kind);
    Ok(Value::known(kind, ArrayD::from_elem(IxDyn(&shape), fill.map_or(Ok(0.0), |f| f.scalar())?)))
}

fn range(start: &Value, inputs: &Inputs<'_>) -> Result<Value, String> {
    let kind = start.kind;
    let (start, limit, step) = (start.scalar()?, need(inputs, 1)?.scalar()?, need(inputs, 2)?.scalar()?);
    let count = ((limit - start) / step).ceil();
    if count.is_nan() || count > MOST_ELEMENTS as f64 {
        return Err(format!("a range of {count}"));
    }
    Ok(Value::known(kind, vector((0..count.max(0.0) as usize).map(|i| start + i as f64 * step))))
}

/// The operator Trilu.
fn triangle(node: &NodeProto, data: &ArrayD<f64>, inputs: &Inputs<'_>) -> Result<ArrayD<f64>, String> {
    let shift = optional(inputs, 1).map_or(Ok(0.0), Value::scalar)? as i64;
    let upper = node.int("upper").unwrap_or(1) != 0;
    let rank = data.ndim();
    if rank < 2 {
        return Err(format!("rank {rank}"));
    }
    let mut data = data.clone();
    for (at, v) in data.indexed_iter_mut() {
        let diagonal = at[rank - 1] as i64 - at[rank - 2] as i64;
        if (upper && diagonal < shift) || (!upper && diagonal > shift) {
            *v = 0.0;
        }
    }
    Ok(data)
}

/// CumSum, forward and inclusive.
fn running_sums(node: &NodeProto, data: &ArrayD<f64>, inputs: &Inputs<'_>) -> Result<Option<ArrayD<f64>>, String> {
    let axis = axis_of(need(inputs, 1)?.scalar()? as i64, data.ndim())?;
    if node.int("reverse").unwrap_or(0) != 0 || node.int("exclusive").unwrap_or(0) != 0 {
        return Ok(None);
    }
    let mut data = data.clone();
    data.accumulate_axis_inplace(Axis(axis), |&before, x| *x += before);
    Ok(Some(data))
}

fn reduce(node: &NodeProto, inputs: &Inputs<'_>, data: &ArrayD<f64>) -> Result<Value, String> {
    let x = need(inputs, 0)?;
    let rank = x.shape.len();
    let mut axes: Vec<usize> = match axes(node, inputs, 1)? {
        Some(axes) => axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<_, _>>()?,
        None => (0..rank).collect(),
    };
    axes.sort_unstable();
    axes.dedup();
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let mut result = data.clone();
    for &axis in axes.iter().rev() {
        result = match node.op_type() {
            "ReduceSum" => result.sum_axis(Axis(axis)),
            "ReduceProd" => result.product_axis(Axis(axis)),
            "ReduceMax" => result.fold_axis(Axis(axis), f64::NEG_INFINITY, |a, &b| a.max(b)),
            _ => result.fold_axis(Axis(axis), f64::INFINITY, |a, &b| a.min(b)),
        };
        if keep {
            result = result.insert_axis(Axis(axis));
        }
    }
    Ok(Value::known(x.kind, result))
}

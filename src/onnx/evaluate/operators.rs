//! What operators do to known elements.

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice, concatenate};

use super::quantised;
use super::shapes::{self, axis_of, broadcast};
use super::value::{Inputs, MOST_DIMENSIONS, Value, kinds, need};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

/// Largest tensor that is made.
const MOST_ELEMENTS: usize = 4 << 20;

fn optional<'v>(inputs: &Inputs<'v>, index: usize) -> Option<&'v Value> {
    inputs.get(index).copied().flatten()
}

fn vector(values: impl IntoIterator<Item = f64>) -> ArrayD<f64> {
    ndarray::Array1::from_iter(values).into_dyn()
}

fn reshaped(data: &ArrayD<f64>, shape: &[usize]) -> Result<ArrayD<f64>, String> {
    bounded(shape.to_vec())?;
    ArrayD::from_shape_vec(IxDyn(shape), data.iter().copied().collect()).map_err(|e| e.to_string())
}

/// Axes given as input `index` or as attribute.
fn axes(node: &NodeProto, inputs: &Inputs<'_>, index: usize) -> Result<Option<Vec<i64>>, String> {
    match optional(inputs, index) {
        Some(v) => v.ints().map(Some),
        None => Ok(node.ints("axes").filter(|a| !a.is_empty()).map(<[i64]>::to_vec)),
    }
}

/// The outputs of `node` for `inputs`, elements known where they can be.
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

/// The output of an operator with one, `None` if only its shape can be known.
fn one(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Option<Value>, String> {
    let operator = node.op_type();
    if operator == "Constant" {
        return constant(node).map(Some);
    }
    let x = match inputs.first().copied().flatten() {
        Some(x) => x,
        None => return Err("it has no input".into()),
    };
    // These read shapes, not elements.
    match operator {
        "Shape" => {
            let rank = x.shape.len() as i64;
            let clamp = |i: i64| (if i < 0 { i + rank } else { i }).clamp(0, rank) as usize;
            let (start, end) = (clamp(node.int("start").unwrap_or(0)), clamp(node.int("end").unwrap_or(rank)));
            let dims = x.shape[start.min(end)..end].iter().map(|&d| d as f64);
            return Ok(Some(Value::known(kinds::INT64, vector(dims))));
        }
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
    let unary: Option<fn(f64) -> f64> = match operator {
        "Identity" | "Dropout" => Some(|x| x),
        "Not" => Some(|x| f64::from(x == 0.0)),
        "Neg" => Some(|x| -x),
        "Abs" => Some(f64::abs),
        "Sqrt" => Some(f64::sqrt),
        "Reciprocal" => Some(|x| 1.0 / x),
        "Floor" => Some(f64::floor),
        "Ceil" => Some(f64::ceil),
        "Sign" => Some(f64::signum),
        "IsNaN" => Some(|x| f64::from(x.is_nan())),
        _ => None,
    };
    if let Some(f) = unary {
        let kind = if operator == "IsNaN" { kinds::BOOL } else { x.kind };
        return Ok(Some(Value::known(kind, data.mapv(f))));
    }
    Ok(Some(match operator {
        "Cast" => {
            let kind = node.int("to").unwrap_or(0) as i32;
            let data = match kind {
                kinds::BOOL => data.mapv(|x| f64::from(x != 0.0)),
                k if kinds::is_integer(k) => data.mapv(f64::trunc),
                _ => data.clone(),
            };
            Value::known(kind, data)
        }
        "Transpose" => {
            let rank = x.shape.len();
            let perm: Vec<usize> = match node.ints("perm") {
                Some(p) if !p.is_empty() => p.iter().map(|&a| axis_of(a, rank)).collect::<Result<_, _>>()?,
                _ => (0..rank).rev().collect(),
            };
            let mut seen = perm.clone();
            seen.sort_unstable();
            if seen != (0..rank).collect::<Vec<_>>() {
                return Err(format!("perm {perm:?} of rank {rank}"));
            }
            Value::known(x.kind, data.view().permuted_axes(IxDyn(&perm)).as_standard_layout().into_owned())
        }
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            let Some(shape) = shapes::rearranged(node, inputs)? else { return Ok(None) };
            Value::known(x.kind, reshaped(data, &shape)?)
        }
        "Expand" => {
            let Some(shape) = shapes::expanded(inputs)? else { return Ok(None) };
            Value::known(x.kind, broadcast_to(data, &shape)?)
        }
        "Tile" => {
            let repeats = need(inputs, 1)?.ints()?;
            let repeats: Vec<usize> =
                repeats.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
            if repeats.len() != x.shape.len() {
                return Err(format!("{} repeats of rank {}", repeats.len(), x.shape.len()));
            }
            let shape = bounded(x.shape.iter().zip(&repeats).map(|(&d, &n)| d.saturating_mul(n)).collect())?;
            if shape.contains(&0) {
                return Ok(Some(Value::known(x.kind, ArrayD::zeros(IxDyn(&shape)))));
            }
            let repeated = |data: ArrayD<f64>, axis: usize| {
                let places: Vec<usize> = (0..shape[axis]).map(|i| i % x.shape[axis]).collect();
                data.select(Axis(axis), &places)
            };
            let repeated_axes = (0..shape.len()).filter(|&axis| repeats[axis] != 1);
            Value::known(x.kind, repeated_axes.fold(data.clone(), repeated))
        }
        "Concat" => {
            let axis = axis_of(node.int("axis").unwrap_or(0), x.shape.len())?;
            let parts = inputs.iter().flatten().map(|v| v.data.as_ref().map(|d| d.view())).collect::<Option<Vec<_>>>();
            let Some(parts) = parts else { return Ok(None) };
            Value::known(x.kind, join(axis, &parts)?)
        }
        "Slice" => {
            let mut view = data.view();
            for (axis, slice) in shapes::slices(node, inputs)? {
                view.slice_axis_inplace(Axis(axis), slice);
            }
            Value::known(x.kind, view.as_standard_layout().into_owned())
        }
        "Gather" => gather(node, x, data, need(inputs, 1)?)?,
        "GatherND" => match gather_nd(node, data, need(inputs, 1)?)? {
            Some(data) => Value::known(x.kind, data),
            None => return Ok(None),
        },
        "Range" => {
            let (start, limit, step) = (x.scalar()?, need(inputs, 1)?.scalar()?, need(inputs, 2)?.scalar()?);
            let count = ((limit - start) / step).ceil();
            if count.is_nan() || count > MOST_ELEMENTS as f64 {
                return Err(format!("a range of {count}"));
            }
            Value::known(x.kind, vector((0..count.max(0.0) as usize).map(|i| start + i as f64 * step)))
        }
        "ConstantOfShape" => {
            let shape = x.ints()?.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
            let shape = bounded(shape.map_err(|e| e.to_string())?)?;
            let fill = node.tensor("value").map(Value::constant).transpose()?;
            let kind = fill.as_ref().map_or(kinds::FLOAT, |f| f.kind);
            Value::known(kind, ArrayD::from_elem(IxDyn(&shape), fill.map_or(Ok(0.0), |f| f.scalar())?))
        }
        "Where" => {
            let (a, b) = (need(inputs, 1)?, need(inputs, 2)?);
            let (Some(yes), Some(no)) = (&a.data, &b.data) else { return Ok(None) };
            let shape = broadcast(&[&x.shape, &a.shape, &b.shape])?;
            let (c, yes, no) = (broadcast_to(data, &shape)?, broadcast_to(yes, &shape)?, broadcast_to(no, &shape)?);
            let data = ndarray::Zip::from(&c).and(&yes).and(&no).map_collect(|&c, &y, &n| if c != 0.0 { y } else { n });
            Value::known(a.kind, data)
        }
        "Trilu" => {
            let shift = optional(inputs, 1).map_or(Ok(0.0), Value::scalar)? as i64;
            let upper = node.int("upper").unwrap_or(1) != 0;
            let rank = x.shape.len();
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
            Value::known(x.kind, data)
        }
        "CumSum" => {
            let axis = axis_of(need(inputs, 1)?.scalar()? as i64, x.shape.len())?;
            if node.int("reverse").unwrap_or(0) != 0 || node.int("exclusive").unwrap_or(0) != 0 {
                return Ok(None);
            }
            let mut data = data.clone();
            data.accumulate_axis_inplace(Axis(axis), |&before, x| *x += before);
            Value::known(x.kind, data)
        }
        "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" => reduce(node, inputs, data)?,
        "ScatterND" => match scatter_nd(node, data, inputs)? {
            Some(data) => Value::known(x.kind, data),
            None => return Ok(None),
        },
        "QuantizeLinear" | "DequantizeLinear" => return quantised::evaluate(node, inputs),
        _ => return Ok(None),
    }))
}

fn bounded(shape: Vec<usize>) -> Result<Vec<usize>, String> {
    if shape.len() > MOST_DIMENSIONS {
        return Err(format!("a tensor of {} dimensions", shape.len()));
    }
    // A dimension of 0 makes no other one harmless: arrays are refused whose other dimensions have no product.
    match shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1))) {
        Some(n) if n <= MOST_ELEMENTS => Ok(shape),
        _ => Err(format!("a tensor of shape {shape:?}")),
    }
}

fn broadcast_to(data: &ArrayD<f64>, shape: &[usize]) -> Result<ArrayD<f64>, String> {
    let shape = bounded(shape.to_vec())?;
    data.broadcast(IxDyn(&shape))
        .map(|v| v.to_owned())
        .ok_or_else(|| format!("{:?} does not broadcast to {shape:?}", data.shape()))
}

fn join(axis: usize, parts: &[ArrayViewD<'_, f64>]) -> Result<ArrayD<f64>, String> {
    if parts.iter().any(|part| part.ndim() != parts[0].ndim()) {
        return Err("parts of different rank".into());
    }
    let total = parts.iter().fold(0usize, |n, p| n.saturating_add(p.len()));
    bounded(vec![total])?;
    concatenate(Axis(axis), parts).map_err(|e| e.to_string())
}

type Binary = fn(f64, f64) -> f64;

fn binary(operator: &str, integer: bool) -> Option<Binary> {
    Some(match operator {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" if integer => |a, b| (a / b).trunc(),
        "Div" => |a, b| a / b,
        "Mod" => |a, b| a - b * (a / b).floor(),
        "Pow" => f64::powf,
        "Min" => f64::min,
        "Max" => f64::max,
        "And" => |a, b| f64::from(a != 0.0 && b != 0.0),
        "Or" => |a, b| f64::from(a != 0.0 || b != 0.0),
        "Xor" => |a, b| f64::from((a != 0.0) != (b != 0.0)),
        "Equal" => |a, b| f64::from(a == b),
        "Less" => |a, b| f64::from(a < b),
        "LessOrEqual" => |a, b| f64::from(a <= b),
        "Greater" => |a, b| f64::from(a > b),
        "GreaterOrEqual" => |a, b| f64::from(a >= b),
        _ => return None,
    })
}

fn elementwise(operator: &str, inputs: &Inputs<'_>, f: Binary) -> Result<Option<Value>, String> {
    let compares = matches!(operator, "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual");
    let first = need(inputs, 0)?;
    let kind = if compares { kinds::BOOL } else { first.kind };
    let all: Vec<&Value> = inputs.iter().copied().flatten().collect();
    let shape = broadcast(&all.iter().map(|v| v.shape.as_slice()).collect::<Vec<_>>())?;
    if all.len() > 2 {
        // Max and the like take any number.
        bounded([shape.as_slice(), &[all.len() / 2]].concat())?;
    }
    let Some(data) = all.iter().map(|v| v.data.as_ref()).collect::<Option<Vec<_>>>() else {
        return Ok(Some(Value::shaped(kind, shape)));
    };
    let mut result = broadcast_to(data[0], &shape)?;
    for other in &data[1..] {
        let other = broadcast_to(other, &shape)?;
        result.zip_mut_with(&other, |a, &b| *a = f(*a, b));
    }
    Ok(Some(Value::known(kind, result)))
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

fn split(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Vec<Value>, String> {
    let x = need(inputs, 0)?;
    let axis = axis_of(node.int("axis").unwrap_or(0), x.shape.len())?;
    let sizes = shapes::split_sizes(node, inputs, x.shape[axis])?;
    let mut start = 0;
    let mut parts = Vec::new();
    for size in sizes {
        let mut shape = x.shape.clone();
        shape[axis] = size;
        let part = x.data.as_ref().map(|d| d.slice_axis(Axis(axis), Slice::from(start..start + size)).to_owned());
        parts.push(Value { kind: x.kind, shape, data: part });
        start += size;
    }
    Ok(parts)
}

fn gather(node: &NodeProto, x: &Value, data: &ArrayD<f64>, indices: &Value) -> Result<Value, String> {
    let axis = axis_of(node.int("axis").unwrap_or(0), x.shape.len())?;
    let shape = shapes::gathered(&x.shape, axis, &indices.shape);
    let Some(chosen) = &indices.data else { return Ok(Value::shaped(x.kind, shape)) };
    let shape = bounded(shape)?;
    let chosen = chosen.iter().map(|&i| shapes::wrapped(i, x.shape[axis])).collect::<Result<Vec<_>, _>>()?;
    Ok(Value::known(x.kind, reshaped(&data.select(Axis(axis), &chosen), &shape)?))
}

fn gather_nd(node: &NodeProto, data: &ArrayD<f64>, indices: &Value) -> Result<Option<ArrayD<f64>>, String> {
    let (Some(chosen), 0) = (&indices.data, node.int("batch_dims").unwrap_or(0)) else { return Ok(None) };
    let depth = *indices.shape.last().ok_or("indices without dimensions")?;
    if depth != data.ndim() {
        return Ok(None);
    }
    let flat: Vec<f64> = chosen.iter().copied().collect();
    let mut picked = Vec::with_capacity(flat.len() / depth.max(1));
    for at in flat.chunks(depth.max(1)) {
        let at = at.iter().zip(data.shape()).map(|(&i, &d)| shapes::wrapped(i, d)).collect::<Result<Vec<_>, _>>()?;
        picked.push(data[IxDyn(&at)]);
    }
    ArrayD::from_shape_vec(IxDyn(&indices.shape[..indices.shape.len() - 1]), picked)
        .map(Some)
        .map_err(|e| e.to_string())
}

/// Whole elements only, as masks are written.
fn scatter_nd(node: &NodeProto, data: &ArrayD<f64>, inputs: &Inputs<'_>) -> Result<Option<ArrayD<f64>>, String> {
    let (indices, updates) = (need(inputs, 1)?, need(inputs, 2)?);
    let (Some(at), Some(new)) = (&indices.data, &updates.data) else { return Ok(None) };
    let depth = indices.shape.last().copied().unwrap_or(0);
    if depth != data.ndim() || matches!(node.text("reduction").as_deref(), Some(r) if r != "none") {
        return Ok(None);
    }
    let flat: Vec<f64> = at.iter().copied().collect();
    let mut result = data.clone();
    for (at, &new) in flat.chunks(depth.max(1)).zip(new) {
        let at = at.iter().zip(data.shape()).map(|(&i, &d)| shapes::wrapped(i, d)).collect::<Result<Vec<_>, _>>()?;
        result[IxDyn(&at)] = new;
    }
    Ok(Some(result))
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

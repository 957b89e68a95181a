//! Operators that select, join and replace elements.

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice, concatenate};

use super::arrays::{bounded, reshaped};
use super::shapes::{self, axis_of};
use super::value::{Inputs, Value, need};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

pub(super) fn split(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Vec<Value>, String> {
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

pub(super) fn slice(node: &NodeProto, x: &Value, data: &ArrayD<f64>, inputs: &Inputs<'_>) -> Result<Value, String> {
    let mut view = data.view();
    for (axis, slice) in shapes::slices(node, inputs)? {
        view.slice_axis_inplace(Axis(axis), slice);
    }
    Ok(Value::known(x.kind, view.as_standard_layout().into_owned()))
}

pub(super) fn concat(node: &NodeProto, x: &Value, inputs: &Inputs<'_>) -> Result<Option<Value>, String> {
    let axis = axis_of(node.int("axis").unwrap_or(0), x.shape.len())?;
    let parts = inputs.iter().flatten().map(|v| v.data.as_ref().map(|d| d.view())).collect::<Option<Vec<_>>>();
    let Some(parts) = parts else { return Ok(None) };
    Ok(Some(Value::known(x.kind, join(axis, &parts)?)))
}

fn join(axis: usize, parts: &[ArrayViewD<'_, f64>]) -> Result<ArrayD<f64>, String> {
    if parts.iter().any(|part| part.ndim() != parts[0].ndim()) {
        return Err("parts of different rank".into());
    }
    let total = parts.iter().fold(0usize, |n, p| n.saturating_add(p.len()));
    bounded(vec![total])?;
    concatenate(Axis(axis), parts).map_err(|e| e.to_string())
}

pub(super) fn tile(x: &Value, data: &ArrayD<f64>, inputs: &Inputs<'_>) -> Result<Value, String> {
    let repeats = need(inputs, 1)?.ints()?;
    let repeats: Vec<usize> =
        repeats.iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    if repeats.len() != x.shape.len() {
        return Err(format!("{} repeats of rank {}", repeats.len(), x.shape.len()));
    }
    let shape = bounded(x.shape.iter().zip(&repeats).map(|(&d, &n)| d.saturating_mul(n)).collect())?;
    if shape.contains(&0) {
        return Ok(Value::known(x.kind, ArrayD::zeros(IxDyn(&shape))));
    }
    let repeated = |data: ArrayD<f64>, axis: usize| {
        let places: Vec<usize> = (0..shape[axis]).map(|i| i % x.shape[axis]).collect();
        data.select(Axis(axis), &places)
    };
    let repeated_axes = (0..shape.len()).filter(|&axis| repeats[axis] != 1);
    Ok(Value::known(x.kind, repeated_axes.fold(data.clone(), repeated)))
}

pub(super) fn transpose(node: &NodeProto, x: &Value, data: &ArrayD<f64>) -> Result<Value, String> {
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
    Ok(Value::known(x.kind, data.view().permuted_axes(IxDyn(&perm)).as_standard_layout().into_owned()))
}

pub(super) fn gather(node: &NodeProto, x: &Value, data: &ArrayD<f64>, indices: &Value) -> Result<Value, String> {
    let axis = axis_of(node.int("axis").unwrap_or(0), x.shape.len())?;
    let shape = shapes::gathered(&x.shape, axis, &indices.shape);
    let Some(chosen) = &indices.data else { return Ok(Value::shaped(x.kind, shape)) };
    let shape = bounded(shape)?;
    let chosen = chosen.iter().map(|&i| shapes::wrapped(i, x.shape[axis])).collect::<Result<Vec<_>, _>>()?;
    Ok(Value::known(x.kind, reshaped(&data.select(Axis(axis), &chosen), &shape)?))
}

pub(super) fn gather_nd(node: &NodeProto, data: &ArrayD<f64>, indices: &Value) -> Result<Option<ArrayD<f64>>, String> {
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

/// Only for indices of single elements, as in masks.
pub(super) fn scatter_nd(
    node: &NodeProto,
    data: &ArrayD<f64>,
    inputs: &Inputs<'_>,
) -> Result<Option<ArrayD<f64>>, String> {
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

//! The effect of operators on shapes.

use ndarray::Slice;

use super::value::{Inputs, MOST_DIMENSIONS, Value, kinds, need};
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

/// `axis`, which may count from the end, of a tensor with `rank` dimensions.
pub(super) fn axis_of(axis: i64, rank: usize) -> Result<usize, String> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(from_start) {
        Ok(a) if a < rank => Ok(a),
        _ => Err(format!("axis {axis} of rank {rank}")),
    }
}

/// Index `i`, which may count from the end, of a dimension of `size`.
pub(super) fn wrapped(i: f64, size: usize) -> Result<usize, String> {
    axis_of(i as i64, size).map_err(|_| format!("index {i} of {size}"))
}

/// The shape that all of `shapes` broadcast to.
pub(super) fn broadcast(shapes: &[&[usize]]) -> Result<Vec<usize>, String> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut result = vec![1; rank];
    for shape in shapes {
        for (r, &d) in result[rank - shape.len()..].iter_mut().zip(*shape) {
            match (*r, d) {
                (1, d) => *r = d,
                (r, d) if r == d || d == 1 => {}
                _ => return Err(format!("shapes {shapes:?} do not broadcast")),
            }
        }
    }
    Ok(result)
}

pub(super) fn gathered(shape: &[usize], axis: usize, indices: &[usize]) -> Vec<usize> {
    [&shape[..axis], indices, &shape[axis + 1..]].concat()
}

/// The shape after Reshape, Flatten, Squeeze or Unsqueeze; `None` if it depends on unknown elements.
pub(super) fn rearranged(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Option<Vec<usize>>, String> {
    let x = need(inputs, 0)?;
    let rank = x.shape.len();
    let argument = |name: &str| match inputs.get(1).copied().flatten() {
        Some(v) if v.known_elements() > MOST_DIMENSIONS => Err(format!("{name} of {} elements", v.known_elements())),
        Some(v) => v.data.as_ref().map(|_| v.ints()).transpose(),
        None => Ok(Some(node.ints(name).unwrap_or_default().to_vec())),
    };
    match node.op_type() {
        "Reshape" => {
            let Some(wanted) = argument("shape")? else { return Ok(None) };
            reshape(&x.shape, &wanted, node.int("allowzero").unwrap_or(0) != 0).map(Some)
        }
        "Flatten" => {
            let axis = node.int("axis").unwrap_or(1);
            let axis = (if axis < 0 { axis + rank as i64 } else { axis }).clamp(0, rank as i64) as usize;
            let product = |dims: &[usize]| dims.iter().fold(1usize, |n, &d| n.saturating_mul(d));
            Ok(Some(vec![product(&x.shape[..axis]), product(&x.shape[axis..])]))
        }
        "Squeeze" => {
            let Some(axes) = argument("axes")? else { return Ok(None) };
            let axes = axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?;
            let goes = |(i, &d): (usize, &usize)| if axes.is_empty() { d == 1 } else { axes.contains(&i) };
            Ok(Some(x.shape.iter().enumerate().filter(|&(i, d)| !goes((i, d))).map(|(_, &d)| d).collect()))
        }
        _ => {
            let Some(axes) = argument("axes")? else { return Ok(None) };
            if axes.len() > MOST_DIMENSIONS {
                return Err(format!("{} axes", axes.len()));
            }
            let rank = rank + axes.len();
            let axes = axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<_>, _>>()?;
            let mut left = x.shape.iter();
            (0..rank)
                .map(
                    |i| if axes.contains(&i) { Ok(1) } else { left.next().copied().ok_or("an axis twice".to_string()) },
                )
                .collect::<Result<Vec<_>, _>>()
                .map(Some)
        }
    }
}

fn reshape(shape: &[usize], wanted: &[i64], zeros: bool) -> Result<Vec<usize>, String> {
    let mut result = Vec::with_capacity(wanted.len());
    for (i, &d) in wanted.iter().enumerate() {
        result.push(match d {
            0 if !zeros => *shape.get(i).ok_or("0 beyond the last dimension")?,
            -1 => 1,
            d => usize::try_from(d).map_err(|_| format!("dimension {d}"))?,
        });
    }
    let count = |shape: &[usize]| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or("too large");
    let (before, rest) = (count(shape)?, count(&result)?);
    if let Some(open) = wanted.iter().position(|&d| d == -1) {
        result[open] = before.checked_div(rest).unwrap_or(0);
    }
    match count(&result)? == before {
        true => Ok(result),
        false => Err(format!("{shape:?} does not reshape to {wanted:?}")),
    }
}

/// The shape after Expand, `None` if it depends on unknown elements.
pub(super) fn expanded(inputs: &Inputs<'_>) -> Result<Option<Vec<usize>>, String> {
    let (x, wanted) = (need(inputs, 0)?, need(inputs, 1)?);
    if wanted.data.is_none() {
        return Ok(None);
    }
    if wanted.known_elements() > MOST_DIMENSIONS {
        return Err(format!("a shape of {} dimensions", wanted.known_elements()));
    }
    let wanted = wanted.ints()?.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    broadcast(&[&x.shape, &wanted.map_err(|e| e.to_string())?]).map(Some)
}

/// The range of each axis that Slice takes.
pub(super) fn slices(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Vec<(usize, Slice)>, String> {
    let x = need(inputs, 0)?;
    let argument = |index: usize, name: &str| match inputs.get(index).copied().flatten() {
        Some(v) => v.ints().map(Some),
        None => Ok(node.ints(name).filter(|a| !a.is_empty()).map(<[i64]>::to_vec)),
    };
    let starts = argument(1, "starts")?.ok_or("no starts")?;
    let ends = argument(2, "ends")?.ok_or("no ends")?;
    let axes = argument(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = argument(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err("starts, ends, axes and steps differ in number".into());
    }
    if starts.len() > MOST_DIMENSIONS {
        return Err(format!("{} slices", starts.len()));
    }
    let mut result = Vec::new();
    for i in 0..starts.len() {
        let axis = axis_of(axes[i], x.shape.len())?;
        let size = x.shape[axis] as i64;
        if steps[i] < 1 {
            return Err(format!("step {}", steps[i]));
        }
        let bound = |at: i64| (if at < 0 { at.saturating_add(size) } else { at }).clamp(0, size) as isize;
        let (start, end) = (bound(starts[i]), bound(ends[i]));
        result.push((axis, Slice::new(start.min(end), Some(end), steps[i] as isize)));
    }
    Ok(result)
}

/// The sizes of the parts into which Split divides a dimension of `size`.
pub(super) fn split_sizes(node: &NodeProto, inputs: &Inputs<'_>, size: usize) -> Result<Vec<usize>, String> {
    let given = match inputs.get(1).copied().flatten() {
        Some(v) => v.ints()?,
        None => node.ints("split").unwrap_or_default().to_vec(),
    };
    let sizes = match given.is_empty() {
        false => given.iter().map(|&s| usize::try_from(s)).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?,
        true => {
            let part = size.div_ceil(node.output.len().max(1));
            (0..node.output.len()).map(|i| part.min(size.saturating_sub(i * part))).collect()
        }
    };
    match sizes.iter().try_fold(0usize, |n, &d| n.checked_add(d)) == Some(size) {
        true => Ok(sizes),
        false => Err(format!("parts of {sizes:?} of a dimension of {size}")),
    }
}

/// Outputs of which only the shapes are known.
pub(super) fn infer(node: &NodeProto, inputs: &Inputs<'_>) -> Result<Vec<Value>, String> {
    let x = need(inputs, 0)?;
    let same = |kind: i32| Ok(vec![Value::shaped(kind, x.shape.clone()); node.output.len()]);
    match node.op_type() {
        "Cast" => return same(node.int("to").unwrap_or(0) as i32),
        "IsNaN" | "Not" => return same(kinds::BOOL),
        "DequantizeLinear" => return same(need(inputs, 1)?.kind),
        keeps if KEEP_SHAPE.contains(&keeps) => return same(x.kind),
        // The quantised input as bytes, its scale and zero point.
        "DynamicQuantizeLinear" => {
            return Ok(vec![
                Value::shaped(kinds::UINT8, x.shape.clone()),
                Value::shaped(kinds::FLOAT, Vec::new()),
                Value::shaped(kinds::UINT8, Vec::new()),
            ]);
        }
        _ => {}
    }
    let kind = match node.op_type() {
        "Where" => need(inputs, 1)?.kind,
        "MatMulInteger" => kinds::INT32,
        "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" => kinds::FLOAT,
        _ => x.kind,
    };
    Ok(vec![Value::shaped(kind, output_shape(node, x, inputs)?)])
}

/// Operators whose output has the shape and the type of their first input.
const KEEP_SHAPE: &[&str] = &[
    "Identity",
    "Dropout",
    "Softmax",
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Floor",
    "Ceil",
    "Sign",
    "Exp",
    "Log",
    "Cos",
    "Sin",
    "Tanh",
    "Sigmoid",
    "Erf",
    "Relu",
    "Gelu",
    "FastGelu",
    "QuickGelu",
    "BiasGelu",
    "Clip",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "RotaryEmbedding",
    "Trilu",
    "CumSum",
    "ScatterND",
    "QuantizeLinear",
    "Silu",
    "Swish",
];

/// The shape of the output of a single-output operator, where it differs from the first input's.
fn output_shape(node: &NodeProto, x: &Value, inputs: &Inputs<'_>) -> Result<Vec<usize>, String> {
    let shape_of = |index: usize| need(inputs, index).map(|value| value.shape.as_slice());
    match node.op_type() {
        "Where" => broadcast(&[&x.shape, shape_of(1)?, shape_of(2)?]),
        "Transpose" => transposed(node, &x.shape),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
            rearranged(node, inputs)?.ok_or_else(|| "a shape that depends on the tokens".into())
        }
        "Tile" => {
            let repeats = need(inputs, 1)?.ints()?;
            if repeats.len() != x.shape.len() {
                return Err(format!("{} repeats of rank {}", repeats.len(), x.shape.len()));
            }
            let tiled = |(&d, &n): (&usize, &i64)| d.saturating_mul(usize::try_from(n).unwrap_or(0));
            Ok(x.shape.iter().zip(&repeats).map(tiled).collect())
        }
        "Expand" => expanded(inputs)?.ok_or_else(|| "a shape that depends on the tokens".into()),
        "Concat" => concatenated(node, &x.shape, inputs),
        "Slice" => {
            let mut shape = x.shape.clone();
            for (axis, s) in slices(node, inputs)? {
                shape[axis] = ((s.end.unwrap_or(0) - s.start).max(0) as usize).div_ceil(s.step as usize);
            }
            Ok(shape)
        }
        "Gather" => {
            let axis = axis_of(node.int("axis").unwrap_or(0), x.shape.len())?;
            Ok(gathered(&x.shape, axis, shape_of(1)?))
        }
        // The last two are com.microsoft's.
        "MatMul" | "MatMulInteger" | "DynamicQuantizeMatMul" | "MatMulIntegerToFloat" => matmul(&x.shape, shape_of(1)?),
        "Gemm" => {
            let side = |index: usize, transposed: &str, kept: usize| {
                let kept = if node.int(transposed).unwrap_or(0) != 0 { 1 - kept } else { kept };
                shape_of(index)?.get(kept).copied().ok_or(format!("input {index} of another rank"))
            };
            Ok(vec![side(0, "transA", 0)?, side(1, "transB", 1)?])
        }
        // com.microsoft: quantised weights with N columns.
        "MatMulNBits" | "MatMulBnb4" => {
            let columns = node.int("N").and_then(|n| usize::try_from(n).ok()).ok_or("no attribute N")?;
            let (_, rows) = x.shape.split_last().ok_or("a scalar")?;
            Ok([rows, &[columns]].concat())
        }
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" => reduced(node, &x.shape, inputs),
        other => Err(format!("{other} is not followed")),
    }
}

fn transposed(node: &NodeProto, shape: &[usize]) -> Result<Vec<usize>, String> {
    let rank = shape.len();
    let perm: Vec<i64> = match node.ints("perm") {
        Some(p) if !p.is_empty() => p.to_vec(),
        _ => (0..rank as i64).rev().collect(),
    };
    perm.iter().map(|&a| Ok(shape[axis_of(a, rank)?])).collect()
}

fn concatenated(node: &NodeProto, first: &[usize], inputs: &Inputs<'_>) -> Result<Vec<usize>, String> {
    let axis = axis_of(node.int("axis").unwrap_or(0), first.len())?;
    let mut shape = first.to_vec();
    shape[axis] = 0;
    for part in inputs.iter().flatten() {
        let size = part.shape.get(axis).ok_or("parts of different rank")?;
        shape[axis] = shape[axis].saturating_add(*size);
    }
    Ok(shape)
}

fn reduced(node: &NodeProto, shape: &[usize], inputs: &Inputs<'_>) -> Result<Vec<usize>, String> {
    let axes = match inputs.get(1).copied().flatten() {
        Some(v) => v.ints()?,
        None => node.ints("axes").unwrap_or_default().to_vec(),
    };
    let keep = node.int("keepdims").unwrap_or(1) != 0;
    let axes = axes.iter().map(|&a| axis_of(a, shape.len())).collect::<Result<Vec<_>, _>>()?;
    let all = axes.is_empty();
    let kept = shape.iter().enumerate().filter_map(|(i, &d)| match all || axes.contains(&i) {
        true => keep.then_some(1),
        false => Some(d),
    });
    Ok(kept.collect())
}

fn matmul(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let (&[ref a_batch @ .., rows, inner], &[ref b_batch @ .., depth, columns]) = (a, b) else {
        return Err(format!("shapes {a:?} and {b:?}"));
    };
    if inner != depth {
        return Err(format!("shapes {a:?} and {b:?} do not multiply"));
    }
    Ok([broadcast(&[a_batch, b_batch])?, vec![rows, columns]].concat())
}

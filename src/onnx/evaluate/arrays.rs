//! Arrays of bounded size.

use ndarray::{ArrayD, IxDyn};

use super::value::MOST_DIMENSIONS;

/// Largest tensor that is created, in elements.
pub(super) const MOST_ELEMENTS: usize = 4 << 20;

pub(super) fn vector(values: impl IntoIterator<Item = f64>) -> ArrayD<f64> {
    ndarray::Array1::from_iter(values).into_dyn()
}

pub(super) fn reshaped(data: &ArrayD<f64>, shape: &[usize]) -> Result<ArrayD<f64>, String> {
    bounded(shape.to_vec())?;
    ArrayD::from_shape_vec(IxDyn(shape), data.iter().copied().collect()).map_err(|e| e.to_string())
}

/// `shape`, unless its tensor would be too large.
pub(super) fn bounded(shape: Vec<usize>) -> Result<Vec<usize>, String> {
    if shape.len() > MOST_DIMENSIONS {
        return Err(format!("a tensor of {} dimensions", shape.len()));
    }
    // A dimension of 0 counts as 1: the product of the others must not overflow either.
    match shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1))) {
        Some(n) if n <= MOST_ELEMENTS => Ok(shape),
        _ => Err(format!("a tensor of shape {shape:?}")),
    }
}

pub(super) fn broadcast_to(data: &ArrayD<f64>, shape: &[usize]) -> Result<ArrayD<f64>, String> {
    let shape = bounded(shape.to_vec())?;
    data.broadcast(IxDyn(&shape))
        .map(|v| v.to_owned())
        .ok_or_else(|| format!("{:?} does not broadcast to {shape:?}", data.shape()))
}

//! Sizes of a call, and the shapes that declared tensors have in it.

use std::collections::HashMap;

use ndarray::{ArrayD, IxDyn};

use crate::onnx::evaluate::Value;
use crate::onnx::proto::ValueInfoProto;

/// Sizes of a call at which a graph is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// B
    pub batch: usize,
    /// P
    pub past: usize,
    /// L
    pub new: usize,
}

impl Sizes {
    /// S
    pub fn total(self) -> usize {
        self.past + self.new
    }

    /// The size of `length`.
    pub fn of(self, length: Length) -> usize {
        match length {
            Length::Batch => self.batch,
            Length::Past => self.past,
            Length::New => self.new,
            Length::Total => self.total(),
        }
    }
}

/// What a dimension counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// B
    Batch,
    /// P
    Past,
    /// L
    New,
    /// P + L
    Total,
}

/// All sizes differ in the first, so that no two dimensions can be confused; the second decodes one token.
pub const USUAL: [Sizes; 2] = [Sizes { batch: 2, past: 3, new: 4 }, Sizes { batch: 1, past: 5, new: 1 }];

/// Most elements of a cache per token that are followed.
pub const MOST_PER_TOKEN: usize = 1 << 18;

/// Dimension `axis` of a declared tensor, where it is a number.
pub fn static_dim(info: &ValueInfoProto, axis: usize) -> Option<usize> {
    let dim = info.type_.tensor_type().shape.dim.get(axis)?;
    dim.has_dim_value().then(|| usize::try_from(dim.dim_value()).ok()).flatten()
}

/// Number of dimensions of a declared tensor.
pub fn rank(info: &ValueInfoProto) -> Option<usize> {
    info.type_.tensor_type().shape.as_ref().map(|s| s.dim.len())
}

/// A tensor of which only the declaration `info` is known, where its shape follows from `sizes`.
pub fn of_known_shape(named: &HashMap<&str, Length>, info: &ValueInfoProto, sizes: Sizes) -> Option<Value> {
    let tensor = info.type_.tensor_type();
    let size = |axis: usize| {
        let of_name = || named.get(tensor.shape.dim[axis].dim_param()).map(|&length| sizes.of(length));
        static_dim(info, axis).or_else(of_name)
    };
    let shape = (0..rank(info)?).map(size).collect::<Option<_>>()?;
    Some(Value::shaped(tensor.elem_type(), shape))
}

/// A tensor with elements numbered from 1; `None` if there are too many.
pub fn labels(shape: &[usize]) -> Option<ArrayD<f64>> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= 16 * MOST_PER_TOKEN)?;
    ArrayD::from_shape_vec(IxDyn(shape), (1..=count).map(|i| i as f64).collect()).ok()
}

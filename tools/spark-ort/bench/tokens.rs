//! A layer's tensors of new tokens: random inputs, and an output.

use anyhow::{Result, bail};
use half::f16;
use ort::memory::Allocator;
use ort::value::{DynTensor, DynValue, TensorElementType};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::shape::Shape;

/// Query, key and value of new tokens, and room for the output; several layers may use them.
pub struct Tokens {
    pub count: usize,
    pub query: DynValue,
    pub key: DynValue,
    pub value: DynValue,
    pub output: DynValue,
}

impl Tokens {
    /// `count` tokens per sequence of normally distributed numbers, the same in every run.
    pub fn random(shape: &Shape, element: TensorElementType, count: usize) -> Result<Self> {
        let normals = Normals::new();
        let tensor = |heads: usize| zeros(element, [shape.batch, count, heads * shape.head_dim]);
        let mut tokens = Self {
            count,
            query: tensor(shape.heads.query)?,
            key: tensor(shape.heads.kv)?,
            value: tensor(shape.heads.kv)?,
            output: tensor(shape.heads.query)?,
        };
        for (start, tensor) in [&mut tokens.query, &mut tokens.key, &mut tokens.value].into_iter().enumerate() {
            normals.fill(tensor, start * Normals::COUNT / 3)?;
        }
        Ok(tokens)
    }
}

/// A tensor that can be bound without a copy.
pub fn zeros(element: TensorElementType, dims: impl Into<ort::value::Shape>) -> Result<DynValue> {
    Ok(DynTensor::new(&Allocator::default(), element, dims.into())?.into_dyn())
}

/// Repeated numbers: their count is prime, so that no two rows are equal.
struct Normals(Vec<f32>);

impl Normals {
    const COUNT: usize = 65_537;

    fn new() -> Self {
        let mut random = StdRng::seed_from_u64(1);
        // Box-Muller transform; 1 - u is never 0, whose logarithm is undefined.
        let mut normal = || {
            let (u, v) = (1.0 - random.random::<f32>(), random.random::<f32>());
            (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
        };
        Self((0..Self::COUNT).map(|_| normal()).collect())
    }

    fn fill(&self, tensor: &mut DynValue, start: usize) -> Result<()> {
        let numbers = self.0.iter().copied().cycle().skip(start);
        if let Ok((_, data)) = tensor.try_extract_tensor_mut::<f32>() {
            data.iter_mut().zip(numbers).for_each(|(x, number)| *x = number);
        } else if let Ok((_, data)) = tensor.try_extract_tensor_mut::<f16>() {
            data.iter_mut().zip(numbers).for_each(|(x, number)| *x = f16::from_f32(number));
        } else {
            bail!("{} is no type of tokens", tensor.dtype());
        }
        Ok(())
    }
}

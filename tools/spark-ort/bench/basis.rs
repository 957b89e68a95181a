//! A basis for keys of random numbers, as a calibrated one takes time and memory.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How many times as much as an error in the last direction one in the first costs, about as in SmolLM2.
const SPREAD: f64 = 1000.0;

/// What errors in each direction cost, `[D]`: planes of rows are chosen by it.
pub fn costs(head_dim: usize) -> Vec<f64> {
    (0..head_dim).map(|j| SPREAD.powf(-(j as f64) / head_dim as f64)).collect()
}

/// An orthogonal matrix for each KV head, `[Hk, D, D]`: a reflection in a random direction. The inverse is the same,
/// transposed, so that it serves keys and queries.
pub fn orthogonal(kv_heads: usize, head_dim: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(2);
    let mut matrices = Vec::with_capacity(kv_heads * head_dim * head_dim);
    for _ in 0..kv_heads {
        let v: Vec<f32> = (0..head_dim).map(|_| random.random::<f32>() - 0.5).collect();
        let square: f32 = v.iter().map(|x| x * x).sum();
        for i in 0..head_dim {
            matrices.extend((0..head_dim).map(|j| f32::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / square));
        }
    }
    matrices
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_orthogonal() {
        let (heads, d) = (2, 48);
        for matrix in super::orthogonal(heads, d).chunks_exact(d * d) {
            for (i, j) in (0..d).flat_map(|i| (0..d).map(move |j| (i, j))) {
                let product: f32 = (0..d).map(|n| matrix[n * d + i] * matrix[n * d + j]).sum();
                assert!((product - f32::from(u8::from(i == j))).abs() < 1e-5, "{i} {j}: {product}");
            }
        }
    }
}

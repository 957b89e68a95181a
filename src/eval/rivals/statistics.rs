//! The properties of a prompt that rivals need.

use super::OBSERVED;
use crate::rewrite::Layer;
use crate::runtime::{Error, Sequence};

/// Statistics of a layer's queries in a prompt.
#[derive(Clone, Debug)]
pub struct PromptStatistics {
    /// Query heads that share a KV head.
    pub heads_per_kv_head: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// The prompt's last queries after rotation, `[Hq, W, D]`.
    pub queries: Vec<f32>,
    /// W
    pub window: usize,
    /// Sum of q q^T over the prompt's queries, `[Hk][D * D]`.
    pub covariance: Vec<Vec<f64>>,
    /// Sum of W W^T over the query heads, of the rows W that multiply a head's result in the projection behind
    /// attention, `[Hk][D * D]`. Empty if it is not known.
    pub projection: Vec<Vec<f64>>,
}

/// Every fourth query goes into the covariance.
const STRIDE: usize = 4;

impl PromptStatistics {
    /// From the queries `[Hq, L, D]` of a layer, after rotation, and the matrix `[Hq * D, any]` that its result is
    /// multiplied with, if that is known.
    pub fn new(layer: &Layer, queries: &[f32], projection: Option<&[f32]>) -> Self {
        let (heads, width) = (layer.query_heads, layer.head_dim);
        let tokens = queries.len() / (heads * width);
        let window = OBSERVED.min(tokens);
        let of_head = |head: usize| &queries[head * tokens * width..(head + 1) * tokens * width];
        let last = (0..heads).flat_map(|head| of_head(head)[(tokens - window) * width..].iter().copied()).collect();
        let group = heads / layer.kv_heads;
        let covariance = (0..layer.kv_heads)
            .map(|kv_head| {
                let mut sum = vec![0.0; width * width];
                for head in kv_head * group..(kv_head + 1) * group {
                    of_head(head).chunks(width).step_by(STRIDE).for_each(|query| add_square(&mut sum, query));
                }
                sum
            })
            .collect();
        let scale = if layer.scale == 0.0 { (width as f32).sqrt().recip() } else { layer.scale };
        let projection = projection.map_or(vec![], |matrix| {
            let of_kv_head = |rows: &[f32]| products(rows, width, matrix.len() / (heads * width));
            matrix.chunks(matrix.len() / layer.kv_heads).map(of_kv_head).collect()
        });
        Self { heads_per_kv_head: group, scale, queries: last, window, covariance, projection }
    }

    /// Attention weights of the last queries of the heads of `kv_head` over `keys`, `[L, D]`: a row of L weights for
    /// each query, causal.
    pub fn weights(&self, kv_head: usize, keys: &[f32], width: usize) -> Vec<Vec<f32>> {
        let tokens = keys.len() / width;
        let heads = kv_head * self.heads_per_kv_head..(kv_head + 1) * self.heads_per_kv_head;
        let mut rows = Vec::new();
        for head in heads {
            let queries = &self.queries[head * self.window * width..(head + 1) * self.window * width];
            for (w, query) in queries.chunks(width).enumerate() {
                let visible = tokens - self.window + w + 1;
                let score = |key: &[f32]| query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * self.scale;
                let mut row: Vec<f32> = keys.chunks(width).take(visible).map(score).collect();
                softmax(&mut row);
                row.resize(tokens, 0.0);
                rows.push(row);
            }
        }
        rows
    }

    /// Sum of squares of the last queries of the heads of `kv_head`, for each channel.
    pub fn energy(&self, kv_head: usize, width: usize) -> Vec<f32> {
        let group = self.heads_per_kv_head * self.window * width;
        let mut energy = vec![0.0; width];
        for query in self.queries[kv_head * group..(kv_head + 1) * group].chunks(width) {
            energy.iter_mut().zip(query).for_each(|(e, q)| *e += q * q);
        }
        energy
    }
}

/// Sum of W W^T over matrices of `width` rows, of so many columns each.
fn products(rows: &[f32], width: usize, columns: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width * width];
    for matrix in rows.chunks(width * columns) {
        for (n, sum) in sum.iter_mut().enumerate() {
            let row = |i: usize| &matrix[i * columns..(i + 1) * columns];
            let product: f32 = row(n / width).iter().zip(row(n % width)).map(|(a, b)| a * b).sum();
            *sum += f64::from(product);
        }
    }
    sum
}

/// Adds x x^T.
pub fn add_square(sum: &mut [f64], x: &[f32]) {
    for (row, &a) in sum.chunks_mut(x.len()).zip(x) {
        row.iter_mut().zip(x).for_each(|(sum, &b)| *sum += f64::from(a) * f64::from(b));
    }
}

fn softmax(row: &mut [f32]) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - most).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
}

/// The rows of a tensor and KV head in a sequence.
pub fn held(sequence: &Sequence, tensor: usize, head: usize) -> Result<Vec<f32>, Error> {
    sequence.read_rows(tensor, head, 0..sequence.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_added_over_heads() {
        // Two heads of two channels, three columns.
        let rows = [1.0, 2.0, 3.0, 0.0, 1.0, -1.0, 2.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert_eq!(products(&rows, 2, 3), [18.0, 1.0, 1.0, 4.0]);
    }
}

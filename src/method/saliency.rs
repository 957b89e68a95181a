//! Query saliency: how large each channel of the query typically is.

/// Fewest tokens whose own queries choose the channels; below, the model's typical saliency chooses better.
pub const MIN_OBSERVED: usize = 8;

/// Accumulates `n_j = sqrt(sum_w qbar_wj^2)`, `qbar_wj = mean_g q_gwj`, over the tokens w of the observation window and
/// the query heads g that share one KV head.
#[derive(Clone, Debug)]
pub struct Saliency {
    sum: Vec<f32>,
    squares: Vec<f32>,
}

impl Saliency {
    /// For heads of `head_dim` channels; nothing observed yet.
    pub fn new(head_dim: usize) -> Self {
        Self { sum: vec![0.0; head_dim], squares: vec![0.0; head_dim] }
    }

    /// Adds one query head of the token at hand.
    pub fn add_head(&mut self, query: &[f32]) {
        self.sum.iter_mut().zip(query).for_each(|(s, q)| *s += q);
    }

    /// Ends the token at hand, of which `heads` query heads were added.
    pub fn end_token(&mut self, heads: usize) {
        for (s, square) in self.sum.iter_mut().zip(&mut self.squares) {
            let qbar = std::mem::take(s) / heads as f32;
            *square += qbar * qbar;
        }
    }

    /// n; zero for every channel when no token was observed.
    pub fn finish(mut self) -> Vec<f32> {
        self.squares.iter_mut().for_each(|n| *n = n.sqrt());
        self.squares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_over_tokens_of_the_mean_over_heads() {
        let mut saliency = Saliency::new(2);
        for token in [[[1.0, 2.0], [5.0, 0.0]], [[4.0, -1.0], [4.0, 1.0]]] {
            token.iter().for_each(|q| saliency.add_head(q));
            saliency.end_token(2);
        }
        assert_eq!(saliency.finish(), [5.0, 1.0]);
    }
}

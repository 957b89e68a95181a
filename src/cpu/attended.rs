//! How much what is stored of a key matters: the attention that later queries pay to it.

use ndarray::{Array1, Array2, s};

use super::prune::Prune;
use crate::element::Element;

/// A query sees so many last keys dense, as the rewriter usually has it: what is stored of them does not matter to it.
const DENSE: usize = 64;

/// Share of a weight that follows attention. The rest is equal for all keys: other texts ask for other ones.
const FOLLOWS: f64 = 0.7;

/// Weights, of mean 1, of the keys of KV head `h` of the valid new tokens of sequence `b`: what an error of a key's
/// scores costs, `sum of p (1 - p)` over queries that do not see it dense, p being its share of their softmax among the
/// new keys up to theirs. All are 1 where there is no such query.
pub fn key_weights<T: Element>(call: &Prune<'_, T>, b: usize, h: usize) -> Vec<f32> {
    let (group, d, new) = (call.geometry.group(), call.geometry.head_dim(), call.lengths.new[b]);
    let scale = call.settings.observation_scale.unwrap_or(1.0 / (d as f32).sqrt());
    let tokens = call.tokens.without_basis();
    let mut keys = Array2::zeros((new, d));
    tokens.keys(b, h, 0..new, keys.as_slice_mut().expect("contiguous"));
    let mut query = Array1::zeros(d);
    let mut costs = vec![0.0; new];
    for (i, head) in (DENSE..new).flat_map(|i| (h * group..(h + 1) * group).map(move |head| (i, head))) {
        tokens.query(b, head, i, query.as_slice_mut().expect("contiguous"));
        let scores = keys.slice(s![..=i, ..]).dot(&query) * scale;
        let most = scores.fold(f32::NEG_INFINITY, |most, score| most.max(*score));
        let shares = scores.mapv(|score| f64::from(score - most).exp());
        let sum = shares.sum();
        for (cost, share) in costs.iter_mut().zip(shares).take(i + 1 - DENSE) {
            let p = share / sum;
            *cost += p * (1.0 - p);
        }
    }
    let mean = costs.iter().sum::<f64>() / new as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return vec![1.0; new];
    }
    costs.into_iter().map(|cost| (1.0 - FOLLOWS + FOLLOWS * cost / mean) as f32).collect()
}

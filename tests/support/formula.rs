//! Attention by its formula, in float64.

use ndarray::{Array3, Array4};
use spark_ort::call::Rotary;

use super::common::Case;

/// `x` rotated as token `i` of sequence `b`.
pub fn rotated(case: &Case, b: usize, i: usize, x: impl Iterator<Item = f32>) -> Vec<f64> {
    let x: Vec<f64> = x.map(f64::from).collect();
    let Some(style) = case.prune.common.rotary else { return x };
    let half = x.len() / 2;
    let position = case.positions[b * case.geometry.new + i];
    let mut out = x.clone();
    for j in 0..half {
        let (c, s) = (f64::from(case.cos[(position, j)]), f64::from(case.sin[(position, j)]));
        let (i0, i1) = if style == Rotary::Halves { (j, j + half) } else { (2 * j, 2 * j + 1) };
        out[i0] = x[i0] * c - x[i1] * s;
        out[i1] = x[i0] * s + x[i1] * c;
    }
    out
}

/// `x` in the basis of KV head `h`, for keys (0) or queries (1).
fn in_basis(case: &Case, h: usize, part: usize, x: Vec<f64>) -> Vec<f64> {
    let Some(basis) = &case.basis else { return x };
    let d = x.len();
    let matrix = &basis[part][h * d * d..(h + 1) * d * d];
    (0..d).map(|j| x.iter().enumerate().map(|(i, x)| x * f64::from(matrix[i * d + j])).sum()).collect()
}

pub fn lane(array: &Array4<f32>, b: usize, h: usize, i: usize) -> impl Iterator<Item = f32> + '_ {
    (0..array.dim().3).map(move |j| array[(b, h, i, j)])
}

/// Key and value at position `t` of sequence `b`, as attention is to see them.
fn seen(case: &Case, b: usize, h: usize, t: usize) -> (Vec<f64>, Vec<f64>) {
    let g = &case.geometry;
    let past = case.lengths.past[b];
    if t >= past {
        let value = lane(&case.value, b, h, t - past).map(f64::from).collect();
        let key = rotated(case, b, t - past, lane(&case.key, b, h, t - past));
        return (in_basis(case, h, 0, key), value);
    }
    let (d, head) = (g.head_dim(), b * g.kv_heads + h);
    let row = |rows: &[u8], bytes: usize| rows[t * bytes..(t + 1) * bytes].to_vec();
    let (mut key, mut value) = (vec![0.0; d], vec![0.0; d]);
    g.value.decode(&row(&case.past_value[head], g.value.row_bytes()), &mut value);
    let recent = past.min(case.prune.common.recent_window);
    match &case.recent {
        Some(array) if t >= past - recent => key = lane(array, b, h, t - (past - recent)).collect(),
        _ => {
            let bytes = row(&case.past_key[head], g.key.row_bytes());
            let scale = &case.scale[h * d..(h + 1) * d];
            match g.key.planes() {
                Some(planes) => planes.decode(&bytes, &mut key),
                None => g.key.row(&bytes).decode(scale, |j| case.prune.common.recovery.factor(t, j), &mut key),
            }
        }
    }
    (key.into_iter().map(f64::from).collect(), value.into_iter().map(f64::from).collect())
}

/// Attention as its formula says, all scores at hand at once.
pub fn expected_attention(case: &Case) -> Array4<f64> {
    let g = &case.geometry;
    let mut out = Array4::zeros(case.query.dim());
    for ((b, head, i), _) in Array3::<u8>::zeros((g.batch, g.query_heads, g.new)).indexed_iter() {
        if i >= case.lengths.new[b] {
            continue;
        }
        let past = case.lengths.past[b];
        let query = rotated(case, b, i, lane(&case.query, b, head, i));
        let query = in_basis(case, head / g.group(), 1, query);
        let mut scored = Vec::new();
        for t in 0..past + case.lengths.new[b] {
            let later = t > past + i;
            let gone = case.attention.window.is_some_and(|w| t + w <= past + i);
            if later && case.attention.causal || gone {
                continue;
            }
            let (key, value) = seen(case, b, head / g.group(), t);
            let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
            let mut score = dot * case.attention.scale.map_or(1.0 / (g.head_dim() as f64).sqrt(), f64::from);
            if let Some(cap) = case.attention.softcap {
                score = f64::from(cap) * (score / f64::from(cap)).tanh();
            }
            if let Some(bias) = &case.bias {
                score += f64::from(bias[(b.min(bias.dim().0 - 1), head.min(bias.dim().1 - 1), i, t)]);
            }
            scored.push((score, value));
        }
        let max = scored.iter().map(|s| s.0).fold(f64::MIN, f64::max);
        let sum: f64 = scored.iter().map(|s| (s.0 - max).exp()).sum();
        for (score, value) in scored.iter().filter(|s| s.0 > f64::MIN) {
            for (j, v) in value.iter().enumerate() {
                out[(b, head, i, j)] += (score - max).exp() / sum * v;
            }
        }
    }
    out
}

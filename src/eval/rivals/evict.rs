//! SnapKV: drops tokens of a prompt.

use super::name::dropped;
use super::statistics::{PromptStatistics, held};
use super::{OBSERVED, SINKS};
use crate::runtime::{Error, Sequence};

/// Pooling window over neighbouring tokens, as in SnapKV.
const POOL: usize = 7;

/// Rotation tables of a model, `[positions, D/2]`, used to rotate keys to other positions.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// Pairs (2j, 2j+1) rather than (j, j+D/2).
    pub interleaved: bool,
}

impl Rotary {
    /// Rotates keys or queries forward by the positions that `by` gives, or backward.
    pub fn turn(&self, row: &mut [f32], by: usize, backward: bool) {
        let half = row.len() / 2;
        for j in 0..half {
            let (cos, sin) = (self.cos[by * half + j], self.sin[by * half + j]);
            let sin = if backward { -sin } else { sin };
            let (a, b) = if self.interleaved { (2 * j, 2 * j + 1) } else { (j, j + half) };
            (row[a], row[b]) = (row[a] * cos - row[b] * sin, row[b] * cos + row[a] * sin);
        }
    }

    /// Number of positions in the tables.
    pub fn positions(&self, width: usize) -> usize {
        self.cos.len() / (width / 2)
    }
}

/// The sequence without the share `ratio` of its tokens, chosen for each KV head. The model counts positions from the
/// cached tokens, so the remaining keys are rotated back by the number of dropped tokens: their distance to later
/// queries stays the same.
///
/// # Errors
/// As [`Sequence::read_rows`].
pub fn evict(
    sequence: &Sequence,
    statistics: &[PromptStatistics],
    rotary: &Rotary,
    ratio: f64,
    kv_heads: &[usize],
    width: usize,
) -> Result<Sequence, Error> {
    let tokens = sequence.len();
    // The observed last tokens and the sinks stay.
    let gone = dropped(ratio, tokens).min(tokens.saturating_sub(OBSERVED + SINKS));
    let mut shorter = sequence.blank(tokens - gone)?;
    for (layer, statistics) in statistics.iter().enumerate() {
        for head in 0..kv_heads[layer] {
            let [keys, values] = [held(sequence, 2 * layer, head)?, held(sequence, 2 * layer + 1, head)?];
            let kept = kept(statistics, head, &keys, width, gone);
            let pick = |rows: &[f32]| -> Vec<f32> {
                kept.iter().flat_map(|&t| rows[t * width..(t + 1) * width].iter().copied()).collect()
            };
            let mut turned = pick(&keys);
            turned.chunks_mut(width).for_each(|key| rotary.turn(key, gone, true));
            shorter.write_rows(2 * layer, head, 0, &turned)?;
            shorter.write_rows(2 * layer + 1, head, 0, &pick(&values))?;
        }
    }
    Ok(shorter)
}

/// Tokens that stay, in their order.
fn kept(statistics: &PromptStatistics, head: usize, keys: &[f32], width: usize, gone: usize) -> Vec<usize> {
    let tokens = keys.len() / width;
    let mut weight = vec![0.0f32; tokens];
    for row in statistics.weights(head, keys, width) {
        weight.iter_mut().zip(&row).for_each(|(sum, w)| *sum += w);
    }
    let pooled = |t: usize| {
        let around = t.saturating_sub(POOL / 2)..(t + POOL / 2 + 1).min(tokens);
        weight[around].iter().copied().fold(0.0, f32::max)
    };
    let mut candidates: Vec<(f32, usize)> =
        (SINKS.min(tokens)..tokens.saturating_sub(OBSERVED)).map(|t| (pooled(t), t)).collect();
    candidates.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut stays = vec![true; tokens];
    candidates.iter().take(gone).for_each(|&(_, t)| stays[t] = false);
    (0..tokens).filter(|&t| stays[t]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_back_undoes_turning() {
        let (half, positions) = (4, 10);
        let angle = |i: usize| (i / half) as f32 * 0.3f32.powi((i % half) as i32);
        let cos = (0..half * positions).map(|i| angle(i).cos()).collect();
        let sin = (0..half * positions).map(|i| angle(i).sin()).collect();
        for interleaved in [false, true] {
            let rotary = Rotary { cos: Vec::clone(&cos), sin: Vec::clone(&sin), interleaved };
            let row: Vec<f32> = (0..8).map(|i| i as f32 - 2.5).collect();
            let mut turned = row.clone();
            rotary.turn(&mut turned, 7, false);
            rotary.turn(&mut turned, 3, true);
            let mut four = row.clone();
            rotary.turn(&mut four, 4, false);
            assert!(turned.iter().zip(&four).all(|(a, b)| (a - b).abs() < 1e-5));
            assert_eq!(rotary.positions(8), positions);
        }
    }
}

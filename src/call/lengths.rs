//! Lengths of the sequences of a batch, positions of their tokens, and the other small inputs that kernels index by.

use super::{CallError, Geometry, Input};
use crate::method::channel_scale;

/// How many tokens each sequence has, as GroupQueryAttention defines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// The largest total length of the batch; in a first prompt, L.
    pub total: usize,
    /// Past tokens of each sequence, at most P.
    pub past: Vec<usize>,
    /// Valid new tokens of each sequence, at most L; the rest is right padding.
    pub new: Vec<usize>,
}

impl Lengths {
    /// From seqlens_k (total length of each sequence minus 1) and total_sequence_length.
    ///
    /// # Errors
    /// Names the input whose lengths do not fit the sizes.
    pub fn new(geometry: &Geometry, seqlens_k: Option<&[i32]>, total: Option<i32>) -> Result<Self, CallError> {
        let (l, p, batch) = (geometry.new, geometry.past, geometry.batch);
        let given = total
            .map(|t| usize::try_from(t).map_err(|_| Input::TotalSequenceLength.error(format!("{t} is negative"))))
            .transpose()?;
        let Some(seqlens_k) = seqlens_k else {
            if let Some(t) = given.filter(|&t| t != p + l) {
                let problem = format!(
                    "{t}, but without seqlens_k it is {p} past rows plus {l} new tokens; \
                     a shared buffer needs seqlens_k"
                );
                return Err(Input::TotalSequenceLength.error(problem));
            }
            return Ok(Self { total: p + l, past: vec![p; batch], new: vec![l; batch] });
        };
        let mut lengths = Vec::with_capacity(batch);
        for (b, &s) in seqlens_k.iter().enumerate() {
            let length = i64::from(s) + 1;
            lengths.push(usize::try_from(length).map_err(|_| {
                Input::SeqlensK.error(format!("{s} for sequence {b} is negative; it is the total length minus 1"))
            })?);
        }
        let total = given.unwrap_or_else(|| lengths.iter().copied().fold(l, usize::max));
        if total < l || total > p + l {
            // Without the input, it was seqlens_k that asked for too much.
            let input = if given.is_some() { Input::TotalSequenceLength } else { Input::SeqlensK };
            let problem = format!("a total length of {total} does not fit {p} past rows and {l} new tokens");
            return Err(input.error(problem));
        }
        let first = total == l;
        let mut past = Vec::with_capacity(batch);
        let mut new = Vec::with_capacity(batch);
        for (b, &length) in lengths.iter().enumerate() {
            let long =
                || Input::SeqlensK.error(format!("sequence {b} has {length} tokens, more than the total of {total}"));
            let short =
                || Input::SeqlensK.error(format!("sequence {b} has {length} tokens, fewer than the {l} new ones"));
            if length > total {
                return Err(long());
            }
            past.push(if first { 0 } else { length.checked_sub(l).ok_or_else(short)? });
            new.push(if first { length } else { l });
        }
        Ok(Self { total, past, new })
    }

    /// Rows of present_key and present_value.
    pub fn present(&self, geometry: &Geometry) -> usize {
        self.total.max(geometry.past)
    }

    /// Recent keys of sequence `b` before the call, of a window of `recent_window`.
    pub fn recent_before(&self, b: usize, recent_window: usize) -> usize {
        self.past[b].min(recent_window)
    }

    /// Checks that past_key_recent, of `rows` keys a sequence, holds all recent keys of a window of `recent_window`.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_recent(&self, recent_window: usize, rows: usize) -> Result<(), CallError> {
        match (0..self.past.len()).map(|b| self.recent_before(b, recent_window)).max() {
            Some(needed) if needed > rows => {
                Err(Input::PastKeyRecent.error(format!("{rows} keys, but {needed} past keys are within recent_window")))
            }
            _ => Ok(()),
        }
    }

    /// Recent keys of sequence `b` after the call.
    pub fn recent_after(&self, b: usize, recent_window: usize) -> usize {
        (self.past[b] + self.new[b]).min(recent_window)
    }
}

/// Row of cos_cache and sin_cache for every new token, `[B * L]`; 0 for padding. `rows` is how many there are.
///
/// # Errors
/// If a position of a valid token has no row.
pub fn positions(
    geometry: &Geometry,
    lengths: &Lengths,
    position_ids: Option<&[i64]>,
    rows: usize,
) -> Result<Vec<usize>, CallError> {
    let l = geometry.new;
    let mut positions = vec![0; geometry.batch * l];
    for b in 0..geometry.batch {
        for i in 0..lengths.new[b] {
            let at = b * l + i;
            let position = match position_ids {
                Some(ids) => usize::try_from(ids[at]).ok(),
                None => Some(lengths.past[b] + i),
            };
            positions[at] = position.filter(|&p| p < rows).ok_or_else(|| match position_ids {
                Some(ids) => Input::PositionIds.error(format!(
                    "position {} of token {i} of sequence {b} is not below the {rows} of cos_cache",
                    ids[at]
                )),
                None => Input::CosCache
                    .error(format!("{rows} positions, but sequence {b} reaches position {}", lengths.past[b] + i)),
            })?;
        }
    }
    Ok(positions)
}

/// Channel scale c, `[Hk * D]`, of query_saliency; ones without.
///
/// # Errors
/// If a saliency is not positive and finite.
pub fn channel_scales(geometry: &Geometry, query_saliency: Option<&[f32]>) -> Result<Vec<f32>, CallError> {
    let Some(saliency) = query_saliency else { return Ok(vec![1.0; geometry.kv_heads * geometry.head_dim()]) };
    match saliency.iter().position(|&n| !(n > 0.0 && n.is_finite())) {
        None => Ok(saliency.iter().map(|&n| channel_scale(n)).collect()),
        Some(i) => {
            let (h, j) = (i / geometry.head_dim(), i % geometry.head_dim());
            let problem = format!("{} for head {h}, channel {j} is not positive and finite", saliency[i]);
            Err(Input::QuerySaliency.error(problem))
        }
    }
}

/// Checks that attention_bias, of `columns` columns, covers every key.
///
/// # Errors
/// If it does not.
pub fn check_bias_columns(lengths: &Lengths, columns: usize) -> Result<(), CallError> {
    if columns < lengths.total {
        let problem = format!("{columns} columns, but the largest total length is {}", lengths.total);
        return Err(Input::AttentionBias.error(problem));
    }
    Ok(())
}

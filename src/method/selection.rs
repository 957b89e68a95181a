//! Which channels of a key are kept, and the magnitude that stands for the others.

use crate::bits::{bit, set_bit};

/// Most channels a head has here: their numbers fit a byte.
const MOST_CHANNELS: usize = 256;

/// Marks in the zeroed `mask` (`D` bits) the `kept` channels of highest score `s_j = k_j^2 * n_j`; of equal scores the
/// lower channel wins. `key` and `saliency` are finite, `saliency` not negative.
///
/// # Panics
/// If the lengths differ, or `kept` or `D` is out of range.
pub fn select(key: &[f32], saliency: &[f32], kept: usize, mask: &mut [u8]) {
    let d = key.len();
    assert!(saliency.len() == d && kept <= d && d <= MOST_CHANNELS && mask.len() == d / 8);
    if kept == d {
        return mask.fill(0xff);
    }
    let mut order = [0u8; MOST_CHANNELS];
    let order = &mut order[..d];
    let mut score = [0.0; MOST_CHANNELS];
    for j in 0..d {
        order[j] = j as u8;
        score[j] = key[j] * key[j] * saliency[j];
    }
    if kept > 0 {
        // Partial selection: only the set of the kept matters, not their order.
        order
            .select_nth_unstable_by(kept - 1, |&i, &j| score[j as usize].total_cmp(&score[i as usize]).then(i.cmp(&j)));
    }
    order[..kept].iter().for_each(|&j| set_bit(mask, j.into()));
}

/// Recovery magnitude `a = sqrt(mean over pruned j of (k_j / c_j)^2)`, in units of the channel scale c; 0 when `mask`
/// keeps every channel.
pub fn recovery_magnitude(key: &[f32], scale: &[f32], mask: &[u8]) -> f32 {
    let mut sum = 0.0;
    let mut pruned = 0;
    for j in (0..key.len()).filter(|&j| !bit(mask, j)) {
        let x = key[j] / scale[j];
        sum += x * x;
        pruned += 1;
    }
    if pruned == 0 { 0.0 } else { (sum / pruned as f32).sqrt() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against sorting all channels; few distinct scores, so that ties are common.
        #[test]
        fn keeps_the_highest_scores(
            (key, saliency) in (4usize..=32).prop_flat_map(|n| (
                prop::collection::vec((-4i8..=4).prop_map(f32::from), n * 8),
                prop::collection::vec((0u8..4).prop_map(f32::from), n * 8),
            )),
            share in 0.0f64..=1.0,
        ) {
            let d = key.len();
            let kept = (share * d as f64) as usize;
            let mut mask = vec![0; d / 8];
            select(&key, &saliency, kept, &mut mask);
            let mut order: Vec<_> = (0..d).collect();
            let score = |j: usize| key[j] * key[j] * saliency[j];
            order.sort_by(|&i, &j| score(j).partial_cmp(&score(i)).unwrap().then(i.cmp(&j)));
            for (rank, &j) in order.iter().enumerate() {
                prop_assert_eq!(bit(&mask, j), rank < kept);
            }
        }
    }

    #[test]
    fn magnitude_is_the_root_mean_square_of_the_pruned() {
        let mut key = [9.0; 32];
        (key[0], key[1]) = (3.0, -8.0);
        let mut scale = [1.0; 32];
        scale[1] = 2.0;
        let mut mask = [0xff; 4];
        assert_eq!(recovery_magnitude(&key, &scale, &mask), 0.0);
        mask[0] = 0xfc;
        assert_eq!(recovery_magnitude(&key, &scale, &mask), 12.5f32.sqrt());
    }
}

//! Which channels of a key are kept, and the magnitude that stands for the others.

/// Most channels a head has here: their numbers fit a byte.
const MOST_CHANNELS: usize = 256;

/// Marks in `mask` (`D` bits) the `kept` channels of highest score `s_j = k_j^2 * n_j`; of equal scores the
/// lower channel wins. `key` and `saliency` are finite, `saliency` not negative.
///
/// # Panics
/// If the lengths differ, or `kept` or `D` is out of range.
// Inlined always, as recovery_magnitude and the encoding of rows: it becomes instructions of the caller's vectors.
#[inline(always)]
pub fn select(key: &[f32], saliency: &[f32], kept: usize, mask: &mut [u8]) {
    let d = key.len();
    assert!(saliency.len() == d && kept <= d && d <= MOST_CHANNELS && mask.len() == d / 8);
    if kept == d {
        return mask.fill(0xff);
    }
    if kept == 0 {
        return mask.fill(0);
    }
    // Scores are not negative, so that their bits have their order.
    let mut buffer = [0; MOST_CHANNELS];
    let score = &mut buffer[..d];
    for ((score, k), n) in score.iter_mut().zip(key).zip(saliency) {
        *score = (k * k * n).to_bits() as i32;
    }
    // The greatest bound that at least `kept` scores reach, found bit by bit: rows are too short for sorting to pay.
    let mut bound = 0;
    let mut reach = d;
    for bit in (0..31).rev() {
        let higher = bound | 1 << bit;
        let count = score.iter().map(|&s| i32::from(s >= higher)).sum::<i32>() as usize;
        if count >= kept {
            (bound, reach) = (higher, count);
            if count == kept {
                break;
            }
        }
    }
    let (scores, _) = score.as_chunks::<8>();
    for (byte, scores) in mask.iter_mut().zip(scores) {
        *byte = (0..8).fold(0, |byte, bit| byte | u8::from(scores[bit] >= bound) << bit);
    }
    // Of the scores that just reach the bound, the last ones are too many.
    let mut too_many = reach - kept;
    for j in (0..d).rev() {
        if too_many == 0 {
            break;
        }
        if score[j] == bound {
            mask[j / 8] &= !(1 << (j % 8));
            too_many -= 1;
        }
    }
}

/// Recovery magnitude `a = sqrt(mean over pruned j of (k_j / c_j)^2)`, in units of the channel scale c; 0 when `mask`
/// keeps every channel.
#[inline(always)]
pub fn recovery_magnitude(key: &[f32], scale: &[f32], mask: &[u8]) -> f32 {
    // Side by side, since sums one after the other wait for each other.
    let mut sums = [0.0; 8];
    let mut pruned = 0;
    let channels = key.as_chunks::<8>().0.iter().zip(scale.as_chunks::<8>().0);
    for ((key, scale), &mask) in channels.zip(mask) {
        for j in 0..8 {
            let x = key[j] / scale[j];
            // All bits of the square, or none: a branch would be mispredicted half of the time.
            let pruned = u32::from(mask >> j & 1).wrapping_sub(1);
            sums[j] += f32::from_bits((x * x).to_bits() & pruned);
        }
        pruned += mask.count_zeros();
    }
    let sum: f32 = sums.iter().sum();
    if pruned == 0 { 0.0 } else { (sum / pruned as f32).sqrt() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bits::bit;

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

//! Quantising rows and restoring them.

/// Quantises and restores each group of `group` elements with `bits` bits, a scale and a minimum, both float16. Only
/// the share `clip` of the range from the least to the greatest element is covered, around its middle.
pub fn quantise(row: &mut [f32], bits: u32, group: usize, clip: f32) {
    let most = ((1u32 << bits) - 1) as f32;
    for part in row.chunks_mut(group) {
        let least = part.iter().copied().fold(f32::INFINITY, f32::min);
        let greatest = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (middle, half) = ((least + greatest) / 2.0, (greatest - least) / 2.0 * clip);
        let minimum = half::f16::from_f32(middle - half).to_f32();
        let step = half::f16::from_f32(2.0 * half / most).to_f32();
        for x in part {
            let level = if step > 0.0 { ((*x - minimum) / step).round_ties_even().clamp(0.0, most) } else { 0.0 };
            *x = minimum + level * step;
        }
    }
}

/// Sets the `count` smallest elements of a row to zero; quantises and restores the others with 8 bits, a scale and a
/// minimum.
pub fn prune(row: &mut [f32], count: usize) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()));
    let (kept, rest) = order.split_at(row.len() - count);
    let mut stored: Vec<f32> = kept.iter().map(|&j| row[j]).collect();
    quantise(&mut stored, 8, kept.len().max(1), 1.0);
    kept.iter().zip(stored).for_each(|(&j, x)| row[j] = x);
    rest.iter().for_each(|&j| row[j] = 0.0);
}

/// The orthonormal Walsh-Hadamard transform of blocks of the largest power of two that divides the row. It is its own
/// inverse.
pub fn hadamard(row: &mut [f32]) {
    let block = 1 << row.len().trailing_zeros();
    for part in row.chunks_mut(block) {
        let mut half = 1;
        while half < block {
            for pair in part.chunks_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        let norm = (block as f32).sqrt().recip();
        part.iter_mut().for_each(|x| *x *= norm);
    }
}

/// The position of each element of a row of `width` when the bits of its index are reversed; unchanged if the width is
/// not a power of two.
pub fn bit_reversed(width: usize) -> Vec<usize> {
    if !width.is_power_of_two() || width == 1 {
        return (0..width).collect();
    }
    let unused = usize::BITS - width.trailing_zeros();
    (0..width).map(|i| i.reverse_bits() >> unused).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_are_dropped() {
        let mut row = [0.5, -4.0, 3.0, -0.25, 1.0, 2.0];
        prune(&mut row, 3);
        assert_eq!([row[0], row[3], row[4]], [0.0; 3]);
        for (x, y) in [(row[1], -4.0), (row[2], 3.0), (row[5], 2.0)] {
            assert!((x - y).abs() < 7.0 / 255.0, "{x} is not {y}");
        }
    }

    #[test]
    fn the_error_is_at_most_half_a_step() {
        let row: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 20.0) / 7.0).collect();
        for (bits, steps) in [(8, 255.0), (4, 15.0), (2, 3.0)] {
            let mut stored = row.clone();
            quantise(&mut stored, bits, 64, 1.0);
            let most = row.iter().zip(&stored).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let half = 9.0 / steps / 2.0;
            assert!(most <= half * 1.01 + 0.004 && most > half * 0.4, "{bits}: {most}, half a step is {half}");
        }
        let mut same = [2.5f32; 8];
        quantise(&mut same, 4, 4, 1.0);
        assert_eq!(same, [2.5; 8]);
    }

    #[test]
    fn the_transform_keeps_lengths_and_is_its_own_inverse() {
        let row: Vec<f32> = (0..96).map(|i| (i as f32).sin()).collect();
        let mut turned = row.clone();
        hadamard(&mut turned);
        let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>();
        assert!((norm(&row) - norm(&turned)).abs() < 1e-3 && (row[1] - turned[1]).abs() > 1e-3);
        hadamard(&mut turned);
        assert!(row.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-5));
        let mut impulse = [0.0, 1.0];
        hadamard(&mut impulse);
        assert!((impulse[0] - 0.5f32.sqrt()).abs() < 1e-6 && (impulse[1] + 0.5f32.sqrt()).abs() < 1e-6);
        assert_eq!(bit_reversed(8), [0, 4, 2, 6, 1, 5, 3, 7]);
    }
}

//! What pruned channels are read as: one magnitude for all, or magnitudes drawn from a distribution.

use serde::{Deserialize, Serialize};

/// Numbers of a table below, one for each value of six random bits.
const DRAWS: usize = 64;

/// What a number in a table is divided by.
const UNIT: f32 = 4096.0;

/// Quantiles of the exponential distribution at (i + 1/2) / 64, their mean square 1.
#[rustfmt::skip]
const EXPONENTIAL: [u16; DRAWS] = [
    23, 70, 117, 166, 215, 265, 316, 367, 420, 474, 528, 584, 640, 698, 757, 817,
    879, 941, 1006, 1071, 1138, 1207, 1277, 1349, 1422, 1498, 1575, 1655, 1737, 1821, 1908, 1997,
    2089, 2184, 2283, 2384, 2490, 2599, 2712, 2830, 2953, 3081, 3215, 3355, 3503, 3658, 3822, 3995,
    4180, 4376, 4587, 4814, 5059, 5327, 5622, 5950, 6319, 6741, 7233, 7825, 8565, 9557, 11063, 14301,
];

/// Quantiles of the half-normal distribution at (i + 1/2) / 64, their mean square 1.
#[rustfmt::skip]
const NORMAL: [u16; DRAWS] = [
    40, 121, 202, 282, 363, 444, 525, 607, 688, 770, 853, 935, 1018, 1101, 1185, 1269,
    1354, 1440, 1526, 1612, 1700, 1788, 1877, 1967, 2058, 2149, 2242, 2337, 2432, 2529, 2627, 2726,
    2827, 2930, 3035, 3142, 3251, 3362, 3476, 3593, 3712, 3835, 3961, 4091, 4225, 4364, 4508, 4658,
    4814, 4978, 5150, 5331, 5523, 5728, 5949, 6188, 6449, 6740, 7069, 7450, 7909, 8495, 9329, 10950,
];

/// What a pruned channel is read as. A row holds the parameter of either distribution already: its recovery magnitude a
/// is the root mean square of the pruned channels, so rows do not depend on this (but for `None`, whose a is 0). What
/// is drawn has a mean square of a^2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Recovery {
    /// Its sign times the root mean square of the row's pruned channels.
    Mean,
    /// Zero.
    None,
    /// Its sign times a magnitude drawn from an exponential distribution of the row's.
    Exponential,
    /// Its sign times a magnitude drawn from a half-normal distribution of the row's.
    Normal,
}

impl Recovery {
    const ALL: [Self; 4] = [Self::Mean, Self::None, Self::Exponential, Self::Normal];

    /// What the attribute calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::None => "none",
            Self::Exponential => "exponential",
            Self::Normal => "normal",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|recovery| recovery.name() == name)
    }

    /// Whether magnitudes are drawn.
    pub fn is_sampled(self) -> bool {
        matches!(self, Self::Exponential | Self::Normal)
    }

    /// What the recovery magnitude of the row at `position` is multiplied by for `channel`, below 256. What is drawn
    /// depends on nothing else: whatever reads the row, and in whatever batch, draws the same.
    pub fn factor(self, position: usize, channel: usize) -> f32 {
        let drawn = |table: &[u16; DRAWS]| f32::from(table[draw(position, channel)]) / UNIT;
        match self {
            Self::Mean => 1.0,
            Self::None => 0.0,
            Self::Exponential => drawn(&EXPONENTIAL),
            Self::Normal => drawn(&NORMAL),
        }
    }
}

/// Six bits that look random: the first ones of a hash of 32 bits (the finaliser "lowbias32") of both numbers.
fn draw(position: usize, channel: usize) -> usize {
    let mut x = (position as u32).wrapping_mul(256).wrapping_add(channel as u32);
    x = (x ^ x >> 16).wrapping_mul(0x7feb_352d);
    x = (x ^ x >> 15).wrapping_mul(0x846c_a68b);
    (x ^ x >> 16) as usize >> 26
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moments of what is drawn over many positions and channels, beside those of the distributions.
    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        // The mean of a variable whose mean square is 1: 1/sqrt(2), and sqrt(2/pi).
        for (recovery, mean) in
            [(Recovery::Exponential, 0.5f64.sqrt()), (Recovery::Normal, std::f64::consts::FRAC_2_PI.sqrt())]
        {
            let (mut sum, mut squares) = (0.0, 0.0);
            let (positions, channels) = (4096, 128);
            for position in 0..positions {
                for channel in 0..channels {
                    let x = f64::from(recovery.factor(position, channel));
                    (sum, squares) = (sum + x, squares + x * x);
                }
            }
            let count = (positions * channels) as f64;
            assert!((sum / count - mean).abs() < 0.01, "{recovery:?}: mean {}", sum / count);
            assert!((squares / count - 1.0).abs() < 0.01, "{recovery:?}: mean square {}", squares / count);
        }
    }

    /// Draws of neighbouring positions and channels do not go together.
    #[test]
    fn neighbours_are_independent() {
        for (next_position, next_channel) in [(1, 0), (0, 1), (1, 1), (16, 0)] {
            let mut product = 0.0;
            for position in 0..4096 {
                for channel in 0..64 {
                    let x = draw(position, channel) as f64 - 31.5;
                    product += x * (draw(position + next_position, channel + next_channel) as f64 - 31.5);
                }
            }
            // Of numbers with variance (64^2 - 1) / 12.
            let correlation = product / (4096.0 * 64.0) / 341.25;
            assert!(correlation.abs() < 0.01, "{next_position}, {next_channel}: {correlation}");
        }
    }

    #[test]
    fn what_is_drawn_stays_the_same() {
        let drawn = |recovery: Recovery| [(0, 1), (7, 0), (1 << 20, 255)].map(|(p, c)| recovery.factor(p, c) * UNIT);
        assert_eq!(drawn(Recovery::Exponential), [1575.0, 817.0, 1737.0]);
        assert_eq!(drawn(Recovery::Normal), [2242.0, 1269.0, 2432.0]);
    }
}

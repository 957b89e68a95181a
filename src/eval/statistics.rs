//! Estimates with confidence intervals.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

/// A value with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value of the sample.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Neighbouring tokens are correlated, so blocks of this many are drawn together (Künsch 1989, block bootstrap).
const BLOCK: usize = 16;

/// Number of bootstrap samples.
const DRAWS: usize = 1000;

/// A statistic of all values, with its interval by a block bootstrap. Needs at least one value. The draws are the same
/// in every run.
pub fn bootstrap(series: &[Vec<f64>], statistic: fn(&mut [f64]) -> f64) -> Estimate {
    let blocks: Vec<&[f64]> = series.iter().flat_map(|values| values.chunks(BLOCK)).collect();
    let mut all = blocks.concat();
    let value = statistic(&mut all);
    let mut random = StdRng::seed_from_u64(0);
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let mut sample: Vec<f64> = Vec::with_capacity(all.len() + BLOCK);
            while sample.len() < all.len() {
                sample.extend_from_slice(blocks[random.random_range(0..blocks.len())]);
            }
            statistic(&mut sample)
        })
        .collect();
    Estimate { value, low: percentile(&mut drawn, 0.025), high: percentile(&mut drawn, 0.975) }
}

/// The mean of independent values, with its interval; `None` without any.
pub fn mean_of(values: &[f64]) -> Option<Estimate> {
    let each: Vec<Vec<f64>> = values.iter().map(|value| vec![*value]).collect();
    (!each.is_empty()).then(|| bootstrap(&each, mean))
}

/// The mean of at least one value.
pub fn mean(values: &mut [f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The percentile for this share, interpolated between neighbouring values; `values` are reordered.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let (_, &mut lower, above) = values.select_nth_unstable_by(place as usize, f64::total_cmp);
    let upper = above.iter().copied().min_by(f64::total_cmp).unwrap_or(lower);
    // Infinite neighbours must not produce a NaN.
    if upper == lower { lower } else { lower + (upper - lower) * place.fract() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_values() {
        let mut values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!(percentile(&mut values, 0.5), 3.0);
        assert_eq!(percentile(&mut values, 0.875), 4.5);
        assert_eq!((percentile(&mut values, 0.0), percentile(&mut values, 1.0)), (1.0, 5.0));
        assert_eq!(percentile(&mut [f64::INFINITY, f64::INFINITY], 0.3), f64::INFINITY);
    }

    #[test]
    fn intervals_hold_the_mean_as_often_as_they_say() {
        let mut random = StdRng::seed_from_u64(1);
        let trials = 200;
        let held = (0..trials)
            .filter(|_| {
                let values: Vec<Vec<f64>> =
                    (0..4).map(|_| (0..128).map(|_| random.random::<f64>()).collect()).collect();
                let estimate = bootstrap(&values, mean);
                (estimate.low..=estimate.high).contains(&0.5)
            })
            .count();
        // 95 % of them, with a tolerance for chance and blocks.
        assert!((170..=199).contains(&held), "{held} of {trials}");
    }

    #[test]
    fn dependent_neighbours_widen_an_interval() {
        let independent: Vec<f64> = (0..512).map(|i| f64::from(i % 2)).collect();
        let dependent: Vec<f64> = (0..512).map(|i| f64::from(i / 16 % 2)).collect();
        let width = |values: Vec<f64>| {
            let estimate = bootstrap(&[values], mean);
            estimate.high - estimate.low
        };
        assert!(width(dependent) > 0.1 && width(independent) < 1e-9);
    }
}

//! Times candidates alternately, so that disturbances of the machine affect all of them.

use std::time::Instant;

use anyhow::Result;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub rounds: usize,
    /// No further round starts after this many seconds, ...
    pub seconds: f64,
    /// ... unless there were fewer rounds than this.
    pub least: usize,
}

/// Seconds of each candidate in each round.
pub struct Samples(Vec<Vec<f64>>);

impl Samples {
    /// Calls `time` for every candidate below `count`, round after round; `done` is called after each round.
    pub fn take(
        count: usize,
        budget: Budget,
        mut time: impl FnMut(usize) -> Result<f64>,
        mut done: impl FnMut(usize),
    ) -> Result<Self> {
        let start = Instant::now();
        let mut samples = vec![Vec::new(); count];
        for round in 0..budget.rounds.max(1) {
            if round >= budget.least && start.elapsed().as_secs_f64() > budget.seconds {
                break;
            }
            // The starting candidate rotates, so that none always follows the same one.
            for candidate in (0..count).map(|i| (i + round) % count) {
                samples[candidate].push(time(candidate)?);
            }
            done(round + 1);
        }
        Ok(Self(samples))
    }

    pub fn of(&self, candidate: usize) -> &[f64] {
        &self.0[candidate]
    }

    pub fn median(&self, candidate: usize) -> f64 {
        median(self.of(candidate).iter().copied())
    }

    /// The time of `other` divided by that of `candidate`: the median over rounds, since the machine's state changes
    /// less within a round than over the whole run.
    pub fn ratio(&self, other: usize, candidate: usize) -> f64 {
        median(self.of(other).iter().zip(self.of(candidate)).map(|(other, own)| other / own))
    }
}

/// The median; NaN if there are no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
        assert!(median([]).is_nan());
        let samples = Samples(vec![vec![1.0, 2.0, 100.0], vec![2.0, 4.0, 200.0]]);
        assert_eq!((samples.median(0), samples.ratio(1, 0)), (2.0, 2.0));
    }

    #[test]
    fn rounds_alternate_and_end() {
        let mut order = Vec::new();
        let mut time = |candidate| {
            order.push(candidate);
            Ok(1.0)
        };
        let budget = Budget { rounds: 3, seconds: 1e9, least: 1 };
        Samples::take(2, budget, &mut time, |_| {}).unwrap();
        let late = Budget { rounds: 9, seconds: -1.0, least: 2 };
        let samples = Samples::take(1, late, |_| Ok(1.0), |_| {}).unwrap();
        assert_eq!(order, [0, 1, 1, 0, 0, 1]);
        assert_eq!(samples.of(0).len(), 2);
    }
}

//! Choosing the next token from logits.

use rand::SeedableRng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 always takes the most likely token.
    pub temperature: f32,
    /// Only this many of the most likely tokens; None for all.
    pub top_k: Option<usize>,
    /// Only the smallest set of most likely tokens whose probabilities, after `top_k`, reach this share; 1 for all.
    pub top_p: f32,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 }
    }
}

/// Chooses tokens one after another.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: StdRng,
}

impl Sampler {
    /// Starts from the seed.
    pub fn new(sampling: Sampling) -> Self {
        let random = StdRng::seed_from_u64(sampling.seed);
        Self { sampling, random }
    }

    /// The next token, or None if no token has a finite logit (NaN and infinity are never chosen).
    pub fn choose(&mut self, logits: &[f32]) -> Option<usize> {
        let best = greedy(logits)?;
        if self.sampling.temperature <= 0.0 {
            return Some(best);
        }
        let scale = 1.0 / f64::from(self.sampling.temperature);
        let weight = |logit: f32| ((f64::from(logit) - f64::from(logits[best])) * scale).exp();
        let finite = logits.iter().enumerate().filter(|(_, logit)| logit.is_finite());
        let mut choices: Vec<(usize, f64)> = finite.map(|(token, &logit)| (token, weight(logit))).collect();
        // Ties go to the lower token, as in `greedy`.
        let likelier = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self.sampling.top_k.filter(|&k| k > 0 && k < choices.len()) {
            choices.select_nth_unstable_by(k - 1, likelier);
            choices.truncate(k);
        }
        if self.sampling.top_p < 1.0 {
            choices.sort_unstable_by(likelier);
            let share = f64::from(self.sampling.top_p) * choices.iter().map(|(_, weight)| weight).sum::<f64>();
            let mut sum = 0.0;
            let enough = choices.iter().position(|(_, weight)| {
                sum += weight;
                sum >= share
            });
            choices.truncate(enough.map_or(choices.len(), |last| last + 1));
        }
        // The greatest weight is 1, so the sum is positive.
        let distribution = WeightedIndex::new(choices.iter().map(|(_, weight)| weight)).ok()?;
        Some(choices[distribution.sample(&mut self.random)].0)
    }
}

/// The most likely token, the first on ties; None if no token has a finite logit.
pub fn greedy(logits: &[f32]) -> Option<usize> {
    let mut best = None;
    for (token, &logit) in logits.iter().enumerate() {
        if logit.is_finite() && best.is_none_or(|(_, most)| logit > most) {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Share of each token in 20,000 draws.
    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        const DRAWS: usize = 20_000;
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.choose(logits).unwrap()] += 1;
        }
        counts.iter().map(|&n| f64::from(n) / DRAWS as f64).collect()
    }

    fn close(shares: &[f64], expected: &[f64]) {
        for (share, expected) in shares.iter().zip(expected) {
            let is_close = if *expected == 0.0 { *share == 0.0 } else { (share - expected).abs() < 0.02 };
            assert!(is_close, "{shares:?}, expected {expected:?}");
        }
    }

    /// Logits of the probabilities 0.4, 0.3, 0.2, 0.1, unsorted.
    fn logits() -> [f32; 4] {
        [0.2f32, 0.4, 0.1, 0.3].map(f32::ln)
    }

    #[test]
    fn greedy_takes_the_first_of_the_best_and_nothing_that_is_not_finite() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, 2.0]), Some(1));
        assert_eq!(greedy(&[f32::NAN, f32::NEG_INFINITY, -7.0, f32::INFINITY]), Some(2));
        assert_eq!(greedy(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(greedy(&[]), None);
        assert_eq!(Sampler::new(Sampling::default()).choose(&[0.0, 9.0]), Some(1));
    }

    #[test]
    fn shares_are_the_probabilities() {
        let all = Sampling { temperature: 1.0, ..Default::default() };
        close(&shares(all.clone(), &logits()), &[0.2, 0.4, 0.1, 0.3]);
        // Probabilities to the power of 1 / temperature.
        let powers = [0.04, 0.16, 0.01, 0.09].map(|p| p / 0.30);
        close(&shares(Sampling { temperature: 0.5, ..all.clone() }, &logits()), &powers);
        close(&shares(Sampling { top_k: Some(2), ..all.clone() }, &logits()), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        close(&shares(Sampling { top_k: Some(1), ..all.clone() }, &logits()), &[0.0, 1.0, 0.0, 0.0]);
        // 0.4 + 0.3 does not reach 0.75.
        close(&shares(Sampling { top_p: 0.75, ..all.clone() }, &logits()), &[2.0 / 9.0, 4.0 / 9.0, 0.0, 3.0 / 9.0]);
        close(&shares(Sampling { top_p: 0.01, ..all.clone() }, &logits()), &[0.0, 1.0, 0.0, 0.0]);
        // After top_k, 0.4 is 57 % of the remaining probability.
        let both = Sampling { top_k: Some(2), top_p: 0.5, ..all };
        close(&shares(both, &logits()), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Default::default() });
            (0..40).map(|_| sampler.choose(&logits()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    proptest! {
        #[test]
        fn whatever_the_logits_the_choice_is_finite(
            logits in proptest::collection::vec(proptest::num::f32::ANY, 0..40),
            temperature in 0.0f32..4.0, top_k in proptest::option::of(0usize..50), top_p in 0.001f32..=1.0, seed: u64,
        ) {
            let token = Sampler::new(Sampling { temperature, top_k, top_p, seed }).choose(&logits);
            prop_assert_eq!(token.is_some(), logits.iter().any(|x| x.is_finite()));
            prop_assert!(token.is_none_or(|t| logits[t].is_finite()));
        }
    }
}

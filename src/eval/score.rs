//! Differences between predictions.

use serde::{Deserialize, Serialize};

use super::statistics::{Estimate, bootstrap, mean, percentile};
use crate::runtime::greedy;

/// One prediction compared with the original model's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    /// Minus the log probability of the token that actually follows, in nats.
    pub loss: f64,
    /// The same for the original model.
    pub original_loss: f64,
    /// KL(original || model), in nats.
    pub divergence: f64,
    /// Whether both models rank the same token first.
    pub agrees: bool,
    /// Whether the model ranks the token that follows first.
    pub foresees: bool,
}

impl TokenScore {
    /// Scores `logits` against the `original` model's, where `token` follows. All have the same vocabulary.
    pub fn new(original: &[f32], logits: &[f32], token: usize) -> Self {
        let loss = |logits: &[f32]| log_sum(logits) - f64::from(logits[token]);
        Self {
            loss: loss(logits),
            original_loss: loss(original),
            divergence: divergence(original, logits),
            agrees: greedy(original) == greedy(logits),
            foresees: greedy(logits) == Some(token),
        }
    }
}

/// Summary of the scores of several passages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of scored predictions.
    pub tokens: usize,
    /// Mean loss in nats.
    pub loss: Estimate,
    /// Mean loss minus the original's.
    pub loss_increase: Estimate,
    /// Mean KL divergence in nats.
    pub divergence: Estimate,
    /// Its 99th percentile.
    pub divergence_p99: Estimate,
    /// Share of predictions whose first token is the same as the original's.
    pub agreement: Estimate,
    /// Share of passages in which every token is ranked first: for tasks, the share answered.
    pub answered: Estimate,
}

impl Summary {
    /// From at least one score; `passages` are in the order of their text. `None` without any.
    pub fn new(passages: &[Vec<TokenScore>]) -> Option<Self> {
        let tokens = passages.iter().map(Vec::len).sum();
        if tokens == 0 {
            return None;
        }
        let of = |value: fn(&TokenScore) -> f64, statistic: fn(&mut [f64]) -> f64| {
            let values: Vec<Vec<f64>> = passages.iter().map(|p| p.iter().map(value).collect()).collect();
            bootstrap(&values, statistic)
        };
        Some(Self {
            tokens,
            loss: of(|s| s.loss, mean),
            loss_increase: of(|s| s.loss - s.original_loss, mean),
            divergence: of(|s| s.divergence, mean),
            divergence_p99: of(|s| s.divergence, |values| percentile(values, 0.99)),
            answered: answered(passages),
            agreement: of(|s| f64::from(u8::from(s.agrees)), mean),
        })
    }
}

/// Mean KL divergence of a model minus that of another one, of the same predictions; `None` without any.
pub fn divergence_change(model: &[Vec<TokenScore>], other: &[Vec<TokenScore>]) -> Option<Estimate> {
    let change = |(a, b): (&TokenScore, &TokenScore)| a.divergence - b.divergence;
    let passages = model.iter().zip(other).map(|(a, b)| a.iter().zip(b).map(change).collect::<Vec<f64>>());
    let passages: Vec<_> = passages.filter(|passage| !passage.is_empty()).collect();
    (!passages.is_empty()).then(|| bootstrap(&passages, mean))
}

fn answered(passages: &[Vec<TokenScore>]) -> Estimate {
    // Each passage separately, since passages are independent.
    let values =
        passages.iter().filter(|p| !p.is_empty()).map(|p| vec![f64::from(u8::from(p.iter().all(|s| s.foresees)))]);
    bootstrap(&values.collect::<Vec<_>>(), mean)
}

/// Log of the sum of exponentials.
fn log_sum(logits: &[f32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    most + logits.iter().map(|&x| (f64::from(x) - most).exp()).sum::<f64>().ln()
}

/// KL(p || q) in nats of the distributions given by two rows of logits.
pub fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_sum, q_sum) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        // A token of probability 0 contributes nothing, whatever the other model assigns to it.
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    });
    // Rounding can make it slightly negative.
    terms.sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_that_of_the_distributions() {
        let [p, q] = [[0.5f32, 0.25, 0.25], [0.25f32, 0.5, 0.25]].map(|p| p.map(f32::ln));
        let expected = 0.5 * 2f64.ln() + 0.25 * 0.5f64.ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-6);
        // Only differences of logits matter.
        assert!((divergence(&p.map(|x| x + 90.0), &q) - expected).abs() < 1e-5);
        assert_eq!(divergence(&p, &p), 0.0);
        let impossible = [0.0, f32::NEG_INFINITY];
        assert!((divergence(&impossible, &[0.0, 0.0]) - 2f64.ln()).abs() < 1e-9);
        assert_eq!(divergence(&[0.0, 0.0], &impossible), f64::INFINITY);
    }

    #[test]
    fn a_score_is_of_the_token_that_follows() {
        let [p, q] = [[0.5f32, 0.25, 0.25], [0.25f32, 0.5, 0.25]].map(|p| p.map(f32::ln));
        let score = TokenScore::new(&p, &q, 1);
        assert!((score.loss - 2f64.ln()).abs() < 1e-6 && (score.original_loss - 4f64.ln()).abs() < 1e-6);
        assert!(!score.agrees && TokenScore::new(&p, &p, 1).agrees);
        let summary = Summary::new(&[vec![score], vec![TokenScore::new(&p, &p, 1)]]).unwrap();
        assert_eq!((summary.tokens, summary.agreement.value), (2, 0.5));
        assert!((summary.loss_increase.value + 2f64.ln() / 2.0).abs() < 1e-6);
        assert_eq!(Summary::new(&[vec![]]), None);
    }
}

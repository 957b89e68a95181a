//! Softmax over keys that come one at a time, or in parts.

/// The state of `sum_t softmax(s)_t * v_t` over the keys seen so far: a few numbers instead of a row of scores. States
/// of different keys merge, in any grouping (Milakov and Gimelshein 2018; FlashInfer's attention state).
#[derive(Clone, Debug)]
pub struct SoftmaxState {
    /// Greatest score; minus infinity when no key was seen.
    max: f32,
    /// `sum_t exp(s_t - max)`
    sum: f32,
    /// `sum_t exp(s_t - max) * v_t`
    weighted: Vec<f32>,
}

impl SoftmaxState {
    /// No key seen yet, values of `head_dim` channels.
    pub fn new(head_dim: usize) -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0, weighted: vec![0.0; head_dim] }
    }

    /// From greatest score, sum and weighted sum, as the fields have them.
    pub(super) fn of(max: f32, sum: f32, weighted: Vec<f32>) -> Self {
        Self { max, sum, weighted }
    }

    /// Multiplies what was summed so far, for a new greatest score `max`.
    fn rescale(&mut self, max: f32) {
        if max > self.max {
            let factor = (self.max - max).exp();
            self.sum *= factor;
            self.weighted.iter_mut().for_each(|w| *w *= factor);
            self.max = max;
        }
    }

    /// Adds a key of finite `score` and its `value`.
    pub fn push(&mut self, score: f32, value: &[f32]) {
        self.rescale(score);
        let p = (score - self.max).exp();
        self.sum += p;
        self.weighted.iter_mut().zip(value).for_each(|(w, v)| *w += p * v);
    }

    /// Adds the keys of another state.
    pub fn merge(&mut self, other: &Self) {
        if other.sum > 0.0 {
            self.rescale(other.max);
            let factor = (other.max - self.max).exp();
            self.sum += factor * other.sum;
            self.weighted.iter_mut().zip(&other.weighted).for_each(|(w, o)| *w += factor * o);
        }
    }

    /// The weighted mean of the values; zero when no key was seen.
    pub fn finish(&self) -> impl Iterator<Item = f32> + '_ {
        let factor = if self.sum > 0.0 { 1.0 / self.sum } else { 0.0 };
        self.weighted.iter().map(move |w| w * factor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Pushed in two parts and merged, against the definition in float64.
        #[test]
        fn parts_merge_to_the_whole(
            keys in prop::collection::vec((-50f32..50.0, -3f32..3.0), 0..40), cut in 0usize..40,
        ) {
            let cut = cut.min(keys.len());
            let part = |keys: &[(f32, f32)]| {
                let mut state = SoftmaxState::new(1);
                keys.iter().for_each(|&(s, v)| state.push(s, &[v]));
                state
            };
            let mut state = part(&keys[..cut]);
            state.merge(&part(&keys[cut..]));
            let got = state.finish().next().unwrap();
            let max = keys.iter().map(|k| k.0).fold(f32::MIN, f32::max);
            let p = |s: f32| f64::from(s - max).exp();
            let sum: f64 = keys.iter().map(|&(s, _)| p(s)).sum();
            let weighted: f64 = keys.iter().map(|&(s, v)| p(s) * f64::from(v)).sum();
            let expected = weighted / if keys.is_empty() { 1.0 } else { sum };
            prop_assert!((f64::from(got) - expected).abs() < 1e-5, "{got} {expected}");
        }
    }

    #[test]
    fn scores_of_any_finite_size() {
        let mut state = SoftmaxState::new(1);
        for (s, v) in [(f32::MIN, 1.0), (f32::MIN, 3.0)] {
            state.push(s, &[v]);
        }
        assert_eq!(state.finish().next(), Some(2.0));
        state.push(f32::MAX, &[7.0]);
        assert_eq!(state.finish().next(), Some(7.0));
    }
}

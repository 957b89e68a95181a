//! The scalar oracle: attention in plain Rust that follows the formulas. Every instruction set is tested against it.

use std::ops::Range;

use super::attention::Attention;
use super::queries::Queries;
use super::schedule::Attend;
use super::softmax::SoftmaxState;
use super::tail::Scalar;
use crate::call::Geometry;
use crate::element::Element;

/// One call, done by the formulas.
pub(super) struct Reference<'a, 'c, T> {
    call: &'a Attention<'c, T>,
}

impl<'a, 'c, T: Element> Reference<'a, 'c, T> {
    pub(super) fn new(call: &'a Attention<'c, T>) -> Self {
        Self { call }
    }

    /// Key and value of the past token at position `t`, as far as the cache knows them.
    fn cached(&self, head: usize, t: usize, key: &mut [f32], value: &mut [f32]) {
        let call = self.call;
        let Geometry { kv_heads, value: value_layout, .. } = call.geometry;
        let b = head / kv_heads;
        let row = |bytes: usize| t * bytes..(t + 1) * bytes;
        value_layout.decode(&call.past_value[head][row(value_layout.row_bytes())], value);
        if t >= call.lengths.past[b] - call.recent_keys(head) {
            return call.read_recent(Scalar, head, t..t + 1, key);
        }
        call.read_row(head, t, key);
    }
}

impl<T: Element> Attend for Reference<'_, '_, T> {
    type Prepared = Queries;

    fn prepare(&self, queries: &Queries) -> Queries {
        queries.clone()
    }

    fn attend(&self, queries: &Queries, keys: Range<usize>) -> Vec<SoftmaxState> {
        let call = self.call;
        let Queries { sequence: b, kv_head: h, tokens } = queries.clone();
        let (d, group) = (call.geometry.head_dim(), call.geometry.group());
        let head = b * call.geometry.kv_heads + h;
        let past = call.lengths.past[b];
        let queries: Vec<_> = tokens.flat_map(|i| (0..group).map(move |g| (h * group + g, i))).collect();
        let mut query = vec![0.0; queries.len() * d];
        for (q, &(head, i)) in query.chunks_exact_mut(d).zip(&queries) {
            call.tokens.query(b, head, i, q);
        }
        let mut states = vec![SoftmaxState::new(d); queries.len()];
        let (mut key, mut value) = (vec![0.0; d], vec![0.0; d]);
        for t in keys {
            if t < past {
                self.cached(head, t, &mut key, &mut value);
            } else {
                call.tokens.key(b, h, t - past, &mut key);
                call.tokens.value(b, h, t - past, &mut value);
            }
            for ((q, state), &(head, i)) in query.chunks_exact(d).zip(&mut states).zip(&queries) {
                if call.seen_by(b, i).contains(&t) {
                    let dot = q.iter().zip(&key).map(|(q, k)| q * k).sum();
                    if let Some(score) = call.score(dot, (b, head, i, t)) {
                        state.push(score, &value);
                    }
                }
            }
        }
        states
    }
}

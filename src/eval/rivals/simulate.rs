//! Simulates a rival on the original model: between its calls the rows of the cache become what the rival stores of
//! them.

use std::time::Instant;

use super::SINKS;
use super::evict::evict;
use super::name::{Method, Rival};
use super::probe::Prompt;
use super::transform::Transform;
use crate::eval::{Passage, Seen, Timing};
use crate::runtime::{Error, Model, Sequence};

/// Decodes the tokens after a prompt that `model` has read, as [`crate::eval::Feeding::feed`] does, with the rival's
/// cache.
///
/// # Errors
/// As [`Model::run`] or `seen`.
///
/// # Panics
/// If there is an obstacle ([`Prompt::obstacle`]).
pub fn simulate<E: From<Error>>(
    rival: &Rival,
    model: &mut Model,
    prompt: &Prompt,
    passage: &Passage,
    seen: &mut Seen<'_, E>,
) -> Result<Timing, E> {
    let mut cache = Cache::new(rival, model, prompt)?;
    let mut timing = Timing { prompt_tokens: 0, ..Timing::default() };
    for pair in passage.next.windows(2) {
        cache.degrade()?;
        let start = Instant::now();
        let logits = model.run(&mut cache.sequence, &pair[..1])?;
        timing.decode_seconds += start.elapsed().as_secs_f64();
        timing.decoded_tokens += 1;
        seen(&logits, pair[1])?;
    }
    Ok(timing)
}

/// A cache under compression by a rival.
struct Cache {
    sequence: Sequence,
    /// One for each tensor of the cache and each KV head.
    transforms: Vec<Vec<Transform>>,
    width: usize,
    /// Rows from the sinks up to here are already compressed.
    done: usize,
    recent: usize,
}

impl Cache {
    fn new(rival: &Rival, model: &Model, prompt: &Prompt) -> Result<Self, Error> {
        let layers = &model.interface().layers;
        let width = layers[0].head_dim;
        let kv_heads: Vec<usize> = layers.iter().map(|layer| layer.kv_heads).collect();
        let sequence = match (rival.method, &prompt.rotary) {
            (Method::SnapKv { ratio }, Some(rotary)) => {
                evict(&prompt.sequence, &prompt.statistics, rotary, ratio, &kv_heads, width)?
            }
            _ => prompt.sequence.copy()?,
        };
        let mut transforms = Vec::new();
        for (layer, statistics) in prompt.statistics.iter().enumerate() {
            for values in [false, true] {
                let of_head = |head| Transform::new(rival, &prompt.sequence, layer, values, head, statistics, width);
                transforms.push((0..kv_heads[layer]).map(of_head).collect::<Result<_, _>>()?);
            }
        }
        Ok(Self { sequence, transforms, width, done: SINKS, recent: rival.recent })
    }

    /// Compresses the rows that are no longer recent.
    fn degrade(&mut self) -> Result<(), Error> {
        let end = self.sequence.len().saturating_sub(self.recent);
        if end <= self.done {
            return Ok(());
        }
        for (tensor, heads) in self.transforms.iter().enumerate() {
            for (head, transform) in heads.iter().enumerate() {
                if matches!(transform, Transform::Keep) {
                    continue;
                }
                let mut rows = self.sequence.read_rows(tensor, head, self.done..end)?;
                transform.apply(&mut rows, self.width);
                self.sequence.write_rows(tensor, head, self.done, &rows)?;
            }
        }
        self.done = end;
        Ok(())
    }
}

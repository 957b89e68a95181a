//! Feeding passages to a model, as hosts do.

use std::time::Instant;

use serde::Serialize;

use super::passage::Passage;
use crate::runtime::{Error, Model, Sequence, greedy};

/// How a passage is fed to a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feeding {
    /// Rows of buffers that past and present share, as in ONNX Runtime GenAI; `None`: the cache grows by copies, as it
    /// always does for a model that cannot share buffers.
    pub capacity: Option<usize>,
    /// Tokens of the prompt that are read at once; `None`: all.
    pub chunk: Option<usize>,
}

/// Called with the logits after each fed token, and the token that follows.
pub type Seen<'s, E> = dyn FnMut(&[f32], i64) -> Result<(), E> + 's;

/// Time of a passage, counting only the model's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timing {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Seconds for the prompt.
    pub prompt_seconds: f64,
    /// Tokens fed one by one.
    pub decoded_tokens: usize,
    /// Seconds for the decoded tokens.
    pub decode_seconds: f64,
}

impl Timing {
    /// The sum of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            prompt_seconds: self.prompt_seconds + other.prompt_seconds,
            decoded_tokens: self.decoded_tokens + other.decoded_tokens,
            decode_seconds: self.decode_seconds + other.decode_seconds,
        }
    }

    /// Feeds one token, whose time counts, and gives the logits after it.
    fn step(&mut self, model: &mut Model, sequence: &mut Sequence, token: i64) -> Result<Vec<f32>, Error> {
        let start = Instant::now();
        let logits = model.run(sequence, &[token])?;
        self.decode_seconds += start.elapsed().as_secs_f64();
        self.decoded_tokens += 1;
        Ok(logits)
    }
}

impl Feeding {
    /// Reads the prompt of a passage into a new sequence, and returns the time it took.
    ///
    /// # Errors
    /// As [`Model::run`].
    pub fn prompt(&self, model: &mut Model, prompt: &[i64]) -> Result<(Sequence, Timing), Error> {
        let mut sequence = model.start(self.capacity)?;
        let start = Instant::now();
        for part in prompt.chunks(self.chunk.unwrap_or(usize::MAX)) {
            model.run(&mut sequence, part)?;
        }
        let prompt_seconds = start.elapsed().as_secs_f64();
        Ok((sequence, Timing { prompt_tokens: prompt.len(), prompt_seconds, ..Timing::default() }))
    }

    /// Greedy continuation of a prompt, token by token: at most `most` tokens, up to one of `ends`, which is left out.
    ///
    /// # Errors
    /// As [`Model::run`], or the prompt is empty.
    pub fn answer(
        &self,
        model: &mut Model,
        prompt: &[i64],
        ends: &[i64],
        most: usize,
    ) -> Result<(Vec<i64>, Timing), Error> {
        // The last token is fed by itself: after a prompt that is read at once, the next token would not depend on the
        // cache.
        let (last, before) = prompt.split_last().ok_or(Error::NoTokens)?;
        let (mut sequence, mut timing) = self.prompt(model, before)?;
        let (mut answer, mut next) = (Vec::new(), *last);
        while answer.len() < most {
            let logits = timing.step(model, &mut sequence, next)?;
            let Some(token) = greedy(&logits).map(|token| token as i64).filter(|token| !ends.contains(token)) else {
                break;
            };
            answer.push(token);
            next = token;
        }
        Ok((answer, timing))
    }

    /// Reads the prompt, then the tokens that follow it one by one. `seen` gets the logits after each of the latter
    /// and the token that follows. The logits after the prompt's last token are left out: where the prompt is read at
    /// once, its attention is exact whatever the cache.
    ///
    /// # Errors
    /// As [`Model::run`], or `seen`'s.
    pub fn feed<E: From<Error>>(
        &self,
        model: &mut Model,
        passage: &Passage,
        seen: &mut Seen<'_, E>,
    ) -> Result<Timing, E> {
        let (mut sequence, mut timing) = self.prompt(model, &passage.prompt)?;
        for pair in passage.next.windows(2) {
            let logits = timing.step(model, &mut sequence, pair[0])?;
            seen(&logits, pair[1])?;
        }
        Ok(timing)
    }
}

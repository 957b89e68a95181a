//! One shape at a time: every setting, dense attention, and the memory's bandwidth, alternating.

use std::path::Path;

use anyhow::{Error, Result};
use serde_json::{Value, json};

use crate::cuda::graph::{Event, Graph, Stream};
use crate::cuda::memory::Buffer;
use crate::cuda::{Cuda, Module};
use crate::dense::Dense;
use crate::layer::{Layers, Tokens};
use crate::reference;
use crate::shape::{Operators, Setting, Shape};

/// How long and how large.
pub struct Budget {
    pub rounds: usize,
    /// Bytes.
    pub working_set: usize,
    pub most_layers: usize,
    pub chunk: usize,
}

/// A device with what all measurements share.
pub struct Bench<'c> {
    cuda: &'c Cuda,
    shape: Shape,
    tokens: Tokens<'c>,
    budget: Budget,
    stream: Stream,
    events: [Event; 2],
    memory: Memory<'c>,
}

/// What is read and copied to know the bandwidth.
struct Memory<'c> {
    module: Module,
    from: Buffer<'c>,
    to: Buffer<'c>,
    result: Buffer<'c>,
}

/// A setting's layers, and graphs of all of them.
struct Candidate<'c, 'l> {
    name: &'l str,
    layers: &'l Layers<'c>,
    /// SparkAttention alone.
    attention: Graph<'c>,
    /// SparkPrune too.
    step: Graph<'c>,
    attention_ms: Vec<f64>,
    step_ms: Vec<f64>,
}

/// Dense attention in a process of its own, as far as it can be measured. Without it our own figures stand.
struct Peer<'d> {
    process: Option<&'d mut Dense>,
    /// What it says of itself, or why there is nothing.
    about: Value,
    ms: Vec<f64>,
}

impl<'d> Peer<'d> {
    fn prepare(
        mut process: Option<&'d mut Dense>,
        shape: Shape,
        (batch, keys, new): (usize, usize, usize),
        layers: usize,
    ) -> Self {
        let prepared = process.as_mut().map(|process| process.prepare(shape, (batch, keys, new), layers));
        let mut peer = Self { process, about: json!(null), ms: vec![] };
        match prepared {
            None => {}
            Some(Ok(about)) => peer.about = about,
            Some(Err(error)) => peer.fail(&error),
        }
        peer
    }

    /// A round.
    fn time(&mut self) {
        match self.process.as_mut().map(|process| process.time()) {
            None => {}
            Some(Ok(ms)) => self.ms.push(ms),
            Some(Err(error)) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &Error) {
        self.about = json!({ "error": format!("{error:#}") });
        self.ms.clear();
        self.process = None;
    }

    fn release(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.release())
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

impl<'c> Bench<'c> {
    /// For calls of up to `most_tokens` tokens and positions below `positions`.
    pub fn new(
        cuda: &'c Cuda,
        shape: Shape,
        (most_tokens, positions): (usize, usize),
        read_code: &Path,
        budget: Budget,
    ) -> Result<Self, String> {
        let memory = Memory {
            module: cuda.load(read_code)?,
            // Random bytes are all that nothing could be saved on.
            from: cuda.memory_of(&crate::common::Random(5).bytes(budget.working_set))?,
            to: cuda.memory(budget.working_set)?,
            result: cuda.memory(4)?,
        };
        Ok(Self {
            cuda,
            shape,
            tokens: Tokens::new(cuda, shape, most_tokens, positions)?,
            budget,
            stream: cuda.stream()?,
            events: [cuda.event()?, cuda.event()?],
            memory,
        })
    }

    /// Measures `settings` with `batch` sequences of `past` cached tokens and `new` ones, and `dense` where it can.
    pub fn measure(
        &mut self,
        settings: &[Setting],
        (batch, past, new): (usize, usize, usize),
        dense: Option<&mut Dense>,
    ) -> Result<Value> {
        let layers = settings.iter().map(|setting| {
            let operators = Operators::new(self.shape, setting)?;
            let bytes = batch * (past + new) * operators.token_bytes();
            let sizes = (self.layers(bytes, new), self.budget.chunk);
            Layers::new(self.cuda, &self.tokens, operators, (batch, past, new), sizes).map_err(Error::msg)
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let names = settings.iter().map(|s| &*s.name);
        let candidates = names.zip(&layers).map(|(name, layers)| self.candidate(name, layers));
        let mut candidates = candidates.collect::<Result<Vec<_>, _>>().map_err(Error::msg)?;

        let bytes = batch * (past + new) * self.shape.key() * 2 * size_of::<half::f16>();
        let mut peer = Peer::prepare(dense, self.shape, (batch, past + new, new), self.layers(bytes, new));
        let (mut read, mut copy) = (vec![], vec![]);
        for _ in 0..self.budget.rounds {
            for candidate in &mut candidates {
                let count = candidate.layers.count() as f64;
                candidate.attention_ms.push(self.time_graph(&candidate.attention).map_err(Error::msg)? / count);
                candidate.step_ms.push(self.time_graph(&candidate.step).map_err(Error::msg)? / count);
            }
            read.push(self.read().map_err(Error::msg)?);
            copy.push(self.copy().map_err(Error::msg)?);
            peer.time();
        }
        peer.release()?;
        let (read, copy) = (median(read), median(copy));
        let caches = candidates.into_iter().map(|candidate| self.report(candidate, (past, new), read, &peer.ms));
        Ok(json!({
            "batch": batch,
            "past": past,
            "new": new,
            "read_gb_per_s": read,
            "copy_gb_per_s": copy,
            "caches": caches.collect::<Result<Vec<_>>>()?,
            "dense_ms": (!peer.ms.is_empty()).then(|| median(peer.ms.clone())),
            "dense": peer.about,
            "rounds_dense_ms": peer.ms,
        }))
    }

    /// What is known of a setting: bytes, times beside `read`, the bandwidth in GB/s, and `dense_ms`, and whether it
    /// computes what the CPU does.
    fn report(
        &self,
        candidate: Candidate<'c, '_>,
        (past, new): (usize, usize),
        read: f64,
        dense_ms: &[f64],
    ) -> Result<Value> {
        let Candidate { name, layers, attention_ms, step_ms, .. } = candidate;
        let ratios: Vec<f64> = dense_ms.iter().zip(&step_ms).map(|(dense, own)| dense / own).collect();
        let attention = median(attention_ms.clone());
        // Written in one call, as the CPU's are.
        let rows = past.min(self.budget.chunk);
        let host = &self.tokens.host;
        let difference = reference::output_difference(host, layers).map_err(Error::msg)?;
        let differing = reference::differing_rows(host, layers, if past > 0 { rows } else { new });
        let bytes_per_ms = layers.row_bytes() as f64 / attention;
        Ok(json!({
            "setting": name,
            "layers": layers.count(),
            "row_bytes": layers.row_bytes(),
            "attention_ms": attention,
            "step_ms": median(step_ms.clone()),
            "gb_per_s": (past > 0).then_some(bytes_per_ms / 1e6),
            "share_of_read_bandwidth": (past > 0).then_some(bytes_per_ms / 1e6 / read),
            "times_as_fast_as_dense": (!ratios.is_empty()).then(|| median(ratios)),
            "difference": difference,
            "differing_rows": differing.map_err(Error::msg)?,
            "rounds_attention_ms": attention_ms,
            "rounds_step_ms": step_ms,
        }))
    }

    /// How many layers with caches of `bytes` bytes: prompts are bound by arithmetic and read no cache.
    fn layers(&self, bytes: usize, new: usize) -> usize {
        match new {
            1 => self.budget.working_set.div_ceil(bytes.max(1)).max(2).min(self.budget.most_layers),
            _ => 1,
        }
    }

    fn candidate<'l>(&self, name: &'l str, layers: &'l Layers<'c>) -> Result<Candidate<'c, 'l>, String> {
        // SAFETY: graphs are launched by `measure` only, while it has the layers.
        let queue = |append| unsafe { layers.queue(append, &self.stream) };
        // Code is loaded at its first use, which a capture does not allow everywhere.
        queue(true)?;
        self.cuda.synchronize()?;
        Ok(Candidate {
            name,
            layers,
            attention: self.cuda.capture(&self.stream, || queue(false))?,
            step: self.cuda.capture(&self.stream, || queue(true))?,
            attention_ms: vec![],
            step_ms: vec![],
        })
    }

    /// Milliseconds of `graph`, after a launch that is not timed.
    fn time_graph(&self, graph: &Graph) -> Result<f64, String> {
        // SAFETY: `measure` has the layers, and waits.
        let launch = || unsafe { graph.launch(&self.stream) };
        launch()?;
        self.time(launch)
    }

    fn time(&self, queue: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
        let [start, end] = &self.events;
        self.cuda.time(&self.stream, [start, end], queue)
    }

    /// GB/s that a kernel reads.
    fn read(&self) -> Result<f64, String> {
        let Memory { module, from, result, .. } = &self.memory;
        let blocks = 8 * self.cuda.properties().for_plan.compute_units;
        let read = || {
            let memory = (from, from.len());
            self.cuda.queue_read((module, "read_words"), (blocks, 256), memory, result, &self.stream)
        };
        read()?;
        Ok(from.len() as f64 / self.time(read)? / 1e6)
    }

    /// GB/s that a copy reads and writes, both counted.
    fn copy(&self) -> Result<f64, String> {
        let Memory { from, to, .. } = &self.memory;
        let copy = || to.queue_copy(from, from.len(), &self.stream);
        copy()?;
        Ok(2.0 * from.len() as f64 / self.time(copy)? / 1e6)
    }
}

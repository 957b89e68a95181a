//! The common parts of all layer measurements.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use spark_ort::runtime::Runtime;

use super::bandwidth::Memory;
use super::cache::Cache;
use super::rounds::{Budget, Samples, median};
use super::shape::Shape;
use crate::progress::Steps;

/// The setup for measuring layers.
pub struct Lab {
    pub runtime: &'static Runtime,
    pub shape: Shape,
    pub threads: Vec<usize>,
    pub budget: Budget,
    /// SparK's caches.
    pub own: Vec<Cache>,
    /// Baselines that this ONNX Runtime does not have, and its error.
    pub unavailable: BTreeMap<String, String>,
    memory: Memory,
}

impl Lab {
    pub fn new(runtime: &'static Runtime, shape: Shape, threads: &[usize], own: Vec<Cache>, budget: Budget) -> Self {
        let memory = Memory::new();
        Self { runtime, shape, threads: threads.into(), budget, own, unavailable: BTreeMap::new(), memory }
    }

    /// The result of `prepare` for `cache`; None for a baseline for which it fails, now or earlier.
    pub fn prepare<T>(&mut self, cache: &Cache, prepare: impl FnOnce(&Self) -> Result<T>) -> Result<Option<T>> {
        if self.unavailable.contains_key(&cache.name()) {
            return Ok(None);
        }
        match prepare(self) {
            Ok(prepared) => Ok(Some(prepared)),
            Err(error) if matches!(cache, Cache::Grouped(_)) => {
                let reason = format!("{error:#}");
                let line = reason.lines().next().unwrap_or_default();
                // ONNX Runtime prints the whole node before the actual error.
                let short = line.rsplit(", Error ").next().unwrap_or(line);
                self.unavailable.insert(cache.name(), short.into());
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("{} fails", cache.name())),
        }
    }

    /// Times candidates with cold processor caches, as in a model of many layers. Also returns the bytes per second at
    /// which `threads` threads read memory in between.
    pub fn time_cold(
        &self,
        what: &str,
        threads: usize,
        candidates: usize,
        mut time: impl FnMut(usize) -> Result<f64>,
    ) -> Result<(Samples, f64)> {
        let mut speeds = Vec::new();
        let samples = self.time(what, candidates, |candidate| {
            speeds.push(self.memory.read(threads));
            time(candidate)
        })?;
        Ok((samples, median(speeds)))
    }

    /// Times candidates alternately.
    pub fn time(&self, what: &str, candidates: usize, time: impl FnMut(usize) -> Result<f64>) -> Result<Samples> {
        let mut steps = Steps::default();
        let rounds = self.budget.rounds;
        steps.show(what, 0, rounds);
        Samples::take(candidates, self.budget, time, |done| steps.show(what, done, rounds))
    }
}

/// For example "4096 tokens, 2 threads".
pub fn title(tokens: usize, threads: usize) -> String {
    let s = |n: usize| if n == 1 { "" } else { "s" };
    format!("{tokens} token{}, {threads} thread{}", s(tokens), s(threads))
}

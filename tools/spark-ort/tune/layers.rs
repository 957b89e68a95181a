//! Measures what each layer's rows cost.

use std::ops::Range;

use anyhow::{Context, Result};
use spark_ort::eval::Passage;
use spark_ort::eval::tune::{Choice, LayerProbe, ProbeError};
use spark_ort::runtime;

use super::variants::Variant;
use crate::eval::progress::{Progress, work};
use crate::interrupt::Interrupt;

/// A variant that costs so many times as much as another one with no more bytes is measured no further.
const HOPELESS: f64 = 2.0;

/// The layers that share a setting, and what was measured of them.
pub struct Group {
    pub layers: Range<usize>,
    /// KV heads of all its layers.
    pub kv_heads: usize,
    /// KL divergences of each variant, passage by passage; none where another variant is far better.
    pub divergences: Vec<Vec<Vec<f64>>>,
}

impl Group {
    /// Groups of `size` neighbours, of layers with so many KV heads each.
    pub fn all(kv_heads: &[usize], size: usize, variants: usize) -> Vec<Self> {
        let starts = (0..kv_heads.len()).step_by(size);
        let groups = starts.map(|start| {
            let layers = start..(start + size).min(kv_heads.len());
            Self { kv_heads: kv_heads[layers.clone()].iter().sum(), layers, divergences: vec![Vec::new(); variants] }
        });
        groups.collect()
    }

    /// "3", or "4 to 7".
    pub fn title(&self) -> String {
        match self.layers.len() {
            1 => self.layers.start.to_string(),
            _ => format!("{} to {}", self.layers.start, self.layers.end - 1),
        }
    }

    /// Mean divergence of a variant over the passages measured.
    pub fn cost(&self, variant: usize) -> Option<f64> {
        let all = self.divergences[variant].concat();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }

    /// Whether a variant need not be measured on further passages.
    fn is_hopeless(&self, variant: usize, variants: &[Variant]) -> bool {
        let bytes = |index: usize| variants[index].bytes(self.kv_heads);
        let better = |other: usize, cost: f64| {
            bytes(other) <= bytes(variant) && self.cost(other).is_some_and(|least| least * HOPELESS < cost)
        };
        self.cost(variant).is_some_and(|cost| (0..variants.len()).any(|other| better(other, cost)))
    }

    /// What each variant takes and costs.
    pub fn choices(&self, variants: &[Variant]) -> Vec<Choice> {
        let choice = |(index, variant): (usize, &Variant)| Choice {
            bytes: variant.bytes(self.kv_heads),
            cost: self.cost(index).unwrap_or(f64::INFINITY),
        };
        variants.iter().enumerate().map(choice).collect()
    }
}

/// Measures all groups with all variants, passage by passage, and returns how many passages were completed before
/// Ctrl-C. What was measured of another one is dropped.
pub fn measure(
    probe: &mut LayerProbe,
    passages: &[Passage],
    variants: &[Variant],
    groups: &mut [Group],
    interrupt: &Interrupt,
) -> Result<usize> {
    let lossy = variants.iter().filter(|variant| !variant.is_lossless()).count();
    let of = |passage: &Passage| work(passage.prompt.len(), passage.decoded() * (1 + groups.len() * lossy));
    let mut progress = Progress::new(passages.iter().map(of).sum());
    interrupt.watch(probe.canceller());
    for (number, passage) in passages.iter().enumerate() {
        match measure_passage(probe, passage, variants, groups, &mut progress, number) {
            Ok(()) => {}
            Err(ProbeError::Model(runtime::Error::Cancelled)) => {
                groups.iter_mut().flat_map(|group| &mut group.divergences).for_each(|all| all.truncate(number));
                return Ok(number);
            }
            Err(error) => return Err(error).context("the model without loss"),
        }
    }
    Ok(passages.len())
}

fn measure_passage(
    probe: &mut LayerProbe,
    passage: &Passage,
    variants: &[Variant],
    groups: &mut [Group],
    progress: &mut Progress,
    number: usize,
) -> Result<(), ProbeError> {
    let title = format!("passage {}", number + 1);
    progress.say(format!("{title}: prompt"));
    let read = probe.read(passage)?;
    progress.add(work(passage.prompt.len(), passage.decoded()));
    for group in groups {
        progress.say(format!("{title}: layer {}", group.title()));
        let hopeless: Vec<bool> = (0..variants.len()).map(|index| group.is_hopeless(index, variants)).collect();
        for (index, variant) in variants.iter().enumerate() {
            if variant.is_lossless() {
                group.divergences[index].push(vec![0.0; passage.decoded()]);
                continue;
            }
            if !hopeless[index] {
                let found = probe.divergences(&read, group.layers.clone(), &variant.rows)?;
                group.divergences[index].push(found);
            }
            progress.add_decoded(passage.decoded());
        }
    }
    Ok(())
}

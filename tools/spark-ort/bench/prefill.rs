//! The first prompt: attention among new tokens, and storing their rows.

use anyhow::Result;
use ort::session::IoBinding;
use ort::value::TensorElementType;
use serde::Serialize;
use spark_ort::runtime::memory;

use super::cache::Cache;
use super::figures::{self, Ratios, milliseconds, percent};
use super::lab::{Lab, title};
use super::layer::{Layer, Rows};
use super::shape::Work;
use super::tokens::Tokens;
use crate::report::{Table, bytes};

/// The baselines with float caches; quantised caches are for decoding.
fn peers() -> &'static [Cache] {
    &Cache::GROUPED[..2]
}

/// All caches at one length.
#[derive(Serialize)]
pub struct Cell {
    tokens: usize,
    threads: usize,
    caches: Vec<Prompt>,
}

/// A prompt with one cache.
#[derive(Serialize)]
struct Prompt {
    cache: String,
    seconds: f64,
    /// Peak memory of the first call above the memory that was resident before, which includes inputs, output and
    /// cache.
    extra_bytes: Option<u64>,
    /// Time of SparkPrune alone, divided by that of both operators.
    share_of_prune: Option<f64>,
    times_as_fast_as: Ratios,
    samples: Vec<f64>,
}

/// Measures every length with every number of threads.
pub fn measure(lab: &mut Lab, lengths: &[usize]) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for &length in lengths {
        for threads in lab.threads.clone() {
            cells.push(cell(lab, length, threads)?);
        }
    }
    Ok(cells)
}

/// A layer and its inputs.
struct Candidate {
    layer: Layer,
    call: IoBinding,
    extra_bytes: Option<u64>,
}

fn cell(lab: &mut Lab, length: usize, threads: usize) -> Result<Cell> {
    let what = format!("a prompt of {}", title(length, threads));
    let mut single = Tokens::random(&lab.shape, TensorElementType::Float32, length)?;
    let mut half = Tokens::random(&lab.shape, TensorElementType::Float16, length)?;
    // Each cache's whole layer, then SparkPrune alone for the caches that use it.
    let mut own = lab.own.clone();
    own.extend(lab.own.iter().filter_map(Cache::half));
    let (mut caches, mut candidates) = (Vec::new(), Vec::new());
    let mut prepare = |lab: &Lab, cache: &Cache, work| {
        let tokens = if cache.element() == TensorElementType::Float16 { &mut half } else { &mut single };
        prepare(lab, cache, work, threads, tokens)
    };
    for cache in own.iter().chain(peers()) {
        if let Some(candidate) = lab.prepare(cache, |lab| prepare(lab, cache, Work::All))? {
            caches.push(cache.clone());
            candidates.push(candidate);
        }
    }
    for cache in &own {
        candidates.push(prepare(lab, cache, Work::Store)?);
    }
    let samples = lab.time(&what, candidates.len(), |i| {
        let Candidate { layer, call, .. } = &mut candidates[i];
        layer.run(call)
    })?;
    let prompt = |(i, cache): (usize, &Cache)| Prompt {
        cache: cache.name(),
        seconds: samples.median(i),
        extra_bytes: candidates[i].extra_bytes,
        // SparK's caches come first.
        share_of_prune: (i < own.len()).then(|| samples.ratio(caches.len() + i, i)),
        times_as_fast_as: figures::ratios(&samples, &caches, i),
        samples: samples.of(i).into(),
    };
    Ok(Cell { tokens: length, threads, caches: caches.iter().enumerate().map(prompt).collect() })
}

fn prepare(lab: &Lab, cache: &Cache, work: Work, threads: usize, tokens: &mut Tokens) -> Result<Candidate> {
    let mut layer = Layer::new(lab.runtime, &lab.shape, cache, work, threads)?;
    let mut rows = Rows::new(&lab.shape, cache, tokens.count)?;
    let total = tokens.count;
    let mut call = layer.shared(tokens, &mut rows, total)?;
    // A session allocates the memory that it keeps in its first call.
    let before = memory::reset_peak().then(memory::resident).flatten();
    layer.run(&mut call)?;
    let extra_bytes = before.and_then(|before| Some(memory::peak()?.saturating_sub(before)));
    Ok(Candidate { layer, call, extra_bytes })
}

/// The table for people.
pub fn table(cells: &[Cell]) -> String {
    let mut titles: Vec<String> = ["ms", "extra peak memory", "SparkPrune"].map(String::from).into();
    titles.extend(figures::ratio_titles(peers()));
    let mut table = Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>());
    for cell in cells {
        table.row(&title(cell.tokens, cell.threads), vec![]);
        for prompt in &cell.caches {
            let mut cells = vec![
                milliseconds(prompt.seconds),
                prompt.extra_bytes.map_or("-".into(), bytes),
                prompt.share_of_prune.map_or(String::new(), percent),
            ];
            cells.extend(figures::ratio_cells(&prompt.times_as_fast_as, peers()));
            table.row(&format!("  {}", prompt.cache), cells);
        }
        for peer in peers().iter().map(Cache::name) {
            if cell.caches.iter().all(|prompt| prompt.cache != peer) {
                table.row(&format!("  {peer}"), vec!["-".into(); titles.len()]);
            }
        }
    }
    format!(
        "The first prompt of one layer\n{}extra peak memory: of the first call, beside inputs, output and cache; \
         SparkPrune: its share of the time\n{}\n",
        table.lines(),
        figures::RATIOS
    )
}

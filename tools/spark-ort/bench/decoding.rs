//! Decoding one token, or a few: attention over a filled cache, and the new rows.

use anyhow::{Result, bail};
use ort::session::IoBinding;
use ort::value::TensorElementType;
use serde::Serialize;

use super::cache::Cache;
use super::figures::{self, Ratios, milliseconds, percent};
use super::lab::{Lab, title};
use super::layer::{Layer, Rows};
use super::shape::Work;
use super::tokens::Tokens;
use crate::report::Table;

/// All caches at one context.
#[derive(Serialize)]
pub struct Cell {
    context: usize,
    /// Tokens of the call.
    new_tokens: usize,
    threads: usize,
    /// Memory bandwidth of the same number of threads.
    bandwidth_bytes_per_second: f64,
    caches: Vec<Step>,
}

/// A decoding step with one cache.
#[derive(Serialize)]
struct Step {
    cache: String,
    bytes_per_token: usize,
    seconds: f64,
    /// Bytes of the rows read, per second.
    bytes_per_second: f64,
    times_as_fast_as: Ratios,
    samples: Vec<f64>,
}

/// Refuses contexts without a past.
///
/// # Errors
/// As many tokens are new as there are in one of `contexts`.
pub fn check(contexts: &[usize], new_tokens: &[usize]) -> Result<()> {
    if let (Some(most), Some(least)) = (new_tokens.iter().max(), contexts.iter().min())
        && most >= least
    {
        bail!("--new {most} leaves no past token of --contexts {least}");
    }
    Ok(())
}

/// Measures every context with every number of threads and of new tokens.
pub fn measure(lab: &mut Lab, contexts: &[usize], new_tokens: &[usize]) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for &context in contexts {
        for threads in lab.threads.clone() {
            for &new in new_tokens {
                cells.push(cell(lab, (context, new), threads)?);
            }
        }
    }
    Ok(cells)
}

fn cell(lab: &mut Lab, (context, new): (usize, usize), threads: usize) -> Result<Cell> {
    let shape = lab.shape;
    let mut single = Tokens::random(&shape, TensorElementType::Float32, new)?;
    let mut half = Tokens::random(&shape, TensorElementType::Float16, new)?;
    let (mut caches, mut steps) = (Vec::new(), Vec::new());
    for cache in lab.own.clone().into_iter().chain(Cache::GROUPED) {
        let tokens = if cache.element() == TensorElementType::Float16 { &mut half } else { &mut single };
        if let Some(step) = lab.prepare(&cache, |lab| prepare(lab, &cache, context, threads, tokens))? {
            caches.push(cache);
            steps.push(step);
        }
    }
    let what = format!("{new} new after {}", title(context - new, threads));
    let time = |i: usize| {
        let (layer, call): &mut (Layer, IoBinding) = &mut steps[i];
        layer.run(call)
    };
    let (samples, bandwidth) = lab.time_cold(&what, threads, caches.len(), time)?;
    let caches = caches.iter().enumerate().map(|(i, cache)| {
        let (bytes_per_token, seconds) = (shape.bytes_per_token(cache), samples.median(i));
        Step {
            cache: cache.name(),
            bytes_per_token,
            seconds,
            bytes_per_second: (bytes_per_token * shape.batch * context) as f64 / seconds,
            times_as_fast_as: figures::ratios(&samples, &caches, i),
            samples: samples.of(i).into(),
        }
    });
    Ok(Cell { context, new_tokens: new, threads, bandwidth_bytes_per_second: bandwidth, caches: caches.collect() })
}

/// A call that decodes the last tokens of `context`, repeatable any number of times.
fn prepare(
    lab: &Lab,
    cache: &Cache,
    context: usize,
    threads: usize,
    tokens: &mut Tokens,
) -> Result<(Layer, IoBinding)> {
    let mut layer = Layer::new(lab.runtime, &lab.shape, cache, Work::All, threads)?;
    let mut rows = Rows::new(&lab.shape, cache, context + cache.free_rows(lab.shape.head_dim))?;
    layer.fill(&mut rows, cache.element())?;
    if cache.recent_keys() > 0 {
        // The rows may have any contents, but the tail must hold the last keys.
        let past = context - tokens.count;
        let mut recent = Tokens::random(&lab.shape, cache.element(), cache.recent_keys().min(past))?;
        let mut call = layer.shared(&mut recent, &mut rows, past)?;
        layer.run(&mut call)?;
    }
    let mut call = layer.shared(tokens, &mut rows, context)?;
    // The first call is slower than later ones.
    layer.run(&mut call)?;
    Ok((layer, call))
}

/// The table for people.
pub fn table(cells: &[Cell]) -> String {
    let mut titles: Vec<String> = ["bytes/token", "ms", "GB/s", "of bandwidth"].map(String::from).into();
    titles.extend(figures::ratio_titles(&Cache::GROUPED));
    let mut table = Table::new(&titles.iter().map(String::as_str).collect::<Vec<_>>());
    for cell in cells {
        let bandwidth = cell.bandwidth_bytes_per_second;
        table.row(
            &format!(
                "{}, {} new: memory is read at {:.1} GB/s",
                title(cell.context, cell.threads),
                cell.new_tokens,
                bandwidth / 1e9
            ),
            vec![],
        );
        for step in &cell.caches {
            let mut cells = vec![
                step.bytes_per_token.to_string(),
                milliseconds(step.seconds),
                format!("{:.2}", step.bytes_per_second / 1e9),
                percent(step.bytes_per_second / bandwidth),
            ];
            cells.extend(figures::ratio_cells(&step.times_as_fast_as, &Cache::GROUPED));
            table.row(&format!("  {}", step.cache), cells);
        }
        for peer in Cache::GROUPED.iter().map(Cache::name) {
            if cell.caches.iter().all(|step| step.cache != peer) {
                table.row(&format!("  {peer}"), vec!["-".into(); titles.len()]);
            }
        }
    }
    format!(
        "One decoding call of one layer\n{}GB/s: bytes of all rows / time; of bandwidth: share of what as many threads \
         read from memory\n{}\n",
        table.lines(),
        figures::RATIOS
    )
}

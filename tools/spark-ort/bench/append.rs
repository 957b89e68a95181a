//! SparkPrune alone, for one new token.

use anyhow::{Context, Result};
use ort::session::IoBinding;
use ort::value::TensorElementType;
use serde::Serialize;

use super::cache::Cache;
use super::figures::milliseconds;
use super::lab::{Lab, title};
use super::layer::{Layer, Rows};
use super::shape::Work;
use super::tokens::Tokens;
use crate::report::Table;

/// All settings at one context.
#[derive(Serialize)]
pub struct Cell {
    context: usize,
    threads: usize,
    caches: Vec<Append>,
}

/// A new row of one setting.
#[derive(Serialize)]
struct Append {
    cache: String,
    bytes_per_token: usize,
    /// Past and present are one buffer.
    shared_seconds: f64,
    /// Present is new memory, to which past rows are copied.
    growing_seconds: f64,
    growing_bytes_per_second: f64,
    shared_samples: Vec<f64>,
    growing_samples: Vec<f64>,
}

/// Measures at every context with every number of threads.
pub fn measure(lab: &Lab, contexts: &[usize]) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for &context in contexts {
        for &threads in &lab.threads {
            cells.push(cell(lab, context, threads)?);
        }
    }
    Ok(cells)
}

/// A layer that appends to a cache in both ways.
struct Candidate {
    layer: Layer,
    past: Rows,
    shared: IoBinding,
}

fn cell(lab: &Lab, context: usize, threads: usize) -> Result<Cell> {
    let mut tokens = Tokens::random(&lab.shape, TensorElementType::Float32, 1)?;
    let prepare = |cache| prepare(lab, cache, context, threads, &mut tokens);
    let mut candidates = lab.own.iter().map(prepare).collect::<Result<Vec<_>>>()?;
    let what = format!("appending to {}", title(context - 1, threads));
    // Shared buffer and growing cache of each setting, alternating.
    let time = |i: usize| {
        let Candidate { layer, past, shared } = &mut candidates[i / 2];
        match i % 2 {
            0 => layer.run(shared),
            // A call keeps its outputs, so each needs its own.
            _ => layer.run(&mut layer.growing(&mut tokens, past)?),
        }
    };
    let (samples, _) = lab.time_cold(&what, threads, 2 * lab.own.len(), time)?;
    let append = |(i, cache): (usize, &Cache)| {
        let bytes_per_token = lab.shape.bytes_per_token(cache);
        let growing_seconds = samples.median(2 * i + 1);
        Append {
            cache: cache.name(),
            bytes_per_token,
            shared_seconds: samples.median(2 * i),
            growing_seconds,
            growing_bytes_per_second: (bytes_per_token * lab.shape.batch * context) as f64 / growing_seconds,
            shared_samples: samples.of(2 * i).into(),
            growing_samples: samples.of(2 * i + 1).into(),
        }
    };
    Ok(Cell { context, threads, caches: lab.own.iter().enumerate().map(append).collect() })
}

fn prepare(lab: &Lab, cache: &Cache, context: usize, threads: usize, tokens: &mut Tokens) -> Result<Candidate> {
    let mut prepare = || {
        let mut layer = Layer::new(lab.runtime, &lab.shape, cache, Work::Store, threads)?;
        let mut rows = Rows::new(&lab.shape, cache, context + cache.free_rows(lab.shape.head_dim))?;
        layer.fill(&mut rows, cache.element())?;
        let mut shared = layer.shared(tokens, &mut rows, context)?;
        let mut past = Rows::new(&lab.shape, cache, context - 1)?;
        layer.fill(&mut past, cache.element())?;
        // The first calls are slower than later ones.
        layer.run(&mut shared)?;
        layer.run(&mut layer.growing(tokens, &past)?)?;
        anyhow::Ok(Candidate { layer, past, shared })
    };
    prepare().with_context(|| format!("{} fails", cache.name()))
}

/// The table for people.
pub fn table(cells: &[Cell]) -> String {
    let mut table = Table::new(&["bytes/token", "shared buffer, ms", "growing, ms", "GB/s"]);
    for cell in cells {
        table.row(&title(cell.context, cell.threads), vec![]);
        for append in &cell.caches {
            let cells = vec![
                append.bytes_per_token.to_string(),
                milliseconds(append.shared_seconds),
                milliseconds(append.growing_seconds),
                format!("{:.2}", append.growing_bytes_per_second / 1e9),
            ];
            table.row(&format!("  {}", append.cache), cells);
        }
    }
    format!(
        "SparkPrune alone, one new token of one layer\n{}growing: past rows are copied to new memory; GB/s: \
         their bytes / time\n",
        table.lines()
    )
}

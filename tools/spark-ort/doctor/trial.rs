//! One attention layer with the operators of the library file, run once.

use std::path::Path;

use anyhow::{Result, ensure};
use ort::inputs;
use ort::memory::Allocator;
use ort::value::{DynValue, Tensor};
use spark_ort::runtime::Runtime;

use crate::bench::cache::{Cache, Heads};
use crate::bench::graph;
use crate::bench::shape::{Shape, Work};

const SHAPE: Shape = Shape { heads: Heads { query: 4, kv: 2 }, head_dim: 64, batch: 1 };

/// Runs a prompt and decodes a token.
pub fn run(runtime: &Runtime, library: &Path) -> Result<()> {
    let cache = Cache::spark("0.5/8/8".parse().map_err(anyhow::Error::msg)?, SHAPE.head_dim)?;
    let model = graph::layer(&SHAPE, &cache, Work::All);
    let mut session = runtime
        .session_with_library(library, |builder| { builder.with_intra_threads(1)? }.commit_from_memory(&model))?;
    let widths = cache.widths(SHAPE.head_dim);
    // ONNX Runtime does not make an empty tensor from an empty array, but it can allocate one.
    let empty = |width: usize| Tensor::<f32>::new(&Allocator::default(), [1, SHAPE.heads.kv, 0, width]);
    let mut past: [DynValue; 2] = [empty(widths[0])?.into_dyn(), empty(widths[1])?.into_dyn()];
    let mut total = 0usize;
    for new in [12, 1] {
        total += new;
        let tokens = |heads: usize| {
            let width = heads * SHAPE.head_dim;
            let values: Vec<f32> = (0..new * width).map(|i| ((i * 7919 + total) % 101) as f32 / 50.0 - 1.0).collect();
            Tensor::from_array(([1, new, width], values))
        };
        let [key, value] = past;
        let mut outputs = session.run(inputs![
            "query" => tokens(SHAPE.heads.query)?,
            "key" => tokens(SHAPE.heads.kv)?,
            "value" => tokens(SHAPE.heads.kv)?,
            "past_key" => key,
            "past_value" => value,
            "seqlens_k" => Tensor::from_array(([1usize], vec![total as i32 - 1]))?,
            "total_sequence_length" => Tensor::from_array(([0usize; 0], vec![total as i32]))?,
        ])?;
        let (shape, output) = outputs["output"].try_extract_tensor::<f32>()?;
        let wanted = [1, new as i64, (SHAPE.heads.query * SHAPE.head_dim) as i64];
        ensure!(shape[..] == wanted, "the output's shape is {shape:?}, not {wanted:?}");
        ensure!(
            output.iter().all(|x| x.is_finite()) && output.iter().any(|x| *x != 0.0),
            "the output is not finite or all zero"
        );
        let mut take = |name: &str| outputs.remove(name).ok_or_else(|| anyhow::anyhow!("there is no output {name}"));
        past = [take("present_key")?, take("present_value")?];
        let rows = past[0].shape()[2];
        ensure!(rows == total as i64, "the cache has {rows} rows, not {total}");
    }
    Ok(())
}

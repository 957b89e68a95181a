//! One attention layer in a session, with its cache.

use std::time::Instant;

use anyhow::{Context, Result};
use half::f16;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorElementType};
use spark_ort::runtime::Runtime;

use super::cache::Cache;
use super::graph;
use super::shape::{Shape, Work};
use super::tokens::{Tokens, zeros};

/// Key and value rows, `[B, Hk, capacity, width]`.
pub struct Rows {
    capacity: usize,
    parts: [DynValue; 2],
}

impl Rows {
    pub fn new(shape: &Shape, cache: &Cache, capacity: usize) -> Result<Self> {
        let tensor = |width| zeros(cache.container(), [shape.batch, shape.heads.kv, capacity, width]);
        let [key, value] = cache.widths(shape.head_dim);
        Ok(Self { capacity, parts: [tensor(key)?, tensor(value)?] })
    }

    /// Copies each head's first `count` rows repeatedly over the others.
    fn repeat(&mut self, count: usize) -> Result<()> {
        fn repeat<T: PrimitiveTensorElementType + Copy>(part: &mut DynValue, count: usize) -> Result<()> {
            let (shape, data) = part.try_extract_tensor_mut::<T>()?;
            let (rows, width) = (shape[2] as usize, shape[3] as usize);
            for head in data.chunks_exact_mut(rows * width) {
                let (first, others) = head.split_at_mut(count * width);
                others.chunks_mut(first.len()).for_each(|rows| rows.copy_from_slice(&first[..rows.len()]));
            }
            Ok(())
        }
        for part in &mut self.parts {
            match element_type(part) {
                TensorElementType::Float32 => repeat::<f32>(part, count)?,
                TensorElementType::Float16 => repeat::<f16>(part, count)?,
                TensorElementType::Int8 => repeat::<i8>(part, count)?,
                _ => repeat::<u8>(part, count)?,
            }
        }
        Ok(())
    }
}

/// A session of one layer.
pub struct Layer {
    session: Session,
    shape: Shape,
    work: Work,
    memory: MemoryInfo<'static>,
}

impl Layer {
    pub fn new(runtime: &Runtime, shape: &Shape, cache: &Cache, work: Work, threads: usize) -> Result<Self> {
        let model = graph::layer(shape, cache, work);
        let session = runtime.session(|builder| {
            // Otherwise one session's threads would spin while another session is timed.
            let builder = builder.with_intra_threads(threads)?.with_config_entry("session.force_spinning_stop", "1")?;
            { builder }.commit_from_memory(&model)
        })?;
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        Ok(Self { session, shape: *shape, work, memory })
    }

    /// Fills `rows` with rows that the layer itself stores for random tokens. Rows of a short prompt are repeated: the
    /// contents of a row do not affect the time to read it.
    pub fn fill(&mut self, rows: &mut Rows, element: TensorElementType) -> Result<()> {
        let count = rows.capacity.min(512);
        let mut tokens = Tokens::random(&self.shape, element, count)?;
        let mut call = self.shared(&mut tokens, rows, count)?;
        self.run(&mut call)?;
        drop(call);
        rows.repeat(count)
    }

    /// A call that extends a sequence to `total` tokens, with `rows` as past and present.
    pub fn shared(&self, tokens: &mut Tokens, rows: &mut Rows, total: usize) -> Result<IoBinding> {
        let mut call = self.call(tokens, rows, total)?;
        for (part, name) in rows.parts.iter_mut().zip(["present_key", "present_value"]) {
            call.bind_output(name, part)?;
        }
        Ok(call)
    }

    /// A call that extends the sequence of all `past` rows, with a newly allocated present.
    pub fn growing(&self, tokens: &mut Tokens, past: &Rows) -> Result<IoBinding> {
        let mut call = self.call(tokens, past, past.capacity + tokens.count)?;
        for name in ["present_key", "present_value"] {
            call.bind_output_to_device(name, &self.memory)?;
        }
        Ok(call)
    }

    fn call(&self, tokens: &mut Tokens, past: &Rows, total: usize) -> Result<IoBinding> {
        let mut call = self.session.create_binding()?;
        call.bind_input("query", &tokens.query)?;
        call.bind_input("key", &tokens.key)?;
        call.bind_input("value", &tokens.value)?;
        for (part, name) in past.parts.iter().zip(["past_key", "past_value"]) {
            call.bind_input(name, part)?;
        }
        let total = i32::try_from(total).context("a context is too long")?;
        let batch = self.shape.batch;
        call.bind_input("seqlens_k", &Tensor::from_array(([batch], vec![total - 1; batch]))?)?;
        call.bind_input("total_sequence_length", &Tensor::from_array(([0usize; 0], vec![total]))?)?;
        if self.work == Work::All {
            call.bind_output("output", &mut tokens.output)?;
        }
        Ok(call)
    }

    /// Duration of a call in seconds.
    pub fn run(&mut self, call: &mut IoBinding) -> Result<f64> {
        let start = Instant::now();
        let outputs = self.session.run_binding(call)?;
        let seconds = start.elapsed().as_secs_f64();
        drop(outputs);
        Ok(seconds)
    }
}

fn element_type(tensor: &DynValue) -> TensorElementType {
    tensor.dtype().tensor_type().unwrap_or(TensorElementType::Undefined)
}

#[cfg(test)]
mod tests {
    use super::super::cache::Heads;
    use super::*;

    /// ONNX Runtime, from ORT_DYLIB_PATH or the virtual environment that `make venv` creates.
    fn runtime() -> &'static Runtime {
        let environment = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv");
        if std::env::var_os("ORT_DYLIB_PATH").is_none() && std::path::Path::new(environment).exists() {
            // SAFETY: no other test of this program reads or changes the environment.
            unsafe { std::env::set_var("VIRTUAL_ENV", environment) };
        }
        spark_ort::runtime::load().unwrap()
    }

    /// Outputs of a first prompt and of a token after filled rows.
    fn outputs(cache: &Cache) -> Result<[Vec<f32>; 2]> {
        let shape = Shape { heads: Heads { query: 4, kv: 2 }, head_dim: 32, batch: 2 };
        let mut layer = Layer::new(runtime(), &shape, cache, Work::All, 1)?;
        let mut outputs = [const { Vec::new() }; 2];
        // More than a filling prompt, to test its repeated rows.
        for (output, [new, total]) in outputs.iter_mut().zip([[9, 9], [1, 700]]) {
            let mut tokens = Tokens::random(&shape, cache.element(), new)?;
            let mut rows = Rows::new(&shape, cache, total)?;
            if new < total {
                layer.fill(&mut rows, cache.element())?;
            }
            let mut call = layer.shared(&mut tokens, &mut rows, total)?;
            layer.run(&mut call)?;
            *output = match tokens.output.try_extract_tensor::<f16>() {
                Ok((_, half)) => half.iter().map(|x| x.to_f32()).collect(),
                Err(_) => tokens.output.try_extract_tensor::<f32>()?.1.to_vec(),
            };
        }
        Ok(outputs)
    }

    /// All timed candidates compute the same result, within the loss of their caches.
    #[test]
    fn all_caches_give_about_the_same_output() {
        if let Err(missing) = spark_ort::runtime::load() {
            // As in tests/support/needs.rs.
            assert!(std::env::var_os("SPARK_TEST_REQUIRE").is_none(), "{missing}");
            eprintln!("skipped: {missing}");
            return;
        }
        let expected = outputs(&Cache::GROUPED[0]).unwrap();
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(expected.iter().all(|x| length(x) > 0.5));
        let spark = |setting: &str| Cache::spark(setting.parse().unwrap(), 32).unwrap();
        let [_, half, byte, nibble] = Cache::GROUPED;
        let cases = [(half, 0.01), (byte, 0.05), (nibble, 0.5), (spark("0/16/16"), 0.01), (spark("0.25/8/8"), 0.3)];
        let more = [(spark("0/16/16").half().unwrap(), 0.01), (spark("0.25/8/8:v2"), 0.3), (spark("basis36/8"), 0.05)];
        let cases = cases.into_iter().chain(more);
        for (cache, tolerance) in cases {
            let found = match outputs(&cache) {
                // ONNX Runtime has the two quantised caches only from 1.27 on.
                Err(_) if cache.container().byte_size(1) == Some(1) => continue,
                found => found.unwrap(),
            };
            for (found, expected) in found.iter().zip(&expected) {
                let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
                let error = length(&difference) / length(expected);
                assert!(error < tolerance, "{}: {error}", cache.name());
            }
        }
    }
}

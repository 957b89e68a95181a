//! Layers with caches on the device: several with the same tensors beside the cache, so that reading one of them finds
//! nothing of it in the device's L2.

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{null, null_mut};

use half::f16;
use spark_ort::call::Lengths;
use spark_ort::gpu::plan::{self, AttentionTensors, Inputs, Plan, PruneOutputs, Scalar};

use crate::basis::orthogonal;
use crate::common::Random;
use crate::cuda::Cuda;
use crate::cuda::graph::Stream;
use crate::cuda::memory::Buffer;
use crate::shape::{Operators, Shape};

/// Tokens behind the last one of a call, so that calls can begin at different ones.
const SLACK: usize = 61;

/// Random tokens in float16, on the host and on the device, that all layers take theirs from; and what belongs to the
/// model.
pub struct Tokens<'c> {
    pub shape: Shape,
    pub host: Host,
    query: Buffer<'c>,
    key: Buffer<'c>,
    value: Buffer<'c>,
    cos: Buffer<'c>,
    sin: Buffer<'c>,
    saliency: Buffer<'c>,
    basis: Buffer<'c>,
}

/// The same on the host. Tokens come first.
pub struct Host {
    /// `[tokens, Hq * D]`
    pub query: Vec<f16>,
    /// `[tokens, Hk * D]`
    pub key: Vec<f16>,
    /// `[tokens, Hk * D]`
    pub value: Vec<f16>,
    /// `[positions, D / 2]`
    pub cos: Vec<f16>,
    /// `[positions, D / 2]`
    pub sin: Vec<f16>,
    pub positions: usize,
    /// `[Hk * D]`
    pub saliency: Vec<f32>,
    /// For queries and keys in a basis, `[Hk, D, D]`: products of the two stay what they are.
    pub basis: Vec<f32>,
}

fn bytes_of_floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn bytes(numbers: &[f16]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

impl<'c> Tokens<'c> {
    /// For calls of up to `most` tokens, up to position `positions`.
    pub fn new(cuda: &'c Cuda, shape: Shape, most: usize, positions: usize) -> Result<Self, String> {
        let r = &mut Random(11);
        let mut normal = |n: usize| -> Vec<f16> { (0..n).map(|_| f16::from_f32(r.normal())).collect() };
        let tokens = most + SLACK;
        let (query, key, value) =
            (normal(tokens * shape.query()), normal(tokens * shape.key()), normal(tokens * shape.key()));
        let half = shape.head_dim / 2;
        let angle = |i: usize| (i / half) as f32 * 10000f32.powf(-((i % half) as f32) / half as f32);
        let rotation = |f: fn(f32) -> f32| (0..positions * half).map(|i| f16::from_f32(f(angle(i)))).collect();
        let saliency = (0..shape.key()).map(|_| r.normal().exp()).collect();
        let (cos, sin) = (rotation(f32::cos), rotation(f32::sin));
        let basis = orthogonal(shape.kv_heads, shape.head_dim);
        let host = Host { query, key, value, cos, sin, positions, saliency, basis };
        let put = |numbers: &[f16]| cuda.memory_of(&bytes(numbers));
        Ok(Self {
            shape,
            query: put(&host.query)?,
            key: put(&host.key)?,
            value: put(&host.value)?,
            cos: put(&host.cos)?,
            sin: put(&host.sin)?,
            saliency: cuda.memory_of(&bytes_of_floats(&host.saliency))?,
            basis: cuda.memory_of(&bytes_of_floats(&host.basis))?,
            host,
        })
    }

    /// Tokens from `first` on, for `operators`.
    fn inputs(&self, operators: &Operators, first: usize) -> Inputs {
        let basis = operators.key.planes().map_or(null(), |_| self.basis.at(0).cast_const().cast());
        let from = |buffer: &Buffer, width: usize| buffer.at(first * width * size_of::<f16>()).cast_const();
        Inputs {
            query: from(&self.query, self.shape.query()),
            key: from(&self.key, self.shape.key()),
            value: from(&self.value, self.shape.key()),
            cos_cache: self.cos.at(0),
            sin_cache: self.sin.at(0),
            positions: self.host.positions,
            query_saliency: self.saliency.at(0).cast(),
            key_basis: basis,
            query_basis: basis,
            ..Inputs::none(Scalar::F16)
        }
    }
}

/// Calls of the operators on some layers, each with a shared buffer for its cache.
pub struct Layers<'c> {
    cuda: &'c Cuda,
    pub operators: Operators,
    pub batch: usize,
    /// Past tokens of a sequence.
    pub past: usize,
    /// New tokens of a sequence.
    pub new: usize,
    /// Key rows and value rows, `[B, Hk, capacity, row bytes]`.
    caches: Vec<(Buffer<'c>, Buffer<'c>)>,
    workspace: Buffer<'c>,
    output: Buffer<'c>,
    append: Vec<Plan>,
    attend: Vec<Plan>,
}

impl<'c> Layers<'c> {
    /// `count` layers, with `past` tokens of each sequence in their caches, written in calls of up to `chunk` tokens.
    pub fn new(
        cuda: &'c Cuda,
        tokens: &Tokens,
        operators: Operators,
        (batch, past, new): (usize, usize, usize),
        (count, chunk): (usize, usize),
    ) -> Result<Self, String> {
        let capacity = operators.capacity(past + new);
        let heads_rows = batch * operators.shape.kv_heads * capacity;
        let cache = || -> Result<_, String> {
            let rows = |row_bytes: usize| cuda.memory(heads_rows * row_bytes);
            Ok((rows(operators.key.row_bytes())?, rows(operators.value.row_bytes())?))
        };
        let caches: Vec<_> = (0..count).map(|_| cache()).collect::<Result<_, _>>()?;
        let output = cuda.memory(batch * new * operators.shape.query() * size_of::<f16>())?;
        let workspace = cuda.memory(0)?;
        let mut layers =
            Self { cuda, operators, batch, past, new, caches, workspace, output, append: vec![], attend: vec![] };
        layers.fill(tokens, chunk)?;
        let geometry = layers.operators.geometry(batch, new, capacity);
        let lengths = Lengths { total: past + new, past: vec![past; batch], new: vec![new; batch] };
        let device = &cuda.properties().for_plan;
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: layers.output.at(0) };
        for (key, value) in &layers.caches {
            let mut inputs = tokens.inputs(&layers.operators, 0);
            (inputs.past_key, inputs.past_value) = (key.at(0), value.at(0));
            let outputs = outputs(key.at(0), value.at(0));
            let prune = plan::prune(device, &geometry, &lengths, &layers.operators.prune, &inputs, &outputs);
            layers.append.push(prune.map_err(|e| e.to_string())?);
            let attention = &layers.operators.attention;
            let attend = plan::attention(device, &geometry, &lengths, attention, &inputs, &tensors);
            layers.attend.push(attend.map_err(|e| e.to_string())?);
        }
        let most = layers.append.iter().chain(&layers.attend).map(|p| p.workspace_bytes).max();
        layers.workspace = cuda.memory(most.unwrap_or(0))?;
        for plan in layers.append.iter_mut().chain(&mut layers.attend) {
            plan.set_workspace(layers.workspace.at(0));
        }
        Ok(layers)
    }

    /// Writes the past tokens of all sequences and layers.
    fn fill(&self, tokens: &Tokens, chunk: usize) -> Result<(), String> {
        let Self { cuda, operators, past, .. } = self;
        let capacity = operators.capacity(past + self.new);
        let heads = operators.shape.kv_heads;
        for (layer, (key, value)) in self.caches.iter().enumerate() {
            for b in 0..self.batch {
                let key = key.at(b * heads * capacity * operators.key.row_bytes());
                let value = value.at(b * heads * capacity * operators.value.row_bytes());
                for start in (0..*past).step_by(chunk) {
                    let new = chunk.min(past - start);
                    let lengths = Lengths { total: start + new, past: vec![start], new: vec![new] };
                    let mut inputs = tokens.inputs(operators, self.first_token(layer, b, start));
                    (inputs.past_key, inputs.past_value) = (key, value);
                    let mut plan = plan::prune(
                        &cuda.properties().for_plan,
                        &operators.geometry(1, new, capacity),
                        &lengths,
                        &operators.prune,
                        &inputs,
                        &outputs(key, value),
                    )
                    .map_err(|e| e.to_string())?;
                    let workspace = cuda.memory(plan.workspace_bytes)?;
                    plan.set_workspace(workspace.at(0));
                    // SAFETY: all pointers are to buffers of the sizes planned for, which wait for the device.
                    unsafe { cuda.queue(&plan, &Stream::DEFAULT)? };
                }
            }
        }
        cuda.synchronize()
    }

    /// Of [`Tokens`], where the call that writes position `start` begins: elsewhere for each sequence and layer.
    fn first_token(&self, layer: usize, b: usize, start: usize) -> usize {
        (7 * layer + 17 * b + start / 64) % SLACK
    }

    pub fn count(&self) -> usize {
        self.caches.len()
    }

    /// Bytes of the rows of past tokens of one layer.
    pub fn row_bytes(&self) -> usize {
        self.batch * self.past * self.operators.token_bytes()
    }

    /// Queues all layers' SparkAttention, and after each, if wanted, its SparkPrune.
    ///
    /// # Safety
    /// `self` is there until the stream has run it.
    pub unsafe fn queue(&self, append: bool, stream: &Stream) -> Result<(), String> {
        for (prune, attention) in self.append.iter().zip(&self.attend) {
            // SAFETY: all pointers are to buffers of `self` and of the tokens, of the sizes planned for.
            unsafe {
                self.cuda.queue(attention, stream)?;
                if append {
                    self.cuda.queue(prune, stream)?;
                }
            }
        }
        Ok(())
    }

    /// Runs the first layer; its output, `[B, L, Hq * D]`.
    pub fn run_first(&self) -> Result<Vec<f16>, String> {
        // Not a number, so that whatever is not written shows.
        self.output.write(0, &vec![0xff; self.output.len()])?;
        // SAFETY: as in `queue`; nothing is queued when this returns.
        unsafe { self.cuda.queue(&self.attend[0], &Stream::DEFAULT)? };
        self.cuda.synchronize()?;
        let bytes = self.output.read(0, self.output.len())?;
        Ok(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect())
    }

    /// Rows of the buffers of a sequence and KV head.
    pub fn capacity(&self) -> usize {
        self.operators.capacity(self.past + self.new)
    }

    /// Key rows and value rows of the first layer, those numbered `tokens`, for each (sequence, KV head).
    pub fn first_rows(&self, tokens: Range<usize>) -> Result<[Vec<Vec<u8>>; 2], String> {
        let (key, value) = &self.caches[0];
        let heads = self.batch * self.operators.shape.kv_heads;
        let rows = |buffer: &Buffer, row_bytes: usize| -> Result<Vec<_>, String> {
            let read = |h| buffer.read((h * self.capacity() + tokens.start) * row_bytes, tokens.len() * row_bytes);
            (0..heads).map(read).collect()
        };
        Ok([rows(key, self.operators.key.row_bytes())?, rows(value, self.operators.value.row_bytes())?])
    }
}

/// In place.
fn outputs(key: *mut c_void, value: *mut c_void) -> PruneOutputs {
    PruneOutputs { present_key: key, present_value: value, present_recent: null_mut(), observed_saliency: null_mut() }
}

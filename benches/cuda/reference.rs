//! What the CPU's kernels make of the same calls.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use ndarray::{Array2, Array4};
use spark_ort::call::{Lengths, Rotary};
use spark_ort::cpu::{
    Attention, Basis, HeadRows, InstructionSet, Pool, Prune, Rotation, TailRows, Tokens, attention, prune,
};
use spark_ort::format::TailLayout;
use spark_ort::method::channel_scale;

use crate::common::same_new_key;
use crate::layer::{Host, Layers};
use crate::shape::Operators;

/// The greatest difference of an output x from the CPU's y, as a share of |y| + this: sums of numbers of size 1 do not
/// come nearer to zero.
const ZERO: f32 = 0.05;
/// That difference may be this much, as in tests/gpu/kernels.
pub const TOLERANCE: f32 = 1e-3;
/// The same where tensor cores multiply operands that are rounded to float16, which those of prompts are.
pub const ROUNDED_TOLERANCE: f32 = 2e-3 / ZERO;

/// As many threads as the processor has.
struct Threads;

impl Pool for Threads {
    fn par_for(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(n);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(i) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < n) {
                        work(i);
                    }
                });
            }
        });
    }
}

/// The tensors of one call, in float32.
struct Call {
    query: Array4<f32>,
    key: Array4<f32>,
    value: Array4<f32>,
    cos: Array2<f32>,
    sin: Array2<f32>,
    positions: Vec<usize>,
    scale: Vec<f32>,
    basis: Option<Vec<f32>>,
}

impl Call {
    /// Of the first tokens of `host`, `new` of each of `batch` sequences, from position `past` on.
    fn new(host: &Host, operators: &Operators, (batch, past, new): (usize, usize, usize)) -> Self {
        let shape = operators.shape;
        let heads_first = |x: &[f16], heads: usize| {
            let numbers = x[..batch * new * heads * shape.head_dim].iter().map(|x| x.to_f32()).collect();
            let tokens = Array4::from_shape_vec([batch, new, heads, shape.head_dim], numbers).expect("as many numbers");
            tokens.permuted_axes([0, 2, 1, 3])
        };
        let rotation = |x: &[f16]| {
            let numbers = x.iter().map(|x| x.to_f32()).collect();
            Array2::from_shape_vec([host.positions, shape.head_dim / 2], numbers).expect("as many numbers")
        };
        Self {
            query: heads_first(&host.query, shape.query_heads),
            key: heads_first(&host.key, shape.kv_heads),
            value: heads_first(&host.value, shape.kv_heads),
            cos: rotation(&host.cos),
            sin: rotation(&host.sin),
            positions: (0..batch * new).map(|t| past + t % new).collect(),
            scale: host.saliency.iter().map(|&n| channel_scale(n)).collect(),
            basis: operators.key.planes().map(|_| host.basis.clone()),
        }
    }

    fn tokens(&self) -> Tokens<'_, f32> {
        let rotation =
            Rotation { style: Rotary::Halves, cos: self.cos.view(), sin: self.sin.view(), positions: &self.positions };
        Tokens {
            query: self.query.view(),
            key: self.key.view(),
            value: self.value.view(),
            rotation: Some(rotation),
            basis: self.basis.as_ref().map(|matrices| Basis { key: matrices, query: Some(matrices) }),
        }
    }
}

/// By how much the first layer's output differs from the CPU's on the same rows; NaN where something is not written.
pub fn output_difference(host: &Host, layers: &Layers) -> Result<f32, String> {
    let Layers { operators, batch, past, new, .. } = layers;
    let got = layers.run_first()?;
    let [key, value] = layers.first_rows(0..*past)?;
    let [free_key, free_value] = layers.first_rows(*past..layers.capacity())?;
    let call = Call::new(host, operators, (*batch, *past, *new));
    let geometry = operators.geometry(*batch, *new, layers.capacity());
    let lengths = Lengths { total: past + new, past: vec![*past; *batch], new: vec![*new; *batch] };
    let (past_key, past_value) = (slices(&key), slices(&value));
    let (free_key, free_value) = (slices(&free_key), slices(&free_value));
    let window = operators.attention.common.tail_window;
    let layout = TailLayout::new(&operators.key, &operators.value, window, layers.capacity());
    let tail = (window > 0).then_some(TailRows { layout: &layout, key: &free_key, value: &free_value });
    let mut expected = Array4::zeros(call.query.dim());
    // The scalar path is slow where there are many queries, but they are dense and the others take them in float32 too.
    let path = if *new > 1 { InstructionSet::Portable } else { InstructionSet::Scalar };
    let attend = Attention {
        geometry: &geometry,
        lengths: &lengths,
        settings: &operators.attention,
        tokens: call.tokens(),
        past_key: &past_key,
        past_value: &past_value,
        recent: None,
        tail,
        scale: &call.scale,
        bias: None,
    };
    attention(&Threads, path, &attend, expected.view_mut());
    let expected = expected.permuted_axes([0, 2, 1, 3]);
    let difference = got.iter().zip(&expected).map(|(x, y)| (x.to_f32() - y).abs() / (ZERO + y.abs()));
    // Unlike f32::max, it keeps what is not a number.
    Ok(difference.fold(0.0, |most, d| if d > most || d.is_nan() { d } else { most }))
}

fn slices(rows: &[Vec<u8>]) -> Vec<&[u8]> {
    rows.iter().map(|r| &r[..]).collect()
}

/// Rows of the first layer's first `tokens` tokens that are not the CPU's bit for bit, keys as [`same_new_key`] has
/// them.
pub fn differing_rows(host: &Host, layers: &Layers, tokens: usize) -> Result<usize, String> {
    let operators = &layers.operators;
    let Operators { shape, key, value, .. } = operators;
    let got = layers.first_rows(0..tokens)?;
    let call = Call::new(host, operators, (1, 0, tokens));
    let geometry = operators.geometry(1, tokens, tokens);
    let lengths = Lengths { total: tokens, past: vec![0], new: vec![tokens] };
    let rows = |row_bytes: usize| vec![vec![0; tokens * row_bytes]; shape.kv_heads];
    let (mut keys, mut values) = (rows(key.row_bytes()), rows(value.row_bytes()));
    let prune_call = Prune {
        geometry: &geometry,
        lengths: &lengths,
        settings: &operators.prune,
        tokens: call.tokens(),
        query_saliency: Some(&host.saliency),
        scale: &call.scale,
    };
    let head_rows = keys.iter_mut().zip(&mut values).map(|(key, value)| HeadRows { key, value }).collect();
    prune(&Threads, InstructionSet::chosen()?, &prune_call, head_rows, None);
    let same_key = |x: &[u8], y: &[u8]| same_new_key(key, x, y);
    let differ = |got: &[Vec<u8>], expected: &[Vec<u8>], bytes: usize, same: &dyn Fn(&[u8], &[u8]) -> bool| {
        // The first sequence's heads.
        let rows = got.iter().zip(expected).flat_map(|(x, y)| x.chunks_exact(bytes).zip(y.chunks_exact(bytes)));
        rows.filter(|(x, y)| !same(x, y)).count()
    };
    Ok(differ(&got[0], &keys, key.row_bytes(), &same_key) + differ(&got[1], &values, value.row_bytes(), &|x, y| x == y))
}

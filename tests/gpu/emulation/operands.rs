//! What the kernels for matrix cores multiply where T has 16 bits: queries, keys and values rounded to float16.

use half::f16;
use ndarray::{Array4, s};
use spark_ort::cpu::{InstructionSet, Serial};
use spark_ort::format::{Bits, ValueLayout};

use crate::common::Case;

fn round(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32());
}

/// Reads a row of (sequence, head, token).
type Read<'a> = &'a dyn Fn((usize, usize, usize), &mut [f32]);

/// Reads the key at position `t` from the tail; whether it is there.
fn in_tail(case: &Case, (b, h, t): (usize, usize, usize), row: &[u8], key: &mut [f32]) -> bool {
    let [free_key, free_value] = &case.free;
    let head = b * case.geometry.kv_heads + h;
    let layout = case.tail_layout();
    let (Some(free_key), Some(free_value)) = (free_key.get(head), free_value.get(head)) else { return false };
    let tail = layout.read(free_key, free_value);
    let recent = t + tail.kept() >= case.lengths.past[b] && tail.kept() > 0;
    let layout = &case.geometry.key;
    let is_key = |slot: &[u8], key: &mut [f32]| match layout.planes() {
        Some(planes) => planes.read_dense_key(slot, row, key),
        None => layout.read_dense_key(slot, row, key),
    };
    recent && tail.slots(t).any(|slot| is_key(slot, key))
}

/// Reads the past key at position `t`, from the tail if it may be there, else from its row.
fn stored_key(case: &Case, (b, h, t): (usize, usize, usize), may_be_dense: bool, key: &mut [f32]) {
    let (layout, d) = (&case.geometry.key, case.geometry.head_dim());
    let row = &case.past_key[b * case.geometry.kv_heads + h][t * layout.row_bytes()..][..layout.row_bytes()];
    if may_be_dense && in_tail(case, (b, h, t), row, key) {
        return;
    }
    if let Some(planes) = layout.planes() {
        return planes.decode(row, key);
    }
    let recovery = case.attention.common.recovery;
    layout.row(row).decode(&case.scale[h * d..(h + 1) * d], |j| recovery.factor(t, j), key);
}

/// Attention in float32 to `case` with rotated queries and keys, decoded keys and values, all rounded to float16: it
/// differs from the kernels' by sums and weights only.
pub fn attend_in_float16(case: &Case) -> Array4<f32> {
    let mut output = in_float16(case).attend(&Serial, InstructionSet::Scalar);
    each_row(&mut output, |x| case.geometry.value.rotate_back(x));
    output
}

fn each_row(x: &mut Array4<f32>, change: impl Fn(&mut [f32])) {
    let d = x.dim().3;
    x.as_slice_mut().expect("in order").chunks_exact_mut(d).for_each(change);
}

/// `case` of those numbers. Its past keys are all dense, so that they are what this function says; values, and so the
/// output, are as rows store them, where these rotate them.
fn in_float16(case: &Case) -> Case {
    let (g, past) = (&case.geometry, &case.lengths.past);
    let (tokens, d, heads) = (case.tokens(), g.head_dim(), g.kv_heads);
    let read = |shape: (usize, usize, usize, usize), one: Read<'_>| {
        let mut all = Array4::zeros(shape);
        for b in 0..shape.0 {
            for h in 0..shape.1 {
                for i in 0..shape.2 {
                    let mut row = vec![0.0; d];
                    one((b, h, i), &mut row);
                    round(&mut row);
                    all.slice_mut(s![b, h, i, ..]).iter_mut().zip(row).for_each(|(to, x)| *to = x);
                }
            }
        }
        all
    };
    let longest = past.iter().copied().max().unwrap_or(0);
    let window = case.attention.common.recent_window;
    let recent = read((g.batch, heads, longest, d), &|(b, h, t), key| {
        if t >= past[b] {
            return;
        }
        match &case.recent {
            Some(recent) if t + window >= past[b] => {
                let row = t + past[b].min(window) - past[b];
                key.iter_mut().zip(recent.slice(s![b, h, row, ..])).for_each(|(to, x)| *to = *x);
            }
            recent => stored_key(case, (b, h, t), recent.is_none(), key),
        }
    });
    let layout = ValueLayout::new(d, Bits::B16, 0).unwrap();
    let values = |rows: &Vec<u8>| -> Vec<u8> {
        let mut value = vec![0.0; d];
        let mut row = vec![0; layout.row_bytes()];
        let all = rows.chunks_exact(g.value.row_bytes()).flat_map(|from| {
            g.value.decode(from, &mut value);
            g.value.rotate(&mut value);
            layout.encode(&value, &mut row);
            row.clone()
        });
        all.collect()
    };
    let mut operands = Case {
        query: read(case.query.dim(), &|(b, h, i), x| tokens.query(b, h, i, x)),
        key: read(case.key.dim(), &|(b, h, i), x| tokens.key(b, h, i, x)),
        value: read(case.value.dim(), &|(b, h, i), x| tokens.value(b, h, i, x)),
        recent: Some(recent),
        past_key: case.past_key.clone(),
        past_value: case.past_value.iter().map(values).collect(),
        basis: None,
        free: [vec![], vec![]],
        geometry: g.clone(),
        lengths: case.lengths.clone(),
        attention: case.attention.clone(),
        prune: case.prune.clone(),
        cos: case.cos.clone(),
        sin: case.sin.clone(),
        positions: case.positions.clone(),
        query_saliency: case.query_saliency.clone(),
        scale: case.scale.clone(),
        bias: case.bias.clone(),
    };
    each_row(&mut operands.value, |x| g.value.rotate(x));
    operands.geometry.value = layout;
    for common in [&mut operands.attention.common, &mut operands.prune.common] {
        (common.value_bits, common.value_row_bytes) = (Bits::B16, layout.row_bytes());
        (common.rotary, common.recent_window) = (None, longest);
    }
    operands
}

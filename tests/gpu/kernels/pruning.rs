//! `SparkPrune` against the CPU's.

use std::ptr::null_mut;

use ndarray::{Array3, Array4};
use spark_ort::cpu::{HeadRows, InstructionSet, Serial, grow, prune, recent_keys, write_tail};
use spark_ort::format::Bits;
use spark_ort::gpu::plan::{self, Device, PruneOutputs, Scalar};

use crate::common::{Case, Random, same_new_key};
use crate::emulation::gpu::{Memory, gpu};
use crate::on_device::{BITS, HEAD_DIMS, Layout, OnDevice, bytes_of, case, device, grid, numbers_of, past_buffers};

/// What `SparkPrune` writes.
pub struct Present {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    recent: Vec<u8>,
    observed: Vec<f32>,
}

/// By the CPU: a cache that grows, or, when `shared`, one buffer.
fn expected_present(case: &Case, scalar: Scalar, shared: bool) -> Present {
    let (g, lengths) = (&case.geometry, &case.lengths);
    let d = g.head_dim();
    let rows = lengths.present(g);
    let heads = g.batch * g.kv_heads;
    let mut present = match shared {
        true => past_buffers(case),
        false => [g.key.row_bytes(), g.value.row_bytes()].map(|bytes| vec![0xAA; heads * rows * bytes]),
    };
    let mut observed = Array3::from_elem([g.batch, g.kv_heads, d], f32::NAN);
    {
        let [key, value] = &mut present;
        let new_rows = |past: &'_ [Vec<u8>], present: &'_ mut Vec<u8>, bytes: usize| -> Vec<Vec<u8>> {
            if !shared {
                let past: Vec<_> = past.iter().map(|r| &r[..]).collect();
                grow(&Serial, g, lengths, bytes, &past, present);
            }
            (0..heads).map(|h| vec![0; lengths.new[h / g.kv_heads] * bytes]).collect()
        };
        let mut keys = new_rows(&case.past_key, key, g.key.row_bytes());
        let mut values = new_rows(&case.past_value, value, g.value.row_bytes());
        let head_rows = keys.iter_mut().zip(&mut values).map(|(key, value)| HeadRows { key, value }).collect();
        prune(&Serial, InstructionSet::Scalar, &case.prune_call(), head_rows, Some(observed.view_mut()));
        for (present, new, bytes) in [(key, keys, g.key.row_bytes()), (value, values, g.value.row_bytes())] {
            for (h, new) in new.iter().enumerate() {
                let at = (h * rows + lengths.past[h / g.kv_heads]) * bytes;
                present[at..at + new.len()].copy_from_slice(new);
            }
        }
    }
    if shared && case.prune.common.tail_window > 0 {
        expected_tail(case, &mut present);
    }
    let recent_rows = lengths.total.min(case.prune.common.recent_window);
    let mut recent = Array4::from_elem([g.batch, g.kv_heads, recent_rows, d], f32::NAN);
    if case.recent.is_some() {
        recent_keys(&Serial, &case.prune_call(), case.recent.as_ref().map(|r| r.view()), recent.view_mut());
    }
    let [key, value] = present;
    Present { key, value, recent: bytes_of(scalar, recent.into_iter()), observed: observed.into_iter().collect() }
}

/// Adds the tails to shared buffers.
fn expected_tail(case: &Case, [keys, values]: &mut [Vec<u8>; 2]) {
    let (g, lengths, layout) = (&case.geometry, &case.lengths, case.tail_layout());
    let (key, value) = (g.key.row_bytes(), g.value.row_bytes());
    let regions = keys.chunks_mut(g.past * key).zip(values.chunks_mut(g.past * value)).enumerate();
    let slots = regions.map(|(h, (keys, values))| {
        let (past, new) = (lengths.past[h / g.kv_heads], lengths.new[h / g.kv_heads]);
        let used = past + new;
        layout.write(used, new, &mut keys[used * key..], &mut values[used * value..])
    });
    write_tail(&Serial, &case.prune_call(), slots.collect());
}

/// By the kernels.
pub fn present(on_device: &OnDevice, device: &Device, shared: bool) -> Result<Present, String> {
    let OnDevice { case, scalar, geometry: g, .. } = on_device;
    let rows = case.lengths.present(g);
    let fresh = |bytes: usize| Memory::new(&vec![0xAA; g.batch * g.kv_heads * rows * bytes]);
    let own = (!shared).then(|| (fresh(g.key.row_bytes()), fresh(g.value.row_bytes())));
    let (key, value) = own.as_ref().map_or((&on_device.past_key, &on_device.past_value), |(k, v)| (k, v));
    let recent_rows = case.lengths.total.min(case.prune.common.recent_window);
    let elements = g.batch * g.kv_heads * recent_rows * g.head_dim();
    let recent = Memory::new(&bytes_of(*scalar, std::iter::repeat_n(f32::NAN, elements)));
    let observed = Memory::new(&vec![0xFF; g.batch * g.kv_heads * g.head_dim() * 4]);
    let outputs = PruneOutputs {
        present_key: key.at(),
        present_value: value.at(),
        present_recent: if case.recent.is_some() { recent.at() } else { null_mut() },
        observed_saliency: observed.at().cast(),
    };
    let device = gpu().device(device);
    let plan = plan::prune(&device, g, &case.lengths, &case.prune, &on_device.inputs, &outputs);
    on_device.run(plan.map_err(|e| e.to_string())?, device.wave_size)?;
    let observed = numbers_of(Scalar::F32, &observed.bytes());
    let [key, value, recent] = [key, value, &recent].map(Memory::bytes);
    Ok(Present { key, value, recent, observed })
}

/// Rows bit for bit, new ones as [`same_new_key`] has them.
fn compare_keys(case: &Case, got: &[u8], expected: &[u8]) -> Result<(), String> {
    let (layout, lengths) = (&case.geometry.key, &case.lengths);
    let (bytes, rows) = (layout.row_bytes(), lengths.present(&case.geometry));
    for (n, (got, expected)) in got.chunks(bytes).zip(expected.chunks(bytes)).enumerate() {
        let (b, row) = (n / rows / case.geometry.kv_heads, n % rows);
        let is_new = lengths.past[b] <= row && row < lengths.past[b] + lengths.new[b];
        let same = if is_new { same_new_key(layout, got, expected) } else { got == expected };
        if !same {
            return Err(format!("key row {n}:\n{got:02x?} instead of\n{expected:02x?}"));
        }
    }
    Ok(())
}

pub fn check_prune(
    case: &Case,
    scalar: Scalar,
    device: &Device,
    layout: Layout,
    shared: bool,
) -> Result<Present, String> {
    let on_device = OnDevice::new(case, scalar, layout, true);
    let got = present(&on_device, device, shared)?;
    let expected = expected_present(case, scalar, shared);
    compare_keys(case, &got.key, &expected.key)?;
    if got.value != expected.value {
        return Err("value rows".into());
    }
    if got.observed != expected.observed {
        return Err("observed saliency".into());
    }
    match case.recent.is_none() || got.recent == expected.recent {
        true => Ok(got),
        false => Err("recent keys".into()),
    }
}

#[test]
fn rows_are_the_cpus() {
    needs!(crate::emulation::at_hand());
    grid(|seed, scalar, wave, d, bits| {
        let r = &mut Random(seed);
        let most_new = r.pick(&[1, 3, 9, 40]);
        let mut case = case(seed, scalar, d, bits, 30, most_new);
        let shared = r.coin();
        if shared {
            case.geometry.past = case.lengths.total + r.below(3);
        }
        let (layout, device) = (Layout::random(r), device(wave, 304));
        check_prune(&case, scalar, &device, layout, shared).unwrap_or_else(|e| {
            panic!("seed {seed}, {scalar:?}, wave {wave}, D {d}, {bits:?}, {layout:?}, shared {shared}: {e}")
        });
    });
}

/// Few distinct numbers, so that scores are often equal: the lower channel stays.
#[test]
fn ties_are_broken_alike() {
    needs!(crate::emulation::at_hand());
    for seed in 0..40 {
        let wave = [64, 32][seed as usize % 2];
        let r = &mut Random(seed);
        let mut case = case(seed, Scalar::F32, r.pick(&HEAD_DIMS), (r.pick(&BITS), Bits::B8), 5, 12);
        case.prune.common.rotary = None;
        for array in [&mut case.query, &mut case.key] {
            array.mapv_inplace(|x| (x * 1.5).round());
        }
        let layout = Layout::random(r);
        check_prune(&case, Scalar::F32, &device(wave, 304), layout, false)
            .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

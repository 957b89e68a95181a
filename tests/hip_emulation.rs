//! The kernels of `ops/` on the emulated GPU against the CPU operators: every setting, shape and element type, waves of
//! 64 and 32 lanes. The emulation stops at whatever touches memory that is not the call's, so every call here also proves that
//! nothing does.

mod common;
mod emulation;
#[path = "hip_emulation/prefill.rs"]
mod prefill;

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use common::{Case, Random};
use emulation::{Emulation, Memory};
use half::{bf16, f16};
use ndarray::{Array3, Array4, ArrayD, Axis, concatenate};
use spark_ort::call::{Geometry, Lengths, QueryLayout, Rotary};
use spark_ort::cpu::{HeadRows, Path, Serial, grow, prune, recent_keys};
use spark_ort::format::{Bits, KeyLayout};
use spark_ort::hip::params::Call;
use spark_ort::hip::plan::{self, AttentionTensors, Device, Inputs, Launch, Plan, PruneOutputs, Scalar};

const SCALARS: [Scalar; 3] = [Scalar::F16, Scalar::F32, Scalar::Bf16];

fn device(wave: u32, compute_units: u32) -> Device {
    Device { wave_size: wave, compute_units, shared_bytes: 65536, matrix: wave == 64 }
}

/// `x` as T holds it.
fn rounded(scalar: Scalar, x: f32) -> f32 {
    match scalar {
        Scalar::F16 => f16::from_f32(x).to_f32(),
        Scalar::F32 => x,
        Scalar::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

fn bytes_of(scalar: Scalar, numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    match scalar {
        Scalar::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        Scalar::F32 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
        Scalar::Bf16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn numbers_of(scalar: Scalar, bytes: &[u8]) -> Vec<f32> {
    match scalar {
        Scalar::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Scalar::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Scalar::Bf16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
    }
}

/// Rounds all tensors of T, so that the CPU's kernels in float32 compute on the same numbers.
fn round_tensors(case: &mut Case, scalar: Scalar) {
    for array in
        [&mut case.query, &mut case.key, &mut case.value].into_iter().chain(&mut case.recent).chain(&mut case.bias)
    {
        array.mapv_inplace(|x| rounded(scalar, x));
    }
    for array in [&mut case.cos, &mut case.sin] {
        array.mapv_inplace(|x| rounded(scalar, x));
    }
}

/// How a case is laid out on the device.
#[derive(Clone, Copy, Debug)]
struct Layout {
    query: QueryLayout,
    key_by_heads: bool,
    value_by_heads: bool,
}

impl Layout {
    fn random(r: &mut Random) -> Self {
        Self {
            query: r.pick(&[QueryLayout::Heads, QueryLayout::Tokens, QueryLayout::Packed]),
            key_by_heads: r.coin(),
            value_by_heads: r.coin(),
        }
    }
}

fn tokens_first(by_heads: bool, x: &Array4<f32>) -> ArrayD<f32> {
    if by_heads { x.clone().into_dyn() } else { x.clone().permuted_axes([0, 2, 1, 3]).into_dyn() }
}

/// A case on the device.
struct OnDevice<'a> {
    case: &'a Case,
    geometry: Geometry,
    scalar: Scalar,
    layout: Layout,
    /// What `inputs` point to.
    _tensors: Vec<Memory>,
    past_key: Memory,
    past_value: Memory,
    inputs: Inputs,
}

/// `[B, Hk, P, row_bytes]`: the rows of past tokens, and what a host leaves in the others.
fn past_rows(case: &Case, rows: &[Vec<u8>], row_bytes: usize) -> Vec<u8> {
    let head_bytes = case.geometry.past * row_bytes;
    rows.iter().flat_map(|r| r.iter().copied().chain(std::iter::repeat(0xEE)).take(head_bytes)).collect()
}

impl<'a> OnDevice<'a> {
    fn new(case: &'a Case, scalar: Scalar, layout: Layout, saliency: bool) -> Self {
        let mut tensors: Vec<Memory> = Vec::new();
        let mut put = |bytes: Vec<u8>| -> *const c_void {
            tensors.push(Memory::new(&bytes));
            tensors.last().unwrap().at()
        };
        let mut put_t = |x: ArrayD<f32>| put(bytes_of(scalar, x.iter().copied()));
        let mut inputs = Inputs::none(scalar);
        if layout.query == QueryLayout::Packed {
            let all = concatenate(Axis(1), &[case.query.view(), case.key.view(), case.value.view()]).unwrap();
            inputs.query = put_t(tokens_first(false, &all));
        } else {
            inputs.query = put_t(tokens_first(layout.query == QueryLayout::Heads, &case.query));
            inputs.key = put_t(tokens_first(layout.key_by_heads, &case.key));
            inputs.value = put_t(tokens_first(layout.value_by_heads, &case.value));
        }
        (inputs.key_by_heads, inputs.value_by_heads) = (layout.key_by_heads, layout.value_by_heads);
        if case.prune.common.rotary.is_some() {
            inputs.cos_cache = put_t(case.cos.clone().into_dyn());
            inputs.sin_cache = put_t(case.sin.clone().into_dyn());
            inputs.positions = case.cos.nrows();
        }
        if let Some(recent) = &case.recent
            && !recent.is_empty()
        {
            inputs.past_recent = put_t(recent.clone().into_dyn());
            inputs.past_recent_rows = recent.dim().2;
        }
        inputs.position_ids = put(case.positions.iter().flat_map(|&p| (p as i64).to_le_bytes()).collect()).cast();
        if saliency {
            inputs.query_saliency = put(case.query_saliency.iter().flat_map(|n| n.to_le_bytes()).collect()).cast();
        }
        let past_key = Memory::new(&past_rows(case, &case.past_key, case.geometry.key.row_bytes()));
        let past_value = Memory::new(&past_rows(case, &case.past_value, case.geometry.value.row_bytes()));
        (inputs.past_key, inputs.past_value) = (past_key.at(), past_value.at());
        let geometry = Geometry { layout: layout.query, ..case.geometry.clone() };
        Self { case, geometry, scalar, layout, _tensors: tensors, past_key, past_value, inputs }
    }

    fn run(&self, mut plan: Plan, wave: u32) -> Result<(), String> {
        let workspace = (plan.workspace_bytes > 0).then(|| Memory::new(&vec![0xFF; plan.workspace_bytes]));
        plan.set_workspace(workspace.as_ref().map_or(null_mut(), |w| w.at()));
        Emulation::get().run(&plan, wave)
    }

    /// The attention output, `[B, Hq, L, D]`.
    fn attend(&self, device: &Device) -> Result<Array4<f32>, String> {
        let case = self.case;
        let (b, h, l, d) = case.query.dim();
        let bias = case.bias.as_ref().map(|x| (Memory::new(&bytes_of(self.scalar, x.iter().copied())), x.dim()));
        // Not a number, so that whatever is not written shows.
        let output = Memory::new(&bytes_of(self.scalar, std::iter::repeat_n(f32::NAN, case.query.len())));
        let tensors = AttentionTensors {
            bias: bias.as_ref().filter(|b| !b.0.bytes().is_empty()).map_or(null(), |b| b.0.at()),
            bias_shape: bias.as_ref().map_or([0; 4], |(_, (b, h, l, c))| [*b, *h, *l, *c]),
            output: output.at(),
        };
        let plan = plan::attention(device, &self.geometry, &case.lengths, &case.attention, &self.inputs, &tensors)
            .map_err(|e| e.to_string())?;
        self.run(plan, device.wave_size)?;
        let numbers = numbers_of(self.scalar, output.bytes());
        Ok(match self.layout.query {
            QueryLayout::Heads => Array4::from_shape_vec((b, h, l, d), numbers).unwrap(),
            _ => Array4::from_shape_vec((b, l, h, d), numbers).unwrap().permuted_axes([0, 2, 1, 3]),
        })
    }
}

/// Compares an attention output with the CPU's; the error names the worst element.
fn compare(scalar: Scalar, got: &Array4<f32>, expected: &Array4<f32>) -> Result<(), String> {
    // Relative, and of what a number near zero may be off by, since values of size 1 sum to it.
    let (tolerance, zero) = match scalar {
        Scalar::F16 => (1e-3, 0.05),
        Scalar::F32 => (2e-5, 0.5),
        Scalar::Bf16 => (8e-3, 0.05),
    };
    for (at, &e) in expected.indexed_iter() {
        let g = got[at];
        // Also false for NaN.
        let close = (g - e).abs() <= tolerance * (zero + e.abs());
        if !close {
            return Err(format!("{at:?}: {g} instead of {e}"));
        }
    }
    Ok(())
}

/// A random case with these bits, head size and lengths.
fn case(
    seed: u64,
    scalar: Scalar,
    d: usize,
    (key_bits, value_bits): (Bits, Bits),
    most_past: usize,
    most_new: usize,
) -> Case {
    // The settings of a random case, and then a head size of one's own: its tensors are made anew.
    let mut case = Case::with(seed, most_past, most_new, Some((d, key_bits, value_bits)));
    round_tensors(&mut case, scalar);
    case
}

const HEAD_DIMS: [usize; 9] = [32, 40, 64, 72, 80, 96, 128, 192, 256];
const BITS: [Bits; 3] = [Bits::B16, Bits::B8, Bits::B4];

/// Every combination of head size, bits, T and wave, each with its own random settings.
fn grid(mut each: impl FnMut(u64, Scalar, u32, usize, (Bits, Bits))) {
    let mut seed = 0;
    for d in HEAD_DIMS {
        for key_bits in BITS {
            for value_bits in BITS {
                if value_bits == Bits::B4 && d % 32 != 0 {
                    continue;
                }
                for scalar in SCALARS {
                    for wave in [64, 32] {
                        seed += 1;
                        each(seed, scalar, wave, d, (key_bits, value_bits));
                    }
                }
            }
        }
    }
}

/// Decoding and small chunks, by the decoding kernels and by those for prompts.
#[test]
fn attention_is_the_cpus() {
    grid(|seed, scalar, wave, d, bits| {
        let r = &mut Random(seed);
        let most_new = r.pick(&[1, 1, 2, 3, 9, 24]);
        let mut case = case(seed, scalar, d, bits, 90, most_new);
        case.fill_cache(seed);
        let layout = Layout::random(r);
        let saliency = r.below(4) > 0;
        if !saliency {
            case.scale.fill(1.0);
        }
        let device = device(wave, r.pick(&[1, 304]));
        let what = format!("seed {seed}, {scalar:?}, wave {wave}, D {d}, {layout:?}, {:?}", case.attention);
        let on_device = OnDevice::new(&case, scalar, layout, saliency);
        prefill::check(&case, scalar, &device, &on_device).unwrap_or_else(|e| panic!("{what}: {e}"));
    });
}

/// Keys in pieces, some of which see nothing; few queries and many.
#[test]
fn pieces_of_a_long_cache_merge() {
    for (n, scalar) in SCALARS.into_iter().cycle().take(18).enumerate() {
        let seed = 1000 + n as u64;
        let r = &mut Random(seed);
        let (wave, d) = ([64, 32][n % 2], r.pick(&[32, 64, 128]));
        let bits = (BITS[n % 3], BITS[n / 3 % 3]);
        let mut case = case(seed, scalar, d, bits, 2500, [1, 4, 24][n / 6]);
        case.fill_cache(seed);
        case.attention.window = [None, Some(700)][r.below(2)];
        let on_device = OnDevice::new(&case, scalar, Layout::random(r), true);
        for compute_units in [1, 40, 1000] {
            prefill::check(&case, scalar, &device(wave, compute_units), &on_device)
                .unwrap_or_else(|e| panic!("seed {seed}, {compute_units} units: {e}"));
        }
    }
}

/// Rows of arbitrary bytes give finite numbers, and no access beyond the call's memory.
#[test]
fn any_bytes_are_read_safely() {
    grid(|seed, scalar, wave, d, bits| {
        if !seed.is_multiple_of(3) {
            return;
        }
        let r = &mut Random(seed);
        let most_new = r.pick(&[1, 2, 20]);
        let case = case(seed, scalar, d, bits, 60, most_new);
        let got = OnDevice::new(&case, scalar, Layout::random(r), true).attend(&device(wave, 304)).unwrap();
        assert!(got.iter().all(|x| x.is_finite()), "seed {seed}");
    });
}

/// What `SparkPrune` writes.
struct Present {
    key: Vec<u8>,
    value: Vec<u8>,
    recent: Vec<u8>,
    observed: Vec<f32>,
}

/// By the CPU: a cache that grows, or, when `shared`, one buffer.
fn expected_present(case: &Case, scalar: Scalar, shared: bool) -> Present {
    let (g, lengths) = (&case.geometry, &case.lengths);
    let d = g.head_dim();
    let rows = lengths.present(g);
    let heads = g.batch * g.kv_heads;
    let mut present = [(&case.past_key, g.key.row_bytes()), (&case.past_value, g.value.row_bytes())].map(
        |(past, bytes)| match shared {
            true => past_rows(case, past, bytes),
            false => vec![0xAA; heads * rows * bytes],
        },
    );
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
        prune(&Serial, Path::Scalar, &case.prune_call(), head_rows, Some(observed.view_mut()));
        for (present, new, bytes) in [(key, keys, g.key.row_bytes()), (value, values, g.value.row_bytes())] {
            for (h, new) in new.iter().enumerate() {
                let at = (h * rows + lengths.past[h / g.kv_heads]) * bytes;
                present[at..at + new.len()].copy_from_slice(new);
            }
        }
    }
    let recent_rows = lengths.total.min(case.prune.common.recent_window);
    let mut recent = Array4::from_elem([g.batch, g.kv_heads, recent_rows, d], f32::NAN);
    if case.recent.is_some() {
        recent_keys(&Serial, &case.prune_call(), case.recent.as_ref().map(|r| r.view()), recent.view_mut());
    }
    let [key, value] = present;
    Present { key, value, recent: bytes_of(scalar, recent.into_iter()), observed: observed.into_iter().collect() }
}

/// By the kernels.
fn present(on_device: &OnDevice, device: &Device, shared: bool) -> Result<Present, String> {
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
    let plan = plan::prune(device, g, &case.lengths, &case.prune, &on_device.inputs, &outputs);
    on_device.run(plan.map_err(|e| e.to_string())?, device.wave_size)?;
    let observed = numbers_of(Scalar::F32, observed.bytes());
    let [key, value, recent] = [key, value, &recent].map(|m| m.bytes().to_vec());
    Ok(Present { key, value, recent, observed })
}

/// The byte of each key row where `a` lies.
fn magnitude_at(layout: &KeyLayout) -> usize {
    layout.head_dim() / 4
}

/// Rows bit for bit but for `a`, whose sum the device takes in another order: it may be the next float16.
fn compare_keys(layout: &KeyLayout, got: &[u8], expected: &[u8]) -> Result<(), String> {
    let at = magnitude_at(layout);
    let bytes = layout.row_bytes();
    for (n, (got, expected)) in got.chunks(bytes).zip(expected.chunks(bytes)).enumerate() {
        let a = |row: &[u8]| i32::from(u16::from_le_bytes([row[at], row[at + 1]]));
        if got[..at] != expected[..at] || got[at + 2..] != expected[at + 2..] || (a(got) - a(expected)).abs() > 1 {
            return Err(format!("key row {n}:\n{got:02x?} instead of\n{expected:02x?}"));
        }
    }
    Ok(())
}

fn check_prune(case: &Case, scalar: Scalar, device: &Device, layout: Layout, shared: bool) -> Result<(), String> {
    let on_device = OnDevice::new(case, scalar, layout, true);
    let got = present(&on_device, device, shared)?;
    let expected = expected_present(case, scalar, shared);
    compare_keys(&case.geometry.key, &got.key, &expected.key)?;
    if got.value != expected.value {
        return Err("value rows".into());
    }
    if got.observed != expected.observed {
        return Err("observed saliency".into());
    }
    match case.recent.is_none() || got.recent == expected.recent {
        true => Ok(()),
        false => Err("recent keys".into()),
    }
}

#[test]
fn rows_are_the_cpus() {
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

/// Infinities and what is not a number, in every tensor.
#[test]
fn numbers_that_are_not_numbers() {
    for seed in 0..36 {
        let (scalar, wave) = (SCALARS[seed as usize % 3], [64, 32][seed as usize % 2]);
        let r = &mut Random(seed);
        let most_new = r.pick(&[2, 12]);
        let mut case = case(seed, scalar, 64, (r.pick(&BITS), r.pick(&BITS)), 30, most_new);
        case.fill_cache(seed);
        let mut spoil =
            |x: f32| if r.below(20) == 0 { r.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) } else { x };
        for array in [&mut case.query, &mut case.key, &mut case.value].into_iter().chain(&mut case.recent) {
            array.mapv_inplace(&mut spoil);
        }
        case.cos.mapv_inplace(&mut spoil);
        let layout = Layout::random(r);
        check_prune(&case, scalar, &device(wave, 304), layout, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let got = OnDevice::new(&case, scalar, layout, true).attend(&device(wave, 304)).unwrap();
        assert!(got.iter().all(|x| x.is_finite()), "seed {seed}");
    }
}

/// More sequences than one launch is told the lengths of.
#[test]
fn large_batches_take_several_launches() {
    for (wave, new) in [(64, 1), (32, 10)] {
        let mut case = case(7, Scalar::F16, 32, (Bits::B8, Bits::B8), 12, 1);
        let settings = &case.prune.common;
        let (b, d, hk, hq) = (70, 32, settings.kv_heads, settings.query_heads);
        let r = &mut Random(1);
        case.geometry = Geometry { batch: b, new, past: 12, ..case.geometry };
        case.lengths = Lengths { total: 12 + new, past: (0..b).map(|_| r.below(13)).collect(), new: vec![new; b] };
        case.query = r.array([b, hq, new, d]);
        (case.key, case.value) = (r.array([b, hk, new, d]), r.array([b, hk, new, d]));
        case.positions = (0..b * new).map(|_| r.below(12)).collect();
        (case.bias, case.recent) = (None, Some(r.array([b, hk, case.prune.common.recent_window, d])));
        let past = |r: &mut Random, bytes: usize| {
            (0..b * hk).map(|h| r.bytes(case.lengths.past[h / hk] * bytes)).collect::<Vec<_>>()
        };
        case.past_key = past(r, case.geometry.key.row_bytes());
        case.past_value = past(r, case.geometry.value.row_bytes());
        case.fill_cache(3);
        round_tensors(&mut case, Scalar::F16);
        let layout = Layout::random(r);
        check_prune(&case, Scalar::F16, &device(wave, 304), layout, false).unwrap();
        let got = OnDevice::new(&case, Scalar::F16, layout, true).attend(&device(wave, 304)).unwrap();
        compare(Scalar::F16, &got, &case.attend(&Serial, Path::Scalar)).unwrap();
    }
}

/// Positions that the host could not see to be wrong read no memory that is not the call's.
#[test]
fn wrong_positions_stay_within_the_caches() {
    let mut case = case(3, Scalar::F16, 64, (Bits::B8, Bits::B8), 20, 3);
    for common in [&mut case.prune.common, &mut case.attention.common] {
        common.rotary = Some(Rotary::Halves);
    }
    case.fill_cache(3);
    let layout = Layout { query: QueryLayout::Heads, key_by_heads: true, value_by_heads: true };
    for position in [usize::MAX, i64::MAX as usize, i64::MIN as usize, 1 << 40] {
        case.positions.fill(position);
        let on_device = OnDevice::new(&case, Scalar::F16, layout, true);
        assert!(on_device.attend(&device(64, 304)).unwrap().iter().all(|x| x.is_finite()));
        present(&on_device, &device(64, 304), false).unwrap();
    }
}

/// LDS never allows fewer blocks of a compute unit than the cost model counts on, nor any head size or row a kernel that it
/// has no room for.
#[test]
fn every_row_fits_lds() {
    for (wave, d) in [(64, 32), (64, 64), (64, 128), (64, 136), (64, 256), (32, 64), (32, 128), (32, 256)] {
        for (group, new) in [(1, 1), (4, 1), (8, 1), (2, 8), (8, 64)] {
            let mut case = case(1, Scalar::F16, d, (Bits::B16, Bits::B16), 8, 1);
            let mut settings = case.attention.clone();
            (settings.common.query_heads, settings.common.kv_heads) = (2 * group, 2);
            let key = KeyLayout::new(d, d, Bits::B16, 0).unwrap();
            case.geometry =
                Geometry { batch: 1, new, past: 8, query_heads: 2 * group, kv_heads: 2, key, ..case.geometry };
            let lengths = Lengths { total: 8 + new, past: vec![8], new: vec![new] };
            let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
            let inputs = Inputs::none(Scalar::F16);
            let plan = plan::attention(&device(wave, 304), &case.geometry, &lengths, &settings, &inputs, &tensors);
            let launch = &plan.unwrap().launches[0];
            let blocks = if launch.kernel.contains("prefill") { 1 } else { if group * new > 4 { 2 } else { 3 } };
            assert!(launch.shared_bytes * blocks <= 65536, "{}: {} bytes, D {d}", launch.kernel, launch.shared_bytes);
        }
    }
}

/// A long cache keeps every compute unit busy, in one round.
#[test]
fn keys_are_cut_to_fill_the_device() {
    let mut case = case(1, Scalar::F16, 128, (Bits::B8, Bits::B8), 8, 1);
    (case.attention.common.query_heads, case.attention.common.kv_heads) = (32, 8);
    (case.attention.window, case.geometry.query_heads, case.geometry.kv_heads) = (None, 32, 8);
    for (batch, past, splits) in [(1, 32768, 114), (8, 32768, 14), (8, 200, 1), (64, 32768, 1), (1, 1000, 4)] {
        let geometry = Geometry { batch, new: 1, past, ..case.geometry.clone() };
        let lengths = Lengths { total: past + 1, past: vec![past; batch], new: vec![1; batch] };
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let inputs = Inputs::none(Scalar::F16);
        let plan = plan::attention(&device(64, 304), &geometry, &lengths, &case.attention, &inputs, &tensors).unwrap();
        let call = &plan.launches[0].call;
        assert!(call.splits <= splits && call.splits * 10 >= splits * 9, "{batch} x {past}: {} pieces", call.splits);
        assert!(u64::from(call.splits) * u64::from(call.split_keys) > past as u64);
        assert_eq!(plan.launches.len(), if splits > 1 { 2 } else { 1 });
    }
}

/// The traps are sprung by what they are for.
mod traps {
    use super::*;

    fn spoilt(spoil: impl FnOnce(&mut Plan)) -> Result<(), String> {
        let mut case = (5..).map(|s| case(s, Scalar::F16, 64, (Bits::B8, Bits::B8), 40, 1));
        let mut case = case.find(|c| c.geometry.new == 1).unwrap();
        let batch = case.geometry.batch;
        (case.geometry.past, case.attention.window) = (40, None);
        case.lengths = Lengths { total: 40, past: vec![39; batch], new: vec![1; batch] };
        let case = &case;
        let layout = Layout { query: QueryLayout::Heads, key_by_heads: true, value_by_heads: true };
        let on_device = OnDevice::new(case, Scalar::F16, layout, true);
        let output = Memory::new(&vec![0; case.query.len() * 2]);
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: output.at() };
        let device = device(64, 304);
        let mut plan =
            plan::attention(&device, &on_device.geometry, &case.lengths, &case.attention, &on_device.inputs, &tensors)
                .unwrap();
        spoil(&mut plan);
        on_device.run(plan, 64)
    }

    #[test]
    fn a_sound_plan_runs() {
        spoilt(|_| ()).unwrap();
    }

    #[test]
    fn global_memory_out_of_bounds() {
        let error = spoilt(|p| p.launches[0].call.output.data = p.launches[0].call.output.data.wrapping_byte_add(16))
            .unwrap_err();
        assert!(error.contains("global memory") && error.contains("spark_decode"), "{error}");
    }

    #[test]
    fn more_lds_than_asked_for() {
        let error = spoilt(|p| p.launches[0].shared_bytes = 64).unwrap_err();
        assert!(error.contains("of LDS, of which the launch has 64"), "{error}");
    }

    #[test]
    fn no_such_kernel() {
        let error = spoilt(|p| p.launches[0].kernel = "spark_nothing".into()).unwrap_err();
        assert!(error.contains("no kernel spark_nothing"), "{error}");
    }

    /// One launch of a kernel of `ops/emulation/faults.cpp`.
    fn fault(kernel: &str) -> Result<(), String> {
        let (grid, block) = ([1, 1, 1], [256, 1, 1]);
        let launch = Launch { kernel: kernel.into(), grid, block, shared_bytes: 1028, call: Call::default() };
        Emulation::get().run(&Plan { workspace_bytes: 0, launches: vec![launch] }, 64)
    }

    #[test]
    fn faults_of_a_kernel() {
        fault("fault_none").unwrap();
        for (kernel, expected) in [
            ("fault_unwritten", "reads LDS that nobody wrote, at byte 1024"),
            ("fault_no_barrier", "LDS that another thread"),
            ("fault_no_wave_barrier", "LDS that "),
            ("fault_overwritten", "LDS that another thread"),
            ("fault_divergent", "wait for different things"),
            ("fault_left_alone", "some threads wait at a block barrier"),
        ] {
            let error = fault(kernel).unwrap_err();
            assert!(error.contains(expected) && error.contains(kernel), "{kernel}: {error}");
        }
    }
}

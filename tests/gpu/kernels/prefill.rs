//! Prompts and chunks of them, on matrix cores and without.

use std::ptr::{null, null_mut};

use ndarray::Array4;
use spark_ort::call::{Geometry, Lengths, QueryLayout};
use spark_ort::cpu::{InstructionSet, Serial};
use spark_ort::format::{Bits, KeyLayout, RowFormat, ValueLayout};
use spark_ort::gpu::plan::{self, AttentionTensors, Device, Inputs, MatrixCores, Scalar};

use crate::common::{Case, Random};
use crate::emulation::Emulation;
use crate::emulation::gpu::gpu;
use crate::emulation::operands::attend_in_float16;
use crate::on_device::{BITS, HEAD_DIMS, Layout, OnDevice, SCALARS, case, case_of, compare, device, round_tensors};

/// Whether the kernels multiply float16 on matrix cores.
fn in_halves(case: &Case, scalar: Scalar, device: &Device) -> bool {
    let (_, heads, new, d) = case.query.dim();
    let can = match device.matrix {
        MatrixCores::None => false,
        MatrixCores::Mfma => true,
        MatrixCores::Mma => d <= 128,
    };
    can && scalar != Scalar::F32 && heads / case.geometry.kv_heads * new > 16
}

/// Every element within `tolerance` of the expected one, relative to it and to values of size `zero`.
fn within(tolerance: f32, zero: f32, got: &Array4<f32>, expected: &Array4<f32>) -> Result<(), String> {
    let far = expected.indexed_iter().find(|&(at, e)| {
        // Also false for NaN.
        let close = (got[at] - e).abs() <= tolerance * (zero + e.abs());
        !close
    });
    far.map_or(Ok(()), |(at, e)| Err(format!("{at:?}: {} instead of {e}", got[at])))
}

/// Compares the kernels' attention with the CPU's, and on matrix cores with the CPU's of what they multiply too.
pub fn check(case: &Case, scalar: Scalar, device: &Device, on_device: &OnDevice) -> Result<(), String> {
    // A real GPU may lack the matrix cores that the test asks for, and then rounds no operands.
    let device = &gpu().device(device);
    let got = on_device.attend(device)?;
    let expected = case.attend(&Serial, InstructionSet::Scalar);
    if !in_halves(case, scalar, device) {
        return compare(scalar, &got, &expected);
    }
    // Values have size 1. Operands in float16 move scores of size s by s / 2048 or so, and the weights with them; a
    // scale above the usual one makes scores that much larger.
    let usual = 1.0 / (case.geometry.head_dim() as f32).sqrt();
    let larger = (case.attention.scale.unwrap_or(usual) / usual).max(1.0);
    let output = if scalar == Scalar::F16 { 0.0 } else { 4e-3 };
    within(2e-3 * larger + output, 1.0, &got, &expected)?;
    // Of the same operands there remain the rounding of the weights, each by a 2048th at most, and of the output. Near
    // zero both allow 5e-4, which is a 2048th of values of size 1.
    let (tolerance, zero) = if scalar == Scalar::F16 { (1e-3, 0.5) } else { (8e-3, 0.0625) };
    within(tolerance, zero, &got, &attend_in_float16(case))
}

/// A call of one sequence with `past` and `new` tokens, each of one KV head.
fn chunk(seed: u64, scalar: Scalar, d: usize, bits: (Bits, Bits), group: usize, past: usize, new: usize) -> Case {
    alone(case(seed, scalar, d, bits, 1, 1), seed, scalar, group, past, new)
}

/// `case` with one sequence of `past` and `new` tokens, one KV head for `group` query heads, and nothing that hides a
/// key.
pub fn alone(mut case: Case, seed: u64, scalar: Scalar, group: usize, past: usize, new: usize) -> Case {
    let r = &mut Random(seed);
    let d = case.geometry.head_dim();
    let g = &case.geometry;
    case.geometry = Geometry { batch: 1, new, past, query_heads: group, kv_heads: 1, ..g.clone() };
    case.lengths = Lengths { total: past + new, past: vec![past], new: vec![new] };
    for common in [&mut case.attention.common, &mut case.prune.common] {
        (common.query_heads, common.kv_heads, common.recent_window, common.rotary) = (group, 1, 0, None);
    }
    (case.attention.scale, case.attention.softcap, case.attention.window) = (None, None, None);
    case.query = r.array([1, group, new, d]);
    (case.key, case.value) = (r.array([1, 1, new, d]), r.array([1, 1, new, d]));
    case.positions = vec![0; new];
    (case.bias, case.recent) = (None, None);
    case.past_key = vec![r.bytes(past * case.geometry.key.row_bytes())];
    case.past_value = vec![r.bytes(past * case.geometry.value.row_bytes())];
    case.fill_cache(seed);
    round_tensors(&mut case, scalar);
    case
}

const HEADS_FIRST: Layout = Layout { query: QueryLayout::Heads, key_by_heads: true, value_by_heads: true };

/// Prompts and chunks after a cache, with everything that a call may have.
#[test]
fn prompts_are_the_cpus() {
    needs!(crate::emulation::at_hand());
    let mut matrix = 0;
    for (n, d) in HEAD_DIMS.into_iter().cycle().take(54).enumerate() {
        let seed = 5000 + n as u64;
        let r = &mut Random(seed);
        let scalar = SCALARS[n % 3];
        let bits = (r.pick(&BITS), if d % 32 == 0 { r.pick(&BITS) } else { r.pick(&BITS[..2]) });
        let mut case = case(seed, scalar, d, bits, 150, 80);
        case.fill_cache(seed);
        case.attention.window = r.pick(&[None, Some(1), Some(40), Some(70)]);
        let on_device = OnDevice::new(&case, scalar, Layout::random(r), true);
        let units = r.pick(&[1, 304]);
        // Waves of 64 without matrix cores too, such as those of gfx906.
        for device in [device(64, units), device(32, units), Device { matrix: MatrixCores::None, ..device(64, units) }]
        {
            matrix += u32::from(device.matrix == MatrixCores::Mfma && case.geometry.new > 16);
            check(&case, scalar, &device, &on_device)
                .unwrap_or_else(|e| panic!("seed {seed}, {scalar:?}, D {d}, {device:?}, {:?}: {e}", case.attention));
        }
    }
    assert!(matrix > 30, "{matrix} prompts on matrix cores");
}

/// Around the sizes of tiles: 16 queries and keys of an instruction, 32 of a wave, 32 or 64 keys at a time, 64 or 128
/// queries of a block.
#[test]
fn tiles_may_be_ragged() {
    needs!(crate::emulation::at_hand());
    for (n, new) in [17, 31, 32, 33, 63, 64, 65, 127, 128, 129].into_iter().enumerate() {
        for (past, scalar, d, wave) in [
            (0, Scalar::F16, 64, 64),
            (63, Scalar::F32, 128, 64),
            (65, Scalar::F16, 256, 64),
            (65, Scalar::F16, 80, 32),
        ] {
            let seed = 6000 + n as u64;
            let mut case = chunk(seed, scalar, d, (Bits::B8, Bits::B8), 1, past, new);
            for window in [None, Some(33)] {
                case.attention.window = window;
                let on_device = OnDevice::new(&case, scalar, HEADS_FIRST, true);
                check(&case, scalar, &device(wave, 1), &on_device)
                    .unwrap_or_else(|e| panic!("{new} after {past}, window {window:?}, {scalar:?}, D {d}: {e}"));
            }
        }
    }
}

/// Pieces of the keys for a chunk after a long cache, and the same in one piece.
#[test]
fn a_chunk_after_a_long_cache() {
    needs!(crate::emulation::at_hand());
    for (scalar, group, new) in [(Scalar::F16, 4, 8), (Scalar::F32, 2, 20), (Scalar::Bf16, 1, 40)] {
        let case = chunk(7, scalar, 128, (Bits::B8, Bits::B8), group, 1700, new);
        let on_device = OnDevice::new(&case, scalar, HEADS_FIRST, true);
        for (wave, units) in [(64, 1), (64, 304), (32, 1), (32, 304)] {
            check(&case, scalar, &device(wave, units), &on_device)
                .unwrap_or_else(|e| panic!("{scalar:?}, wave {wave}, {units}: {e}"));
        }
    }
}

/// Many queries after a cache, whose rows are decoded once for all: of every format, with tails, windows and sequences
/// of unequal length, of all sequences at once or of some.
#[test]
fn rows_are_unpacked_once() {
    needs!(crate::emulation::at_hand());
    for (f, format) in [RowFormat::V1, RowFormat::V2, RowFormat::V3].into_iter().enumerate() {
        let mut unpacked = [0; 2];
        for (n, d) in HEAD_DIMS.into_iter().cycle().take(36).enumerate() {
            let seed = 7000 + 100 * f as u64 + n as u64;
            let r = &mut Random(seed);
            let scalar = [Scalar::F16, Scalar::Bf16][n % 2];
            let bits = (d, r.pick(&BITS), if d % 32 == 0 { r.pick(&BITS) } else { r.pick(&BITS[..2]) });
            let mut case = case_of(format, seed, scalar, bits, 150, 280);
            case.fill_cache(seed);
            case.attention.window = r.pick(&[None, None, Some(40), Some(60)]);
            let on_device = OnDevice::new(&case, scalar, Layout::random(r), true);
            let longest = case.lengths.past.iter().max().unwrap();
            let of_one = 4 * case.geometry.kv_heads * d * longest;
            let some = |wave, units| Device { unpacked_bytes: of_one, ..device(wave, units) };
            for device in [if n % 4 < 2 { device(64, 1) } else { some(64, 304) }, some(32, 304)] {
                let kernels = on_device.kernels(&device);
                let launches = kernels.iter().filter(|kernel| kernel.starts_with("spark_unpack_")).count();
                if launches > 0 {
                    unpacked[usize::from(launches > 1)] += 1;
                    check(&case, scalar, &device, &on_device)
                        .unwrap_or_else(|e| panic!("{format:?}, seed {seed}, {scalar:?}, D {d}, {device:?}: {e}"));
                }
            }
        }
        assert!(unpacked[0] > 4 && unpacked[1] > 1, "{unpacked:?} of {format:?}");
    }
}

/// A key that outweighs thousands of others one by one, not all together: their weights, far below the least normal
/// float16 in relation to its own, are not lost.
#[test]
fn small_weights_count() {
    needs!(crate::emulation::at_hand());
    let (past, new, d) = (3000, 20, 32);
    let mut case = chunk(8, Scalar::F16, d, (Bits::B16, Bits::B16), 1, past, new);
    let key = KeyLayout::new(d, d, Bits::B16, 0).unwrap();
    for common in [&mut case.attention.common, &mut case.prune.common] {
        (common.kept_channels, common.key_row_bytes) = (d, key.row_bytes());
    }
    case.geometry.key = key;
    case.past_key = vec![vec![0; past * key.row_bytes()]];
    case.attention.scale = Some(1.0);
    case.fill_cache(8);
    // Rows of zeros but for their masks, one of them with a score of 10.5; values of 1, its own of 0.
    let mut rows = std::mem::take(&mut case.past_key[0]);
    for (t, row) in rows.chunks_exact_mut(key.row_bytes()).enumerate() {
        let mut dense = vec![0.0; d];
        dense[0] = if t == 100 { 10.5 } else { 0.0 };
        let pruned =
            spark_ort::format::PrunedKey { key: &dense, mask: &[0xff; 4], scale: &case.scale[..d], recovery: 0.0 };
        key.encode(pruned, row);
    }
    case.past_key[0] = rows;
    let value = ValueLayout::new(d, Bits::B16, case.geometry.value.row_bytes()).unwrap();
    for (t, row) in case.past_value[0].chunks_exact_mut(value.row_bytes()).enumerate() {
        value.encode(&vec![f32::from(t != 100); d], row);
    }
    case.query.fill(0.0);
    case.query.slice_mut(ndarray::s![.., .., .., 0]).fill(1.0);
    (case.key, case.value) = (Array4::zeros([1, 1, new, d]), Array4::ones([1, 1, new, d]));
    let on_device = OnDevice::new(&case, Scalar::F16, HEADS_FIRST, true);
    for wave in [64, 32] {
        let got = on_device.attend(&device(wave, 1)).unwrap();
        let others = (past - 1) as f32 * (-10.5f32).exp();
        assert!((got[[0, 0, 0, 0]] - others / (1.0 + others)).abs() < 1e-3, "{}", got[[0, 0, 0, 0]]);
        check(&case, Scalar::F16, &device(wave, 1), &on_device).unwrap();
    }
}

/// Lanes find their operands in LDS, and put keys and values there, without waiting for each other.
#[test]
fn banks_do_not_conflict() {
    needs!(crate::emulation::at_hand());
    assert_eq!(Emulation::get().bank_conflicts(), 0);
}

/// A compute unit holds two blocks of what rows at hand take, and the plan fills it so.
#[test]
fn two_blocks_share_lds() {
    needs!(crate::emulation::at_hand());
    let case = case_of(RowFormat::V1, 1, Scalar::F16, (128, Bits::B8, Bits::B8), 8, 1);
    let plan_of = |scalar, d: usize, (kept, bits), past, new| {
        let mut settings = case.attention.clone();
        (settings.common.query_heads, settings.common.kv_heads, settings.window) = (8, 2, None);
        let key = KeyLayout::new(d, kept, bits, 0).unwrap();
        let geometry = Geometry { batch: 1, new, past, query_heads: 8, kv_heads: 2, key, ..case.geometry.clone() };
        let lengths = Lengths { total: past + new, past: vec![past], new: vec![new] };
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let inputs = Inputs::none(scalar);
        plan::attention(&device(64, 304), &geometry, &lengths, &settings, &inputs, &tensors).unwrap()
    };
    for (scalar, d, rows, kernel, blocks) in [
        (Scalar::F16, 128, (64, Bits::B8), "spark_prefill_matrix_f16_128", 2),
        (Scalar::F16, 128, (64, Bits::B16), "spark_prefill_matrix_f16_128", 2),
        (Scalar::Bf16, 64, (32, Bits::B4), "spark_prefill_matrix_f16_64", 2),
        (Scalar::F32, 40, (20, Bits::B8), "spark_prefill_matrix_f32_64", 2),
        (Scalar::F16, 128, (128, Bits::B16), "spark_prefill_matrix_f16_128", 1),
        (Scalar::F16, 256, (128, Bits::B8), "spark_prefill_matrix_f16_256", 2),
        (Scalar::F32, 128, (64, Bits::B8), "spark_prefill_matrix_f32_128", 2),
        (Scalar::F32, 256, (128, Bits::B8), "spark_prefill_matrix_f32_256", 1),
    ] {
        let plan = plan_of(scalar, d, rows, 0, 64);
        let launch = plan.launches.iter().find(|l| l.kernel.starts_with("spark_prefill")).unwrap();
        assert_eq!(launch.kernel, kernel);
        assert_eq!((65536 / launch.shared_bytes).min(2), blocks, "{kernel}, {rows:?}: {} bytes", launch.shared_bytes);
        // One block of queries for each KV head, so as many pieces as fit.
        let plan = plan_of(scalar, d, rows, 1 << 20, 8);
        let long = plan.launches.iter().find(|l| l.kernel == kernel).unwrap();
        let at_once = 304 * blocks;
        assert!(long.grid[0] <= at_once && long.grid[0] * 10 >= at_once * 9, "{kernel}, {rows:?}: {:?}", long.grid);
    }
}

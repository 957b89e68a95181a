//! `SparkAttention` against the CPU's.

use half::f16;
use spark_ort::cpu::{InstructionSet, Serial};
use spark_ort::format::{Bits, RowFormat};
use spark_ort::gpu::plan::{Device, MatrixCores, Scalar};

use crate::common::Random;
use crate::on_device::{BITS, HEAD_DIMS, Layout, OnDevice, SCALARS, case, case_of, compare, device, grid};
use crate::prefill;

/// Decoding and small chunks, by the decoding kernels and by those for prompts.
#[test]
fn attention_is_the_cpus() {
    needs!(crate::emulation::at_hand());
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
        if seed.is_multiple_of(3) {
            // GPUs without matrix cores, such as gfx906 and gfx1100.
            prefill::check(&case, scalar, &Device { matrix: MatrixCores::None, ..device }, &on_device)
                .unwrap_or_else(|e| panic!("{what}, without matrix cores: {e}"));
        }
    });
}

/// In float32, and with keys that all queries see, a wrong level in any plane shows.
#[test]
fn every_plane_is_read() {
    needs!(crate::emulation::at_hand());
    for (n, d) in HEAD_DIMS.into_iter().cycle().take(72).enumerate() {
        let seed = 3000 + n as u64;
        let r = &mut Random(seed);
        let value_bits = r.pick(if d % 32 == 0 { &BITS[1..] } else { &BITS[1..2] });
        let case = case_of(RowFormat::V3, seed, Scalar::F32, (d, Bits::B16, value_bits), 1, 1);
        let (group, past, new) = (r.pick(&[1, 2, 3, 4, 7, 8]), 1 + r.below(120), 1 + r.below(2));
        let case = prefill::alone(case, seed, Scalar::F32, group, past, new);
        let on_device = OnDevice::new(&case, Scalar::F32, Layout::random(r), true);
        for wave in [64, 32] {
            prefill::check(&case, Scalar::F32, &device(wave, 1), &on_device)
                .unwrap_or_else(|e| panic!("seed {seed}, wave {wave}, D {d}, {:?}: {e}", case.attention.common.planes));
        }
    }
}

/// Keys in pieces, some of which see nothing; few queries and many.
#[test]
fn pieces_of_a_long_cache_merge() {
    needs!(crate::emulation::at_hand());
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
    needs!(crate::emulation::at_hand());
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

/// Weights times scales of values, which float16 holds only relative to the greatest: a scale may be any float16, or
/// zero.
#[test]
fn values_may_differ_much_in_size() {
    needs!(crate::emulation::at_hand());
    for seed in 2000..2032 {
        let r = &mut Random(seed);
        let (d, scalar) = (r.pick(&[64, 128]), SCALARS[seed as usize % 3]);
        let bits = (r.pick(&[Bits::B8, Bits::B4]), r.pick(&[Bits::B8, Bits::B4]));
        let mut case = case(seed, scalar, d, bits, 200, 1);
        case.fill_cache(seed);
        let grouped = bits.1 == Bits::B4 && case.attention.common.row_format == RowFormat::V1;
        let pairs = if grouped { d / 32 } else { 1 };
        let row_bytes = case.geometry.value.row_bytes();
        for row in case.past_value.iter_mut().flat_map(|rows| rows.chunks_mut(row_bytes)) {
            let smaller = r.pick(&[0, 0, 4, 9, 14, 24]);
            for half in row[..4 * pairs].as_chunks_mut().0 {
                let number = f16::from_le_bytes(*half).to_f32() * 0.5f32.powi(smaller);
                *half = f16::from_f32(number).to_le_bytes();
            }
        }
        let expected = case.attend(&Serial, InstructionSet::Scalar);
        let on_device = OnDevice::new(&case, scalar, Layout::random(r), true);
        for wave in [64, 32] {
            let got = on_device.attend(&device(wave, 304)).unwrap();
            let what = || format!("seed {seed}, wave {wave}, D {d}, {bits:?}");
            compare(scalar, &got, &expected).unwrap_or_else(|e| panic!("{}: {e}", what()));
        }
    }
}

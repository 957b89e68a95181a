//! Calls of both operators that are wrong, or large.

use spark_ort::call::{Geometry, Lengths, QueryLayout, Rotary};
use spark_ort::cpu::{InstructionSet, Serial};
use spark_ort::format::{Bits, RowFormat};
use spark_ort::gpu::plan::Scalar;

use crate::common::Random;
use crate::on_device::{BITS, Layout, OnDevice, SCALARS, case, case_of, compare, device, round_tensors};
use crate::pruning::{check_prune, present};

/// Infinities and what is not a number, in every tensor.
#[test]
fn numbers_that_are_not_numbers() {
    needs!(crate::emulation::at_hand());
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
    needs!(crate::emulation::at_hand());
    for (wave, new, format) in [(64, 1, RowFormat::V1), (32, 10, RowFormat::V2), (64, 10, RowFormat::V3)] {
        let mut case = case_of(format, 7, Scalar::F16, (32, Bits::B8, Bits::B8), 12, 1);
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
        compare(Scalar::F16, &got, &case.attend(&Serial, InstructionSet::Scalar)).unwrap();
    }
}

/// Positions that the host could not see to be wrong read no memory that is not the call's.
#[test]
fn wrong_positions_stay_within_the_caches() {
    needs!(crate::emulation::at_hand());
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

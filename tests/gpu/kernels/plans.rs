//! What a plan counts on.

use std::ptr::{null, null_mut};

use spark_ort::call::{Geometry, Lengths};
use spark_ort::format::{Bits, KeyLayout, RowFormat, ValueLayout};
use spark_ort::gpu::plan::{self, AttentionTensors, Device, InBasis, Inputs, MatrixCores, Scalar, TokensAt};

use crate::on_device::{case_of, device};

/// LDS never allows fewer blocks of a compute unit than the cost model counts on, nor any head size or row a kernel
/// that it has no room for.
#[test]
fn every_row_fits_lds() {
    for (wave, d) in [(64, 32), (64, 64), (64, 128), (64, 136), (64, 256), (32, 64), (32, 128), (32, 256)] {
        for (group, new) in [(1, 1), (4, 1), (8, 1), (2, 8), (8, 64)] {
            for bits in [Bits::B16, Bits::B8] {
                let mut case = case_of(RowFormat::V1, 1, Scalar::F16, (d, bits, bits), 8, 1);
                let mut settings = case.attention.clone();
                (settings.common.query_heads, settings.common.kv_heads) = (2 * group, 2);
                let key = KeyLayout::new(d, d, bits, 0).unwrap();
                case.geometry =
                    Geometry { batch: 1, new, past: 8, query_heads: 2 * group, kv_heads: 2, key, ..case.geometry };
                let lengths = Lengths { total: 8 + new, past: vec![8], new: vec![new] };
                let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
                let inputs = Inputs::none(Scalar::F16);
                let plan = plan::attention(&device(wave, 304), &case.geometry, &lengths, &settings, &inputs, &tensors);
                let launch = &plan.unwrap().launches[0];
                let few = group * new > 4 || bits == Bits::B8 && wave == 64 && (72..=128).contains(&d);
                // NVIDIA GPUs have more than these 64 KiB.
                let one = launch.kernel.contains("prefill") || launch.kernel.contains("quantised") && wave == 32;
                let blocks = if one { 1 } else { if few { 2 } else { 3 } };
                assert!(
                    launch.shared_bytes * blocks <= 65536,
                    "{}: {} bytes, D {d}",
                    launch.kernel,
                    launch.shared_bytes
                );
            }
        }
    }
}

/// Queries and keys of a call lie side by side in the workspace, behind what else is there, for all sequences.
#[test]
fn tokens_in_a_basis_have_room() {
    for (batch, new, scalar, wave) in [(1, 1, Scalar::F16, 64), (70, 3, Scalar::F32, 64), (2, 300, Scalar::Bf16, 32)] {
        let case = case_of(RowFormat::V3, 1, scalar, (128, Bits::B8, Bits::B8), 8, 1);
        let geometry = Geometry { batch, new, past: 5000, ..case.geometry.clone() };
        let lengths = Lengths { total: 5000 + new, past: vec![5000; batch], new: vec![new; batch] };
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let inputs = Inputs::none(scalar);
        let plan =
            plan::attention(&device(wave, 304), &geometry, &lengths, &case.attention, &inputs, &tensors).unwrap();
        let written: Vec<_> = plan.launches.iter().filter(|l| l.kernel == "spark_basis").collect();
        assert_eq!(written.len(), batch.div_ceil(64));
        for pair in plan.launches.iter().filter(|l| l.kernel != "spark_basis") {
            let Some(InBasis::Reads(TokensAt { queries, keys })) = pair.in_basis else { panic!("{}", pair.kernel) };
            let call = &pair.call;
            let bytes = |heads: usize| call.sequences as usize * heads * new * 128 * 4;
            assert!(queries % 16 == 0 && keys % 16 == 0 && keys >= queries + bytes(geometry.query_heads));
            assert!(plan.workspace_bytes >= keys + bytes(geometry.kv_heads));
            let states = call.sequences as usize * geometry.query_heads * new * call.splits as usize * 130 * 4;
            let rounded = if call.rounded_keys == 1 { bytes(geometry.kv_heads) / 2 } else { 0 };
            let unpacked = call.sequences as usize * geometry.kv_heads * call.unpacked as usize * 128 * 4;
            assert!(queries >= rounded + unpacked + if call.splits > 1 { states } else { 0 }, "{}", pair.kernel);
            assert_eq!((call.rotary, call.in_basis), (0, 1));
        }
    }
}

/// Matrix cores take keys in planes where they take values.
#[test]
fn kernels_of_keys_in_planes() {
    for (wave, d, value_bits, group, kernel) in [
        (64, 64, Bits::B8, 1, "spark_decode_quantised_planes_8x4"),
        (64, 128, Bits::B4, 8, "spark_decode_quantised_planes_16x8"),
        (32, 128, Bits::B8, 4, "spark_decode_quantised_planes_16x4"),
        (32, 256, Bits::B8, 8, "spark_decode_planes_32x4"),
        (64, 128, Bits::B16, 8, "spark_decode_planes_16x4"),
        (64, 128, Bits::B16, 1, "spark_decode_planes_16x1"),
    ] {
        let case = case_of(RowFormat::V3, 1, Scalar::F16, (d, Bits::B8, value_bits), 8, 1);
        let geometry = Geometry { batch: 1, new: 1, query_heads: group, kv_heads: 1, ..case.geometry.clone() };
        let mut settings = case.attention.clone();
        (settings.common.query_heads, settings.common.kv_heads) = (group, 1);
        let lengths = Lengths { total: 1, past: vec![0], new: vec![1] };
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let inputs = Inputs::none(Scalar::F16);
        let plan = plan::attention(&device(wave, 304), &geometry, &lengths, &settings, &inputs, &tensors).unwrap();
        assert!(plan.launches.iter().any(|launch| launch.kernel == kernel), "{kernel}: {:?}", plan.launches[1].kernel);
    }
}

/// A long cache keeps every compute unit busy, in one round.
#[test]
fn keys_are_cut_to_fill_the_device() {
    let mut case = case_of(RowFormat::V1, 1, Scalar::F16, (128, Bits::B8, Bits::B8), 8, 1);
    (case.attention.common.query_heads, case.attention.common.kv_heads) = (32, 8);
    (case.attention.window, case.geometry.query_heads, case.geometry.kv_heads) = (None, 32, 8);
    for (batch, past, splits) in [(1, 32768, 76), (8, 32768, 9), (8, 200, 1), (64, 32768, 1), (1, 1000, 4)] {
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

/// Where rows of values are rotated, the new keys are a piece of their own, which is merged with the others.
#[test]
fn rotated_values_are_apart_from_new_ones() {
    let mut case = case_of(RowFormat::V1, 1, Scalar::F16, (128, Bits::B8, Bits::B8), 8, 1);
    case.attention.window = None;
    case.geometry.value = ValueLayout::of(RowFormat::V2, 128, Bits::B8, 0).unwrap();
    for (past, new, units, splits) in [(0, 64, 1, 1), (100, 1, 1, 2), (100, 64, 1, 2), (64 * 1024, 1, 1, 2)] {
        let geometry = Geometry { batch: 2, new, past, ..case.geometry.clone() };
        let lengths = Lengths { total: past + new, past: vec![0, past], new: vec![new; 2] };
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let inputs = Inputs::none(Scalar::F16);
        for wave in [64, 32] {
            let device = device(wave, units);
            let plan = plan::attention(&device, &geometry, &lengths, &case.attention, &inputs, &tensors).unwrap();
            let call = &plan.launches[0].call;
            assert_eq!((call.splits, call.value_rotated), (splits, u32::from(past > 0)), "{past} and {new}");
            assert!(past == 0 || (call.splits - 1) * call.split_keys >= past as u32);
            let before = plan.launches.iter().filter(|launch| launch.kernel == "spark_round_keys").count();
            assert_eq!(plan.launches.len() - before, splits.min(2) as usize);
        }
    }
}

/// Rows are unpacked for three blocks of queries or more, of as many sequences at once as there is space for.
#[test]
fn rows_are_unpacked_where_it_pays() {
    let mut case = case_of(RowFormat::V1, 1, Scalar::F16, (128, Bits::B8, Bits::B8), 8, 1);
    (case.attention.common.query_heads, case.attention.common.kv_heads) = (32, 8);
    (case.geometry.query_heads, case.geometry.kv_heads) = (32, 8);
    let long = 128 * 1024;
    let none_and_too_long = (0..64).map(|n| n % 2 * (long + 1)).collect();
    let mixed = [vec![0; 30], vec![long / 4], vec![16; 30], vec![long + 1; 2], vec![16]].concat();
    // T, past tokens of each sequence, new ones, window, and the sequences and rows of each launch.
    for (scalar, past, new, window, expected) in [
        (Scalar::F16, vec![4096], 64, None, [].as_slice()),
        (Scalar::F16, vec![4096], 65, None, &[(1, 4096)]),
        (Scalar::F32, vec![4096], 65, None, &[]),
        (Scalar::Bf16, vec![0; 3], 512, None, &[]),
        (Scalar::Bf16, vec![16; 70], 512, None, &[(64, 16), (6, 16)]),
        (Scalar::F16, vec![long / 4; 9], 512, None, &[(4, long / 4), (4, long / 4), (1, long / 4)]),
        (Scalar::F16, vec![long; 2], 512, None, &[(1, long), (1, long)]),
        (Scalar::F16, vec![long + 1; 2], 512, None, &[]),
        (Scalar::F16, vec![long + 1; 2], 512, Some(4000), &[(2, 4033)]),
        (Scalar::F16, none_and_too_long, 512, None, &[]),
        (Scalar::F16, mixed, 512, None, &[(4, long / 4), (27, 16), (1, 16)]),
    ] {
        case.attention.window = window;
        let (batch, longest) = (past.len(), *past.iter().max().unwrap());
        let geometry = Geometry { batch, new, past: longest, ..case.geometry.clone() };
        let lengths = Lengths { total: longest + new, past, new: vec![new; batch] };
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let inputs = Inputs::none(scalar);
        for wave in [64, 32] {
            let device = device(wave, 304);
            let plan_of =
                |d: &Device| plan::attention(d, &geometry, &lengths, &case.attention, &inputs, &tensors).unwrap();
            let plan = plan_of(&device);
            let unpacking = plan.launches.iter().filter(|launch| launch.kernel == "spark_unpack_128");
            let launched: Vec<_> = unpacking.map(|l| (l.call.sequences as usize, l.call.unpacked as usize)).collect();
            assert_eq!(launched, expected, "{scalar:?}, {:?} and {new}, window {window:?}", lengths.past);
            let bytes = expected.iter().map(|(n, rows)| n * rows * 8 * 128 * 4).max().unwrap_or(0);
            assert!(bytes <= plan::UNPACKED_BYTES && plan.workspace_bytes >= bytes);
            assert_eq!(plan.unpacked_bytes(), bytes);
            assert_eq!(plan_of(&Device { unpacked_bytes: 0, ..device }).unpacked_bytes(), 0);
        }
    }
}

/// Keys in the tail of a buffer cost more than others, on matrix cores, and all are in the last piece.
#[test]
fn the_piece_with_the_tail_is_shorter() {
    let mut case = case_of(RowFormat::V1, 1, Scalar::F16, (128, Bits::B8, Bits::B8), 8, 1);
    (case.attention.common.query_heads, case.attention.common.kv_heads) = (32, 8);
    (case.attention.window, case.geometry.query_heads, case.geometry.kv_heads) = (None, 32, 8);
    let keys = 76 * 448;
    let last_piece = |window: usize, device: Device| {
        let mut settings = case.attention.clone();
        settings.common.tail_window = window;
        let geometry = Geometry { batch: 1, new: 1, past: keys + 100, ..case.geometry.clone() };
        let lengths = Lengths { total: keys, past: vec![keys - 1], new: vec![1] };
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let inputs = Inputs::none(Scalar::F16);
        let plan = plan::attention(&device, &geometry, &lengths, &settings, &inputs, &tensors).unwrap();
        let call = &plan.launches[0].call;
        (call.split_keys, keys as u32 - (call.splits - 1) * call.split_keys)
    };
    assert_eq!(last_piece(0, device(64, 304)), (448, 448));
    for device in [device(64, 304), device(32, 304)] {
        let (piece, last) = last_piece(64, device);
        assert!(last + 3 * 64 <= piece, "{last} keys after pieces of {piece}");
        let without = Device { matrix: MatrixCores::None, ..device };
        assert_eq!(last_piece(64, without), last_piece(0, without));
    }
}

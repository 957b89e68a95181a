//! Whatever bytes, lengths, shapes and numbers a host hands over: an error, or a finite result, never a read or write
//! out of bounds. `make test` runs this under valgrind too, which sees what a test alone would not.

#[path = "../support/common.rs"]
mod common;

use common::{Case, Random, paths};
use spark_ort::call::{Geometry, Input, Lengths, Shapes, channel_scales, positions};
use spark_ort::cpu::{HeadRows, Serial, prune};

/// Under valgrind every step costs tens of times more.
fn rounds(n: u64) -> u64 {
    if std::env::var_os("SPARK_TEST_FEW").is_some() { n.div_ceil(20) } else { n }
}

fn odd_number(r: &mut Random) -> f32 {
    r.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0, 1e30, 70000.0])
}

/// Rows of random bytes, and now and then numbers that are not numbers among queries, keys, values and bias.
#[test]
fn attention_over_random_bytes_is_finite() {
    for seed in 0..rounds(400) {
        let mut case = Case::new(seed, 40, 12);
        let r = &mut Random(seed);
        if r.coin() {
            let recent = case.recent.iter_mut();
            let tensors = recent.chain([&mut case.query, &mut case.key, &mut case.value]).chain(case.bias.iter_mut());
            for x in tensors.flat_map(|t| t.iter_mut()) {
                if r.below(16) == 0 {
                    *x = odd_number(r);
                }
            }
        }
        for path in paths() {
            let out = case.attend(&Serial, path);
            assert!(out.iter().all(|x| x.is_finite()), "seed {seed}, {path:?}");
            for b in 0..case.geometry.batch {
                let padding = out.slice(ndarray::s![b, .., case.lengths.new[b].., ..]);
                assert!(padding.iter().all(|&x| x == 0.0), "seed {seed}, {path:?}: padding is not zero");
            }
        }
    }
}

#[test]
fn rows_of_numbers_that_are_not_numbers_are_finite() {
    for seed in 0..rounds(400) {
        let mut case = Case::new(seed, 0, 20);
        let r = &mut Random(seed);
        for x in case.query.iter_mut().chain(&mut case.key).chain(&mut case.value) {
            if r.below(8) == 0 {
                *x = odd_number(r);
            }
        }
        let g = &case.geometry;
        let rows = |row_bytes: usize| -> Vec<Vec<u8>> {
            (0..g.batch * g.kv_heads).map(|h| vec![0xFF; case.lengths.new[h / g.kv_heads] * row_bytes]).collect()
        };
        let (mut key, mut value) = (rows(g.key.row_bytes()), rows(g.value.row_bytes()));
        for path in paths() {
            let into = key.iter_mut().zip(&mut value).map(|(key, value)| HeadRows { key, value }).collect();
            prune(&Serial, path, &case.prune_call(), into, None);
        }
        let mut channels = vec![f32::NAN; g.head_dim()];
        for row in value.iter().flat_map(|v| v.chunks_exact(g.value.row_bytes())) {
            g.value.decode(row, &mut channels);
            // A scale rounded to float16 may overshoot the range a little.
            assert!(channels.iter().all(|x| x.abs() < 66000.0), "seed {seed}: {channels:?}");
        }
        for row in key.iter().flat_map(|k| k.chunks_exact(g.key.row_bytes())) {
            g.key.row(row).decode(&case.scale[..g.head_dim()], |_| 1.0, &mut channels);
            assert!(channels.iter().all(|x| x.is_finite()), "seed {seed}: {channels:?}");
            let marked = (0..g.head_dim()).filter(|&j| g.key.row(row).marked(j)).count();
            assert_eq!(marked, g.key.kept());
        }
    }
}

/// Any lengths are refused or fit the sizes that kernels index by.
#[test]
fn lengths_are_refused_or_fit() {
    let mut taken = 0;
    for seed in 0..rounds(20000) {
        let r = &mut Random(seed);
        let geometry = Geometry { past: r.below(6), new: r.below(6), ..Case::new(seed % 16, 0, 0).geometry };
        let number = |r: &mut Random| match r.below(8) {
            0 => r.pick(&[i32::MIN, i32::MAX, -1, -2]),
            _ => r.below(14) as i32,
        };
        let seqlens: Option<Vec<i32>> = (r.below(4) > 0).then(|| (0..geometry.batch).map(|_| number(r)).collect());
        let total = (r.below(4) > 0).then(|| number(r));
        let Ok(lengths) = Lengths::new(&geometry, seqlens.as_deref(), total) else { continue };
        taken += 1;
        for b in 0..geometry.batch {
            let (past, new) = (lengths.past[b], lengths.new[b]);
            assert!(past <= geometry.past && new <= geometry.new && past + new <= lengths.total);
        }
        assert!(lengths.total <= geometry.past + geometry.new && lengths.total <= lengths.present(&geometry));
        let ids: Vec<i64> = (0..geometry.batch * geometry.new).map(|_| i64::from(number(r))).collect();
        if let Ok(positions) = positions(&geometry, &lengths, r.coin().then_some(&ids), 10) {
            assert!(positions.iter().all(|&p| p < 10));
        }
    }
    assert!(taken > rounds(20000) / 20, "{taken}: too few were taken to test anything");
}

/// Any shapes are refused, or are those of a call that makes sense.
#[test]
fn shapes_are_refused_or_fit() {
    let mut taken = 0;
    for seed in 0..rounds(20000) {
        let r = &mut Random(seed);
        let case = Case::new(seed % 64, 4, 4);
        let settings = &case.prune.common;
        let mut shapes = case.shapes();
        // Zero to two wrong dimensions.
        for _ in 0..r.below(3) {
            let shape = &mut shapes[r.below(Input::ALL.len())];
            let dims = shape.get_or_insert_with(|| vec![1; r.below(5)]);
            let wrong = r.pick(&[-1, 0, 1, 3, 7, i64::MAX, i64::MIN, i64::MAX / 4]);
            match r.below(3) {
                0 => dims.push(wrong),
                1 => drop(dims.pop()),
                _ if dims.is_empty() => {}
                _ => {
                    let at = r.below(dims.len());
                    dims[at] = wrong;
                }
            }
        }
        let Ok(known) = Shapes::new(|input| shapes[input.index()].clone()) else { continue };
        let Ok(got) = Geometry::new(settings, &known, 4) else { continue };
        taken += 1;
        let elements = |s: &[usize]| s.iter().product::<usize>();
        let query = elements(known.get(Input::Query).unwrap());
        let per_token =
            got.head_dim() * (got.query_heads + if known.get(Input::Key).is_none() { 2 * got.kv_heads } else { 0 });
        assert_eq!(query, got.batch * got.new * per_token);
        if got.past > 0 {
            let key = elements(known.get(Input::PastKey).unwrap());
            assert_eq!(key * 4, got.batch * got.kv_heads * got.past * got.key.row_bytes());
        }
    }
    assert!(taken > rounds(20000) / 20, "{taken}: too few were taken to test anything");
}

#[test]
fn saliency_must_be_positive_and_finite() {
    let case = Case::new(3, 0, 1);
    for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut saliency = case.query_saliency.clone();
        *saliency.last_mut().unwrap() = wrong;
        let error = channel_scales(&case.geometry, Some(&saliency)).unwrap_err().to_string();
        assert!(error.starts_with("input 11 (query_saliency): "), "{error}");
    }
}

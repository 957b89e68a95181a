//! The CPU kernels against the definition in float64, written as plainly as can be, over random calls.

#[path = "../support/common.rs"]
mod common;
#[path = "../support/formula.rs"]
mod formula;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Case, Random, paths};
use formula::{expected_attention, lane, rotated};
use ndarray::{Array3, Array4, Axis, s};
use proptest::prelude::*;
use spark_ort::bits::bit;
use spark_ort::cpu::{HeadRows, InstructionSet, Pool, Serial, grow, prune};
use spark_ort::format::{Bits, RowFormat};
use spark_ort::method::Recovery;

/// Runs work on four threads of its own.
struct Threads;

impl Pool for Threads {
    fn par_for(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < n);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| std::iter::from_fn(take).for_each(work));
            }
        });
    }
}

/// Of float32, with sums of D numbers more where values are rotated back; or of int16, a hundredth of what quantised
/// rows have lost, some of them much; or of bytes, half of what values of 4 bits have lost, and what queries lose where
/// they meet directions of 2 bits (the tests of `src/cpu/isa/x86_64/avx512_vnni` and of `src/cpu/decode/key_kernels.rs`
/// know each number).
fn tolerance(path: InstructionSet, case: &Case) -> f64 {
    let common = &case.prune.common;
    let quantised = common.key_bits != Bits::B16 || common.value_bits != Bits::B16;
    let in_float32 = matches!(path, InstructionSet::Scalar | InstructionSet::Portable);
    let twos = common.planes.is_some_and(|planes| planes.two > 0);
    let bytes = path == InstructionSet::Vnni && (common.value_bits == Bits::B4 || twos);
    match common.row_format {
        _ if bytes => 5e-2,
        _ if quantised && !in_float32 => 1e-2,
        RowFormat::V1 => 2e-5,
        _ => 6e-5,
    }
}

/// What is odd about a row.
#[derive(Clone, Copy, Debug)]
enum Foreign {
    /// More key channels marked than kept.
    Crowded,
    /// A negative least or step of a key, or scale of a value.
    Negative,
    /// A scalar or a number that is NaN.
    NotANumber,
}

/// Makes about every twentieth row of the cache odd.
fn make_foreign(case: &mut Case, kind: Foreign, seed: u64) {
    let r = &mut Random(seed);
    let g = case.geometry.clone();
    let (mask, quantised) = (g.head_dim() / 8, case.prune.common.key_bits != Bits::B16);
    let keys = case.past_key.iter_mut().flat_map(|rows| rows.chunks_exact_mut(g.key.row_bytes()));
    for row in keys.filter(|_| r.below(20) == 0) {
        // Behind mask and sign plane: a, then m and step, or zero and the first number.
        let scalar = 2 * mask + 2 * (seed % 3) as usize;
        match kind {
            Foreign::Crowded => row[..mask].fill(0xff),
            Foreign::Negative if quantised => row[scalar + 1] |= 0x80,
            Foreign::Negative => {}
            Foreign::NotANumber => row[scalar..scalar + 2].copy_from_slice(&0x7e00u16.to_le_bytes()),
        }
    }
    let r = &mut Random(seed + 1);
    let values = case.past_value.iter_mut().flat_map(|rows| rows.chunks_exact_mut(g.value.row_bytes()));
    for row in values.filter(|_| r.below(20) == 0) {
        // Of 16 bits the first number, otherwise a scale.
        match kind {
            Foreign::Crowded => {}
            Foreign::Negative => row[1] |= 0x80,
            Foreign::NotANumber => row[..2].copy_from_slice(&0x7e00u16.to_le_bytes()),
        }
    }
}

/// Makes the queries of about every fourth head zero, which kernels may leave out.
fn silence_some_heads(case: &mut Case, seed: u64) {
    for (head, mut queries) in case.query.axis_iter_mut(Axis(1)).enumerate() {
        if (seed >> (2 * head % 64)).is_multiple_of(4) {
            queries.fill(0.0);
        }
    }
}

/// Checks every path against the formula.
fn check_attention(case: &Case) -> Result<(), TestCaseError> {
    let expected = expected_attention(case);
    for path in paths() {
        let got = case.attend(&Serial, path);
        for (at, &e) in expected.indexed_iter() {
            let (g, within) = (f64::from(got[at]), tolerance(path, case) * (1.0 + e.abs()));
            prop_assert!((g - e).abs() <= within, "{:?} {:?}: {} instead of {}", path, at, g, e);
        }
        prop_assert!(case.attend(&Threads, path) == got, "the pool changed the result");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn attention_is_its_formula(seed: u64) {
        let mut case = Case::new(seed, 60, 30);
        case.fill_cache(seed);
        check_attention(&case)?;
    }

    /// Of several chunks of keys, in the sizes that have ways of their own.
    #[test]
    fn attention_over_many_keys_is_its_formula(
        seed: u64,
        head_dim in prop::sample::select(vec![32, 48, 64, 80, 96, 128, 160, 192, 256]),
        bits in prop::sample::select(vec![
            (Bits::B16, Bits::B16), (Bits::B8, Bits::B8), (Bits::B4, Bits::B4), (Bits::B8, Bits::B16),
        ]),
    ) {
        prop_assume!(bits.1 != Bits::B4 || head_dim % 32 == 0);
        let mut case = Case::with(seed, 700, 3, Some((head_dim, bits.0, bits.1)));
        case.fill_cache(seed);
        silence_some_heads(&mut case, seed);
        check_attention(&case)?;
    }

    /// Rows of later formats, as the oracle of the format decodes them; with planes of any number of directions, and
    /// recent keys and new ones in the basis.
    #[test]
    fn attention_over_later_formats_is_its_formula(
        seed: u64, format in prop::sample::select(vec![RowFormat::V2, RowFormat::V3]),
        head_dim in prop::sample::select(vec![32, 64, 80, 96, 128, 192, 256]),
        bits in prop::sample::select(vec![
            (Bits::B16, Bits::B8), (Bits::B8, Bits::B8), (Bits::B4, Bits::B4), (Bits::B4, Bits::B8),
        ]),
        new in prop::sample::select(vec![1, 3, 30]),
    ) {
        prop_assume!(bits.1 != Bits::B4 || head_dim % 32 == 0);
        let mut case = Case::of(format, seed, 400, new, Some((head_dim, bits.0, bits.1)));
        case.fill_cache(seed);
        silence_some_heads(&mut case, seed);
        check_attention(&case)?;
    }

    /// Scores so great that what rounding takes from one is more than e can be raised to: keys and values that are all
    /// equal give that value.
    #[test]
    fn huge_scores_give_the_value(
        seed: u64,
        head_dim in prop::sample::select(vec![48, 64, 80, 96, 128]),
        bits in prop::sample::select(vec![(Bits::B16, Bits::B16), (Bits::B8, Bits::B8)]),
    ) {
        let mut case = Case::with(seed, 300, 2, Some((head_dim, bits.0, bits.1)));
        case.fill_cache(seed);
        let (key_bytes, value_bytes) = (case.geometry.key.row_bytes(), case.geometry.value.row_bytes());
        for (all, bytes) in [(&mut case.past_key, key_bytes), (&mut case.past_value, value_bytes)] {
            for rows in all.iter_mut().filter(|rows| !rows.is_empty()) {
                *rows = rows[..bytes].repeat(rows.len() / bytes);
            }
        }
        case.key.fill(0.0);
        (case.recent, case.bias) = (None, None);
        (case.attention.scale, case.attention.softcap, case.attention.window) = (Some(1e9), None, None);
        for common in [&mut case.attention.common, &mut case.prune.common] {
            common.recovery = Recovery::Mean;
        }
        check_attention(&case)?;
    }

    /// Rows as only a host could make them, here and there: they mean what the format says, on every path.
    #[test]
    fn attention_over_foreign_rows_is_its_formula(
        seed: u64,
        head_dim in prop::sample::select(vec![48, 64, 96, 128, 256]),
        bits in prop::sample::select(vec![(Bits::B16, Bits::B16), (Bits::B8, Bits::B8), (Bits::B4, Bits::B4)]),
        format in prop::sample::select(vec![RowFormat::V1, RowFormat::V2]),
        kind in prop::sample::select(vec![Foreign::Crowded, Foreign::Negative, Foreign::NotANumber]),
    ) {
        prop_assume!(bits.1 != Bits::B4 || head_dim % 32 == 0);
        let mut case = Case::of(format, seed, 300, 3, Some((head_dim, bits.0, bits.1)));
        case.fill_cache(seed);
        make_foreign(&mut case, kind, seed);
        check_attention(&case)?;
    }

    #[test]
    fn rows_hold_the_channels_of_highest_score(seed: u64) {
        let case = Case::new(seed, 0, 40);
        let g = &case.geometry;
        let d = g.head_dim();
        let heads = g.batch * g.kv_heads;
        let bytes = |h: usize, row: usize| case.lengths.new[h / g.kv_heads] * row;
        let mut observed = Array3::from_elem([g.batch, g.kv_heads, d], f32::NAN);
        let mut pruned = |path| {
            let mut key: Vec<_> = (0..heads).map(|h| vec![0xAA; bytes(h, g.key.row_bytes())]).collect();
            let mut value: Vec<_> = (0..heads).map(|h| vec![0xAA; bytes(h, g.value.row_bytes())]).collect();
            let rows = key.iter_mut().zip(&mut value).map(|(key, value)| HeadRows { key, value }).collect();
            prune(&Threads, path, &case.prune_call(), rows, Some(observed.view_mut()));
            (key, value)
        };
        let (key, value) = pruned(InstructionSet::Scalar);
        for path in paths() {
            prop_assert!(pruned(path) == (key.clone(), value.clone()), "{:?} gives other rows", path);
        }
        for (head, key) in key.iter().enumerate() {
            let (b, h) = (head / g.kv_heads, head % g.kv_heads);
            let new = case.lengths.new[b];
            let mut n = vec![0.0; d];
            for w in new.saturating_sub(case.prune.observation_window)..new {
                let queries: Vec<_> =
                    (0..g.group()).map(|q| rotated(&case, b, w, lane(&case.query, b, h * g.group() + q, w))).collect();
                for (j, n) in n.iter_mut().enumerate() {
                    *n += (queries.iter().map(|q| q[j]).sum::<f64>() / g.group() as f64).powi(2);
                }
            }
            for j in 0..d {
                n[j] = n[j].sqrt();
                prop_assert!((f64::from(observed[(b, h, j)]) - n[j]).abs() <= 1e-4 * (1e-2 + n[j]));
                if new < 8 {
                    n[j] = case.query_saliency[h * d + j].into();
                }
            }
            for i in 0..new {
                let k = rotated(&case, b, i, lane(&case.key, b, h, i));
                let bytes = &key[i * g.key.row_bytes()..(i + 1) * g.key.row_bytes()];
                let score: Vec<_> = (0..d).map(|j| k[j] * k[j] * n[j]).collect();
                let kept = (0..d).filter(|&j| bit(bytes, j));
                let least = kept.clone().map(|j| score[j]).fold(f64::MAX, f64::min);
                prop_assert_eq!(kept.count(), g.key.kept());
                for j in (0..d).filter(|&j| !bit(bytes, j)) {
                    let most = least * (1.0 + 1e-5);
                    prop_assert!(score[j] <= most, "channel {} of score {} is pruned, {} kept", j, score[j], least);
                }
                let scale = &case.scale[h * d..(h + 1) * d];
                let mut read = vec![0.0; d];
                g.key.row(bytes).decode(scale, |_| 1.0, &mut read);
                let pruned = (0..d).filter(|&j| !bit(bytes, j));
                let a = match case.prune.common.recovery {
                    Recovery::None => 0.0,
                    _ => (pruned.clone().map(|j| (k[j] / f64::from(scale[j])).powi(2)).sum::<f64>()
                        / pruned.clone().count().max(1) as f64).sqrt(),
                };
                for j in pruned {
                    let e = a * f64::from(scale[j]) * if k[j] <= 0.0 { -1.0 } else { 1.0 };
                    prop_assert!((f64::from(read[j]) - e).abs() <= 1e-3 * e.abs() + 1e-6);
                }
            }
        }
    }

    #[test]
    fn a_grown_cache_holds_the_past_and_room_for_the_new(seed: u64) {
        let case = Case::new(seed, 20, 20);
        let g = &case.geometry;
        let row_bytes = g.key.row_bytes();
        let past: Vec<_> = case.past_key.iter().map(|r| &r[..]).collect();
        let head_bytes = case.lengths.present(g) * row_bytes;
        let mut present = vec![0xAA; past.len() * head_bytes];
        for new in grow(&Threads, g, &case.lengths, row_bytes, &past, &mut present) {
            new.fill(0xBB);
        }
        for (h, rows) in present.chunks(head_bytes.max(1)).enumerate() {
            let new = case.lengths.new[h / g.kv_heads] * row_bytes;
            let (old, rest) = rows.split_at(past[h].len());
            prop_assert_eq!(old, past[h]);
            prop_assert!(rest[..new].iter().all(|&b| b == 0xBB) && rest[new..].iter().all(|&b| b == 0));
        }
    }
}

/// Of several blocks of queries, and several tiles of keys.
#[test]
fn prompts_of_several_blocks() {
    for seed in 0..6 {
        let mut case = Case::new(seed, 300, 0);
        let heads = case.geometry.query_heads;
        let (b, d, new) = (case.geometry.batch, case.geometry.head_dim(), 150 + 50 * seed as usize);
        let r = &mut common::Random(seed);
        case.geometry.new = new;
        case.lengths.new = (0..b).map(|s| if s == 0 { new } else { r.below(new + 1) }).collect();
        case.lengths.total = case.geometry.past + new;
        case.query = r.array([b, heads, new, d]);
        [case.key, case.value] = [(); 2].map(|()| r.array([b, case.geometry.kv_heads, new, d]));
        case.positions = (0..b * new).map(|_| r.below(case.cos.nrows())).collect();
        case.bias = (seed % 3 == 2).then(|| r.array([1, heads, new, case.lengths.total]));
        case.attention.window = [None, Some(100)][seed as usize / 3];
        case.attention.causal = seed != 1;
        case.fill_cache(seed);
        let expected = expected_attention(&case);
        for path in paths() {
            let got = case.attend(&Threads, path);
            for (at, &e) in expected.indexed_iter() {
                let close = (f64::from(got[at]) - e).abs() <= tolerance(path, &case) * (1.0 + e.abs());
                assert!(close, "seed {seed}, {path:?} {at:?}: {} instead of {e}", got[at]);
            }
            assert!(case.attend(&Serial, path) == got, "the pool changed the result");
        }
    }
}

/// Long enough that the keys of one block of queries are split into parts, some of which see nothing.
#[test]
fn parts_of_a_long_cache_merge() {
    let mut seeds = 0..;
    let mut case = std::iter::from_fn(|| seeds.next().map(|s| Case::new(s, 9000, 4)))
        .find(|c| c.lengths.past[0] > 6200 && c.geometry.head_dim() <= 64 && c.geometry.new > 0)
        .unwrap();
    case.fill_cache(1);
    let open = Array4::zeros([1, 1, case.geometry.new, case.lengths.total]);
    let mut gap = open.clone();
    gap.slice_mut(s![.., .., .., 2000..5400]).fill(f32::NEG_INFINITY);
    let closed = Array4::from_elem(open.dim(), f32::NEG_INFINITY);
    for window in [None, Some(700)] {
        for (bias, silent) in [(None, false), (Some(&gap), false), (Some(&closed), true)] {
            (case.bias, case.attention.window) = (bias.cloned(), window);
            let expected = expected_attention(&case);
            for path in paths() {
                let got = case.attend(&Threads, path);
                for (at, &e) in expected.indexed_iter() {
                    let close = (f64::from(got[at]) - e).abs() <= tolerance(path, &case) * (1.0 + e.abs());
                    assert!(close, "{path:?} {at:?}: {} instead of {e}", got[at]);
                }
                assert_eq!(got.iter().all(|&x| x == 0.0), silent);
            }
        }
    }
}

//! Recent keys in the tail of a shared buffer: SparkPrune writes what the CPU's does, byte by byte, and SparkAttention
//! reads what the CPU's does.

use half::f16;
use spark_ort::bits::bit;
use spark_ort::call::Lengths;
use spark_ort::cpu::{InstructionSet, Serial};
use spark_ort::format::Bits;
use spark_ort::gpu::plan::{Device, MatrixCores, Scalar};

use crate::common::{Case, Random};
use crate::on_device::{BITS, Layout, OnDevice, SCALARS, case, compare, device, grid, round_tensors};
use crate::prefill;
use crate::pruning::check_prune;

fn set_window(case: &mut Case, window: usize) {
    for common in [&mut case.attention.common, &mut case.prune.common] {
        common.tail_window = window;
    }
    case.recent = None;
}

/// A dense key that its `row` does not tell from the one it was made of: of the same signs, and with 16 bits of the
/// same kept channels; in planes of the same codes.
fn dense_key(case: &Case, row: &[u8], r: &mut Random) -> Vec<u8> {
    let (layout, d) = (&case.geometry.key, case.geometry.head_dim());
    if let Some(planes) = layout.planes() {
        let mut key = vec![0.0; d];
        planes.decode(row, &mut key);
        key[planes.kept()..].fill_with(|| r.normal());
        return key.into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
    }
    let (mask, signs) = (&row[..d / 8], &row[d / 8..d / 4]);
    let whole = layout.bits() == Bits::B16;
    let mut kept = row[d / 4 + 4..].as_chunks::<2>().0.iter();
    let channel = |j: usize| {
        if whole && bit(mask, j) {
            return *kept.next().unwrap();
        }
        let size = f16::from_f32(r.pick(&[1.0, 1.0, 1.0, 6e-8]) * (0.1 + r.normal().abs()));
        let odd = r.pick(&[-size, -size, -size, -f16::ZERO, f16::ZERO, f16::NAN]);
        if bit(signs, j) { odd } else { size }.to_le_bytes()
    };
    (0..d).flat_map(channel).collect()
}

/// Feeds the past tokens of `case` to buffers of random bytes, as SparkPrune does, with dense keys of any size, some of
/// which a host then spoils: `case.free` is what is left behind the rows.
fn fill_tail(case: &mut Case, r: &mut Random) {
    let (g, layout) = (case.geometry.clone(), case.tail_layout());
    let sizes = [g.key.row_bytes(), g.value.row_bytes()];
    case.free = [vec![], vec![]];
    for head in 0..g.batch * g.kv_heads {
        let past = case.lengths.past[head / g.kv_heads];
        let mut buffers = sizes.map(|bytes| r.bytes(g.past * bytes));
        let mut total = 0;
        while total < past {
            let new = (1 + r.pick(&[0, 0, 2, 19])).min(past - total);
            for (buffer, (rows, bytes)) in
                buffers.iter_mut().zip([&case.past_key, &case.past_value].into_iter().zip(sizes))
            {
                let written = total * bytes..(total + new) * bytes;
                buffer[written.clone()].copy_from_slice(&rows[head][written]);
            }
            total += new;
            let [keys, values] = &mut buffers;
            let slots = layout.write(total, new, &mut keys[total * sizes[0]..], &mut values[total * sizes[1]..]);
            let first = total - slots.len();
            for (slot, row) in slots.into_iter().zip(case.past_key[head].chunks(sizes[0]).skip(first)) {
                slot.copy_from_slice(&dense_key(case, row, r));
                match r.below(16) {
                    0 => slot[2 * r.below(g.head_dim()) + 1] ^= 0x80,
                    1 => slot.copy_from_slice(&r.bytes(slot.len())),
                    _ => (),
                }
            }
        }
        for ((free, buffer), bytes) in case.free.iter_mut().zip(&buffers).zip(sizes) {
            free.push(buffer[past * bytes..].to_vec());
        }
    }
}

/// A random call after a cache with a tail, whose buffers have room for the new tokens and a few more.
fn tail_case(seed: u64, scalar: Scalar, d: usize, bits: (Bits, Bits), most_past: usize, most_new: usize) -> Case {
    let r = &mut Random(seed + 1);
    let cases = (0..).map(|n| case(seed + 100_000 * n, scalar, d, bits, most_past, most_new));
    let mut case = { cases }.find(|c| c.lengths.past[0] > 0 && c.geometry.new > 0).unwrap();
    set_window(&mut case, r.pick(&[1, 3, 8, 16, 33, 64, 1000]));
    case.attention.window = r.pick(&[None, None, Some(1), Some(20)]);
    case.geometry.past = case.lengths.total + r.pick(&[0, 1, 3, 10, 40, 150]);
    case.fill_cache(seed);
    fill_tail(&mut case, r);
    case
}

/// Whether the tail makes a difference to the output.
fn matters(case: &mut Case, scalar: Scalar) -> bool {
    let with = case.attend(&Serial, InstructionSet::Scalar);
    let window = case.attention.common.tail_window;
    set_window(case, 0);
    let without = case.attend(&Serial, InstructionSet::Scalar);
    set_window(case, window);
    compare(scalar, &without, &with).is_err()
}

/// Decoding and chunks, on matrix cores and without, beside full and nearly full buffers.
#[test]
fn outputs_are_the_cpus() {
    needs!(crate::emulation::at_hand());
    let (mut cases, mut of_tails) = (0, 0);
    grid(|seed, scalar, wave, d, bits| {
        let r = &mut Random(seed);
        let most_new = r.pick(&[1, 1, 2, 3, 9, 24, 40]);
        let mut case = tail_case(7000 + seed, scalar, d, bits, 60, most_new);
        cases += 1;
        of_tails += u32::from(matters(&mut case, scalar));
        let layout = Layout::random(r);
        let device = device(wave, r.pick(&[1, 304]));
        let on_device = OnDevice::new(&case, scalar, layout, true);
        for device in [device, Device { matrix: MatrixCores::None, ..device }] {
            prefill::check(&case, scalar, &device, &on_device).unwrap_or_else(|e| {
                panic!("seed {seed}, {scalar:?}, D {d}, {bits:?}, {device:?}, {layout:?}, {:?}: {e}", case.attention)
            });
        }
    });
    assert!(of_tails * 3 > cases, "{of_tails} of {cases} outputs are those of a tail");
}

/// Pieces of the keys that begin and end within the tail.
#[test]
fn tails_in_pieces() {
    needs!(crate::emulation::at_hand());
    for (n, scalar) in SCALARS.into_iter().cycle().take(12).enumerate() {
        let (wave, bits) = ([64, 32][n % 2], (BITS[n % 3], BITS[n / 4 % 3]));
        let new = [1, 4, 24][n % 3];
        let mut case = tail_case(8000 + n as u64, scalar, 64, bits, 1400, new);
        let r = &mut Random(n as u64);
        set_window(&mut case, 1000);
        case.geometry.past += 1000;
        case.attention.window = None;
        fill_tail(&mut case, r);
        assert!(matters(&mut case, scalar));
        let on_device = OnDevice::new(&case, scalar, Layout::random(r), true);
        for compute_units in [1, 40, 1000] {
            prefill::check(&case, scalar, &device(wave, compute_units), &on_device)
                .unwrap_or_else(|e| panic!("case {n}, {compute_units} units: {e}"));
        }
    }
}

/// Keys of all signs and sizes, chunks longer than the window, full buffers.
#[test]
fn slots_are_the_cpus() {
    needs!(crate::emulation::at_hand());
    grid(|seed, scalar, wave, d, bits| {
        let r = &mut Random(seed);
        let most_new = r.pick(&[1, 3, 9, 40]);
        let mut case = tail_case(9000 + seed, scalar, d, bits, 30, most_new);
        case.key.mapv_inplace(|x| r.pick(&[x, x, x, x * 1e-7, x * 1e-30, 0.0, -0.0, x * 1e5]));
        round_tensors(&mut case, scalar);
        let layout = Layout::random(r);
        check_prune(&case, scalar, &device(wave, 304), layout, true).unwrap_or_else(|e| {
            panic!("seed {seed}, {scalar:?}, wave {wave}, D {d}, {bits:?}, {layout:?}, {:?}: {e}", case.prune)
        });
    });
}

/// A call of `new` tokens for sequences that have `past` tokens in `buffers`.
fn next_call(case: &mut Case, buffers: &[Vec<u8>; 2], past: &[usize], new: usize, r: &mut Random) {
    let g = &mut case.geometry;
    g.new = new;
    let (rows, heads, d) = (g.past, g.kv_heads, g.head_dim());
    case.lengths = Lengths { total: past.iter().max().unwrap() + new, past: past.to_vec(), new: vec![new; past.len()] };
    let regions = |buffer: &[u8], bytes: usize| -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let split = |(h, region): (usize, &[u8])| {
            let (used, free) = region.split_at(past[h / heads] * bytes);
            (used.to_vec(), free.to_vec())
        };
        buffer.chunks(rows * bytes).enumerate().map(split).unzip()
    };
    (case.past_key, case.free[0]) = regions(&buffers[0], g.key.row_bytes());
    (case.past_value, case.free[1]) = regions(&buffers[1], g.value.row_bytes());
    case.query = r.array([past.len(), g.query_heads, new, d]);
    case.key = r.array([past.len(), heads, new, d]);
    case.value = r.array([past.len(), heads, new, d]);
    case.positions = (0..past.len() * new).map(|_| r.below(case.cos.nrows())).collect();
}

/// A host's calls one after the other, in one buffer, until it is full: single tokens, chunks longer than the window,
/// sequences of unequal length that go back.
#[test]
fn a_buffer_that_is_filled_and_rewound() {
    needs!(crate::emulation::at_hand());
    for (n, scalar) in SCALARS.into_iter().cycle().take(9).enumerate() {
        let (wave, d, bits) = ([64, 32][n % 2], [64, 128, 96][n % 3], (BITS[n / 3], BITS[(n + 1) % 3]));
        let r = &mut Random(n as u64);
        let mut case = case(n as u64, scalar, d, bits, 9, 1);
        let (batch, rows) = (3, 80);
        (case.geometry.batch, case.geometry.past) = (batch, rows);
        set_window(&mut case, [16, 8, 13][n / 3]);
        (case.bias, case.attention.window) = (None, None);
        let heads = batch * case.geometry.kv_heads;
        let mut buffers =
            [case.geometry.key.row_bytes(), case.geometry.value.row_bytes()].map(|b| r.bytes(heads * rows * b));
        let mut past = vec![0; batch];
        for (new, back) in
            [(12, 0), (1, 5), (1, 0), (2, 0), (20, 0), (1, 3), (1, 1), (1, 18), (30, 0), (1, 4), (9, 0), (1, 0)]
        {
            past[1] -= past[1].min(back);
            past[2] -= past[2].min(back / 2);
            next_call(&mut case, &buffers, &past, new, r);
            round_tensors(&mut case, scalar);
            let (layout, device) = (Layout::random(r), device(wave, 304));
            let what = format!("case {n}, {scalar:?}, D {d}, {new} new after {past:?}");
            let on_device = OnDevice::new(&case, scalar, layout, true);
            prefill::check(&case, scalar, &device, &on_device).unwrap_or_else(|e| panic!("{what}: {e}"));
            let present = check_prune(&case, scalar, &device, layout, true).unwrap_or_else(|e| panic!("{what}: {e}"));
            buffers = [present.key, present.value];
            past.iter_mut().for_each(|past| *past += new);
        }
        assert_eq!(past[0], rows);
    }
}

//! Memory that attention takes beside its inputs and output: linear in the new tokens, and not growing with the cache.

#[path = "../support/common.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Case, paths};
use spark_ort::call::{Geometry, Lengths};
use spark_ort::cpu::{InstructionSet, Serial};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that attention held at once, with `new` tokens after `past` ones: one sequence, D 64, one KV head and
/// query head.
fn peak(path: InstructionSet, past: usize, new: usize) -> usize {
    let seeds = (0..).map(|seed| Case::new(seed, 0, 0));
    let mut case = seeds.into_iter().find(|case| case.geometry.head_dim() == 64).unwrap();
    let (r, d) = (&mut common::Random(past as u64), case.geometry.head_dim());
    case.geometry = Geometry { batch: 1, past, new, query_heads: 1, kv_heads: 1, ..case.geometry };
    case.lengths = Lengths { total: past + new, past: vec![past], new: vec![new] };
    for settings in [&mut case.attention.common, &mut case.prune.common] {
        (settings.query_heads, settings.kv_heads, settings.rotary) = (1, 1, None);
    }
    (case.attention.window, case.bias, case.recent) = (None, None, None);
    [case.query, case.key, case.value] = [(); 3].map(|()| r.array([1, 1, new, d]));
    case.past_key = vec![vec![0x35; past * case.geometry.key.row_bytes()]];
    case.past_value = vec![vec![0x35; past * case.geometry.value.row_bytes()]];
    let output = case.query.len() * size_of::<f32>();
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    case.attend(&Serial, path);
    PEAK.load(Ordering::Relaxed) - before - output
}

/// One test, since it counts what the whole process allocates.
#[test]
fn no_quadratic_buffer_and_none_of_the_size_of_the_cache() {
    for path in paths() {
        let [short, long] = [1000, 4000].map(|new| peak(path, 0, new));
        assert!(long < short * 9 / 2, "{path:?}: {short} bytes for 1000 new tokens, {long} for 4000");
        // Nor is there a copy of the new keys in float32, let alone a byte for each score.
        assert!(long < 4000 * 64 * size_of::<f32>(), "{path:?}: {long} bytes for 4000 new tokens");
        let [few, many] = [200_000, 400_000].map(|past| peak(path, past, 1));
        assert!(many <= few, "{path:?}: {few} bytes to decode after 200000 tokens, {many} after 400000");
        // One block's parts, at most 64 of them, each with a few small allocations.
        assert!(many < 100_000, "{path:?}: {many} bytes to decode");
    }
}

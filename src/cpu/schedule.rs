//! How the queries and keys of a call are shared out: into blocks of queries that read their keys together, and, where
//! those are too few for a pool, the keys of each block into parts whose results merge.

use std::ops::Range;
use std::sync::{Mutex, OnceLock};

use ndarray::{ArrayViewMut, ArrayViewMut3, ArrayViewMut4, Axis, Dimension, RemoveAxis};

use super::attention::Attention;
use super::decode::chunk::CHUNK;
use super::pool::Pool;
use super::queries::Queries;
use super::softmax::SoftmaxState;
use crate::element::Element;
use crate::format::MAX_HEAD_DIM;

/// Queries that share one reading of the keys, about so many, where there are many.
const QUERIES_PER_BLOCK: usize = 256;
/// Fewest new tokens that share one reading; with more, large groups of query heads are cut to [`QUERIES_PER_BLOCK`].
const LEAST_TOKENS_PER_BLOCK: usize = 8;
/// New tokens from which on blocks count as large.
const TOKENS_OF_LARGE_BLOCKS: usize = 9;
/// Parts that keep any pool busy: with fewer blocks of queries, the keys of each are split.
const MANY_PARTS: usize = 64;
/// The same where blocks are large, and so is what their parts hold until they merge.
const MANY_LARGE_PARTS: usize = 16;
/// Fewest keys worth a part of their own.
const KEYS_PER_PART: usize = 2048;

/// A way to attend: the reference, or an instruction set.
pub(super) trait Attend: Sync {
    /// Queries, read once for all keys that they see.
    type Prepared: Send + Sync;

    /// Reads `queries`.
    fn prepare(&self, queries: &Queries) -> Self::Prepared;

    /// What `queries` get from the keys at positions `keys`, token by token and within a token head by head.
    fn attend(&self, queries: &Self::Prepared, keys: Range<usize>) -> Vec<SoftmaxState>;
}

/// Queries that read their keys together, and where their output goes.
struct Block<'a, T, P> {
    queries: Queries,
    /// Where there are several parts: each needs them.
    prepared: OnceLock<P>,
    /// `[G, tokens, D]`; locked once for each use, never contended.
    out: Mutex<ArrayViewMut3<'a, T>>,
    parts: Vec<Part>,
}

/// Some of the keys that a block sees, and what its queries got from them.
struct Part {
    keys: Range<usize>,
    states: Mutex<Vec<SoftmaxState>>,
}

/// Attends with every query of `call` to all keys that it sees, by `attend`, and writes to `out`, `[B, Hq, L, D]`.
pub(super) fn run<T: Element, A: Attend>(
    pool: &dyn Pool,
    call: &Attention<'_, T>,
    attend: &A,
    out: ArrayViewMut4<'_, T>,
) {
    let blocks: Vec<Block<'_, T, A::Prepared>> = blocks(call, out);
    let parts: Vec<_> = blocks.iter().flat_map(|b| b.parts.iter().map(move |p| (b, p))).collect();
    pool.par_for(parts.len(), &|n| {
        let (block, part) = parts[n];
        let (prepare, keys) = (|| attend.prepare(&block.queries), part.keys.clone());
        if block.parts.len() == 1 {
            block.write(&attend.attend(&prepare(), keys));
        } else {
            *part.states.lock().unwrap() = attend.attend(block.prepared.get_or_init(prepare), keys);
        }
    });
    let split: Vec<_> = blocks.iter().filter(|b| b.parts.len() > 1).collect();
    pool.par_for(split.len(), &|n| {
        let mut parts = split[n].parts.iter().map(|p| p.states.lock().unwrap());
        let mut states = std::mem::take(&mut *parts.next().unwrap());
        for part in parts {
            states.iter_mut().zip(part.iter()).for_each(|(s, p)| s.merge(p));
        }
        split[n].write(&states);
    });
}

/// All queries in blocks, with the keys each block sees. Depends on the call only, so results do not depend on the
/// pool.
fn blocks<'o, T: Element, P>(call: &Attention<'_, T>, out: ArrayViewMut4<'o, T>) -> Vec<Block<'o, T, P>> {
    let mut blocks = Vec::new();
    let size = LEAST_TOKENS_PER_BLOCK.max(QUERIES_PER_BLOCK / call.geometry.group());
    for (sequence, heads) in entries(out).enumerate() {
        for (kv_head, group) in split(heads, Axis(0), call.geometry.group()).into_iter().enumerate() {
            for (n, out) in split(group, Axis(1), size).into_iter().enumerate() {
                let first = n * size;
                let tokens = first..first + out.len_of(Axis(1));
                let queries = Queries { sequence, kv_head, tokens };
                blocks.push(Block { queries, prepared: OnceLock::new(), out: Mutex::new(out), parts: Vec::new() });
            }
        }
    }
    let most = if call.geometry.new >= TOKENS_OF_LARGE_BLOCKS { MANY_LARGE_PARTS } else { MANY_PARTS };
    let most_parts = most.div_ceil(blocks.len().max(1));
    for block in &mut blocks {
        let keys = call.keys(&block.queries);
        // A block that sees nothing still has a part: its output is to be zeroed.
        let parts = (keys.len() / KEYS_PER_PART).clamp(1, most_parts);
        let size = keys.len() / parts / CHUNK * CHUNK;
        let begin = |n| if n == parts { keys.end } else { keys.start + n * size };
        let part = |n| Part { keys: begin(n)..begin(n + 1), states: Mutex::default() };
        block.parts = (0..parts).map(part).collect();
    }
    blocks
}

/// `view` in pieces of `size` along `axis`, the last one shorter.
fn split<'a, T, D: Dimension>(
    mut view: ArrayViewMut<'a, T, D>,
    axis: Axis,
    size: usize,
) -> Vec<ArrayViewMut<'a, T, D>> {
    let mut pieces = Vec::new();
    while view.len_of(axis) > size {
        let (piece, rest) = view.split_at(axis, size);
        pieces.push(piece);
        view = rest;
    }
    if view.len_of(axis) > 0 {
        pieces.push(view);
    }
    pieces
}

/// The entries of `view` along its first axis.
fn entries<'a, T, D: RemoveAxis>(
    view: ArrayViewMut<'a, T, D>,
) -> impl Iterator<Item = ArrayViewMut<'a, T, D::Smaller>> {
    split(view, Axis(0), 1).into_iter().map(|v| v.index_axis_move(Axis(0), 0))
}

impl<T: Element, P> Block<'_, T, P> {
    /// Writes the finished `states`, of one token after the other.
    fn write(&self, states: &[SoftmaxState]) {
        let mut out = self.out.lock().unwrap();
        let mut by_token = out.view_mut().permuted_axes([1, 0, 2]);
        let mut buffer = [0.0; MAX_HEAD_DIM];
        for (mut row, state) in by_token.lanes_mut(Axis(2)).into_iter().zip(states) {
            let x = &mut buffer[..row.len()];
            x.iter_mut().zip(state.finish()).for_each(|(x, of)| *x = of);
            match row.as_slice_mut() {
                Some(row) => T::write(x, row),
                None => row.iter_mut().zip(&*x).for_each(|(o, x)| *o = T::from_f32(*x)),
            }
        }
    }
}

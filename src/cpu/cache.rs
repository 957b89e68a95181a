//! A cache that grows: past rows copied beside where the new ones go.

use std::sync::Mutex;

use super::pool::Pool;
use crate::call::{Geometry, Lengths};

/// Copies the past rows of each (sequence, KV head) into `present` (`[B, Hk, S, row_bytes]` bytes), zeroes the rows
/// that have no token, and returns where the rows of the valid new tokens go.
///
/// # Panics
/// If the sizes disagree.
pub fn grow<'a>(
    pool: &dyn Pool,
    geometry: &Geometry,
    lengths: &Lengths,
    row_bytes: usize,
    past: &[&[u8]],
    present: &'a mut [u8],
) -> Vec<&'a mut [u8]> {
    let head_bytes = lengths.present(geometry) * row_bytes;
    assert_eq!(present.len(), past.len() * head_bytes);
    if head_bytes == 0 {
        return past.iter().map(|_| &mut [][..]).collect();
    }
    // The parts of a head, each borrowed mutably: past, new, none.
    let split = |(head, rows): (usize, &'a mut [u8])| {
        let (old, rows) = rows.split_at_mut(past[head].len());
        let (new, rest) = rows.split_at_mut(lengths.new[head / geometry.kv_heads] * row_bytes);
        (Mutex::new((old, rest)), new)
    };
    let (old, new): (Vec<_>, Vec<_>) = present.chunks_exact_mut(head_bytes).enumerate().map(split).unzip();
    pool.par_for(past.len(), &|head| {
        let (old, rest) = &mut *old[head].lock().unwrap();
        old.copy_from_slice(past[head]);
        rest.fill(0);
    });
    new
}

//! Nothing is read beyond the last row: behind it, here, lies memory that may not be touched. Valgrind sees as much,
//! but knows no AVX-512.

#![cfg(target_os = "linux")]

#[path = "../support/common.rs"]
mod common;

use common::{Case, paths};
use ndarray::Array4;
use spark_ort::cpu::{Serial, attention};
use spark_ort::format::Bits;

/// Bytes that end where memory does.
struct AtTheEnd {
    start: *mut libc::c_void,
    mapped: usize,
    bytes: std::ops::Range<usize>,
}

impl AtTheEnd {
    fn new(bytes: &[u8]) -> Self {
        let page = 4096;
        let readable = bytes.len().next_multiple_of(page);
        let mapped = readable + page;
        // SAFETY: new memory, of which no other Rust object knows; the bytes fit in what is writable until the last
        // page is closed, which holds none of them.
        unsafe {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let first = start.cast::<u8>().add(readable - bytes.len());
            first.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            assert_eq!(libc::mprotect(start.byte_add(readable), page, libc::PROT_NONE), 0);
            Self { start, mapped, bytes: readable - bytes.len()..readable }
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the bytes were written by `new` and stay while `self` does.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>().add(self.bytes.start), self.bytes.len()) }
    }
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        // SAFETY: `new` mapped this, and nothing borrows it any more.
        unsafe { libc::munmap(self.start, self.mapped) };
    }
}

#[test]
fn the_last_row_ends_with_its_memory() {
    for seed in 0..60 {
        for head_dim in [32, 48, 64, 96, 128, 192, 256] {
            for (key_bits, value_bits) in [(Bits::B16, Bits::B16), (Bits::B8, Bits::B8), (Bits::B4, Bits::B4)] {
                if value_bits == Bits::B4 && head_dim % 32 != 0 {
                    continue;
                }
                let case = Case::with(seed, 150, 20, Some((head_dim, key_bits, value_bits)));
                let at_the_end = |rows: &[Vec<u8>]| rows.iter().map(|r| AtTheEnd::new(r)).collect::<Vec<_>>();
                let (key, value) = (at_the_end(&case.past_key), at_the_end(&case.past_value));
                let key: Vec<_> = key.iter().map(AtTheEnd::bytes).collect();
                let value: Vec<_> = value.iter().map(AtTheEnd::bytes).collect();
                for path in paths() {
                    let mut out = Array4::from_elem(case.query.dim(), f32::NAN);
                    attention(&Serial, path, &case.attention_call(&key, &value), out.view_mut());
                    assert_eq!(out, case.attend(&Serial, path), "{path:?}, seed {seed}");
                }
            }
        }
    }
}

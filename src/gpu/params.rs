//! The argument of a kernel: the structures of `ops/call.h`, field by field.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use super::limits::MAX_SEQUENCES;

/// Tokens of T: channel j of head h of token i of sequence b is element `b * batch + h * head + i * token + j`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Tokens {
    pub data: *const c_void,
    pub batch: i64,
    pub head: i64,
    pub token: i64,
}

impl Tokens {
    /// No tokens.
    pub const NONE: Self = Self { data: null(), batch: 0, head: 0, token: 0 };
}

/// Lengths of one sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Past tokens.
    pub past: u32,
    /// Valid new tokens.
    pub valid: u32,
    /// Keys that the tail of its buffers keeps, 0: none; SparkPrune: after the call.
    pub tail: u32,
}

/// The one argument of every kernel; `ops/call.h` explains the fields. All pointers are device pointers.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Call {
    pub query: Tokens,
    pub key: Tokens,
    pub value: Tokens,
    pub output: Tokens,
    pub past_key: *const c_void,
    pub past_value: *const c_void,
    pub present_key: *mut c_void,
    pub present_value: *mut c_void,
    pub past_recent: *const c_void,
    pub present_recent: *mut c_void,
    pub cos_cache: *const c_void,
    pub sin_cache: *const c_void,
    pub position_ids: *const i64,
    pub query_saliency: *const f32,
    pub observed_saliency: *mut f32,
    pub key_basis: *const f32,
    pub query_basis: *const f32,
    pub basis_queries: *mut f32,
    pub basis_keys: *mut f32,
    pub bias: *const c_void,
    pub bias_batch: i64,
    pub bias_head: i64,
    pub bias_token: i64,
    pub workspace: *mut c_void,
    pub scalar: u32,
    pub new_tokens: u32,
    pub past_rows: u32,
    pub present_rows: u32,
    pub query_heads: u32,
    pub kv_heads: u32,
    pub group: u32,
    pub head_dim: u32,
    pub kept: u32,
    pub key_bits: u32,
    pub value_bits: u32,
    pub key_row_bytes: u32,
    pub value_row_bytes: u32,
    pub recover: u32,
    pub recent_window: u32,
    pub past_recent_rows: u32,
    pub present_recent_rows: u32,
    pub rotary: u32,
    pub positions: u32,
    pub observation_window: u32,
    pub causal: u32,
    pub window: u32,
    pub scale: f32,
    pub softcap: f32,
    pub grow: u32,
    pub first_sequence: u32,
    pub sequences: u32,
    pub splits: u32,
    pub split_keys: u32,
    pub tail_window: u32,
    pub key_planes: u32,
    pub key_directions_8: u32,
    pub key_directions_4: u32,
    pub in_basis: u32,
    pub key_companded: u32,
    pub value_groups: u32,
    pub rounded_keys: u32,
    pub value_rotated: u32,
    pub unpacked: u32,
    pub sequence: [Sequence; MAX_SEQUENCES as usize],
}

const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<Tokens>() == 32 && size_of::<Sequence>() == 12 && size_of::<Call>() == 1216);
    assert!(offset_of!(Call, past_key) == 128 && offset_of!(Call, bias) == 248);
    assert!(offset_of!(Call, workspace) == 280 && offset_of!(Call, new_tokens) == 292);
    assert!(offset_of!(Call, scale) == 376 && offset_of!(Call, sequence) == 444);
};

impl Default for Call {
    fn default() -> Self {
        Self {
            query: Tokens::NONE,
            key: Tokens::NONE,
            value: Tokens::NONE,
            output: Tokens::NONE,
            past_key: null(),
            past_value: null(),
            present_key: null_mut(),
            present_value: null_mut(),
            past_recent: null(),
            present_recent: null_mut(),
            cos_cache: null(),
            sin_cache: null(),
            position_ids: null(),
            query_saliency: null(),
            observed_saliency: null_mut(),
            key_basis: null(),
            query_basis: null(),
            basis_queries: null_mut(),
            basis_keys: null_mut(),
            bias: null(),
            bias_batch: 0,
            bias_head: 0,
            bias_token: 0,
            workspace: null_mut(),
            scalar: 0,
            new_tokens: 0,
            past_rows: 0,
            present_rows: 0,
            query_heads: 0,
            kv_heads: 0,
            group: 0,
            head_dim: 0,
            kept: 0,
            key_bits: 0,
            value_bits: 0,
            key_row_bytes: 0,
            value_row_bytes: 0,
            recover: 0,
            recent_window: 0,
            past_recent_rows: 0,
            present_recent_rows: 0,
            rotary: 0,
            positions: 0,
            observation_window: 0,
            causal: 0,
            window: 0,
            scale: 0.0,
            softcap: 0.0,
            grow: 0,
            first_sequence: 0,
            sequences: 0,
            splits: 0,
            split_keys: 0,
            tail_window: 0,
            key_planes: 0,
            key_directions_8: 0,
            key_directions_4: 0,
            in_basis: 0,
            key_companded: 0,
            value_groups: 0,
            rounded_keys: 0,
            value_rotated: 0,
            unpacked: 0,
            sequence: [Sequence::default(); MAX_SEQUENCES as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_asserts_the_same_offsets() {
        let header = include_str!("../../ops/call.h");
        let asserted: Vec<_> = header
            .lines()
            .filter_map(|line| {
                line.strip_prefix("static_assert(__builtin_offsetof(SparkCall, ")?.split_once(", \"offset\"")
            })
            .map(|(assertion, _)| assertion)
            .collect();
        let own = |name: &str, offset: usize| format!("{name}) == {offset}");
        macro_rules! offsets {
            ($($field:ident)*) => { [$(own(stringify!($field), std::mem::offset_of!(Call, $field))),*] };
        }
        assert_eq!(asserted, offsets!(past_key bias workspace new_tokens scale sequence));
        for size in [size_of::<Tokens>(), size_of::<Sequence>(), size_of::<Call>()] {
            assert!(header.contains(&format!(") == {size}, \"size\");")));
        }
    }
}

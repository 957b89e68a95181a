//! Where a tensor lies.

use ort::value::{DynTensorValueType, Value};

/// A range of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    address: usize,
    bytes: usize,
}

impl Memory {
    pub(super) fn of(value: &Value<DynTensorValueType>) -> Self {
        let bytes = value.data_type().byte_size(value.shape().num_elements());
        Self { address: value.data_ptr().expose_provenance(), bytes: bytes.unwrap_or(0) }
    }

    /// Where it begins, 0 if it has no bytes.
    pub(super) fn address(self) -> usize {
        if self.bytes > 0 { self.address } else { 0 }
    }

    /// Its size in bytes.
    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    /// Whether it has bytes, but lies nowhere.
    pub(super) fn is_missing(self) -> bool {
        self.bytes > 0 && self.address == 0
    }

    /// Whether the two have a byte in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let (a, b) = (self.address, other.address);
        self.bytes > 0 && other.bytes > 0 && a < b + other.bytes && b < a + self.bytes
    }
}

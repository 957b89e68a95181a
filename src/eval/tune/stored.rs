//! What a row reads as, by the code that the operators run.

use crate::cpu::encode_key;
use crate::format::{Bits, KeyLayout, LayoutError, PrunedKey, RowFormat, ValueLayout};
use crate::method::Recovery;
use crate::rewrite::Rows;

/// Rows of one kind.
pub struct Stored {
    key: KeyLayout,
    value: ValueLayout,
    recovery: Recovery,
    /// Room for a row.
    row: Vec<u8>,
}

impl Stored {
    /// Rows as `rows` describes them.
    ///
    /// # Errors
    /// There are no such rows.
    pub fn new(rows: &Rows) -> Result<Self, LayoutError> {
        let format = RowFormat::new(rows.row_format.into()).unwrap_or(RowFormat::V1);
        // A width that is no width of bits has no rows either.
        let [key_bits, value_bits] = [rows.key_bits, rows.value_bits].map(|bits| Bits::new(bits.into()));
        let no_bits = LayoutError::KeptChannels { kept: 0, head_dim: rows.head_dim };
        let (Some(key_bits), Some(value_bits)) = (key_bits, value_bits) else { return Err(no_bits) };
        let key = match rows.planes {
            Some(planes) => KeyLayout::of_planes(rows.head_dim, planes, rows.key_row_bytes)?,
            None => KeyLayout::of(format, rows.head_dim, rows.kept_channels, key_bits, rows.key_row_bytes)?,
        };
        let value = ValueLayout::of(format, rows.head_dim, value_bits, rows.value_row_bytes)?;
        let row = vec![0; key.row_bytes().max(value.row_bytes())];
        Ok(Self { key, value, recovery: rows.recovery, row })
    }

    /// Whether keys are in a basis.
    pub fn in_basis(&self) -> bool {
        self.key.planes().is_some()
    }

    /// Replaces the key of the token at `position`, in the basis if rows are, by what its row reads as. `saliency`
    /// chooses the channels, or weighs the directions; `scale` is c.
    pub fn key(&mut self, key: &mut [f32], saliency: &[f32], scale: &[f32], position: usize) {
        let row = &mut self.row[..self.key.row_bytes()];
        encode_key(&self.key, self.recovery, key, saliency, scale, row);
        match self.key.planes() {
            Some(planes) => planes.decode(row, key),
            None => self.key.row(row).decode(scale, |channel| self.recovery.factor(position, channel), key),
        }
    }

    /// Replaces a value by what its row reads as.
    pub fn value(&mut self, value: &mut [f32]) {
        let row = &mut self.row[..self.value.row_bytes()];
        self.value.encode(value, row);
        self.value.decode(row, value);
    }

    /// The key in a row of this kind, where it keeps all channels at 16 bits.
    pub fn read_key(&self, row: &[u8], key: &mut [f32]) {
        // A row without pruned channels has no use for their scale.
        self.key.row(row).decode(&vec![1.0; key.len()], |_| 0.0, key);
    }

    /// Writes such a row.
    pub fn write_key(&self, key: &[f32], row: &mut [u8]) {
        let (mask, scale) = (vec![0xff; key.len() / 8], vec![1.0; key.len()]);
        self.key.encode(PrunedKey { key, mask: &mask, scale: &scale, recovery: 0.0 }, row);
    }

    /// The value in a row of this kind.
    pub fn read_value(&self, row: &[u8], value: &mut [f32]) {
        self.value.decode(row, value);
    }

    /// Writes such a row.
    pub fn write_value(&self, value: &[f32], row: &mut [u8]) {
        self.value.encode(value, row);
    }

    /// Bytes of a key row and of a value row.
    pub fn row_bytes(&self) -> [usize; 2] {
        [self.key.row_bytes(), self.value.row_bytes()]
    }
}

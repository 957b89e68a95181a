//! The rows of a rewritten model's cache.

use serde::{Deserialize, Serialize};

use super::basis;
use super::error::RewriteError;
use super::options::{CacheType, Options};
use crate::format::{Bits, KeyLayout, Planes, RowFormat, ValueLayout};
use crate::method::Recovery;
use crate::spec;

/// How a rewritten model stores its cache; kept in its metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    /// D
    pub head_dim: usize,
    /// Requested share of pruned key channels; fewer are pruned where rows have room for more.
    pub ratio: f64,
    /// T_k
    pub kept_channels: usize,
    /// Bits of a kept key channel.
    pub key_bits: u8,
    /// Bits of a value channel.
    pub value_bits: u8,
    /// Number of the row format.
    #[serde(default = "first_format")]
    pub row_format: u8,
    /// Directions of a key row of format 3 by their bits, once they are calibrated; `kept_channels` counts them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planes: Option<Planes>,
    /// Bytes of a key row.
    pub key_row_bytes: usize,
    /// Bytes of a value row.
    pub value_row_bytes: usize,
    /// How pruned channels are restored.
    pub recovery: Recovery,
    /// Recent keys kept dense beside the rows, in an extra input and output.
    pub recent_window: usize,
    /// Keys kept dense in the tail of a shared buffer.
    #[serde(default)]
    pub tail_window: usize,
    /// Element type of the cache tensors.
    pub cache_type: CacheType,
}

/// Fewest bytes of a key row in a basis.
const LEAST_KEY_BYTES: usize = 8;

/// Bytes of its scale.
const SCALE_BYTES: usize = 2;

/// Most of them, with 8 bits for every direction.
fn most_key_bytes(head_dim: usize) -> usize {
    (SCALE_BYTES + head_dim).next_multiple_of(4)
}

/// The format of metadata written before there was a second one.
fn first_format() -> u8 {
    1
}

impl Rows {
    /// The rows that `options` ask for, for heads of `head_dim` channels, without recent keys.
    ///
    /// # Errors
    /// An option out of range, or one that this head size does not allow.
    pub fn new(options: &Options, head_dim: usize) -> Result<Self, RewriteError> {
        Self::at_least(options, head_dim, 0)
    }

    /// As [`Self::new`], where uniform rows have at least `row_bytes` bytes, a size that other rows have.
    pub(super) fn at_least(options: &Options, head_dim: usize, row_bytes: usize) -> Result<Self, RewriteError> {
        let &Options {
            ratio, key_bits, value_bits, row_format, recovery, cache_type, uniform_rows, exact_ratio, ..
        } = options;
        if !(0.0..1.0).contains(&ratio) {
            return Err(RewriteError::option("ratio", format!("{ratio} is not at least 0 and below 1")));
        }
        let kept_channels = head_dim - (ratio * head_dim as f64).floor() as usize;
        let bits = |option, bits: u8| {
            Bits::new(bits.into()).ok_or_else(|| RewriteError::option(option, format!("{bits} is not 16, 8 or 4")))
        };
        let format = RowFormat::new(row_format.into())
            .ok_or_else(|| RewriteError::option("row_format", format!("{row_format} is not 1, 2 or 3")))?;
        if format == RowFormat::V3 {
            return Self::in_basis(options, head_dim, row_bytes);
        }
        if options.key_bytes.is_some() {
            return Err(RewriteError::option("key_bytes", "only a calibrated basis has rows of a size to be chosen"));
        }
        let bits_of_key = bits("key_bits", key_bits)?;
        let key_layout = |kept, row_bytes| KeyLayout::of(format, head_dim, kept, bits_of_key, row_bytes);
        let key = key_layout(kept_channels, 0).map_err(|e| RewriteError::option("ratio", e.to_string()))?.row_bytes();
        let value = ValueLayout::of(format, head_dim, bits("value_bits", value_bits)?, 0);
        let value = value.map_err(|e| RewriteError::option("value_bits", e.to_string()))?.row_bytes();
        let larger = key.max(value).max(row_bytes);
        let (key_row_bytes, value_row_bytes) = if uniform_rows { (larger, larger) } else { (key, value) };
        let fits = |&kept: &usize| key_layout(kept, key_row_bytes).is_ok();
        let kept_channels = match uniform_rows && !exact_ratio {
            // Using the padding costs nothing.
            true => (kept_channels..=head_dim).rev().find(fits).unwrap_or(kept_channels),
            false => kept_channels,
        };
        Ok(Self {
            head_dim,
            ratio,
            kept_channels,
            key_bits,
            value_bits,
            row_format,
            planes: None,
            key_row_bytes,
            value_row_bytes,
            recovery,
            recent_window: 0,
            tail_window: 0,
            cache_type,
        })
    }

    /// Bytes that a key row in a basis may have, for heads of `head_dim` channels.
    pub fn basis_key_bytes(head_dim: usize) -> impl DoubleEndedIterator<Item = usize> {
        (LEAST_KEY_BYTES / 4..=most_key_bytes(head_dim) / 4).map(|words| 4 * words)
    }

    /// Rows in a basis that is still to be calibrated.
    fn in_basis(options: &Options, head_dim: usize, row_bytes: usize) -> Result<Self, RewriteError> {
        let of_key = |problem: String| RewriteError::option("key_bytes", problem);
        let key = options.key_bytes.unwrap_or(head_dim.div_ceil(2).next_multiple_of(4));
        if !Self::basis_key_bytes(head_dim).any(|bytes| bytes == key) {
            let most = most_key_bytes(head_dim);
            return Err(of_key(format!(
                "{key} is not a multiple of 4 from {LEAST_KEY_BYTES} to {most}, as heads of {head_dim} channels need"
            )));
        }
        // Any planes: the size is given.
        let any = Planes { eight: 1, four: 0, two: 0 };
        KeyLayout::of_planes(head_dim, any, key).map_err(|e| of_key(e.to_string()))?;
        let of_value = |problem: String| RewriteError::option("value_bits", problem);
        let bits = Bits::new(options.value_bits.into())
            .ok_or_else(|| of_value(format!("{} is not 16, 8 or 4", options.value_bits)))?;
        let value = ValueLayout::of(RowFormat::V3, head_dim, bits, 0).map_err(|e| of_value(e.to_string()))?.row_bytes();
        let larger = key.max(value).max(row_bytes);
        let (key_row_bytes, value_row_bytes) = if options.uniform_rows { (larger, larger) } else { (key, value) };
        Ok(Self {
            head_dim,
            ratio: 0.0,
            kept_channels: head_dim,
            key_bits: 8,
            value_bits: options.value_bits,
            row_format: options.row_format,
            planes: None,
            key_row_bytes,
            value_row_bytes,
            recovery: Recovery::None,
            recent_window: 0,
            tail_window: 0,
            cache_type: options.cache_type,
        })
    }

    /// Rows in a basis with the planes that are best for directions that cost so much, `[D]`, descending; others as
    /// they are.
    pub fn with_planes(self, costs: &[f64]) -> Self {
        if !self.have_basis() {
            return self;
        }
        let planes = basis::planes(costs, self.key_row_bytes);
        Self { planes: Some(planes), kept_channels: planes.kept(), ..self }
    }

    /// Whether keys are in a calibrated basis.
    pub fn have_basis(&self) -> bool {
        self.row_format == 3
    }

    /// The version of the operators that these rows need.
    pub fn operator_version(&self) -> i64 {
        let later = [
            (self.tail_window > 0, spec::TAIL_WINDOW.since),
            (self.row_format > 1, spec::ROW_FORMAT.since),
            (self.recovery.is_sampled(), spec::SAMPLED_RECOVERY_SINCE),
        ];
        let needed = later.into_iter().filter(|(used, _)| *used).map(|(_, since)| since);
        needed.max().unwrap_or(*spec::VERSIONS.start())
    }

    /// Rows that lose nothing but float16 rounding, as calibration needs them.
    pub fn lossless(&self) -> Result<Self, RewriteError> {
        let options =
            Options { ratio: 0.0, key_bits: 16, value_bits: 16, cache_type: self.cache_type, ..Options::default() };
        Ok(Self { recent_window: self.recent_window, ..Self::new(&options, self.head_dim)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_filled_with_channels() {
        let kept = |uniform_rows, exact_ratio, (ratio, key_bits, value_bits)| {
            let options = Options { ratio, key_bits, value_bits, uniform_rows, exact_ratio, ..Options::default() };
            let rows = Rows::new(&options, 64).unwrap();
            (rows.kept_channels, rows.key_row_bytes, rows.value_row_bytes)
        };
        // 8 + 8 + 6 bytes and the channels, in rows as large as those of values: 4 + 64 bytes, or 8 + 32.
        assert_eq!(kept(false, false, (0.5, 8, 8)), (32, 56, 68));
        assert_eq!(kept(true, false, (0.5, 8, 8)), (46, 68, 68));
        assert_eq!(kept(true, true, (0.5, 8, 8)), (32, 68, 68));
        assert_eq!(kept(true, false, (0.7, 4, 4)), (36, 40, 40));
        // Where key rows are the larger ones there is no padding to use.
        assert_eq!(kept(true, false, (0.0, 16, 8)), (64, 148, 148));
    }
}

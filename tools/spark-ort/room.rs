//! Whether there is memory for what a command is asked for.

use anyhow::{Result, bail};
use spark_ort::runtime::{Interface, memory};

use crate::report::bytes;

/// Refuses `what`, options with their values, if it needs more bytes of memory than are free.
///
/// # Errors
/// It does; says how much is needed and how much there is.
pub fn check(what: &str, needed: u128) -> Result<()> {
    check_within(what, needed, memory::available().unwrap_or(isize::MAX as u64))
}

/// The same of a cache with room for so many tokens.
///
/// # Errors
/// As [`check`].
pub fn check_cache(what: &str, interface: &Interface, tokens: usize) -> Result<()> {
    check(&format!("{what}: a cache of {tokens} tokens"), cache_bytes(interface, tokens))
}

/// Bytes of the buffers that past and present share.
fn cache_bytes(interface: &Interface, tokens: usize) -> u128 {
    let layers = interface.layers.iter().map(|layer| {
        let rows = tokens as u128 + layer.tail_rows() as u128;
        let row = layer.key.row_bytes() as u128 + layer.value.row_bytes() as u128;
        rows.saturating_mul(row).saturating_mul(layer.kv_heads as u128)
    });
    layers.fold(0, u128::saturating_add)
}

fn check_within(what: &str, needed: u128, available: u64) -> Result<()> {
    if needed <= u128::from(available) {
        return Ok(());
    }
    let needed = bytes(u64::try_from(needed).unwrap_or(u64::MAX));
    bail!("{what} needs {needed} of memory, and {} are free: ask for less", bytes(available))
}

#[cfg(test)]
mod tests {
    use spark_ort::runtime::{CacheLayer, CachePair, Element};

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_sizes() {
        assert!(check_within("--batch 2", 1 << 30, 1 << 30).is_ok());
        let error = check_within("--batch 4", 2 << 30, 1 << 30).unwrap_err().to_string();
        assert_eq!(error, "--batch 4 needs 2.00 GiB of memory, and 1.00 GiB are free: ask for less");
        assert!(check("--batch 8", u128::MAX).is_err());
    }

    #[test]
    fn a_cache_is_counted_without_overflow() {
        let pair = |width| CachePair { past: String::new(), present: String::new(), element: Element::Float16, width };
        let layer = |width| CacheLayer {
            kv_heads: 3,
            head_dim: 64,
            key: pair(width),
            value: pair(64),
            key_recent: None,
            tail_window: 0,
        };
        let interface = |width| Interface { layers: vec![layer(width); 2], shares_buffer: true };
        assert_eq!(cache_bytes(&interface(32), 10), 2 * 3 * 10 * (64 + 128));
        assert!(cache_bytes(&interface(1 << 60), 1 << 40) > 1 << 100);
    }
}

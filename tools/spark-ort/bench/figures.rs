//! Formatting of figures.

use std::collections::BTreeMap;

use super::cache::Cache;
use super::rounds::Samples;

/// Speed relative to each baseline, by its name.
pub type Ratios = BTreeMap<String, f64>;

/// Compares `candidate` with the baselines among `caches`, which are the candidates of `samples`.
pub fn ratios(samples: &Samples, caches: &[Cache], candidate: usize) -> Ratios {
    let peers = caches.iter().enumerate().filter(|(_, cache)| matches!(cache, Cache::Grouped(_)));
    peers.map(|(peer, cache)| (cache.name(), samples.ratio(peer, candidate))).collect()
}

/// One cell for each of `peers`.
pub fn ratio_cells(ratios: &Ratios, peers: &[Cache]) -> Vec<String> {
    peers.iter().map(|peer| ratios.get(&peer.name()).map_or("-".into(), |ratio| format!("{ratio:.2}"))).collect()
}

/// Titles of those cells.
pub fn ratio_titles(peers: &[Cache]) -> Vec<String> {
    peers.iter().map(|peer| format!("x {}", peer.name().trim_start_matches("GQA "))).collect()
}

pub const RATIOS: &str =
    "x float32, ...: times as fast as GroupQueryAttention with that cache (medians of each round's ratio)";

pub fn milliseconds(seconds: f64) -> String {
    match 1e3 * seconds {
        ms if ms < 10.0 => format!("{ms:.3}"),
        ms if ms < 1000.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

pub fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

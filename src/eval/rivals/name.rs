//! Names of rivals.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::SINKS;
use crate::runtime::Interface;

/// A method of cache compression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Drops the key channels least important to a prompt's last queries, for all tokens (Xu et al. 2025).
    ThinK {
        /// Share of dropped channels.
        ratio: f64,
    },
    /// Drops the prompt's tokens least important to its last queries (Li et al. 2024).
    SnapKv {
        /// Share of dropped tokens of the prompt.
        ratio: f64,
    },
    /// Drops the smallest channels of each row of a token and KV head by itself, and stores the others with 8 bits.
    Prune {
        /// Share of dropped channels.
        ratio: f64,
    },
    /// Quantises each row of a token and KV head by itself, from its least to its greatest element.
    PerToken {
        /// Bits of an element.
        bits: u32,
    },
    /// The same after a Hadamard rotation, which spreads outliers (Ashkboos et al. 2024).
    Hadamard {
        /// Bits of an element.
        bits: u32,
    },
    /// The same after a rotation to the principal directions of the queries and of the attention results (OSCAR, Zhou
    /// et al. 2026, arXiv 2605.17757).
    Oscar {
        /// Bits of an element.
        bits: u32,
    },
    /// In the directions of a basis, each with the bits that it deserves: rows of row format 3, for values too. The
    /// basis is found from the prompt, and from what attention asks for: its queries for keys, its projection for
    /// values.
    Basis {
        /// Most bytes of a row.
        bytes: usize,
    },
    /// GroupQueryAttention's own quantised cache, with one scale per channel.
    OnnxRuntime {
        /// 8 or 4.
        bits: u32,
    },
}

/// What a rival compresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Keys and values, as far as its method does.
    All,
    /// Keys alone; values are dense.
    Keys,
    /// Values alone; keys are dense.
    Values,
}

/// A rival.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rival {
    /// Its method.
    pub method: Method,
    /// What it is applied to.
    pub part: Part,
    /// Number of last tokens whose rows stay unchanged.
    pub recent: usize,
}

/// Fewest and most bytes of a row in a basis: a scale and eight directions of two bits; as many as no row has.
const BASIS_BYTES: RangeInclusive<usize> = 4..=1024;

/// Most unchanged recent tokens: more than any model reads.
const MOST_RECENT: usize = 1 << 30;

/// Default number of unchanged recent tokens.
const RECENT: usize = 64;

/// Number of elements that share a scale and a minimum, both float16.
pub fn group(bits: u32, width: usize) -> usize {
    if bits >= 8 { width } else { 32.min(width) }
}

impl Rival {
    /// All rivals, with their published settings.
    pub fn all() -> Vec<Self> {
        let names = "int8 int4 hadamard4 hadamard3 oscar4 oscar3 oscar2 think0.5 snapkv0.5 ort-int8 ort-int4";
        names.split(' ').map(|name| name.parse().expect("a constant")).collect()
    }

    /// Whether it is simulated on the original model.
    pub fn is_simulated(&self) -> bool {
        !matches!(self.method, Method::OnnxRuntime { .. })
    }

    /// Whether it compresses keys, or `values`.
    pub fn compresses(&self, values: bool) -> bool {
        let by_method = !(values && matches!(self.method, Method::ThinK { .. }));
        by_method && self.part != if values { Part::Keys } else { Part::Values }
    }

    /// Whether it asks what the results of attention are multiplied with.
    pub fn needs_projections(&self) -> bool {
        matches!(self.method, Method::Basis { .. }) && self.compresses(true)
    }

    /// Bytes that a token adds to the cache of a model as the rival would store it, with dense elements as float16.
    /// For eviction, the bytes of the remaining tokens are averaged over all.
    pub fn bytes_per_token(&self, interface: &Interface) -> f64 {
        let dense = |width: usize| 2.0 * width as f64;
        let quantised = |bits: u32, width: usize| {
            let scales = width.div_ceil(group(bits, width)) * 4;
            (width * bits as usize) as f64 / 8.0 + scales as f64
        };
        let row = |values: bool, width: usize| match self.method {
            _ if !self.compresses(values) => dense(width),
            Method::ThinK { ratio } => dense(width - dropped(ratio, width)),
            Method::SnapKv { ratio } => dense(width) * (1.0 - ratio),
            Method::Prune { ratio } => width as f64 / 8.0 + quantised(8, width) - dropped(ratio, width) as f64,
            Method::PerToken { bits } | Method::Hadamard { bits } | Method::Oscar { bits } => quantised(bits, width),
            // A scale, and at most a byte of each direction.
            Method::Basis { bytes } => bytes.min(2 + width) as f64,
            Method::OnnxRuntime { bits } => (width * bits as usize) as f64 / 8.0,
        };
        let layer = |width: usize| row(false, width) + row(true, width);
        interface.layers.iter().map(|l| l.kv_heads as f64 * layer(l.head_dim)).sum()
    }

    /// Bytes of the unchanged tokens, which do not grow.
    pub fn dense_bytes(&self, interface: &Interface) -> usize {
        if !self.is_simulated() {
            return 0;
        }
        let rows: usize = interface.layers.iter().map(|l| l.kv_heads * l.head_dim * 2 * 2).sum();
        rows * (self.recent + SINKS)
    }
}

/// The number of dropped items for a share `ratio` of `count`.
pub fn dropped(ratio: f64, count: usize) -> usize {
    (ratio * count as f64).floor() as usize
}

impl FromStr for Rival {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, recent) = match text.split_once('+') {
            Some((name, recent)) => (name, recent.parse().ok().filter(|&recent| recent <= MOST_RECENT)),
            None => (text, Some(RECENT)),
        };
        let (name, part) = match (name.strip_suffix("-keys"), name.strip_suffix("-values")) {
            (Some(name), _) => (name, Part::Keys),
            (_, Some(name)) => (name, Part::Values),
            _ => (name, Part::All),
        };
        let ratio = |rest: &str| rest.parse::<f64>().ok().filter(|ratio| (0.0..1.0).contains(ratio));
        let bits = |rest: &str, allowed: &[u32]| rest.parse::<u32>().ok().filter(|bits| allowed.contains(bits));
        let method = || {
            if let Some(rest) = name.strip_prefix("think") {
                return Some(Method::ThinK { ratio: ratio(rest)? });
            }
            if let Some(rest) = name.strip_prefix("snapkv") {
                return Some(Method::SnapKv { ratio: ratio(rest)? });
            }
            if let Some(rest) = name.strip_prefix("prune") {
                return Some(Method::Prune { ratio: ratio(rest)? });
            }
            if let Some(rest) = name.strip_prefix("hadamard") {
                return Some(Method::Hadamard { bits: bits(rest, &[2, 3, 4, 8])? });
            }
            if let Some(rest) = name.strip_prefix("oscar") {
                return Some(Method::Oscar { bits: bits(rest, &[2, 3, 4, 8])? });
            }
            if let Some(rest) = name.strip_prefix("basis") {
                return Some(Method::Basis { bytes: rest.parse().ok().filter(|bytes| BASIS_BYTES.contains(bytes))? });
            }
            if let Some(rest) = name.strip_prefix("ort-int") {
                return Some(Method::OnnxRuntime { bits: bits(rest, &[4, 8])? });
            }
            Some(Method::PerToken { bits: bits(name.strip_prefix("int")?, &[2, 3, 4, 8])? })
        };
        let of_parts = |method: &Method| match method {
            Method::ThinK { .. } | Method::SnapKv { .. } | Method::OnnxRuntime { .. } => part == Part::All,
            _ => true,
        };
        match (method().filter(of_parts), recent) {
            (Some(method), Some(recent)) => Ok(Self { method, part, recent }),
            _ => Err(format!(
                "'{text}' is no rival: int8, int4, hadamard4, hadamard3, oscar2, prune0.5, basis36 (all of these also \
                 with -keys or -values behind, for these alone), think0.5, snapkv0.5, ort-int8 and ort-int4 are, with \
                 other bits, bytes (4 to 1024) and shares, and +N for N recent tokens as they are ({RECENT} without)"
            )),
        }
    }
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.method {
            Method::ThinK { ratio } => write!(f, "think{ratio}")?,
            Method::SnapKv { ratio } => write!(f, "snapkv{ratio}")?,
            Method::Prune { ratio } => write!(f, "prune{ratio}")?,
            Method::PerToken { bits } => write!(f, "int{bits}")?,
            Method::Hadamard { bits } => write!(f, "hadamard{bits}")?,
            Method::Oscar { bits } => write!(f, "oscar{bits}")?,
            Method::Basis { bytes } => write!(f, "basis{bytes}")?,
            // It keeps no token unchanged.
            Method::OnnxRuntime { bits } => return write!(f, "ort-int{bits}"),
        }
        f.write_str(match self.part {
            Part::All => "",
            Part::Keys => "-keys",
            Part::Values => "-values",
        })?;
        write!(f, "+{}", self.recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            "think0.5+64",
            "snapkv0.75+32",
            "int8+0",
            "hadamard3+16",
            "oscar2+64",
            "ort-int4",
            "prune0.5-values+64",
            "int4-keys+16",
            "basis36-values+64",
        ] {
            assert_eq!(name.parse::<Rival>().unwrap().to_string(), name);
        }
        assert_eq!("int4".parse::<Rival>().unwrap().recent, RECENT);
        for name in [
            "",
            "int",
            "int5",
            "basis3",
            "int8+18446744073709551615",
            "basis9999",
            "think",
            "think1",
            "snapkv-1",
            "ort-int2",
            "int8+",
            "kivi",
            "think0.5-values",
            "-keys",
        ] {
            assert!(name.parse::<Rival>().is_err(), "{name}");
        }
        assert!(Rival::all().len() > 8);
    }
}

//! The caches that are compared: SparK's rows, and the four caches of ONNX Runtime's GroupQueryAttention.

use anyhow::{Context, Result};
use ort::value::TensorElementType;
use spark_ort::rewrite::{Options, Rows};

/// Query and KV heads.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Heads {
    pub query: usize,
    pub kv: usize,
}

impl std::str::FromStr for Heads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let heads = text.split_once('/').and_then(|(query, kv)| Some([query.parse().ok()?, kv.parse().ok()?]));
        match heads {
            Some([query, kv]) if kv > 0 && query >= kv && query % kv == 0 => Ok(Self { query, kv }),
            _ => Err("must be query and KV heads, the first divisible by the second, such as 32/8".into()),
        }
    }
}

/// How SparkPrune stores rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    ratio: f64,
    key_bits: u8,
    value_bits: u8,
    /// Keys kept dense in the tail of a shared buffer.
    recent: usize,
}

impl std::str::FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (text, recent) = text.split_once('+').unwrap_or((text, "0"));
            let mut parts = text.split('/');
            let (ratio, key_bits, value_bits) = (parts.next()?, parts.next()?, parts.next()?);
            let (ratio, key_bits, value_bits) = (ratio.parse().ok()?, key_bits.parse().ok()?, value_bits.parse().ok()?);
            let recent = recent.parse().ok()?;
            parts.next().is_none().then_some(Self { ratio, key_bits, value_bits, recent })
        };
        parse().ok_or_else(|| {
            "must be pruned share, key bits and value bits, such as 0.5/8/8, and may have recent keys: 0.5/8/8+64"
                .into()
        })
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.ratio, self.key_bits, self.value_bits)?;
        if self.recent > 0 { write!(f, "+{}", self.recent) } else { Ok(()) }
    }
}

impl Setting {
    pub fn rows(&self, head_dim: usize) -> Result<Rows> {
        let &Self { ratio, key_bits, value_bits, recent } = self;
        let options = Options { ratio, key_bits, value_bits, ..Options::default() };
        let rows = Rows::new(&options, head_dim).with_context(|| format!("the setting {self} cannot be"))?;
        Ok(Rows { tail_window: recent, ..rows })
    }
}

/// How GroupQueryAttention stores its cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stored {
    Float32,
    /// Its query is float16 too: the operator allows no other type.
    Float16,
    /// Codes with one constant scale, and a float32 query.
    Int8,
    /// The same with two codes per byte.
    Int4,
}

/// A cache and the operators that use it.
#[derive(Clone, Debug)]
pub enum Cache {
    Spark(Setting, Rows),
    /// The same with a float16 query, key and value.
    SparkHalf(Setting, Rows),
    Grouped(Stored),
}

impl Cache {
    pub const GROUPED: [Cache; 4] = [
        Cache::Grouped(Stored::Float32),
        Cache::Grouped(Stored::Float16),
        Cache::Grouped(Stored::Int8),
        Cache::Grouped(Stored::Int4),
    ];

    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Cache::Spark(setting, _) => format!("SparK {setting}"),
            Cache::SparkHalf(setting, _) => format!("SparK {setting} float16"),
            Cache::Grouped(stored) => format!("GQA {}", format!("{stored:?}").to_lowercase()),
        }
    }

    /// Type of query, key, value and output.
    pub fn element(&self) -> TensorElementType {
        match self {
            Cache::SparkHalf(..) | Cache::Grouped(Stored::Float16) => TensorElementType::Float16,
            _ => TensorElementType::Float32,
        }
    }

    /// Type of the cache tensors.
    pub fn container(&self) -> TensorElementType {
        match self {
            Cache::Grouped(Stored::Int8) => TensorElementType::Int8,
            Cache::Grouped(Stored::Int4) => TensorElementType::Uint8,
            _ => self.element(),
        }
    }

    /// This cache for float16 models, if it is one of SparK's.
    pub fn half(&self) -> Option<Self> {
        match self {
            Cache::Spark(setting, rows) => Some(Cache::SparkHalf(*setting, rows.clone())),
            _ => None,
        }
    }

    /// Elements of a key and a value row.
    pub fn widths(&self, head_dim: usize) -> [usize; 2] {
        match self {
            Cache::Spark(_, rows) => [rows.key_row_bytes, rows.value_row_bytes].map(|bytes| bytes / 4),
            Cache::SparkHalf(_, rows) => [rows.key_row_bytes, rows.value_row_bytes].map(|bytes| bytes / 2),
            Cache::Grouped(Stored::Int4) => [head_dim / 2; 2],
            Cache::Grouped(_) => [head_dim; 2],
        }
    }

    /// Keys kept dense in the tail of a shared buffer.
    pub fn recent_keys(&self) -> usize {
        match self {
            Cache::Spark(_, rows) | Cache::SparkHalf(_, rows) => rows.tail_window,
            Cache::Grouped(_) => 0,
        }
    }

    /// Free rows that the tail of a shared buffer needs.
    pub fn free_rows(&self, head_dim: usize) -> usize {
        // One float16 key each; each of the two buffers may waste up to the bytes of one key.
        let keys = if self.recent_keys() > 0 { self.recent_keys() + 2 } else { 0 };
        (keys * 2 * head_dim).div_ceil(self.row_bytes(head_dim))
    }

    /// Bytes of one token in one KV head.
    pub fn row_bytes(&self, head_dim: usize) -> usize {
        let elements: usize = self.widths(head_dim).iter().sum();
        self.container().byte_size(elements).expect("a type of fixed size")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_or_refused() {
        assert_eq!("32/8".parse(), Ok(Heads { query: 32, kv: 8 }));
        for wrong in ["32", "8/32", "32/0", "9/2", "32/8/1", "a/b"] {
            assert!(wrong.parse::<Heads>().is_err(), "{wrong}");
        }
        assert_eq!("0.5/8/4".parse(), Ok(Setting { ratio: 0.5, key_bits: 8, value_bits: 4, recent: 0 }));
        let recent: Setting = "0.5/8/4+64".parse().unwrap();
        assert_eq!((recent.recent, recent.to_string().as_str()), (64, "0.5/8/4+64"));
        for wrong in ["0.5/8/8+", "0.5/8/8+x", "0.5/8+4", "0.5", "0.5/8", "0.5/8/8/8", "x/8/8", "0.5/8/-1"] {
            assert!(wrong.parse::<Setting>().is_err(), "{wrong}");
        }
        assert!("0.5/7/8".parse::<Setting>().unwrap().rows(128).is_err());
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        let setting: Setting = "0.5/8/8".parse().unwrap();
        let spark = Cache::Spark(setting, setting.rows(128).unwrap());
        assert_eq!((spark.name().as_str(), spark.row_bytes(128)), ("SparK 0.5/8/8", 104 + 132));
        assert_eq!(spark.half().unwrap().row_bytes(128), 104 + 132);
        assert_eq!(Cache::GROUPED.map(|cache| cache.row_bytes(128)), [1024, 512, 256, 128]);
        assert_eq!(Cache::GROUPED[2].name(), "GQA int8");
    }
}

//! The caches that are compared: SparK's rows, and the four caches of ONNX Runtime's GroupQueryAttention.

use anyhow::Result;
use ort::value::TensorElementType;
use spark_ort::rewrite::Rows;

use super::basis;
use crate::eval::setting::Setting;

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

    /// SparK's cache with this setting. Planes of keys in a basis are those of directions that cost about what a real
    /// model's do.
    pub fn spark(setting: Setting, head_dim: usize) -> Result<Self> {
        let rows = setting.rows("--settings", head_dim)?;
        let rows = Rows { tail_window: setting.recent, ..rows.with_planes(&basis::costs(head_dim)) };
        Ok(Self::Spark(setting, rows))
    }

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
            Cache::Spark(setting, rows) => Some(Cache::SparkHalf(setting.clone(), rows.clone())),
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

    /// The rows of SparK's caches.
    pub fn rows(&self) -> Option<&Rows> {
        match self {
            Cache::Spark(_, rows) | Cache::SparkHalf(_, rows) => Some(rows),
            Cache::Grouped(_) => None,
        }
    }

    /// Keys kept dense in the tail of a shared buffer.
    pub fn recent_keys(&self) -> usize {
        self.rows().map_or(0, |rows| rows.tail_window)
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
        for wrong in ["0.5/7/8", "basis31/8", "basis500/8"] {
            assert!(Cache::spark(wrong.parse().unwrap(), 128).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bytes_are_those_of_the_format() {
        let spark = |setting: &str| Cache::spark(setting.parse().unwrap(), 128).unwrap();
        for (setting, bytes) in [("0.5/8/8", 104 + 132), ("0.7/4/4+64:v2", 60 + 68), ("basis48/8+64", 48 + 132)] {
            let cache = spark(setting);
            assert_eq!((cache.name(), cache.row_bytes(128)), (format!("SparK {setting}"), bytes));
            assert_eq!(cache.half().unwrap().row_bytes(128), bytes);
            assert_eq!(cache.recent_keys(), if setting.contains('+') { 64 } else { 0 });
        }
        let planes = spark("basis64/8").rows().unwrap().planes.unwrap();
        assert!(planes.eight > 0 && planes.four > planes.eight && planes.two > 0 && planes.kept() <= 128);
        assert_eq!(Cache::GROUPED.map(|cache| cache.row_bytes(128)), [1024, 512, 256, 128]);
        assert_eq!(Cache::GROUPED[2].name(), "GQA int8");
    }
}

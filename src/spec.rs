//! The operators' schema, in one place: domain, versions, inputs, outputs and attributes, with their types, defaults
//! and ranges. `docs/operators.md` is the same for people, and a test here compares the two. Nothing of ONNX Runtime.

use std::ops::RangeInclusive;

use serde::Serialize;

/// The operators' domain.
pub const DOMAIN: &str = "ai.spark";

/// Versions of the domain that this library serves.
pub const VERSIONS: RangeInclusive<i64> = 1..=2;

/// Formats of cache rows that this library reads and writes: values of the attribute `row_format`.
pub const ROW_FORMATS: &[i64] = &[1, 2, 3];

/// `SparkPrune`, the write path.
pub const PRUNE: Operator = Operator {
    name: "SparkPrune",
    inputs: &with_own::<1, 14>(Tensor::optional("after", Type::T), &[KEY_BASIS]),
    outputs: &[
        Tensor::required("present_key", Type::C),
        Tensor::required("present_value", Type::C),
        Tensor::optional("present_key_recent", Type::T),
        Tensor::optional("observed_saliency", Type::Float32),
        Tensor::optional("observed_covariance", Type::Float32),
    ],
    own_attributes: &[OBSERVATION_WINDOW, OBSERVATION_SCALE],
};

/// `SparkAttention`, the read path.
pub const ATTENTION: Operator = Operator {
    name: "SparkAttention",
    inputs: &with_own::<2, 15>(Tensor::optional("attention_bias", Type::T), &[KEY_BASIS, QUERY_BASIS]),
    outputs: &[Tensor::required("output", Type::T)],
    own_attributes: &[SCALE, SOFTCAP, LOCAL_WINDOW_SIZE, CAUSAL],
};

/// An operator of the domain.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Operator {
    /// Its op_type.
    pub name: &'static str,
    /// In order.
    pub inputs: &'static [Tensor],
    /// In order.
    pub outputs: &'static [Tensor],
    /// Attributes that it has beside [`SHARED_ATTRIBUTES`].
    pub own_attributes: &'static [Attribute],
}

impl Operator {
    /// All attributes, the shared ones first.
    pub fn attributes(&self) -> impl Iterator<Item = &'static Attribute> {
        SHARED_ATTRIBUTES.iter().chain(self.own_attributes)
    }
}

/// The element type of an input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Type {
    /// T: float32 or float16, on a GPU also bfloat16
    #[serde(rename = "T")]
    T,
    /// C, the cache container: T or uint8
    #[serde(rename = "C")]
    C,
    /// int32
    Int32,
    /// int64
    Int64,
    /// float32
    Float32,
}

/// An input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// Its name in the contract.
    pub name: &'static str,
    /// Its element type.
    #[serde(rename = "type")]
    pub element: Type,
    /// Whether every node has it.
    pub required: bool,
}

impl Tensor {
    const fn required(name: &'static str, element: Type) -> Self {
        Self { name, element, required: true }
    }

    const fn optional(name: &'static str, element: Type) -> Self {
        Self { name, element, required: false }
    }
}

/// Inputs that both operators have, the first of each.
pub const SHARED_INPUTS: [Tensor; 12] = [
    Tensor::required("query", Type::T),
    Tensor::optional("key", Type::T),
    Tensor::optional("value", Type::T),
    Tensor::required("past_key", Type::C),
    Tensor::required("past_value", Type::C),
    Tensor::optional("seqlens_k", Type::Int32),
    Tensor::optional("total_sequence_length", Type::Int32),
    Tensor::optional("cos_cache", Type::T),
    Tensor::optional("sin_cache", Type::T),
    Tensor::optional("position_ids", Type::Int64),
    Tensor::optional("past_key_recent", Type::T),
    Tensor::optional("query_saliency", Type::Float32),
];

const KEY_BASIS: Tensor = Tensor::optional("key_basis", Type::Float32);
const QUERY_BASIS: Tensor = Tensor::optional("query_basis", Type::Float32);

/// The shared inputs, an operator's own, and those of a basis.
const fn with_own<const N: usize, const ALL: usize>(own: Tensor, basis: &[Tensor; N]) -> [Tensor; ALL] {
    let mut all = [own; ALL];
    all.split_at_mut(SHARED_INPUTS.len()).0.copy_from_slice(&SHARED_INPUTS);
    all.split_at_mut(ALL - N).1.copy_from_slice(basis);
    all
}

/// An attribute.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// The first version of the domain that has it.
    pub since: i64,
    /// What it may be.
    #[serde(flatten)]
    pub value: Value,
}

/// What an attribute may be, and what it is where a node lacks it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Value {
    /// An int.
    Int {
        /// `None`: every node has the attribute.
        default: Option<i64>,
        /// The values allowed.
        range: Range,
        /// The same in words, for errors.
        #[serde(skip)]
        expected: &'static str,
    },
    /// A finite float.
    Float {
        /// Where a node lacks it.
        default: f32,
    },
    /// A string.
    String {
        /// Where a node lacks it.
        default: &'static str,
        /// The values allowed.
        one_of: &'static [&'static str],
    },
}

/// Values of an int attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Range {
    /// All of int64.
    Any,
    /// From the number up to 2^31 - 1: far below what could overflow a product of sizes.
    AtLeast(i64),
    /// 0 and the positive multiples of the number up to 2^31 - 1.
    MultipleOf(i64),
    /// These.
    OneOf(&'static [i64]),
    /// The versions from the first to the last.
    Versions(i64, i64),
}

impl Range {
    /// Whether `value` is one of them.
    pub fn contains(self, value: i64) -> bool {
        let size = 0 <= value && value <= i32::MAX.into();
        match self {
            Self::Any => true,
            Self::AtLeast(least) => size && value >= least,
            Self::MultipleOf(factor) => size && value % factor == 0,
            Self::OneOf(values) => values.contains(&value),
            Self::Versions(first, last) => first <= value && value <= last,
        }
    }
}

const fn int(name: &'static str, default: Option<i64>, range: Range, expected: &'static str) -> Attribute {
    Attribute { name, since: 1, value: Value::Int { default, range, expected } }
}

const fn flag(name: &'static str, default: i64) -> Attribute {
    int(name, Some(default), Range::OneOf(&[0, 1]), "0 or 1")
}

const fn bits(name: &'static str) -> Attribute {
    int(name, Some(16), Range::OneOf(&[16, 8, 4]), "16, 8 or 4")
}

const fn row_bytes(name: &'static str) -> Attribute {
    int(name, Some(0), Range::MultipleOf(4), "0 or a positive multiple of 4")
}

/// The version of the domain that a node is written for. ONNX Runtime tells an operator neither what a model imports
/// nor refuses a model that imports more than an operator says it serves (so in 1.18 to 1.32), therefore nodes say it.
pub const VERSION: Attribute = int("version", Some(1), Range::Versions(*VERSIONS.start(), *VERSIONS.end()), "1 or 2");
/// Hq
pub const NUM_HEADS: Attribute = int("num_heads", None, Range::AtLeast(1), "a positive number of heads");
/// Hk
pub const KV_NUM_HEADS: Attribute = int("kv_num_heads", None, Range::AtLeast(1), "a positive number of heads");
/// T_k
pub const KEPT_CHANNELS: Attribute = int("kept_channels", None, Range::AtLeast(1), "a positive number of channels");
/// Bits of a kept key channel.
pub const KEY_BITS: Attribute = bits("key_bits");
/// Bits of a value channel.
pub const VALUE_BITS: Attribute = bits("value_bits");
/// Bytes of a key row, 0: as needed.
pub const KEY_ROW_BYTES: Attribute = row_bytes("key_row_bytes");
/// Bytes of a value row, 0: as needed.
pub const VALUE_ROW_BYTES: Attribute = row_bytes("value_row_bytes");
/// What pruned channels read as.
pub const RECOVERY: Attribute = Attribute {
    name: "recovery",
    since: 1,
    value: Value::String { default: "mean", one_of: &["mean", "none", "exponential", "normal"] },
};
/// The version of the domain from which on pruned channels may be drawn from a distribution.
pub const SAMPLED_RECOVERY_SINCE: i64 = 2;
/// Keys kept dense beside the rows, when wired.
pub const RECENT_WINDOW: Attribute = int("recent_window", Some(0), Range::AtLeast(0), "a number of keys");
/// W_t, keys kept dense in the free rows of a shared buffer, 0: none.
pub const TAIL_WINDOW: Attribute =
    Attribute { since: 2, ..int("tail_window", Some(0), Range::AtLeast(0), "a number of keys") };
/// Whether query and key are rotated.
pub const DO_ROTARY: Attribute = flag("do_rotary", 0);
/// Whether the rotation pairs channels 2j and 2j + 1, rather than j and j + D/2.
pub const ROTARY_INTERLEAVED: Attribute = flag("rotary_interleaved", 0);
/// The format of cache rows.
pub const ROW_FORMAT: Attribute =
    Attribute { since: 2, ..int("row_format", Some(1), Range::OneOf(ROW_FORMATS), "a row format") };
/// Of the kept directions of row format 3, the first ones, which have 8 bits.
pub const KEY_DIRECTIONS_8: Attribute =
    Attribute { since: 2, ..int("key_directions_8", Some(0), Range::AtLeast(0), "a number of directions") };
/// The next ones, which have 4 bits; what follows has 2.
pub const KEY_DIRECTIONS_4: Attribute = Attribute { name: "key_directions_4", ..KEY_DIRECTIONS_8 };
/// W, queries that saliency looks at.
pub const OBSERVATION_WINDOW: Attribute =
    int("observation_window", Some(32), Range::AtLeast(1), "a positive number of queries");
/// Factor of the scores that weigh the keys of observed_covariance, 0: 1/sqrt(D).
pub const OBSERVATION_SCALE: Attribute = Attribute { name: "observation_scale", since: 2, ..SCALE };
/// Factor of the scores, 0: 1/sqrt(D).
pub const SCALE: Attribute = Attribute { name: "scale", since: 1, value: Value::Float { default: 0.0 } };
/// Limit of the scores; what is not positive means none, as in GroupQueryAttention.
pub const SOFTCAP: Attribute = Attribute { name: "softcap", since: 1, value: Value::Float { default: 0.0 } };
/// Keys that a query sees, itself included; what is not positive means all.
pub const LOCAL_WINDOW_SIZE: Attribute = int("local_window_size", Some(-1), Range::Any, "an int");
/// Whether a query sees only keys up to its own.
pub const CAUSAL: Attribute = flag("causal", 1);

/// Attributes of both operators.
pub const SHARED_ATTRIBUTES: &[Attribute] = &[
    VERSION,
    NUM_HEADS,
    KV_NUM_HEADS,
    KEPT_CHANNELS,
    KEY_BITS,
    VALUE_BITS,
    KEY_ROW_BYTES,
    VALUE_ROW_BYTES,
    RECOVERY,
    RECENT_WINDOW,
    DO_ROTARY,
    ROTARY_INTERLEAVED,
    ROW_FORMAT,
    TAIL_WINDOW,
    KEY_DIRECTIONS_8,
    KEY_DIRECTIONS_4,
];

/// What to do about a model that this library is too old for.
pub fn update_hint() -> String {
    format!("update spark-ort (libspark_ort.so), this is {}", env!("CARGO_PKG_VERSION"))
}

/// Checks that `version` of the domain, as a model imports it, is one that this library serves.
///
/// # Errors
/// Says which ones are, and what to update.
pub fn check_version(version: i64) -> Result<(), String> {
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    let (first, last) = (VERSIONS.start(), VERSIONS.end());
    Err(format!(
        "version {version} of {DOMAIN} is not one that this library knows ({first} to {last}); {}",
        update_hint()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../docs/operators.md");

    /// Cells of the table rows of the page.
    fn rows() -> Vec<Vec<String>> {
        let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect();
        PAGE.lines().filter(|l| l.starts_with('|')).map(cells).collect()
    }

    #[test]
    fn the_page_lists_inputs_in_this_order() {
        let mut listed = Vec::new();
        for row in rows().iter().filter(|r| r.len() == 4 && r[0].starts_with(|c: char| c.is_ascii_digit())) {
            let names = row[1].split(" (").next().unwrap().split(", ").map(str::to_owned);
            listed.extend(names.map(|name| (name, row[2].clone(), !row[1].contains(" ("))));
        }
        let name = |t: Type| match t {
            Type::T => "T",
            Type::C => "C",
            Type::Int32 => "int32",
            Type::Int64 => "int64",
            Type::Float32 => "float32",
        };
        // What has the same place in both is listed one after the other.
        let (before, behind) = ATTENTION.inputs.split_at(SHARED_INPUTS.len() + 1);
        let all = before.iter().chain([&PRUNE.inputs[SHARED_INPUTS.len()]]).chain(behind);
        let expected: Vec<_> = all.map(|i| (i.name.to_owned(), name(i.element).to_owned(), i.required)).collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn the_page_lists_attributes_with_their_defaults() {
        let all: Vec<_> = PRUNE.attributes().chain(ATTENTION.own_attributes).collect();
        let mut listed = Vec::new();
        for row in rows()
            .iter()
            .filter(|r| r.len() == 3 && ["int, ", "float, ", "string, "].iter().any(|t| r[1].starts_with(t)))
        {
            let (names, default) = (row[0].split(" (").next().unwrap(), row[1].split_once(", ").unwrap().1);
            listed.extend(names.split(", ").map(|name| (name.to_owned(), default.to_owned())));
        }
        let default = |value: Value| match value {
            Value::Int { default, .. } => default.map_or("required".into(), |n| n.to_string()),
            Value::Float { default } => default.to_string(),
            Value::String { default, .. } => format!("{default:?}"),
        };
        let mut expected: Vec<_> = all.iter().map(|a| (a.name.to_owned(), default(a.value))).collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);
        for attribute in all.iter().filter(|a| a.since > 1) {
            let row = rows().into_iter().find(|r| r[0].starts_with(attribute.name)).unwrap();
            assert!(row[2].contains(&format!("since version {}", attribute.since)), "{row:?}");
        }
    }

    /// Tests in Python take the schema from a file. `SPARK_WRITE_SCHEMA=1 cargo test --lib spec` writes it.
    #[cfg(feature = "rewrite")]
    #[test]
    fn the_file_for_tests_in_python_is_this_schema() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/operators/schema.json");
        let operator = |operator: Operator| {
            let mut json = serde_json::to_value(operator).unwrap();
            json["attributes"] = serde_json::to_value(operator.attributes().collect::<Vec<_>>()).unwrap();
            json.as_object_mut().unwrap().shift_remove("own_attributes");
            json
        };
        let (versions, operators) = (VERSIONS.collect::<Vec<_>>(), [PRUNE, ATTENTION].map(operator));
        let schema = serde_json::json!({ "domain": DOMAIN, "versions": versions, "operators": operators });
        let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        if std::env::var_os("SPARK_WRITE_SCHEMA").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == text, "{path} is not the schema: write it anew");
    }

    #[test]
    fn defaults_are_in_range() {
        for attribute in PRUNE.attributes().chain(ATTENTION.own_attributes) {
            match attribute.value {
                Value::Int { default, range, .. } => assert!(default.is_none_or(|d| range.contains(d))),
                Value::Float { default } => assert!(default.is_finite()),
                Value::String { default, one_of } => assert!(one_of.contains(&default)),
            }
            assert!(VERSIONS.contains(&attribute.since));
        }
    }
}

//! Options of a rewrite.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::method::Recovery;
use crate::onnx::Placement;

/// Options of [`rewrite`](fn@crate::rewrite). The defaults are those of `spark-ort rewrite`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Share of key channels that are pruned, at least 0 and below 1: floor(ratio * D) of D.
    pub ratio: f64,
    /// Bits of a kept key channel: 16, 8 or 4.
    pub key_bits: u8,
    /// Bits of a value channel: 16, 8 or 4.
    pub value_bits: u8,
    /// Row format: 1, 2, or 3, which stores keys in a calibrated basis.
    pub row_format: u8,
    /// Bytes of a key row of format 3, a multiple of 4; `None`: half a byte a channel. The share and the bits of kept
    /// channels follow from it.
    pub key_bytes: Option<usize>,
    /// A file of a [`Recipe`](super::Recipe), which states these five and `uniform_rows` for each layer instead.
    pub recipe: Option<PathBuf>,
    /// How pruned channels are restored.
    pub recovery: Recovery,
    /// Number of recent keys also kept dense, 0: none. `None`: 64 in a GenAI folder, whose buffer has room for them,
    /// else none.
    pub recent: Option<usize>,
    /// Where they are kept.
    pub recent_in: RecentIn,
    /// Element type of the cache tensors.
    pub cache_type: CacheType,
    /// Pad key and value rows to one size; always done in a GenAI folder.
    pub uniform_rows: bool,
    /// Prune exactly `ratio`, even where padded key rows have room for more channels.
    pub exact_ratio: bool,
    /// What query_saliency is measured on.
    pub calibrate: Calibration,
    /// Most tokens to calibrate on.
    pub calibration_tokens: usize,
    /// tokenizer.json for calibration text; `None`: the one beside the model.
    pub tokenizer: Option<PathBuf>,
    /// How external data is brought to another folder.
    pub data: Placement,
    /// The operator library that a GenAI folder gets; `None`: the one beside the program.
    pub library: Option<PathBuf>,
    /// An execution provider that a GenAI folder names after those it names already.
    pub provider: Option<String>,
    /// Where the caller writes the report; must not be a file of the model.
    pub report: Option<PathBuf>,
    /// Replace an existing output.
    pub force: bool,
    /// Only check whether and how the model can be rewritten.
    pub dry_run: bool,
    /// Threads for calibration; `None`: ONNX Runtime's choice.
    pub threads: Option<usize>,
    /// The program `spark-ort`, started as `PROGRAM trial MODEL` to run one token through the rewritten model; `None`:
    /// no trial.
    pub trial: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ratio: 0.5,
            key_bits: 8,
            value_bits: 8,
            row_format: 1,
            key_bytes: None,
            recipe: None,
            recovery: Recovery::Mean,
            recent: None,
            recent_in: RecentIn::Auto,
            cache_type: CacheType::Same,
            uniform_rows: false,
            exact_ratio: false,
            calibrate: Calibration::Auto,
            calibration_tokens: 4096,
            tokenizer: None,
            data: Placement::Copy,
            library: None,
            provider: None,
            report: None,
            force: false,
            dry_run: false,
            threads: None,
            trial: None,
        }
    }
}

/// Where recent keys are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum RecentIn {
    /// In the buffer in a GenAI folder, in inputs elsewhere.
    Auto,
    /// In free rows of the buffer that past and present share: no host needs to know.
    Buffer,
    /// In one more input and output of each layer, which the host feeds back.
    Inputs,
}

/// Element type of the cache tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum CacheType {
    /// That of the original model, which existing hosts allocate.
    Same,
    /// Bytes.
    Uint8,
}

/// What query_saliency is measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Calibration {
    /// A bundled text if there is a tokenizer, else random tokens.
    Auto,
    /// This text.
    File(PathBuf),
    /// Random tokens.
    Random,
    /// Nothing: query_saliency is all ones.
    Off,
}

impl std::str::FromStr for Calibration {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Calibration::Auto,
            "random" => Calibration::Random,
            "off" => Calibration::Off,
            file => Calibration::File(file.into()),
        })
    }
}

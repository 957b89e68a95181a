//! Options of `spark-ort tune`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use spark_ort::files;
use spark_ort::rewrite::Recovery;

use crate::counts::tokens;
use crate::eval::setting::Setting;
use crate::temporary::Temporary;
use crate::whole_file;

/// Find ratio and bits of each layer for the least error within a budget of cache bytes, and write them as a recipe
///
/// Layers differ in how much accuracy a smaller cache costs. Each layer is measured by itself with each candidate
/// setting, while all others lose nothing: the KL divergence of next-token predictions after short prompts. The sum
/// over layers is then made least within the budget. At last the whole recipe and the settings that take the same
/// bytes in all layers are measured as `eval` does, on other passages of the text; where one of those is as good, it
/// is written instead. Ctrl-C ends it: a recipe is still written once the first passage is measured, and said to be
/// unverified.
#[derive(clap::Args)]
#[command(after_long_help = "\
Examples:
  A fifth of the original's cache, on a text like those that the model will see:
    spark-ort tune model.onnx --budget 0.2 --text novel.txt --output recipe.json
    spark-ort rewrite model.onnx small.onnx --recipe recipe.json

  An ONNX Runtime GenAI folder, whose rows all have one size: only what they hold differs by layer:
    spark-ort tune llama/ --budget 9000 --text novel.txt --output recipe.json
    spark-ort rewrite llama/ llama-spark/ --recipe recipe.json

  A large model, quickly: four neighbours share a setting, fewer candidates, no verification:
    spark-ort tune model.onnx --budget 25% --text novel.txt --output recipe.json \\
        --group 4 --candidates 0.5/8/8,0.5/8/4,0.5/4/4 --passages 1 --verify 0")]
pub struct Args {
    /// The model with a complete cache: an .onnx file, an ONNX Runtime GenAI folder, or a folder with one .onnx file
    pub(super) original: PathBuf,

    /// Most bytes that a token may add to the cache; or, below 1 or with %, the share of the original's
    #[arg(long, value_name = "BYTES_PER_TOKEN|SHARE")]
    pub(super) budget: Budget,

    /// The text to measure on; the more it resembles what the model will read, the better
    #[arg(long, value_name = "FILE")]
    pub(super) text: PathBuf,

    /// Where the recipe goes: a file, or stdout (-) in place of the text
    #[arg(long, value_name = "FILE.json")]
    pub(super) output: PathBuf,

    /// Replace it if it exists
    #[arg(long)]
    pub(super) force: bool,

    /// Settings that layers may have: share of pruned key channels, bits of keys and of values, and :v2 for row format
    /// 2; or basis and bytes of a key in a calibrated basis, bits of values. 0/16/16, which only rounds to float16, is
    /// one of them where rows may differ in size, and so are, for each pair of bits, the ratio that takes just the
    /// budget in all layers, and, for the bits of values, the basis that does
    #[arg(
        long,
        value_name = "RATIO/BITS/BITS[:v2]|basisBYTES/BITS,...",
        value_delimiter = ',',
        default_value = "0/8/8,0.5/8/8,0.7/8/8,0.5/8/4,0/4/4,0.5/4/4,0.8/4/4"
    )]
    pub(super) candidates: Vec<Setting>,

    /// Try no keys in a calibrated basis. None are tried either where the model or the text to calibrate on allows none
    #[arg(long)]
    pub(super) no_basis: bool,

    /// Keep the last N keys dense as well, as `rewrite --recent N` will [default: 64 in a GenAI folder
    /// whose past and present share a buffer, else 0]
    #[arg(long, value_name = "N", value_parser = tokens)]
    pub(super) recent: Option<usize>,

    /// Rows of one size in all layers, for keys and values: always so for a GenAI folder, whose host allocates all
    /// caches alike
    #[arg(long)]
    pub(super) uniform_rows: bool,

    /// So many neighbouring layers share a setting, which divides the time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) group: usize,

    /// Length of the prompts in tokens
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = tokens)]
    pub(super) context: usize,

    /// Tokens to decode after each prompt, for each layer and candidate
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = tokens)]
    pub(super) decode: usize,

    /// Passages of the text on which layers are measured
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) passages: usize,

    /// Other passages on which the recipe is verified; 0: it is not
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(super) verify: usize,

    /// Tokens to decode after each of their prompts
    #[arg(long, value_name = "N", default_value_t = 96, value_parser = tokens)]
    pub(super) verify_decode: usize,

    #[command(flatten)]
    pub(super) temporary: Temporary,

    /// Also write all that was measured as JSON to a file, or to stdout (-) in place of the text
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
}

/// Most bytes of a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Budget {
    Bytes(usize),
    /// Of the original's bytes.
    Share(f64),
}

impl Budget {
    /// In bytes per token, where the original's are `original`.
    pub(super) fn bytes(self, original: usize) -> usize {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => (share * original as f64).floor() as usize,
        }
    }
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 0.01));
        let value = number.parse::<f64>().ok().filter(|value| *value > 0.0 && value.is_finite());
        match value.map(|value| value * unit) {
            Some(share) if share < 1.0 => Ok(Self::Share(share)),
            Some(bytes) if unit == 1.0 && bytes.fract() == 0.0 => Ok(Self::Bytes(bytes as usize)),
            _ => Err("neither a number of bytes, such as 9000, nor a share below 1, such as 0.2 or 20%".into()),
        }
    }
}

impl Args {
    /// Checks what the types of the options cannot express, before anything is measured.
    pub(super) fn check(&self) -> Result<()> {
        let at_least_one = [
            ("--group", self.group),
            ("--context", self.context),
            ("--decode", self.decode),
            ("--passages", self.passages),
            ("--verify-decode", self.verify_decode),
        ];
        if let Some((option, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            bail!("{option} is 0: at least 1 is needed");
        }
        if let Some(setting) = self.candidates.iter().find(|setting| setting.recent > 0) {
            bail!("--candidates {setting}: recent keys are the same for all layers; --recent says how many");
        }
        if let Some(setting) = self.candidates.iter().find(|setting| setting.recovery != Recovery::Mean) {
            bail!("--candidates {setting}: recipes state no recovery, and the mean is what is measured");
        }
        if whole_file::is_stdout(&self.output) {
            if self.json.as_deref().is_some_and(whole_file::is_stdout) {
                bail!("--output - and --json - cannot both be stdout: name a file for one of them");
            }
        } else if matches!(files::kind(&self.output), Ok(Some(_))) && !self.force {
            bail!("--output {} exists; --force replaces it", self.output.display());
        }
        Ok(())
    }

    /// Checks that nothing is written where something is read, as the files of the model are.
    pub(super) fn check_places(&self, mut read: Vec<PathBuf>) -> Result<()> {
        read.push(self.text.clone());
        read.extend(self.temporary.files());
        whole_file::check_all([("--output", Some(&*self.output)), ("--json", self.json.as_deref())], read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_bytes_or_shares() {
        assert_eq!("9000".parse(), Ok(Budget::Bytes(9000)));
        assert_eq!("0.2".parse(), Ok(Budget::Share(0.2)));
        assert_eq!("20%".parse::<Budget>().unwrap().bytes(1000), 200);
        for text in ["", "0", "-1", "100%", "1.5", "x", "nan", "inf"] {
            assert!(text.parse::<Budget>().unwrap_err().contains("such as 9000"), "{text}");
        }
    }
}

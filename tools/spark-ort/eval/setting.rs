//! Settings of a rewrite, as `--settings` spells them.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, anyhow};
use clap::ValueEnum;
use spark_ort::rewrite::{LayerSetting, MOST_RECENT, Options, Recovery, RewriteError, Rows};

/// `RATIO/KEY_BITS/VALUE_BITS`, or `basisBYTES/VALUE_BITS` for keys of so many bytes in a calibrated basis, `+RECENT`
/// if the last keys are kept dense, and then `:v2` for row format 2, `:` with a recovery.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub rows: LayerSetting,
    pub recent: usize,
    pub recovery: Recovery,
}

impl Setting {
    /// Applies them to the options of a rewrite, which refuses values out of range.
    pub fn apply(&self, options: &mut Options) {
        *options = self.rows.options(options);
        options.recent = Some(self.recent);
        options.recovery = self.recovery;
    }

    /// The rows that it gives, without recent keys, in heads of `head_dim` channels.
    ///
    /// # Errors
    /// There are no such rows; names the `option` of the command line that has the setting.
    pub fn rows(&self, option: &str, head_dim: usize) -> Result<Rows> {
        let mut options = Options::default();
        self.apply(&mut options);
        Rows::new(&options, head_dim).map_err(|error| of_option(option, self, error))
    }
}

/// `error`, found in a setting of the command line's `option`: the options of a rewrite that it may name were not
/// typed.
pub fn of_option(option: &str, setting: impl fmt::Display, error: RewriteError) -> Error {
    match error {
        RewriteError::Option { option: field, problem } => {
            anyhow!("{option} {setting}: {}: {problem}", field.replace('_', " "))
        }
        error => Error::new(error).context(format!("{option} {setting}")),
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut further = text.split(':');
            let numbers = further.next()?;
            let (rows, recent) = numbers.split_once('+').unwrap_or((numbers, "0"));
            let recent = recent.parse().ok()?;
            if let Some(rows) = rows.strip_prefix(BASIS) {
                let (bytes, value_bits) = rows.split_once('/')?;
                let rows = LayerSetting::in_basis(bytes.parse().ok()?, value_bits.parse().ok()?);
                return Some(Self { rows, recent, recovery: Recovery::Mean }).filter(|_| further.next().is_none());
            }
            let [ratio, key_bits, value_bits] = rows.split('/').collect::<Vec<_>>().try_into().ok()?;
            let [key_bits, value_bits] = [key_bits.parse().ok()?, value_bits.parse().ok()?];
            let ratio = ratio.parse().ok()?;
            let rows = LayerSetting { ratio, key_bits, value_bits, row_format: 1, key_bytes: None };
            let mut setting = Self { rows, recent, recovery: Recovery::Mean };
            for word in further {
                match word.strip_prefix('v').and_then(|number| number.parse().ok()) {
                    Some(number @ 1..=2) => setting.rows.row_format = number,
                    Some(_) => return None,
                    None => setting.recovery = Recovery::from_str(word, false).ok()?,
                }
            }
            Some(setting)
        };
        match parse() {
            Some(setting) if setting.recent <= MOST_RECENT => Ok(setting),
            Some(_) => Err(format!("'{text}': {MOST_RECENT} recent keys at most")),
            None => Err(format!(
                "'{text}' is no RATIO/KEY_BITS/VALUE_BITS[+RECENT][:v2][:RECOVERY], such as 0.5/8/8, 0.7/4/4+64 or \
                 0.7/4/4+64:v2:normal, and no basisBYTES/VALUE_BITS[+RECENT], such as basis32/8+64"
            )),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LayerSetting { ratio, key_bits, value_bits, row_format, key_bytes } = self.rows;
        match key_bytes {
            Some(bytes) => write!(f, "{BASIS}{bytes}/{value_bits}")?,
            None => write!(f, "{ratio}/{key_bits}/{value_bits}")?,
        }
        if self.recent > 0 {
            write!(f, "+{}", self.recent)?;
        }
        if row_format != 1 && key_bytes.is_none() {
            write!(f, ":v{row_format}")?;
        }
        match self.recovery.to_possible_value() {
            Some(name) if self.recovery != Recovery::Mean => write!(f, ":{}", name.get_name()),
            _ => Ok(()),
        }
    }
}

/// How a setting in a calibrated basis begins.
const BASIS: &str = "basis";

/// A setting without recent keys, as [`Setting`] spells it.
pub fn name(rows: &LayerSetting) -> String {
    Setting { rows: rows.clone(), recent: 0, recovery: Recovery::Mean }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_by_the_option_that_was_typed() {
        let refused = |text: &str, head_dim| {
            text.parse::<Setting>().unwrap().rows("--settings", head_dim).unwrap_err().to_string()
        };
        let range = "key bytes: 500 is not a multiple of 4 from 8 to 132, as heads of 128 channels need";
        assert_eq!(refused("basis500/8", 128), format!("--settings basis500/8: {range}"));
        assert!(refused("basis32/8+64", 24).starts_with("--settings basis32/8+64: key bytes: 32 is not"));
        assert_eq!(refused("0.5/8/7", 64), "--settings 0.5/8/7: value bits: 7 is not 16, 8 or 4");
        assert_eq!("basis132/8".parse::<Setting>().unwrap().rows("--settings", 128).unwrap().key_row_bytes, 132);
    }

    #[test]
    fn they_are_read_as_they_are_written() {
        for text in [
            "0.5/8/8",
            "0.7/4/4+64",
            "0/16/16",
            "0.7/4/4:v2",
            "0.7/4/4+64:v2:normal",
            "0.5/8/8:none",
            "basis32/8",
            "basis24/4+64",
        ] {
            assert_eq!(text.parse::<Setting>().unwrap().to_string(), text);
        }
        let error = "0.5/8/8+1048577".parse::<Setting>().unwrap_err();
        assert_eq!(error, "'0.5/8/8+1048577': 1048576 recent keys at most");
        let setting: Setting = "0.25/8/4+7".parse().unwrap();
        let rows = LayerSetting { ratio: 0.25, key_bits: 8, value_bits: 4, row_format: 1, key_bytes: None };
        assert_eq!(setting, Setting { rows, recent: 7, recovery: Recovery::Mean });
        for text in [
            "",
            "0.5",
            "0.5/8/8:v3",
            "0.5/8",
            "0.5/8/8/8",
            "a/8/8",
            "0.5/8/8+",
            "0.5/8/999",
            "0.5/8/8-1",
            "0.5/8/8:v",
            "0.5/8/8:mode",
            "basis32",
            "basis/8",
            "basis32/8:v2",
        ] {
            assert!(text.parse::<Setting>().unwrap_err().contains("such as"), "{text}");
        }
    }
}

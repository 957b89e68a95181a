//! Settings of a rewrite, as `--settings` spells them.

use std::fmt;
use std::str::FromStr;

use spark_ort::rewrite::Options;

/// `RATIO/KEY_BITS/VALUE_BITS`, and `+RECENT` if the last keys are kept dense.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub ratio: f64,
    pub key_bits: u8,
    pub value_bits: u8,
    pub recent: usize,
}

impl Setting {
    /// Applies them to the options of a rewrite, which refuses values out of range.
    pub fn apply(&self, options: &mut Options) {
        options.ratio = self.ratio;
        options.key_bits = self.key_bits;
        options.value_bits = self.value_bits;
        options.recent = Some(self.recent);
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rows, recent) = text.split_once('+').unwrap_or((text, "0"));
        let parts: Vec<&str> = rows.split('/').collect();
        let parse = || {
            let [ratio, key_bits, value_bits] = parts[..] else { return None };
            let [key_bits, value_bits] = [key_bits.parse().ok()?, value_bits.parse().ok()?];
            Some(Self { ratio: ratio.parse().ok()?, key_bits, value_bits, recent: recent.parse().ok()? })
        };
        parse()
            .ok_or_else(|| format!("'{text}' is no RATIO/KEY_BITS/VALUE_BITS[+RECENT], such as 0.5/8/8 or 0.7/4/4+64"))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.ratio, self.key_bits, self.value_bits)?;
        if self.recent > 0 { write!(f, "+{}", self.recent) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_as_they_are_written() {
        for text in ["0.5/8/8", "0.7/4/4+64", "0/16/16"] {
            assert_eq!(text.parse::<Setting>().unwrap().to_string(), text);
        }
        let setting: Setting = "0.25/8/4+7".parse().unwrap();
        assert_eq!(setting, Setting { ratio: 0.25, key_bits: 8, value_bits: 4, recent: 7 });
        for text in ["", "0.5", "0.5/8", "0.5/8/8/8", "a/8/8", "0.5/8/8+", "0.5/8/999", "0.5/8/8-1"] {
            assert!(text.parse::<Setting>().unwrap_err().contains("such as"), "{text}");
        }
    }
}

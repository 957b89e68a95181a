//! Recipes: files that say how the rows of each layer are stored.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::RewriteError;
use super::options::Options;
use super::recipe_entry::Entry;
use crate::files;

/// The version of the files that this crate writes and reads.
const VERSION: u64 = 1;

/// The row format of keys in a calibrated basis.
const BASIS_FORMAT: u8 = 3;

/// How a layer's rows are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSetting {
    /// As [`Options::ratio`].
    pub ratio: f64,
    /// As [`Options::key_bits`].
    pub key_bits: u8,
    /// As [`Options::value_bits`].
    pub value_bits: u8,
    /// As [`Options::row_format`].
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub row_format: u8,
    /// As [`Options::key_bytes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_bytes: Option<usize>,
}

fn one() -> u8 {
    1
}

fn is_one(number: &u8) -> bool {
    *number == 1
}

impl LayerSetting {
    /// The setting that `options` state for all layers.
    pub fn of(options: &Options) -> Self {
        let &Options { ratio, key_bits, value_bits, row_format, key_bytes, .. } = options;
        Self { ratio, key_bits, value_bits, row_format, key_bytes }
    }

    /// `others` with this setting for all layers.
    pub fn options(&self, others: &Options) -> Options {
        let &Self { ratio, key_bits, value_bits, row_format, key_bytes } = self;
        Options { ratio, key_bits, value_bits, row_format, key_bytes, ..others.clone() }
    }

    /// Refuses fields that say something else than the rows that would be written: keys in a basis have no share of
    /// pruned channels, and their bits follow from `key_bytes`.
    fn check(&self) -> Result<(), String> {
        let &Self { ratio, key_bits, value_bits, row_format, key_bytes } = self;
        if row_format != BASIS_FORMAT {
            return Ok(());
        }
        let Some(key_bytes) = key_bytes else {
            return Err(format!("missing field `key_bytes`, the size of a key row of row_format {BASIS_FORMAT}"));
        };
        let written = Self::in_basis(key_bytes, value_bits);
        let but = format!("but row_format {BASIS_FORMAT}");
        if ratio != written.ratio {
            return Err(format!("ratio: {ratio}, {but} prunes no channels of keys: it is to be {}", written.ratio));
        }
        if key_bits != written.key_bits {
            let expected = written.key_bits;
            return Err(format!(
                "key_bits: {key_bits}, {but} has the bits that key_bytes have room for: it is to be {expected}"
            ));
        }
        Ok(())
    }

    /// Keys of `key_bytes` bytes in a calibrated basis, as [`Rows`](super::Rows) state them.
    pub fn in_basis(key_bytes: usize, value_bits: u8) -> Self {
        Self { ratio: 0.0, key_bits: 8, value_bits, row_format: BASIS_FORMAT, key_bytes: Some(key_bytes) }
    }

    /// Whether keys lose more than a rounding to float16.
    pub(super) fn loses_of_keys(&self) -> bool {
        self.ratio > 0.0 || self.key_bits < 16
    }
}

/// The model that a recipe was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeModel {
    /// Number of layers.
    pub layers: usize,
    /// D
    pub head_dim: usize,
    /// Hk of the first layer.
    pub kv_heads: usize,
}

/// How the rows of each layer are stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Where it comes from, for people.
    pub about: String,
    /// The model that it was made for, if it is for one only.
    pub model: Option<RecipeModel>,
    /// As [`Options::uniform_rows`]: all rows of all layers have one size, which a GenAI folder needs.
    pub uniform_rows: bool,
    /// In the order of the layers' cache inputs.
    pub layers: Vec<LayerSetting>,
}

/// The file, but for its layers: those are read one by one, so that an error can name the layer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    spark_recipe: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    about: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<RecipeModel>,
    #[serde(default)]
    uniform_rows: bool,
    layers: Vec<Entry>,
}

impl Recipe {
    /// Reads the recipe in the file `path`.
    ///
    /// # Errors
    /// It cannot be read, or is no recipe of this version: names the layer and the field.
    pub fn read(path: &Path) -> Result<Self, RewriteError> {
        let problem = |problem: String| RewriteError::option("recipe", format!("{}: {problem}", path.display()));
        let text = files::read_text(path, files::MOST_JSON).map_err(|e| problem(e.to_string()))?;
        Self::parse(&text).map_err(problem)
    }

    /// As [`Self::read`], from JSON.
    fn parse(text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
        match &json["spark_recipe"] {
            Value::Null => return Err("is no recipe: it has no field spark_recipe".into()),
            version if *version == VERSION => {}
            other => {
                return Err(format!("spark_recipe is {other}: this version of spark-ort reads recipes of {VERSION}"));
            }
        }
        let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let mut layers = Vec::new();
        for (place, mut entry) in file.layers.into_iter().enumerate() {
            if let Some(field) = entry.twice {
                return Err(format!("layer {place}: the field {field} is there twice; leave one out"));
            }
            match entry.fields.shift_remove("layer") {
                Some(number) if number == place => {}
                Some(number) => {
                    return Err(format!(
                        "layers: layer {place} is missing: its place has layer {number}; all layers are listed, from \
                         0 on, in this order"
                    ));
                }
                None => return Err(format!("layers: entry {place} has no field layer, its number")),
            }
            let setting = LayerSetting::deserialize(Value::Object(entry.fields)).map_err(|e| e.to_string());
            let setting = setting.and_then(|setting: LayerSetting| setting.check().map(|()| setting));
            layers.push(setting.map_err(|problem| format!("layer {place}: {problem}"))?);
        }
        let File { about, model, uniform_rows, .. } = file;
        Ok(Self { about, model, uniform_rows, layers })
    }

    /// The file's text: JSON with a line for each layer.
    pub fn to_json(&self) -> String {
        let lines = self.layers.iter().enumerate().map(|(layer, setting)| {
            let setting = serde_json::to_string(setting).expect("plain numbers");
            format!("    {{\"layer\":{layer},{}", &setting[1..])
        });
        let lines = lines.collect::<Vec<_>>().join(",\n").replace("\":", "\": ").replace(",\"", ", \"");
        let Self { about, model, uniform_rows, .. } = self.clone();
        let file = File { spark_recipe: VERSION, about, model, uniform_rows, layers: Vec::new() };
        let text = serde_json::to_string_pretty(&file).expect("plain numbers and words");
        // The layers come last.
        let head = text.strip_suffix("[]\n}").unwrap_or(&text);
        format!("{head}[\n{lines}\n  ]\n}}\n")
    }

    /// Refuses another model than the one that the recipe was made for.
    pub(super) fn check(&self, model: &RecipeModel) -> Result<(), String> {
        if self.layers.len() != model.layers {
            let [given, wanted] = [self.layers.len(), model.layers];
            return Err(format!("it is for {given} layers, the model has {wanted}"));
        }
        match &self.model {
            Some(made_for) if made_for != model => {
                let words = |m: &RecipeModel| {
                    format!("{} layers of {} KV heads of {} channels", m.layers, m.kv_heads, m.head_dim)
                };
                Err(format!("it is for a model with {}, this one has {}", words(made_for), words(model)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let setting = |ratio, key_bits, row_format| LayerSetting {
            ratio,
            key_bits,
            value_bits: 8,
            row_format,
            key_bytes: (row_format == 3).then_some(24),
        };
        Recipe {
            about: "a \"test\": of words, too".into(),
            model: Some(RecipeModel { layers: 3, head_dim: 64, kv_heads: 3 }),
            uniform_rows: true,
            layers: vec![setting(0.5, 8, 1), setting(0.25, 4, 2), setting(0.0, 8, 3)],
        }
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let text = recipe().to_json();
        assert!(text.contains("{\"layer\": 0, \"ratio\": 0.5, \"key_bits\": 8, \"value_bits\": 8},\n"), "{text}");
        assert_eq!(Recipe::parse(&text).unwrap(), recipe());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let text = recipe().to_json();
        let cases = [
            ("\"spark_recipe\": 1", "\"spark_recipe\": 2", "spark_recipe is 2: this version"),
            ("\"spark_recipe\": 1", "\"other\": 1", "no field spark_recipe"),
            ("\"uniform_rows\"", "\"uniform\"", "unknown field `uniform`"),
            ("\"layer\": 1", "\"layer\": 2", "layer 1 is missing: its place has layer 2"),
            ("\"layer\": 1,", "", "entry 1 has no field layer"),
            ("\"ratio\": 0.25", "\"ration\": 0.25", "layer 1: unknown field `ration`"),
            ("\"ratio\": 0.25,", "", "layer 1: missing field `ratio`"),
            ("\"key_bits\": 4", "\"key_bits\": 400", "layer 1: invalid value"),
            ("\"key_bits\": 4", "\"key_bits\": 4, \"key_bits\": 8", "layer 1: the field key_bits is there twice"),
            ("\"layer\": 1", "\"layer\": 0, \"layer\": 1", "layer 1: the field layer is there twice"),
            ("\"layers\": [", "\"layers\": [], \"layers\": [", "duplicate field `layers`"),
            ("\"layers\": [", "\"layers\": [5, ", "expected an object with the fields of a layer"),
            ("]", "", "is not JSON"),
        ];
        for (old, new, message) in cases {
            assert!(text.contains(old), "{old}");
            let error = Recipe::parse(&text.replace(old, new)).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn what_a_basis_does_not_have_is_refused() {
        let basis = LayerSetting::in_basis(24, 4);
        let parsed = |setting: &LayerSetting| {
            let layers = vec![LayerSetting::in_basis(32, 8), setting.clone()];
            Recipe::parse(&Recipe { layers, ..recipe() }.to_json())
        };
        assert_eq!(parsed(&basis).unwrap().layers[1], basis);
        let cases = [
            (LayerSetting { ratio: 0.5, ..basis.clone() }, "layer 1: ratio: 0.5, but row_format 3 prunes no channels"),
            (LayerSetting { key_bits: 4, ..basis.clone() }, "layer 1: key_bits: 4, but row_format 3 has the bits that"),
            (LayerSetting { key_bits: 5, ..basis.clone() }, "it is to be 8"),
            (LayerSetting { key_bytes: None, ..basis.clone() }, "layer 1: missing field `key_bytes`, the size"),
        ];
        for (setting, message) in cases {
            let error = parsed(&setting).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}

//! Settings from the files beside a model.

use std::path::Path;

use serde_json::Value;

use super::error::Error;
use crate::files;

/// What the files in a model's folder state. The first file with a value counts: `genai_config.json`,
/// `generation_config.json`, `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FolderSettings {
    /// Tokens that end a text; empty if no file names any.
    pub end_of_sequence: Vec<i64>,
    /// Context length of the model, if a file states it.
    pub context_length: Option<usize>,
}

/// A file, and the fields with the end of sequence and the context length.
const SOURCES: [(&str, &str, &str); 3] = [
    ("genai_config.json", "/model/eos_token_id", "/model/context_length"),
    ("generation_config.json", "/eos_token_id", ""),
    ("config.json", "/eos_token_id", "/max_position_embeddings"),
];

impl FolderSettings {
    /// Reads the files in the folder of a model; missing files are skipped.
    ///
    /// # Errors
    /// If one cannot be read or is malformed.
    pub fn beside(model: &Path) -> Result<Self, Error> {
        let mut settings = Self::default();
        for (name, end, context) in SOURCES {
            let path = model.with_file_name(name);
            let Some(json) = read_json(&path)? else { continue };
            let found = |pointer: &str| json.pointer(pointer).filter(|value| !value.is_null() && !pointer.is_empty());
            let malformed = |pointer: &str, what: &str| Error::Malformed {
                path: path.clone(),
                problem: format!("{pointer}: {what}"),
            };
            if let Some(value) = found(end).filter(|_| settings.end_of_sequence.is_empty()) {
                let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
                let ids: Option<Vec<i64>> = ids.iter().map(Value::as_i64).collect();
                settings.end_of_sequence = ids.ok_or_else(|| malformed(end, "neither a token nor a list of them"))?;
            }
            if let Some(value) = found(context).filter(|_| settings.context_length.is_none()) {
                let length = value.as_u64().ok_or_else(|| malformed(context, "not a number of tokens"))?;
                settings.context_length = Some(length as usize);
            }
        }
        Ok(settings)
    }
}

/// The contents of a JSON file; None if there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>, Error> {
    let text = match files::read(path, files::MOST_JSON) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: path.into(), source }),
    };
    let malformed = |e: serde_json::Error| Error::Malformed { path: path.into(), problem: e.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(files: &[(&str, &str)]) -> Result<FolderSettings, Error> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        FolderSettings::beside(&folder.path().join("model.onnx"))
    }

    #[test]
    fn the_first_file_that_says_something_wins() {
        let genai = ("genai_config.json", r#"{"model": {"eos_token_id": [1, 2], "context_length": 100}}"#);
        let generation = ("generation_config.json", r#"{"eos_token_id": 3}"#);
        let config = ("config.json", r#"{"eos_token_id": 4, "max_position_embeddings": 200}"#);
        let of = |ids: &[i64], length| FolderSettings { end_of_sequence: ids.into(), context_length: length };
        assert_eq!(settings(&[]).unwrap(), of(&[], None));
        assert_eq!(settings(&[genai, generation, config]).unwrap(), of(&[1, 2], Some(100)));
        assert_eq!(settings(&[generation, config]).unwrap(), of(&[3], Some(200)));
        assert_eq!(settings(&[config]).unwrap(), of(&[4], Some(200)));
        assert_eq!(
            settings(&[("generation_config.json", r#"{"eos_token_id": null}"#), config]).unwrap().end_of_sequence,
            [4]
        );
    }

    #[test]
    fn malformed_files_are_named() {
        for text in ["{", r#"{"eos_token_id": "</s>"}"#, r#"{"eos_token_id": [1, null]}"#] {
            let error = settings(&[("config.json", text)]).unwrap_err().to_string();
            assert!(error.contains("config.json is malformed: "), "{error}");
        }
    }
}

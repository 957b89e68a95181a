//! The files of a model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use spark_ort::rewrite::{BESIDE, Inspection, RewriteError, inspect_whole};
use spark_ort::runtime::Interface;
use spark_ort::{files, onnx};

/// A model from a command line.
pub struct ModelSource {
    /// The .onnx file.
    pub file: PathBuf,
    pub interface: Interface,
}

impl ModelSource {
    /// Finds and inspects an .onnx file, a GenAI folder or a folder with one .onnx file.
    pub fn find(path: &Path) -> Result<Self> {
        let file = model_file(path)?;
        let interface = inspected(&file)?.interface;
        Ok(Self { file, interface })
    }
}

/// What the .onnx `file` is like, which is to be run.
///
/// # Errors
/// It cannot be read or driven, or its external data is missing or cut short.
pub fn inspected(file: &Path) -> Result<Inspection> {
    inspect_whole(file).map_err(|error| match error {
        // It names the file, which may be another one.
        RewriteError::File(error) => error.into(),
        other => anyhow::Error::new(other).context(format!("{} is not understood", file.display())),
    })
}

/// The files of the models in these .onnx files, with those of their folders that programs read beside them.
pub fn model_files<'a>(models: impl IntoIterator<Item = &'a PathBuf>) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in models {
        let data = onnx::data_locations(&onnx::read(file)?);
        files.push(file.clone());
        files.extend(data.into_iter().chain(BESIDE.map(PathBuf::from)).map(|name| file.with_file_name(name)));
    }
    Ok(files)
}

/// The .onnx file for a path: the file itself, that of a GenAI folder, or the only one in a folder.
pub fn model_file(path: &Path) -> Result<PathBuf> {
    match seen(path, files::kind)? {
        Some(kind) if kind.is_file() => return Ok(path.into()),
        Some(kind) if kind.is_dir() => {}
        Some(_) => bail!("{} is a pipe or a device, not a model's file or folder", path.display()),
        None => bail!("there is no model {}", path.display()),
    }
    let config = path.join("genai_config.json");
    if seen(&config, files::is_file)? {
        let text =
            files::read(&config, files::MOST_JSON).with_context(|| format!("cannot read {}", config.display()))?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).with_context(|| format!("{} is malformed", config.display()))?;
        let name = json.pointer("/model/decoder/filename").and_then(|name| name.as_str());
        let file = path.join(name.with_context(|| format!("{} names no model.decoder.filename", config.display()))?);
        if !seen(&file, files::is_file)? {
            bail!("there is no {}, which {} names", file.display(), config.display());
        }
        return Ok(file);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let files = entries.flatten().map(|entry| entry.path());
    let mut models: Vec<PathBuf> = files.filter(|file| file.extension().is_some_and(|e| e == "onnx")).collect();
    models.sort();
    match models.as_slice() {
        [model] => Ok(model.clone()),
        [] => bail!("the folder {} holds neither a genai_config.json nor an .onnx file", path.display()),
        many => {
            let names: Vec<_> = many.iter().filter_map(|file| file.file_name()).map(|n| n.to_string_lossy()).collect();
            bail!("the folder {} holds several models, name one of them: {}", path.display(), names.join(", "))
        }
    }
}

/// What `look` says of `path`.
fn seen<T>(path: &Path, look: impl FnOnce(&Path) -> std::io::Result<T>) -> Result<T> {
    look(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_not_said_to_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        let error = |path: &Path| format!("{:#}", model_file(path).unwrap_err());
        assert!(error(&circle).contains("cannot read") && error(&circle).contains("symbolic links"));
        assert!(error(&folder.path().join("none")).starts_with("there is no model"));
        std::os::unix::fs::symlink("genai_config.json", folder.path().join("genai_config.json")).unwrap();
        assert!(error(folder.path()).contains("genai_config.json: Too many levels"));
    }
}

//! The files of a model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use spark_ort::rewrite::LIBRARY;
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
        let inspection = spark_ort::rewrite::inspect(&file);
        let interface = inspection.with_context(|| format!("{} is not understood", file.display()))?.interface;
        Ok(Self { file, interface })
    }
}

/// The files of the models in these .onnx files, with those of their folders that programs read beside them.
pub fn model_files<'a>(models: impl IntoIterator<Item = &'a PathBuf>) -> Result<Vec<PathBuf>> {
    const BESIDE: [&str; 12] = [
        "genai_config.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        LIBRARY,
    ];
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
    if path.is_file() {
        return Ok(path.into());
    }
    if !path.is_dir() {
        bail!(match path.exists() {
            true => format!("{} is a pipe or a device, not a model's file or folder", path.display()),
            false => format!("there is no model {}", path.display()),
        });
    }
    let config = path.join("genai_config.json");
    if config.is_file() {
        let text =
            files::read(&config, files::MOST_JSON).with_context(|| format!("cannot read {}", config.display()))?;
        let json: serde_json::Value =
            serde_json::from_slice(&text).with_context(|| format!("{} is malformed", config.display()))?;
        let name = json.pointer("/model/decoder/filename").and_then(|name| name.as_str());
        let file = path.join(name.with_context(|| format!("{} names no model.decoder.filename", config.display()))?);
        if !file.is_file() {
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

//! The models of a comparison.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use spark_ort::onnx::Placement;
use spark_ort::rewrite::{Inspection, Options, Progress, RecentIn};
use tempfile::TempDir;

use super::setting::Setting;
use crate::interrupt::Interrupt;
use crate::model_files::{inspected, model_file};
use crate::progress::Steps;
use crate::temporary::Temporary;

/// A model, ready to be opened.
pub struct Candidate {
    pub name: String,
    pub kind: Kind,
    /// The .onnx file.
    pub file: PathBuf,
    pub inspection: Inspection,
    /// Its temporary folder, if it has one.
    _folder: Option<TempDir>,
}

/// What a row of figures was measured on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The model that the others are compared with.
    Original,
    /// A model with SparK's operators.
    Rewritten,
    /// The original with ONNX Runtime's own quantised cache.
    #[serde(rename = "onnxruntime")]
    OnnxRuntime,
    /// The original, whose cache is rewritten between calls: bytes are counted, not saved.
    #[serde(rename = "dense simulation")]
    Simulated,
}

impl Candidate {
    /// A model from the command line.
    pub fn given(path: &Path, kind: Kind) -> Result<Self> {
        let file = model_file(path)?;
        let inspection = inspected(&file)?;
        let name = match kind {
            Kind::Original => "original".into(),
            _ => path.display().to_string(),
        };
        Ok(Self { name, kind, file, inspection, _folder: None })
    }

    /// A rewritten model in a folder that someone else removes.
    pub fn rewritten(name: String, file: PathBuf, inspection: Inspection) -> Self {
        Self { name, kind: Kind::Rewritten, file, inspection, _folder: None }
    }

    /// A model in a temporary folder, which is removed with it.
    pub fn temporary(name: String, kind: Kind, file: PathBuf, inspection: Inspection, folder: TempDir) -> Self {
        Self { name, kind, file, inspection, _folder: Some(folder) }
    }
}

/// Rewrites an original for a measurement only.
pub struct Rewriter<'a> {
    pub original: &'a Path,
    /// Whether past and present will be one buffer, with recent keys in its free rows.
    pub in_buffer: bool,
    pub temporary: &'a Temporary,
    pub interrupt: &'a Interrupt,
}

impl Rewriter<'_> {
    /// The original rewritten with these settings, in a temporary folder: with the rows of a GenAI folder if the
    /// original is one, else those of a file.
    pub fn rewrite(&self, setting: &Setting) -> Result<Candidate> {
        let mut options = Options {
            recent_in: if self.in_buffer { RecentIn::Buffer } else { RecentIn::Inputs },
            data: Placement::Link,
            // Rewriting the folder itself would also copy its tokenizer and the operator library, which this program
            // contains.
            uniform_rows: self.original.join("genai_config.json").is_file(),
            ..self.temporary.options()
        };
        setting.apply(&mut options);
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let (source, file) = (model_file(self.original)?, folder.path().join("model.onnx"));
        let mut shown = Shown::new(self.interrupt);
        let report = spark_ort::rewrite(&source, &file, &options, &mut shown);
        let inspection = report.with_context(|| format!("the setting {setting}"))?.model;
        Ok(Candidate::temporary(setting.to_string(), Kind::Rewritten, file, inspection, folder))
    }
}

/// The progress of a rewrite, which Ctrl-C cancels.
pub struct Shown<'a> {
    steps: Steps,
    interrupt: &'a Interrupt,
}

impl<'a> Shown<'a> {
    pub fn new(interrupt: &'a Interrupt) -> Self {
        Self { steps: Steps::default(), interrupt }
    }
}

impl Progress for Shown<'_> {
    fn step(&mut self, what: &str, done: usize, total: usize) {
        self.steps.show(what, done, total);
    }

    fn cancelled(&self) -> bool {
        self.interrupt.is_set()
    }
}

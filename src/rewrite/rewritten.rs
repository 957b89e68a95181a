//! A model with the operators in place of its attention, and its calibration.

use std::path::Path;

use super::apply::Names;
use super::calibrate;
use super::configure::{Saliency, Version, configure};
use super::error::RewriteError;
use super::inspect::Inspection;
use super::layer::Layer;
use super::options::{Calibration, Options};
use super::progress::Progress;
use super::rows::Rows;
use crate::onnx::proto::ModelProto;
use crate::onnx::{self, FileError};

/// A model with the operators in place of its attention.
pub struct Rewritten {
    pub model: ModelProto,
    pub layers: Vec<Layer>,
    pub names: Vec<Names>,
    /// Of each layer.
    pub rows: Vec<Rows>,
}

impl Rewritten {
    /// Measures query saliency with a copy of the model at `copy`, which is removed again. If calibration was not
    /// requested, a failure becomes a warning.
    pub fn calibrate(
        &mut self,
        copy: &Path,
        tokens: (calibrate::Tokens, Option<usize>),
        options: &Options,
        progress: &mut dyn Progress,
    ) -> Result<(Option<Saliency>, Option<String>), RewriteError> {
        let lossless = self.rows.iter().map(Rows::lossless).collect::<Result<Vec<_>, _>>()?;
        let observe = Version { rows: &lossless, static_rows: false, saliency: None, observe: Some(calibrate::CHUNK) };
        configure(&mut self.model, &self.layers, &self.names, &observe);
        onnx::write(&self.model, copy)?;
        let inspection = Inspection::new(&self.model)?;
        let measured = calibrate::measure(copy, &inspection, &self.names, tokens, options, progress);
        std::fs::remove_file(copy).map_err(FileError::io(copy))?;
        match measured {
            Err(RewriteError::Calibration(problem))
                if options.calibrate == Calibration::Auto && crate::runtime::is_loaded() =>
            {
                Ok((None, Some(problem)))
            }
            measured => Ok((Some(measured?), None)),
        }
    }
}

/// The version of the operators that the `rows` of all layers need.
pub fn operator_version(rows: &[Rows]) -> i64 {
    rows.iter().map(Rows::operator_version).max().unwrap_or(1)
}

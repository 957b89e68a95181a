//! A model with the operators in place of its attention, and its calibration.

use std::path::Path;

use super::apply::Names;
use super::basis::Basis;
use super::calibrate;
use super::configure::{Observe, Saliency, Version, configure};
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
    /// Measures query saliency with a copy of the model at `copy`, which is removed again, and finds bases where rows
    /// are in one, or of `all_bases`. If calibration was not requested, a failure becomes a warning.
    pub fn calibrate(
        &mut self,
        copy: &Path,
        tokens: (calibrate::Tokens, Option<usize>),
        all_bases: bool,
        options: &Options,
        progress: &mut dyn Progress,
    ) -> Result<(Option<Saliency>, Option<String>), RewriteError> {
        let lossless = self.rows.iter().map(Rows::lossless).collect::<Result<Vec<_>, _>>()?;
        let covariance = all_bases || self.rows.iter().any(Rows::have_basis);
        let observe = Some(Observe { window: calibrate::CHUNK, covariance });
        let observe = Version { rows: &lossless, static_rows: false, saliency: None, observe };
        configure(&mut self.model, &self.layers, &self.names, &observe);
        onnx::write(&self.model, copy)?;
        let inspection = Inspection::new(&self.model)?;
        let measured = calibrate::measure(copy, &inspection, &self.names, covariance, tokens, options, progress);
        std::fs::remove_file(copy).map_err(FileError::io(copy))?;
        match measured {
            Err(RewriteError::Calibration(problem))
                if options.calibrate == Calibration::Auto && !covariance && crate::runtime::is_loaded() =>
            {
                Ok((None, Some(problem)))
            }
            measured => Ok((Some(self.use_measured(measured?, all_bases)), None)),
        }
    }

    /// Finds the bases of layers whose keys are in one, and their planes; or `all_bases`.
    fn use_measured(&mut self, measured: calibrate::Measured, all_bases: bool) -> Saliency {
        let calibrate::Measured { on, saliency, covariance } = measured;
        let mut bases = vec![None; self.rows.len()];
        for ((rows, covariance), basis) in self.rows.iter_mut().zip(&covariance).zip(&mut bases) {
            if all_bases || rows.have_basis() {
                let found = basis.insert(Basis::new(covariance, rows.head_dim));
                *rows = rows.clone().with_planes(&found.costs);
            }
        }
        Saliency { measured_on: on, layers: saliency, bases }
    }
}

/// The version of the operators that the `rows` of all layers need.
pub fn operator_version(rows: &[Rows]) -> i64 {
    rows.iter().map(Rows::operator_version).max().unwrap_or(1)
}

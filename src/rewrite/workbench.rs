//! A rewritten model whose settings change again and again, for measurements.

use std::path::{Path, PathBuf};

use super::apply;
use super::basis::Basis;
use super::build::{Attribute, set_attribute};
use super::calibrate;
use super::configure::{OBSERVED, Observe, Saliency, Version, configure};
use super::error::RewriteError;
use super::find::find_layers;
use super::inspect::Inspection;
use super::layer_rows::{self, cache_order, layer_rows, rows_by_layer};
use super::options::{CacheType, Options};
use super::progress::Progress;
use super::publish::parent;
use super::recipe::LayerSetting;
use super::rewritten::Rewritten;
use super::rows::Rows;
use crate::onnx::proto::GraphProto;
use crate::onnx::{self, NodeExt, Placement};
use crate::spec;

/// A rewritten and calibrated model in a folder for temporary files, which is written with other settings as often as
/// is needed. Recent keys are inputs.
pub struct Workbench {
    rewritten: Rewritten,
    /// The number of each of the layers.
    numbers: Vec<usize>,
    saliency: Option<Saliency>,
    /// Why there are no bases, where they were wanted and there are none.
    no_bases: Option<String>,
    options: Options,
    folder: PathBuf,
}

/// A model whose rows lose nothing but a rounding to float16, and what is needed to know what others would hold. Layers
/// are in the order of their cache inputs.
#[derive(Debug)]
pub struct Lossless {
    /// The .onnx file. Its cache is of bytes.
    pub file: PathBuf,
    /// What it is like.
    pub inspection: Inspection,
    /// The rows of all its layers.
    pub rows: Rows,
    /// query_saliency of each layer, `[Hk * D]`; ones where it is not calibrated.
    pub query_saliency: Vec<Vec<f32>>,
    /// The basis of each layer, where bases were found.
    pub bases: Vec<Option<Basis>>,
    /// The output of each layer that has observed_saliency of a call, `[1,Hk,D]`.
    pub observed_saliency: Vec<String>,
}

/// Whether a basis of every layer's keys is to be calibrated too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bases {
    /// No.
    None,
    /// If the model, and what it is calibrated on, allow it.
    IfPossible,
    /// Nothing can be done without.
    Needed,
}

/// The attribute of MatMulNBits that says what activations are rounded to: 1 is float32, the largest, 4, int8.
const LEVEL: &str = "accuracy_level";

/// Makes weights of few bits be multiplied in float32; returns the nodes that did not, with their level.
fn compute_in_float(graph: &mut GraphProto) -> Vec<(usize, i64)> {
    let mut before = Vec::new();
    for (place, node) in graph.node.iter_mut().enumerate().filter(|(_, n)| n.is("com.microsoft", "MatMulNBits")) {
        if let Some(level) = node.int(LEVEL).filter(|level| *level > 1) {
            set_attribute(node, LEVEL, Attribute::Int(1));
            before.push((place, level));
        }
    }
    before
}

impl Workbench {
    /// Rewrites the .onnx file `input` with `options`, and calibrates it, also the basis of every layer's keys if
    /// `bases` are wanted. Files go to `folder`, an empty one.
    ///
    /// # Errors
    /// As of [`rewrite`](fn@super::rewrite); also where calibration was not asked for and fails, and, before it, where
    /// bases are needed and cannot be.
    pub fn new(
        input: &Path,
        folder: &Path,
        options: &Options,
        bases: Bases,
        progress: &mut dyn Progress,
    ) -> Result<Self, RewriteError> {
        let mut model = onnx::read(input)?;
        let data = onnx::data_files(&model, input)?;
        super::prepare(&mut model)?;
        let layers = find_layers(&model)?;
        let numbers = layer_rows::numbers(&model, &layers);
        let (rows, recent) = layer_rows(options, &model, &layers, false)?;
        let tokens = calibrate::tokens(input, options, (&layers, &rows))?;
        let no_bases = match calibrate::can_find_basis(&layers, &layers[0], tokens.as_ref()) {
            Err(problem) if bases == Bases::Needed => return Err(RewriteError::option("basis", problem.to_string())),
            Err(problem) if bases == Bases::IfPossible => Some(problem.to_string()),
            _ => None,
        };
        let find_bases = bases != Bases::None && no_bases.is_none();
        let positions = calibrate::positions(&model, &layers);
        let names = apply::apply(&mut model, &layers, recent, *spec::VERSIONS.end())?;
        let mut rewritten = Rewritten { model, layers, names, rows };
        data.iter().try_for_each(|file| file.place(&parent(input), folder, Placement::Link))?;
        let saliency = match tokens {
            Some(tokens) => {
                let copy = folder.join("calibration.onnx");
                let (saliency, problem) =
                    rewritten.calibrate(&copy, (tokens, positions), find_bases, options, progress)?;
                problem.map_or(Ok(()), |problem| Err(RewriteError::Calibration(problem)))?;
                saliency
            }
            None => None,
        };
        let (options, folder) = (options.clone(), folder.to_path_buf());
        Ok(Self { rewritten, numbers, saliency, no_bases, options, folder })
    }

    /// D
    pub fn head_dim(&self) -> usize {
        self.rewritten.rows[0].head_dim
    }

    /// Whether keys may be in a basis.
    pub fn has_bases(&self) -> bool {
        self.bases().is_some_and(|bases| bases.iter().all(Option::is_some))
    }

    /// Why keys cannot be in a basis, where that was wanted.
    pub fn no_bases(&self) -> Option<&str> {
        self.no_bases.as_deref()
    }

    fn bases(&self) -> Option<&[Option<Basis>]> {
        self.saliency.as_ref().map(|saliency| &saliency.bases[..])
    }

    /// Writes the model as the file `name`, without loss. Weights of few bits are multiplied in float32 there: with
    /// activations that are rounded to int8, predictions change by a few thousandths of a nat whatever changes in a
    /// layer, and more than by what is to be measured.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn lossless(&mut self, name: &str) -> Result<Lossless, RewriteError> {
        let Rewritten { layers, names, rows, .. } = &self.rewritten;
        let lossless = Rows { cache_type: CacheType::Uint8, row_format: 1, ..rows[0].clone() }.lossless()?;
        let all_ones = |layer: usize| vec![1.0; layers[layer].kv_heads * layers[layer].head_dim];
        let saliency =
            |layer: usize| self.saliency.as_ref().map_or_else(|| all_ones(layer), |s| s.layers[layer].clone());
        let order = cache_order(&self.rewritten.model, layers);
        let bases = order.iter().map(|&layer| self.bases().and_then(|bases| bases[layer].clone())).collect();
        let query_saliency = order.iter().map(|&layer| saliency(layer)).collect();
        let observed_saliency = order.iter().map(|&layer| names[layer].observed_saliency.clone()).collect();
        let rows = vec![lossless.clone(); layers.len()];
        let graph = self.rewritten.model.graph.mut_or_insert_default();
        let before = compute_in_float(graph);
        let written = self.write_rows(name, &rows, Some(Observe { window: OBSERVED, covariance: false }));
        let graph = self.rewritten.model.graph.mut_or_insert_default();
        before.into_iter().for_each(|(node, level)| set_attribute(&mut graph.node[node], LEVEL, Attribute::Int(level)));
        let (file, inspection) = written?;
        Ok(Lossless { file, inspection, rows: lossless, query_saliency, bases, observed_saliency })
    }

    /// Writes the model as the file `name` with a setting for each layer, in the order of their cache inputs.
    ///
    /// # Errors
    /// A setting cannot be, or the file system refuses.
    pub fn write(&mut self, name: &str, settings: &[LayerSetting]) -> Result<(PathBuf, Inspection), RewriteError> {
        let by_number = self.rows(settings)?;
        let old = &self.rewritten.rows[0];
        let rows = self.numbers.iter().enumerate().map(|(layer, &number)| {
            let rows = Rows { recent_window: old.recent_window, ..by_number[number].clone() };
            let basis = self.bases().and_then(|bases| bases[layer].as_ref());
            basis.map_or(rows.clone(), |basis| rows.with_planes(&basis.costs))
        });
        let rows: Vec<Rows> = rows.collect();
        self.write_rows(name, &rows, None)
    }

    /// The rows that these settings of each layer give, in the order of the layers' cache inputs, without recent keys,
    /// and without planes, which depend on the layer's basis.
    ///
    /// # Errors
    /// A setting cannot be.
    pub fn rows(&self, settings: &[LayerSetting]) -> Result<Vec<Rows>, RewriteError> {
        if settings.iter().any(|setting| setting.key_bytes.is_some()) && !self.has_bases() {
            let why = self.no_bases().unwrap_or("no bases were asked for").to_string();
            return Err(RewriteError::option("basis", why));
        }
        rows_by_layer(&self.options, settings, self.head_dim()).map_err(|(_, error)| error)
    }

    fn write_rows(
        &mut self,
        name: &str,
        rows: &[Rows],
        observe: Option<Observe>,
    ) -> Result<(PathBuf, Inspection), RewriteError> {
        let Rewritten { model, layers, names, .. } = &mut self.rewritten;
        let version = Version { rows, static_rows: false, saliency: self.saliency.as_ref(), observe };
        configure(model, layers, names, &version);
        let file = self.folder.join(name);
        onnx::write(model, &file)?;
        Ok((file, Inspection::new(model)?))
    }
}

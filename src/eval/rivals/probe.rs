//! The original model with its queries as outputs.

use std::path::{Path, PathBuf};

use super::evict::Rotary;
use super::statistics::PromptStatistics;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::onnx::{Placement, data_files, read, write};
use crate::rewrite::{Layer, RewriteError, find_layers};
use crate::runtime::{Error, Model, Sequence};

/// A copy of a model that also outputs its queries.
pub struct Probe {
    /// The .onnx file.
    pub path: PathBuf,
    layers: Vec<Layer>,
    /// Outputs of the queries, then of the rotation tables.
    outputs: Vec<String>,
}

/// A prompt that has been read.
pub struct Prompt {
    /// Its cache.
    pub sequence: Sequence,
    /// Statistics of each layer.
    pub statistics: Vec<PromptStatistics>,
    /// The first layer's rotation, if attention itself rotates.
    pub rotary: Option<Rotary>,
}

/// Writes the model at `original` to `folder` with its queries as additional outputs.
///
/// # Errors
/// The model cannot be rewritten, or a file cannot be written.
pub fn probe_model(original: &Path, folder: &Path) -> Result<Probe, RewriteError> {
    let mut model = read(original)?;
    let layers = find_layers(&model)?;
    let graph = model.graph.mut_or_insert_default();
    let mut outputs = Vec::new();
    let queries = layers.iter().map(|layer| (layer.query.clone(), layer.element));
    let tables = layers[0].rotary.iter().flat_map(|r| r.caches.clone()).map(|table| (table, layers[0].element));
    for (tensor, element) in queries.chain(tables).collect::<Vec<_>>() {
        outputs.push(expose(graph, &tensor, element, outputs.len()));
    }
    let path = folder.join("probe.onnx");
    place_data(&model, original, folder)?;
    write(&model, &path)?;
    Ok(Probe { path, layers, outputs })
}

/// Links the data of the model at `original` into `folder`.
pub fn place_data(model: &ModelProto, original: &Path, folder: &Path) -> Result<(), RewriteError> {
    let from = original.parent().unwrap_or(Path::new(""));
    for file in data_files(model, original)? {
        file.place(from, folder, Placement::Link)?;
    }
    Ok(())
}

/// Makes a tensor an output of the graph, and returns the output's name.
fn expose(graph: &mut GraphProto, tensor: &str, element: i32, number: usize) -> String {
    let name = format!("spark_probe/{number}");
    let mut node = NodeProto::new();
    node.set_name(name.clone());
    node.set_op_type("Identity".into());
    node.input.push(tensor.into());
    node.output.push(name.clone());
    graph.node.push(node);
    let mut info = ValueInfoProto::new();
    info.set_name(name.clone());
    info.type_.mut_or_insert_default().mut_tensor_type().set_elem_type(element);
    graph.output.push(info);
    name
}

impl Probe {
    /// Reads a prompt at once into a sequence of `model`, which must be this probe; `capacity` is that of
    /// [`Model::start`].
    ///
    /// # Errors
    /// As [`Model::run_with_outputs`].
    pub fn read(&self, model: &mut Model, prompt: &[i64], capacity: Option<usize>) -> Result<Prompt, Error> {
        let mut sequence = model.start(capacity)?;
        let names: Vec<&str> = self.outputs.iter().map(String::as_str).collect();
        let found = model.run_with_outputs(&mut sequence, prompt, &names)?;
        let count = self.layers.len();
        let table = |i: usize| found[count + i].iter().copied().collect::<Vec<f32>>();
        let rotary = self.layers[0].rotary.as_ref();
        let rotary = rotary.map(|r| Rotary { cos: table(0), sin: table(1), interleaved: r.interleaved });
        let statistics = self.layers.iter().zip(&found).map(|(layer, output)| {
            let flat: Vec<f32> = output.iter().copied().collect();
            PromptStatistics::new(layer, &queries(layer, &flat, prompt.len(), rotary.as_ref()))
        });
        Ok(Prompt { statistics: statistics.collect(), sequence, rotary })
    }
}

/// `[Hq, L, D]`: a layer's query after rotation, from a tensor that may also have keys and values after it.
fn queries(layer: &Layer, flat: &[f32], tokens: usize, rotary: Option<&Rotary>) -> Vec<f32> {
    let (heads, width) = (layer.query_heads, layer.head_dim);
    let stride = flat.len() / tokens;
    let mut queries = Vec::with_capacity(heads * tokens * width);
    for head in 0..heads {
        for token in 0..tokens {
            let start = match layer.token_axis {
                2 => (head * tokens + token) * width,
                _ => token * stride + head * width,
            };
            queries.extend_from_slice(&flat[start..start + width]);
            if let (Some(rotary), Some(_)) = (rotary, &layer.rotary) {
                let new = queries.len() - width;
                rotary.turn(&mut queries[new..], token, false);
            }
        }
    }
    queries
}

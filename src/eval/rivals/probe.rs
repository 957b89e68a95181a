//! The original model with its queries as outputs.

use std::path::{Path, PathBuf};

use half::f16;

use super::evict::Rotary;
use super::name::{Method, Rival};
use super::statistics::PromptStatistics;
use crate::onnx::proto::tensor_proto::DataType;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{Placement, data_files, read, write};
use crate::rewrite::{Basis, Layer, RewriteError, find_layers};
use crate::runtime::{Error, Model, Sequence};

/// A copy of a model that also outputs its queries.
pub struct Probe {
    /// The .onnx file.
    pub path: PathBuf,
    layers: Vec<Layer>,
    /// Outputs of the queries, then of the rotation tables, then of the projections.
    outputs: Vec<String>,
    /// Whether there are projections.
    projections: bool,
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

/// Most bytes of all projections as float32: ONNX Runtime computes them while it loads the model, and each prompt reads
/// them.
const MOST_PROJECTIONS: usize = 256 << 20;

const NO_PROJECTION: &str = "a basis of values needs the matrix that multiplies the result of attention, which is read \
                             from a MatMul or MatMulNBits that takes this result itself, and of all layers at most 256 \
                             MiB; with -keys behind, keys alone are in a basis";

/// Writes the model at `original` to `folder` with its queries as additional outputs, and, if `projections` are wanted
/// and known, with the matrices that the results of attention are multiplied with.
///
/// # Errors
/// The model cannot be rewritten, or a file cannot be written.
pub fn probe_model(original: &Path, folder: &Path, projections: bool) -> Result<Probe, RewriteError> {
    let mut model = read(original)?;
    let layers = find_layers(&model)?;
    let graph = model.graph.mut_or_insert_default();
    let mut outputs = Vec::new();
    let queries = layers.iter().map(|layer| (layer.query.clone(), layer.element));
    let tables = layers[0].rotary.iter().flat_map(|r| r.caches.clone()).map(|table| (table, layers[0].element));
    for (tensor, element) in queries.chain(tables).collect::<Vec<_>>() {
        outputs.push(expose(graph, &tensor, element, outputs.len()));
    }
    let size = |layer: &Layer| layer.query_heads * layer.head_dim;
    let wanted = projections && layers.iter().map(|layer| 4 * size(layer).pow(2)).sum::<usize>() <= MOST_PROJECTIONS;
    let found: Option<Vec<String>> =
        if wanted { layers.iter().map(|layer| add_projection(graph, layer, size(layer))).collect() } else { None };
    let projections = found.is_some();
    for (tensor, layer) in found.iter().flatten().zip(&layers) {
        outputs.push(expose(graph, tensor, layer.element, outputs.len()));
    }
    let path = folder.join("probe.onnx");
    place_data(&model, original, folder)?;
    write(&model, &path)?;
    Ok(Probe { path, layers, outputs, projections })
}

/// Links the data of the model at `original` into `folder`.
pub fn place_data(model: &ModelProto, original: &Path, folder: &Path) -> Result<(), RewriteError> {
    let from = original.parent().unwrap_or(Path::new(""));
    for file in data_files(model, original)? {
        file.place(from, folder, Placement::Link)?;
    }
    Ok(())
}

/// Adds a copy of the node that multiplies the layer's result, for an identity matrix: what it makes of that is the
/// matrix itself, however it is stored. Returns the tensor `[1, size, any]` for `size` of Hq * D; `None` if there is no
/// such node.
fn add_projection(graph: &mut GraphProto, layer: &Layer, size: usize) -> Option<String> {
    let multiplies = |node: &&NodeProto| {
        matches!(node.op_type(), "MatMul" | "MatMulNBits") && node.input.first() == Some(&layer.output)
    };
    let mut node = graph.node.iter().find(multiplies)?.clone();
    let name = format!("spark_probe/projection/{}", layer.name);
    let identity = format!("spark_probe/identity/{size}/{}", layer.element);
    if graph.initializer.iter().all(|tensor| tensor.name() != identity) {
        let mut tensor = TensorProto::new();
        tensor.set_name(identity.clone());
        tensor.set_data_type(layer.element);
        tensor.dims = vec![1, size as i64, size as i64];
        tensor.set_raw_data(identity_of(size, layer.element)?);
        graph.initializer.push(tensor);
    }
    node.set_name(name.clone());
    node.input[0] = identity;
    // What follows, of MatMulNBits, is added to each row.
    node.input.truncate(5);
    node.output = vec![name.clone()];
    graph.node.push(node);
    Some(name)
}

/// The bytes of an identity matrix; `None` for a type that is neither float32 nor float16.
fn identity_of(size: usize, element: i32) -> Option<Vec<u8>> {
    let (zero, one) = match element {
        t if t == DataType::FLOAT as i32 => (0f32.to_le_bytes().to_vec(), 1f32.to_le_bytes().to_vec()),
        t if t == DataType::FLOAT16 as i32 => (f16::ZERO.to_le_bytes().to_vec(), f16::ONE.to_le_bytes().to_vec()),
        _ => return None,
    };
    Some((0..size * size).flat_map(|n| if n % (size + 1) == 0 { one.clone() } else { zero.clone() }).collect())
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

impl Prompt {
    /// Why `rival` cannot be simulated after this prompt, if so.
    pub fn obstacle(&self, rival: &Rival, head_dim: usize) -> Option<String> {
        let (tokens, needed) = (self.sequence.len(), Basis::fewest_tokens(head_dim));
        let unknown = self.statistics.iter().any(|statistics| statistics.projection.is_empty());
        match rival.method {
            Method::SnapKv { .. } if self.rotary.is_none() => {
                Some("keys are rotated before they reach attention, so that snapkv cannot be simulated".into())
            }
            Method::Basis { .. } if tokens < needed => {
                Some(format!("a basis needs {needed} tokens, a prompt has {tokens}"))
            }
            Method::Basis { .. } if rival.needs_projections() && unknown => Some(NO_PROJECTION.into()),
            _ => None,
        }
    }
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
        let first = found.len() - count;
        let projections = (0..count).map(|i| self.projections.then(|| found[first + i].iter().copied().collect()));
        let statistics = self.layers.iter().zip(&found).zip(projections).map(|((layer, output), projection)| {
            let flat: Vec<f32> = output.iter().copied().collect();
            let projection: Option<Vec<f32>> = projection;
            let queries = queries(layer, &flat, prompt.len(), rotary.as_ref());
            PromptStatistics::new(layer, &queries, projection.as_deref())
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

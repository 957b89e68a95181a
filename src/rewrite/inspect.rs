//! Describes a model's cache, rewritten or not.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::apply::DOMAIN;
use super::configure::{FORMAT_KEY, LAYER_ROWS_KEY, ROWS_KEY, SOURCE_KEY};
use super::error::Refusal;
use super::find::find_layers;
use super::layer::{Layer, Source};
use super::recent::MOST;
use super::rows::Rows;
use crate::onnx::NodeExt;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::runtime::{CacheLayer, CachePair, Element, Interface};
use crate::spec;

/// A model's attention and cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// Kind of the attention, before any rewrite.
    pub source: Source,
    /// Layout of the rows, if the model is rewritten; where layers differ, of the first one.
    pub rows: Option<Rows>,
    /// Layout of the rows of each layer, where layers differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layer_rows: Vec<Rows>,
    /// What query_saliency was measured on, if it was.
    pub calibration: Option<String>,
    /// Hq of each layer.
    pub query_heads: Vec<usize>,
    /// Bytes of the cache per token, over all layers.
    pub bytes_per_token: usize,
    /// The same for the model before it was rewritten.
    pub original_bytes_per_token: usize,
    /// Bytes of the dense recent keys, over all layers, once a sequence is longer than the window.
    pub recent_bytes: usize,
    /// The cache's tensors.
    pub interface: Interface,
}

impl Inspection {
    /// Inspects `model`.
    ///
    /// # Errors
    /// It is not rewritten and cannot be, with the reason.
    pub fn new(model: &ModelProto) -> Result<Self, Refusal> {
        let graph = model.graph.as_ref().ok_or_else(|| Refusal::new("the model", "a graph", "none"))?;
        let mut prunes: Vec<_> = graph.node.iter().filter(|n| n.is(DOMAIN, spec::PRUNE.name)).collect();
        // Nodes are in execution order, inputs in layer order.
        let places: HashMap<&str, usize> = graph.input.iter().enumerate().map(|(n, i)| (i.name(), n)).collect();
        prunes.sort_by_key(|n| n.input_at(3).and_then(|past| places.get(past)));
        let import = model.opset_import.iter().find(|o| o.domain() == DOMAIN);
        // In a model without our operators the import means nothing: ONNX Runtime's optimiser adds every domain that
        // it knows.
        let import = import.filter(|_| !prunes.is_empty());
        if let Some(Err(problem)) = import.map(|o| spec::check_version(o.version())) {
            return Err(Refusal::new("the model", "operators that this version knows", problem));
        }
        match prunes.is_empty() {
            true => original(graph, &find_layers(model)?),
            false => rewritten(model, graph, &prunes),
        }
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.interface.layers.len()
    }

    /// Layout of the rows of each layer, none if the model is not rewritten.
    pub fn rows_by_layer(&self) -> Vec<&Rows> {
        match self.layer_rows.is_empty() {
            true => self.rows.iter().flat_map(|rows| std::iter::repeat_n(rows, self.layers())).collect(),
            false => self.layer_rows.iter().collect(),
        }
    }

    /// Hk and D of the first layer.
    pub fn heads(&self) -> (usize, usize) {
        self.interface.layers.first().map_or((0, 0), |l| (l.kv_heads, l.head_dim))
    }
}

/// Declarations of a graph's tensors, by name.
struct Declared<'g> {
    inputs: HashMap<&'g str, &'g ValueInfoProto>,
    outputs: HashMap<&'g str, &'g ValueInfoProto>,
    inside: HashMap<&'g str, &'g ValueInfoProto>,
    constants: HashMap<&'g str, &'g TensorProto>,
}

impl<'g> Declared<'g> {
    fn new(graph: &'g GraphProto) -> Self {
        let named = |infos: &'g [ValueInfoProto]| infos.iter().map(|info| (info.name(), info)).collect();
        Self {
            inputs: named(&graph.input),
            outputs: named(&graph.output),
            inside: named(&graph.value_info),
            constants: graph.initializer.iter().map(|tensor| (tensor.name(), tensor)).collect(),
        }
    }
}

fn declaration<'g>(infos: &HashMap<&str, &'g ValueInfoProto>, name: &str) -> Result<&'g ValueInfoProto, Refusal> {
    let missing = || Refusal::new(format!("'{name}'"), "an input or output of the model", "none of this name");
    infos.get(name).copied().ok_or_else(missing)
}

fn element(info: &ValueInfoProto) -> Result<Element, Refusal> {
    match info.type_.tensor_type().elem_type() {
        1 => Ok(Element::Float32),
        10 => Ok(Element::Float16),
        2 => Ok(Element::Uint8),
        other => {
            let expected = "float32, float16 or uint8";
            Err(Refusal::new(format!("'{}'", info.name()), expected, format!("element type {other}")))
        }
    }
}

fn pair(
    graph: &Declared<'_>,
    past: &str,
    present: &str,
    row_bytes: Option<usize>,
    width: usize,
) -> Result<CachePair, Refusal> {
    let element = element(declaration(&graph.inputs, past)?)?;
    declaration(&graph.outputs, present)?;
    let width = row_bytes.map_or(width, |bytes| bytes / element.size());
    Ok(CachePair { past: past.into(), present: present.into(), element, width })
}

fn total(layers: &[CacheLayer], bytes: impl Fn(&CacheLayer) -> usize) -> usize {
    layers.iter().fold(0, |sum, l| sum.saturating_add(l.kv_heads.saturating_mul(bytes(l))))
}

fn original(graph: &GraphProto, layers: &[Layer]) -> Result<Inspection, Refusal> {
    let declared = Declared::new(graph);
    let caches: Vec<CacheLayer> = layers
        .iter()
        .map(|l| {
            let [key, value] = [0, 1].map(|i| pair(&declared, &l.cache.past[i], &l.cache.present[i], None, l.head_dim));
            Ok(CacheLayer {
                kv_heads: l.kv_heads,
                head_dim: l.head_dim,
                key: key?,
                value: value?,
                key_recent: None,
                tail_window: 0,
            })
        })
        .collect::<Result<_, Refusal>>()?;
    let bytes_per_token = total(&caches, |l| l.key.row_bytes() + l.value.row_bytes());
    Ok(Inspection {
        source: layers[0].source.clone(),
        rows: None,
        layer_rows: Vec::new(),
        calibration: None,
        query_heads: layers.iter().map(|l| l.query_heads).collect(),
        bytes_per_token,
        original_bytes_per_token: bytes_per_token,
        recent_bytes: 0,
        interface: Interface { shares_buffer: layers.iter().all(|l| l.lengths.is_some()), layers: caches },
    })
}

/// What metadata state.
struct Stated {
    rows: Rows,
    layer_rows: Vec<Rows>,
    source: Source,
}

/// The metadata of a rewritten model with so many layers.
fn stated(model: &ModelProto, layers: usize) -> Result<Stated, Refusal> {
    let entry = |key: &str| model.metadata_props.iter().find(|p| p.key() == key).map(|p| p.value());
    let metadata =
        |key: &str, found: String| Refusal::new(format!("metadata '{key}'"), "what the rewriter writes", found);
    match entry(FORMAT_KEY) {
        Some(format) if spec::ROW_FORMATS.iter().any(|known| known.to_string() == format) => {}
        Some(other) => {
            let expected = format!("a row format that this version knows, one of {:?}", spec::ROW_FORMATS);
            return Err(Refusal::new("the model", expected, format!("row format {other}")));
        }
        None => return Err(metadata(FORMAT_KEY, "no such entry".into())),
    }
    let rows: Rows =
        serde_json::from_str(entry(ROWS_KEY).unwrap_or_default()).map_err(|e| metadata(ROWS_KEY, e.to_string()))?;
    if [rows.head_dim, rows.recent_window, rows.tail_window].into_iter().any(|size| size > MOST) {
        return Err(metadata(ROWS_KEY, "sizes beyond those of models".into()));
    }
    let layer_rows: Vec<Rows> = match entry(LAYER_ROWS_KEY) {
        Some(list) => serde_json::from_str(list).map_err(|e| metadata(LAYER_ROWS_KEY, e.to_string()))?,
        None => Vec::new(),
    };
    let common = |rows: &Rows| (rows.head_dim, rows.recent_window, rows.tail_window);
    let fits = |layer: &Rows| common(layer) == common(&rows);
    if !(layer_rows.is_empty() || layer_rows.len() == layers && layer_rows.iter().all(fits)) {
        let found = format!("{} entries for {} layers, or unlike {ROWS_KEY}", layer_rows.len(), layers);
        return Err(metadata(LAYER_ROWS_KEY, found));
    }
    let source = serde_json::from_value(entry(SOURCE_KEY).unwrap_or_default().into())
        .map_err(|e| metadata(SOURCE_KEY, e.to_string()))?;
    Ok(Stated { rows, layer_rows, source })
}

fn rewritten(model: &ModelProto, graph: &GraphProto, prunes: &[&NodeProto]) -> Result<Inspection, Refusal> {
    let Stated { rows, layer_rows, source } = stated(model, prunes.len())?;
    let declared = Declared::new(graph);
    let mut layers = Vec::new();
    let mut query_heads = Vec::new();
    let mut original_bytes = 0;
    for node in prunes {
        let number = |name: &str| {
            let value = node.int(name).and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=MOST).contains(v));
            value.ok_or_else(|| Refusal::new(node.title(), format!("attribute {name}"), "none"))
        };
        let wired = |names: &[String], index: usize, role: &str| {
            let name = names.get(index).filter(|n| !n.is_empty()).cloned();
            name.ok_or_else(|| Refusal::new(node.title(), role.to_string(), "none"))
        };
        let cache = |input: usize, output: usize, attribute: &str| {
            let past = wired(&node.input, input, "a past input")?;
            let present = wired(&node.output, output, "a present output")?;
            pair(&declared, &past, &present, Some(number(attribute)?), 0)
        };
        let (key, value) = (cache(3, 0, "key_row_bytes")?, cache(4, 1, "value_row_bytes")?);
        let key_recent = match (node.input_at(10), node.output_at(2)) {
            (Some(past), Some(present)) => Some(pair(&declared, past, present, None, rows.head_dim)?),
            _ => None,
        };
        let kv_heads = number("kv_num_heads")?;
        original_bytes += 2 * kv_heads * rows.head_dim * tensor_element(&declared, node, &key, &key_recent).size();
        query_heads.push(number("num_heads")?);
        layers.push(CacheLayer {
            kv_heads,
            head_dim: rows.head_dim,
            key,
            value,
            key_recent,
            tail_window: rows.tail_window,
        });
    }
    let saliency = prunes[0].input_at(11).and_then(|name| declared.constants.get(name));
    Ok(Inspection {
        source,
        calibration: saliency.map(|t| t.doc_string().to_string()),
        query_heads,
        bytes_per_token: total(&layers, |l| l.key.row_bytes() + l.value.row_bytes()),
        original_bytes_per_token: original_bytes,
        recent_bytes: total(&layers, |l| l.key_recent.as_ref().map_or(0, |r| rows.recent_window * r.row_bytes())),
        rows: Some(rows),
        layer_rows,
        interface: Interface {
            shares_buffer: prunes.iter().all(|n| n.input_at(5).is_some() && n.input_at(6).is_some()),
            layers,
        },
    })
}

/// The type of query, key and value: the cache's, unless the cache holds bytes.
fn tensor_element(graph: &Declared<'_>, node: &NodeProto, key: &CachePair, recent: &Option<CachePair>) -> Element {
    if key.element != Element::Uint8 {
        return key.element;
    }
    let cos = node.input_at(7).and_then(|name| graph.constants.get(name));
    let query = node.input_at(0).and_then(|name| graph.inside.get(name));
    let logits = graph.outputs.get("logits");
    recent
        .as_ref()
        .map(|r| r.element)
        .or_else(|| cos.map(|t| if t.data_type() == 10 { Element::Float16 } else { Element::Float32 }))
        .or_else(|| query.or(logits).and_then(|info| element(info).ok()))
        .unwrap_or(Element::Float32)
}

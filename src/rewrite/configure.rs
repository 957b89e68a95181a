//! Setting the rows of a rewritten model: attributes, cache inputs and outputs, saliency, metadata.

use std::collections::{HashMap, HashSet};

use super::apply::{DOMAIN, Names, declare_like, set_dim};
use super::basis::Basis;
use super::build::{Attribute, float32s, set_attribute};
use super::layer::{Layer, Source};
use super::layer_rows::cache_order;
use super::options::CacheType;
use super::rows::Rows;
use super::sizes::static_dim;
use crate::onnx::proto::tensor_shape_proto::Dimension;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, ValueInfoProto};
use crate::spec;

/// Keys of metadata_props.
pub const FORMAT_KEY: &str = "ai.spark.row_format";
/// JSON of [`Rows`]: those of all layers, or, where they differ, of the first one.
pub const ROWS_KEY: &str = "ai.spark.rows";
/// JSON: a list of the [`Rows`] of each layer, in the order of their cache inputs; only where they differ.
pub const LAYER_ROWS_KEY: &str = "ai.spark.rows_by_layer";
/// The kind of attention that was exported.
pub const SOURCE_KEY: &str = "ai.spark.source";

/// The input that is a basis of keys; that of queries follows it.
const BASIS: usize = spec::SHARED_INPUTS.len() + 1;

/// Last queries of a call that choose its channels.
pub const OBSERVED: usize = 32;

/// What query_saliency was measured on, and the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Saliency {
    /// Description of what it was measured on.
    pub measured_on: String,
    /// `[Hk,D]` of each layer.
    pub layers: Vec<Vec<f32>>,
    /// The basis of each layer whose keys are in one.
    pub bases: Vec<Option<Basis>>,
}

/// One variant of a rewritten model.
pub struct Version<'v> {
    /// The rows of each layer's cache.
    pub rows: &'v [Rows],
    /// Declare the row sizes of cache inputs. Hosts like GenAI read them there; others start from empty tensors of the
    /// original width, which a declared size would refuse.
    pub static_rows: bool,
    /// Saliency, where measured.
    pub saliency: Option<&'v Saliency>,
    /// What the model measures, as outputs.
    pub observe: Option<Observe>,
}

/// What a version of a model measures.
#[derive(Clone, Copy)]
pub struct Observe {
    /// Saliency over this many tokens.
    pub window: usize,
    /// Also what bases follow from.
    pub covariance: bool,
}

/// Makes `model`, whose `layers` are replaced, the given `version`. May be called again with another one.
pub fn configure(model: &mut ModelProto, layers: &[Layer], names: &[Names], version: &Version<'_>) {
    let graph = model.graph.mut_or_insert_default();
    forget(graph, names);
    let places = Places::new(graph);
    let differ = differ(version.rows);
    for (i, ((layer, names), rows)) in layers.iter().zip(names).zip(version.rows).enumerate() {
        let basis = version.saliency.and_then(|s| s.bases[i].as_ref()).filter(|_| rows.planes.is_some());
        let saliency = version.saliency.map(|s| basis.map_or(&s.layers[i], |basis| &basis.saliency));
        if let (Some(values), Some(all)) = (saliency, version.saliency) {
            let mut tensor = float32s(&names.query_saliency, &[layer.kv_heads as i64, layer.head_dim as i64], values);
            // The only part that depends on calibration states what it was measured on.
            tensor.set_doc_string(all.measured_on.clone());
            graph.initializer.push(tensor);
        }
        if let Some(basis) = basis {
            let dims = [layer.kv_heads, layer.head_dim, layer.head_dim].map(|n| n as i64);
            for (name, values) in names.basis.iter().zip([&basis.key, &basis.query]) {
                graph.initializer.push(float32s(name, &dims, values));
            }
        }
        for name in [&names.attention, &names.prune] {
            set_node(&mut graph.node[places.nodes[name]], (layer, names), rows, version, saliency.is_some());
        }
        // Sizes of one name are equal.
        let suffix = if differ { format!("_{i}") } else { String::new() };
        caches(graph, &places, layer, rows, version.static_rows, &suffix);
        if rows.recent_window > 0 {
            recent_keys(graph, &places, layer, names);
        }
        let [heads, d] = [layer.kv_heads, layer.head_dim];
        if version.observe.is_some() {
            observed(graph, &places, layer, &names.observed_saliency, &[heads, d]);
        }
        if version.observe.is_some_and(|observe| observe.covariance) {
            observed(graph, &places, layer, &names.observed_covariance, &[heads, 2, d, d]);
        }
    }
    let rows: Vec<Rows> = cache_order(model, layers).into_iter().map(|layer| version.rows[layer].clone()).collect();
    metadata(model, &rows, layers.first().map(|l| &l.source));
}

/// Whether the rows of some layers are unlike those of others.
fn differ(rows: &[Rows]) -> bool {
    rows.iter().any(|other| *other != rows[0])
}

/// Removes what another version added besides the nodes.
fn forget(graph: &mut GraphProto, names: &[Names]) {
    let of_layer = |n: &'_ Names| [n.query_saliency.clone(), n.basis[0].clone(), n.basis[1].clone()];
    let calibrated: HashSet<String> = names.iter().flat_map(of_layer).collect();
    graph.initializer.retain(|t| !calibrated.contains(t.name()));
    let past: HashSet<&str> = names.iter().map(|n| n.key_recent[0].as_str()).collect();
    graph.input.retain(|i| !past.contains(i.name()));
    let outputs: HashSet<&String> =
        names.iter().flat_map(|n| [&n.key_recent[1], &n.observed_saliency, &n.observed_covariance]).collect();
    graph.output.retain(|o| !outputs.contains(&o.name().to_string()));
}

/// Positions of nodes, inputs and outputs in a graph, by name: models may have many layers. New inputs and outputs are
/// appended.
struct Places {
    /// The operators of this crate.
    nodes: HashMap<String, usize>,
    inputs: HashMap<String, usize>,
    outputs: HashMap<String, usize>,
}

impl Places {
    fn new(graph: &GraphProto) -> Self {
        let ours = graph.node.iter().enumerate().filter(|(_, node)| node.domain() == DOMAIN);
        let infos =
            |infos: &[ValueInfoProto]| infos.iter().enumerate().map(|(n, info)| (info.name().to_string(), n)).collect();
        Self {
            nodes: ours.map(|(n, node)| (node.name().to_string(), n)).collect(),
            inputs: infos(&graph.input),
            outputs: infos(&graph.output),
        }
    }
}

fn set_node(
    node: &mut NodeProto,
    (layer, names): (&Layer, &Names),
    rows: &Rows,
    version: &Version<'_>,
    saliency: bool,
) {
    let covariance = version.observe.is_some_and(|observe| observe.covariance);
    set_attribute(node, "kept_channels", Attribute::Int(rows.kept_channels as i64));
    set_attribute(node, "key_bits", Attribute::Int(rows.key_bits.into()));
    set_attribute(node, "value_bits", Attribute::Int(rows.value_bits.into()));
    set_attribute(node, "key_row_bytes", Attribute::Int(rows.key_row_bytes as i64));
    set_attribute(node, "value_row_bytes", Attribute::Int(rows.value_row_bytes as i64));
    set_attribute(node, "recovery", Attribute::Text(rows.recovery.name()));
    set_attribute(node, "recent_window", Attribute::Int(rows.recent_window as i64));
    let directions = [spec::KEY_DIRECTIONS_8.name, spec::KEY_DIRECTIONS_4.name];
    let later = [&spec::TAIL_WINDOW, &spec::ROW_FORMAT, &spec::VERSION, &spec::OBSERVATION_SCALE].map(|a| a.name);
    node.attribute.retain(|a| !later.contains(&a.name()) && !directions.contains(&a.name()));
    let least = if covariance { spec::OBSERVATION_SCALE.since } else { *spec::VERSIONS.start() };
    let operator_version = rows.operator_version().max(least);
    if operator_version > *spec::VERSIONS.start() {
        set_attribute(node, spec::VERSION.name, Attribute::Int(operator_version));
    }
    if rows.row_format > 1 {
        set_attribute(node, spec::ROW_FORMAT.name, Attribute::Int(rows.row_format.into()));
    }
    if rows.tail_window > 0 {
        set_attribute(node, spec::TAIL_WINDOW.name, Attribute::Int(rows.tail_window as i64));
    }
    node.input.truncate(BASIS);
    if let Some(planes) = rows.planes {
        for (name, count) in directions.into_iter().zip([planes.eight, planes.four]) {
            set_attribute(node, name, Attribute::Int(count as i64));
        }
        node.input.resize(BASIS, String::new());
        let matrices = if node.op_type() == spec::PRUNE.name { 1 } else { 2 };
        node.input.extend_from_slice(&names.basis[..matrices]);
    }
    let recent = rows.recent_window > 0;
    if recent {
        node.input[10] = names.key_recent[0].clone();
    } else if node.input[10] == names.key_recent[0] {
        node.input[10] = String::new();
    }
    node.input[11] = if saliency { names.query_saliency.clone() } else { String::new() };
    if node.op_type() == "SparkPrune" {
        set_attribute(
            node,
            "observation_window",
            Attribute::Int(version.observe.map_or(OBSERVED, |observe| observe.window) as i64),
        );
        node.output.truncate(2);
        node.output.push(if recent { names.key_recent[1].clone() } else { String::new() });
        node.output.push(if version.observe.is_some() { names.observed_saliency.clone() } else { String::new() });
        node.output.push(if covariance { names.observed_covariance.clone() } else { String::new() });
        if covariance {
            set_attribute(node, spec::OBSERVATION_SCALE.name, Attribute::Float(layer.scale));
        }
        while node.output.last().is_some_and(String::is_empty) {
            node.output.pop();
        }
    }
}

/// Element type of the cache tensors, as ONNX numbers it.
fn cache_element(layer: &Layer, rows: &Rows) -> i32 {
    match rows.cache_type {
        CacheType::Same => layer.element,
        CacheType::Uint8 => 2,
    }
}

/// Elements of a key row.
pub fn row_width(layer: &Layer, rows: &Rows) -> usize {
    rows.key_row_bytes / element_size(cache_element(layer, rows))
}

fn caches(graph: &mut GraphProto, places: &Places, layer: &Layer, rows: &Rows, static_rows: bool, suffix: &str) {
    let element = cache_element(layer, rows);
    let width = |bytes: usize| bytes / element_size(element);
    let parts = [(rows.key_row_bytes, "spark_key_row"), (rows.value_row_bytes, "spark_value_row")];
    for (part, (bytes, name)) in parts.into_iter().enumerate() {
        let name = &format!("{name}{suffix}");
        let past = &mut graph.input[places.inputs[&layer.cache.past[part]]];
        past.type_.mut_or_insert_default().mut_tensor_type().set_elem_type(element);
        // A model with a fixed number of past rows never starts from empty tensors.
        let declared = static_rows || static_dim(past, 2).is_some_and(|rows| rows > 0);
        set_dim(past, 3, declared.then(|| width(bytes)), name);
        let present = &mut graph.output[places.outputs[&layer.cache.present[part]]];
        present.type_.mut_or_insert_default().mut_tensor_type().set_elem_type(element);
        set_dim(present, 3, Some(width(bytes)), name);
    }
}

/// Bytes of an element, float32 or float16.
pub fn element_size(element: i32) -> usize {
    match element {
        2 => 1,
        10 => 2,
        _ => 4,
    }
}

fn recent_keys(graph: &mut GraphProto, places: &Places, layer: &Layer, names: &Names) {
    let [past, present] = &names.key_recent;
    let declare = |infos: &mut Vec<ValueInfoProto>, like: usize, name: &str, rows: &str| {
        let mut info = declare_like(&infos[like], name);
        info.type_.mut_or_insert_default().mut_tensor_type().set_elem_type(layer.element);
        set_dim(&mut info, 2, None, rows);
        set_dim(&mut info, 3, Some(layer.head_dim), "");
        infos.push(info);
    };
    declare(&mut graph.input, places.inputs[&layer.cache.past[0]], past, "spark_recent_keys");
    declare(&mut graph.output, places.outputs[&layer.cache.present[0]], present, "spark_recent_keys_after");
}

/// Declares the output `name`, `[B]` and then `sizes`.
fn observed(graph: &mut GraphProto, places: &Places, layer: &Layer, name: &str, sizes: &[usize]) {
    let like = &graph.output[places.outputs[&layer.cache.present[0]]];
    let mut info = declare_like(like, name);
    let tensor = info.type_.mut_or_insert_default().mut_tensor_type();
    tensor.set_elem_type(1);
    // Outputs may be declared without a shape.
    let dims = &mut tensor.shape.mut_or_insert_default().dim;
    dims.truncate(1);
    dims.resize_with(1 + sizes.len(), Dimension::new);
    for (axis, &size) in (1..).zip(sizes) {
        set_dim(&mut info, axis, Some(size), "");
    }
    graph.output.push(info);
}

/// `rows` are in the order of the layers' cache inputs.
fn metadata(model: &mut ModelProto, rows: &[Rows], source: Option<&Source>) {
    const PLAIN: &str = "plain numbers and words";
    let format = rows.iter().map(|rows| rows.row_format).max().unwrap_or(1).to_string();
    let first = serde_json::to_string(&rows.first()).expect(PLAIN);
    let each = differ(rows).then(|| serde_json::to_string(rows).expect(PLAIN));
    let source = source.map_or(String::new(), |source| source.name().into());
    let keys = [FORMAT_KEY, ROWS_KEY, LAYER_ROWS_KEY, SOURCE_KEY];
    model.metadata_props.retain(|p| !keys.contains(&p.key()));
    for (key, value) in keys.into_iter().zip([Some(format), Some(first), each, Some(source)]) {
        let Some(value) = value else { continue };
        let mut entry = StringStringEntryProto::new();
        entry.set_key(key.into());
        entry.set_value(value);
        model.metadata_props.push(entry);
    }
}

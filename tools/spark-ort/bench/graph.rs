//! One attention layer as an ONNX model.

use ort::value::TensorElementType;
use protobuf::{Message, MessageField};
use spark_ort::onnx::proto::attribute_proto::AttributeType;
use spark_ort::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    ValueInfoProto, tensor_shape_proto::Dimension,
};
use spark_ort::operators::DOMAIN;
use spark_ort::rewrite::Rows;

use super::basis;
use super::cache::{Cache, Stored};
use super::shape::{Shape, Work};

/// Domain of GroupQueryAttention.
const CONTRIB: &str = "com.microsoft";

/// The serialised model. Inputs: query, key, value, past_key, past_value, seqlens_k and total_sequence_length.
/// Outputs: output, present_key and present_value, or only the latter two if `work` is only to store.
pub fn layer(shape: &Shape, cache: &Cache, work: Work) -> Vec<u8> {
    let mut graph = GraphProto::new();
    graph.set_name("layer".into());
    let (element, container) = (onnx_type(cache.element()), onnx_type(cache.container()));
    let (batch, kv) = (Some(shape.batch), Some(shape.heads.kv));
    let packed = |heads: usize| [batch, None, Some(heads * shape.head_dim)];
    for (name, heads) in [("query", shape.heads.query), ("key", shape.heads.kv), ("value", shape.heads.kv)] {
        graph.input.push(declare(name, element, &packed(heads), "new"));
    }
    let widths = cache.widths(shape.head_dim).map(Some);
    for (name, width) in ["past_key", "past_value"].into_iter().zip(widths) {
        graph.input.push(declare(name, container, &[batch, kv, None, width], "past"));
    }
    graph.input.push(declare("seqlens_k", onnx_type(TensorElementType::Int32), &[batch], ""));
    graph.input.push(declare("total_sequence_length", onnx_type(TensorElementType::Int32), &[], ""));
    if work == Work::All {
        graph.output.push(declare("output", element, &packed(shape.heads.query), "new"));
    }
    for (name, width) in ["present_key", "present_value"].into_iter().zip(widths) {
        graph.output.push(declare(name, container, &[batch, kv, None, width], "present"));
    }

    let inputs: Vec<String> = graph.input.iter().map(|input| input.name().into()).collect();
    match cache {
        Cache::Spark(_, rows) | Cache::SparkHalf(_, rows) => spark(&mut graph, shape, rows, work, &inputs),
        Cache::Grouped(stored) => {
            let outputs = ["output", "present_key", "present_value"];
            let mut attention = node("GroupQueryAttention", CONTRIB, inputs, &outputs, heads(shape));
            if let Stored::Int8 | Stored::Int4 = stored {
                quantise(&mut graph, &mut attention, *stored);
            }
            graph.node.push(attention);
        }
    }

    let mut model = ModelProto::new();
    model.set_ir_version(8);
    let version = cache.rows().map_or(1, Rows::operator_version);
    model.opset_import =
        [("", 17), (DOMAIN, version), (CONTRIB, 1)].map(|(domain, version)| opset(domain, version)).into();
    model.graph = MessageField::some(graph);
    model.write_to_bytes().expect("a message with all that it must have")
}

/// Adds SparK's operators.
fn spark(graph: &mut GraphProto, shape: &Shape, rows: &Rows, work: Work, inputs: &[String]) {
    let mut attributes = heads(shape);
    attributes.push(int("kept_channels", rows.kept_channels));
    attributes.push(int("key_bits", rows.key_bits.into()));
    attributes.push(int("value_bits", rows.value_bits.into()));
    attributes.push(int("key_row_bytes", rows.key_row_bytes));
    attributes.push(int("value_row_bytes", rows.value_row_bytes));
    attributes.push(text("recovery", rows.recovery.name()));
    if rows.operator_version() > 1 {
        attributes.push(int("version", rows.operator_version() as usize));
        attributes.push(int("row_format", rows.row_format.into()));
        attributes.push(int("tail_window", rows.tail_window));
    }
    // A calibrated basis has two.
    let mut matrices = Vec::new();
    if let Some(planes) = rows.planes {
        attributes.push(int("key_directions_8", planes.eight));
        attributes.push(int("key_directions_4", planes.four));
        let dims = [shape.heads.kv, shape.head_dim, shape.head_dim];
        for name in ["key_basis", "query_basis"] {
            graph.initializer.push(float32s(name, &dims, &basis::orthogonal(shape.heads.kv, shape.head_dim)));
            matrices.push(name.to_string());
        }
    }
    let spark = |name: &str, outputs: &[&str], own: &str, matrices: &[String]| {
        let mut node = node(name, DOMAIN, inputs.to_vec(), outputs, attributes.clone());
        // Inputs 7 to 11 are absent: rotation, positions, recent keys, saliency.
        node.input.resize(12, String::new());
        node.input.push(own.into());
        node.input.extend_from_slice(matrices);
        let used = node.input.iter().rposition(|input| !input.is_empty()).map_or(0, |last| last + 1);
        node.input.truncate(used);
        node
    };
    if work == Work::All {
        graph.node.push(spark("SparkAttention", &["output"], "", &matrices));
    }
    // SparkPrune waits for attention before it writes to the tail; without attention any tensor will do.
    let after = match (rows.tail_window, work) {
        (0, _) => "",
        (_, Work::All) => "output",
        (_, Work::Store) => "query",
    };
    graph.node.push(spark("SparkPrune", &["present_key", "present_value"], after, &matrices[..matrices.len().min(1)]));
}

/// ONNX and ONNX Runtime number types alike.
fn onnx_type(element: TensorElementType) -> i32 {
    match element {
        TensorElementType::Float32 => 1,
        TensorElementType::Uint8 => 2,
        TensorElementType::Int8 => 3,
        TensorElementType::Int32 => 6,
        TensorElementType::Float16 => 10,
        other => unreachable!("no layer has {other}"),
    }
}

fn declare(name: &str, element: i32, dims: &[Option<usize>], unknown: &str) -> ValueInfoProto {
    let mut shape = TensorShapeProto::new();
    shape.dim = dims
        .iter()
        .map(|size| {
            let mut dim = Dimension::new();
            match size {
                Some(size) => dim.set_dim_value(*size as i64),
                None => dim.set_dim_param(unknown.into()),
            }
            dim
        })
        .collect();
    let mut info = ValueInfoProto::new();
    info.set_name(name.into());
    let tensor = info.type_.mut_or_insert_default().mut_tensor_type();
    tensor.set_elem_type(element);
    tensor.shape = MessageField::some(shape);
    info
}

fn node(
    operator: &str,
    domain: &str,
    inputs: Vec<String>,
    outputs: &[&str],
    attributes: Vec<AttributeProto>,
) -> NodeProto {
    let mut node = NodeProto::new();
    node.set_name(operator.into());
    node.set_op_type(operator.into());
    node.set_domain(domain.into());
    node.input = inputs;
    node.output = outputs.iter().map(|name| name.to_string()).collect();
    node.attribute = attributes;
    node
}

fn heads(shape: &Shape) -> Vec<AttributeProto> {
    vec![int("num_heads", shape.heads.query), int("kv_num_heads", shape.heads.kv)]
}

fn int(name: &str, value: usize) -> AttributeProto {
    let mut attribute = AttributeProto::new();
    attribute.set_name(name.into());
    attribute.set_type(AttributeType::INT);
    attribute.set_i(value as i64);
    attribute
}

fn text(name: &str, value: &str) -> AttributeProto {
    let mut attribute = AttributeProto::new();
    attribute.set_name(name.into());
    attribute.set_type(AttributeType::STRING);
    attribute.set_s(value.as_bytes().to_vec());
    attribute
}

/// Makes the cache of `attention` a quantised one: value = code * scale. One constant scale, which covers four
/// standard deviations of normal inputs, is slightly faster than one per channel.
fn quantise(graph: &mut GraphProto, attention: &mut NodeProto, stored: Stored) {
    let (bits, greatest) = if stored == Stored::Int4 { (4, 7.0) } else { (8, 127.0) };
    // Inputs 7 to 11 are absent: rotation, positions, bias, sink.
    attention.input.resize(12, String::new());
    for name in ["k_scale", "v_scale"] {
        graph.initializer.push(float32s(name, &[1], &[4.0f32 / greatest]));
        attention.input.push(name.into());
    }
    attention.attribute.push(text("k_quant_type", "PER_TENSOR"));
    attention.attribute.push(text("v_quant_type", "PER_TENSOR"));
    attention.attribute.push(int("kv_cache_bit_width", bits));
}

fn float32s(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    let mut tensor = TensorProto::new();
    tensor.set_name(name.into());
    tensor.set_data_type(onnx_type(TensorElementType::Float32));
    tensor.dims = dims.iter().map(|&size| size as i64).collect();
    tensor.set_raw_data(values.iter().flat_map(|x| x.to_le_bytes()).collect());
    tensor
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    let mut opset = OperatorSetIdProto::new();
    opset.set_domain(domain.into());
    opset.set_version(version);
    opset
}

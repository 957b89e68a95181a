//! GroupQueryAttention's own quantised cache, as ONNX Runtime GenAI's builder makes it (`kv_cache_quant_scheme`): one
//! scale per channel, found by calibration.

use std::path::Path;

use super::probe::place_data;
use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_shape_proto::Dimension;
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{read, write};
use crate::rewrite::{GROUP_QUERY_ATTENTION, Refusal, RewriteError, find_layers};
use crate::runtime::{Element, Error, Interface, Sequence};

/// Largest magnitudes, `[Hk, D]`, of each tensor of a cache.
pub struct Scales(Vec<Vec<f32>>);

impl Scales {
    /// Measures the rows of a sequence of the original model.
    ///
    /// # Errors
    /// As [`Sequence::read_rows`].
    pub fn measure(sequence: &Sequence, interface: &Interface) -> Result<Self, Error> {
        let mut all = Vec::new();
        for (tensor, (kv_heads, pair)) in interface.pairs().enumerate() {
            let mut most = vec![0.0f32; kv_heads * pair.width];
            for head in 0..kv_heads {
                let rows = sequence.read_rows(tensor, head, 0..sequence.len())?;
                let most = &mut most[head * pair.width..(head + 1) * pair.width];
                for row in rows.chunks(pair.width) {
                    most.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
                }
            }
            all.push(most);
        }
        Ok(Self(all))
    }
}

/// Writes the model at `original` with a cache of 8 or 4 bits to the folder of `output`, and returns its interface.
///
/// # Errors
/// Its attention is not GroupQueryAttention, or a file cannot be written.
pub fn quantised_model(
    original: &Path,
    output: &Path,
    interface: &Interface,
    bits: u32,
    scales: &Scales,
) -> Result<Interface, RewriteError> {
    let mut model = read(original)?;
    let layers = find_layers(&model)?;
    if let Some(layer) = layers.iter().find(|layer| layer.source != GROUP_QUERY_ATTENTION) {
        let expected = format!("{GROUP_QUERY_ATTENTION}, which has quantised caches");
        return Err(Refusal::new(layer.title.clone(), expected, layer.source.to_string()).into());
    }
    let mut interface = interface.clone();
    let graph = model.graph.mut_or_insert_default();
    for (i, (layer, cache)) in layers.iter().zip(&mut interface.layers).enumerate() {
        let node = &mut graph.node[layer.doomed[0]];
        set_integer(node, "kv_cache_bit_width", bits.into());
        set_text(node, "k_quant_type", "PER_CHANNEL");
        set_text(node, "v_quant_type", "PER_CHANNEL");
        node.input.resize(node.input.len().max(14), String::new());
        for (part, pair) in [&mut cache.key, &mut cache.value].into_iter().enumerate() {
            let name = format!("spark_eval/{i}/{}", ["k_scale", "v_scale"][part]);
            graph.node[layer.doomed[0]].input[12 + part] = name.clone();
            let dims = [1, cache.kv_heads as i64, 1, cache.head_dim as i64];
            graph.initializer.push(scale(name, &dims, &scales.0[2 * i + part], bits));
            (pair.element, pair.width) = match bits {
                8 => (Element::Int8, cache.head_dim),
                _ => (Element::Uint8, cache.head_dim / 2),
            };
            redeclare(graph, &pair.past, &pair.present, pair.element, pair.width);
        }
    }
    place_data(&model, original, output.parent().unwrap_or(Path::new("")))?;
    write(&model, output)?;
    Ok(interface)
}

/// Scales at which the largest magnitude just fits.
fn scale(name: String, dims: &[i64], most: &[f32], bits: u32) -> TensorProto {
    let levels = ((1u32 << (bits - 1)) - 1) as f32;
    let mut tensor = TensorProto::new();
    tensor.set_name(name);
    tensor.set_data_type(1);
    tensor.dims = dims.to_vec();
    // A channel that is always zero still needs a scale.
    tensor.set_raw_data(most.iter().flat_map(|most| (most.max(1e-6) / levels).to_le_bytes()).collect());
    tensor
}

fn redeclare(graph: &mut GraphProto, past: &str, present: &str, element: Element, width: usize) {
    let number = if element == Element::Int8 { 3 } else { 2 };
    let infos = graph.input.iter_mut().chain(&mut graph.output).filter(|i| i.name() == past || i.name() == present);
    for info in infos.collect::<Vec<&mut ValueInfoProto>>() {
        let tensor = info.type_.mut_or_insert_default().mut_tensor_type();
        tensor.set_elem_type(number);
        if let Some(dim) = tensor.shape.mut_or_insert_default().dim.get_mut(3) {
            *dim = Dimension::new();
            dim.set_dim_value(width as i64);
        }
    }
}

fn attribute<'n>(node: &'n mut NodeProto, name: &str, kind: AttributeType) -> &'n mut AttributeProto {
    node.attribute.retain(|attribute| attribute.name() != name);
    let mut attribute = AttributeProto::new();
    attribute.set_name(name.into());
    attribute.set_type(kind);
    node.attribute.push(attribute);
    node.attribute.last_mut().expect("pushed above")
}

fn set_integer(node: &mut NodeProto, name: &str, value: i64) {
    attribute(node, name, AttributeType::INT).set_i(value);
}

fn set_text(node: &mut NodeProto, name: &str, value: &str) {
    attribute(node, name, AttributeType::STRING).set_s(value.as_bytes().to_vec());
}

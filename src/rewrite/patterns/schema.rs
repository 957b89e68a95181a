//! All that an operator of attention may have. What is not listed, as an input or attribute of a later version is not,
//! is refused by its name: nothing that changes the result is ignored.

use super::super::error::Refusal;
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

/// Inputs, outputs and attributes of an operator, in the order of its specification.
pub struct Schema {
    pub inputs: &'static [Port],
    pub outputs: &'static [Port],
    pub attributes: &'static [(&'static str, Attribute)],
}

/// An input or output.
pub enum Port {
    /// The pattern sees to it.
    Read(&'static str),
    /// It must be absent: its name, and what it is.
    Absent(&'static str, &'static str),
}

/// What an attribute may be.
pub enum Attribute {
    /// Anything: the pattern sees to it, or it does not change the result.
    Read,
    /// One of these numbers.
    Int(&'static [i64]),
    /// This text.
    Text(&'static str),
}

use Port::{Absent, Read};

impl Schema {
    /// Refuses what `node` has and this schema does not know, or knows to be something that SparkAttention does not do.
    pub fn check(&self, node: &NodeProto) -> Result<(), Refusal> {
        ports(node, "input", &node.input, self.inputs)?;
        ports(node, "output", &node.output, self.outputs)?;
        for attribute in &node.attribute {
            let name = attribute.name();
            let refuse = |expected: String, found: String| Err(Refusal::new(node.title(), expected, found));
            match self.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| value) {
                None => {
                    let expected = format!("attributes of {} that are known", node.op_type());
                    return refuse(expected, format!("attribute '{name}'"));
                }
                Some(Attribute::Int(allowed)) if !node.int(name).is_some_and(|value| allowed.contains(&value)) => {
                    let allowed: Vec<String> = allowed.iter().map(i64::to_string).collect();
                    let found = node.int(name).map_or("no number".to_string(), |value| value.to_string());
                    return refuse(format!("{name} = {}", allowed.join(" or ")), format!("{name} = {found}"));
                }
                Some(Attribute::Text(allowed)) if node.text(name).is_none_or(|value| value != *allowed) => {
                    let found = node.text(name).unwrap_or_default();
                    return refuse(format!("{name} = {allowed}"), format!("{name} = {found}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn ports(node: &NodeProto, kind: &str, names: &[String], known: &[Port]) -> Result<(), Refusal> {
    for (index, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        match known.get(index) {
            Some(Read(_)) => {}
            Some(Absent(port, what)) => {
                return Err(Refusal::new(node.title(), format!("no {port} ({what})"), format!("'{name}'")));
            }
            None => {
                let last = known.last().map_or("none", |port| match port {
                    Read(name) | Absent(name, _) => name,
                });
                let expected = format!("{kind}s of {} that are known, the last of them {last}", node.op_type());
                return Err(Refusal::new(node.title(), expected, format!("{kind} {index}, '{name}'")));
            }
        }
    }
    Ok(())
}

/// `com.microsoft::GroupQueryAttention` of ONNX Runtime 1.32.
pub const GROUP_QUERY: Schema = Schema {
    inputs: &[
        Read("query"),
        Read("key"),
        Read("value"),
        Read("past_key"),
        Read("past_value"),
        Read("seqlens_k"),
        Read("total_sequence_length"),
        Read("cos_cache"),
        Read("sin_cache"),
        Read("position_ids"),
        Read("attention_bias"),
        Absent("head_sink", "attention sinks: a score of each head that no key has"),
        Absent("k_scale", "the scale of a quantised key cache"),
        Absent("v_scale", "the scale of a quantised value cache"),
        Read("q_norm_weight"),
        Read("k_norm_weight"),
        Absent("query_seqlens", "the number of valid queries of each sequence"),
    ],
    outputs: &[
        Read("output"),
        Read("present_key"),
        Read("present_value"),
        Absent("output_qk", "the product of query and key"),
    ],
    attributes: &[
        ("num_heads", Attribute::Read),
        ("kv_num_heads", Attribute::Read),
        ("scale", Attribute::Read),
        ("softcap", Attribute::Read),
        ("local_window_size", Attribute::Read),
        ("sliding_window_cache", Attribute::Int(&[0, 1])),
        ("causal", Attribute::Int(&[0, 1])),
        ("do_rotary", Attribute::Int(&[0, 1])),
        ("rotary_interleaved", Attribute::Int(&[0, 1])),
        ("smooth_softmax", Attribute::Int(&[-1, 0])),
        ("qk_output", Attribute::Int(&[0])),
        ("qk_norm_epsilon", Attribute::Read),
        ("q_norm_epsilon", Attribute::Read),
        ("k_norm_epsilon", Attribute::Read),
        ("k_quant_type", Attribute::Text("NONE")),
        ("v_quant_type", Attribute::Text("NONE")),
        ("kv_cache_bit_width", Attribute::Int(&[0])),
    ],
};

/// `com.microsoft::MultiHeadAttention` of ONNX Runtime 1.32.
pub const MULTI_HEAD: Schema = Schema {
    inputs: &[
        Read("query"),
        Read("key"),
        Read("value"),
        Absent("bias", "a bias of query, key and value"),
        Absent("key_padding_mask", "which keys are padding"),
        Read("attention_bias"),
        Read("past_key"),
        Read("past_value"),
        Absent("past_sequence_length", "the tokens in a shared buffer"),
        Absent("cache_indirection", "which beam a cached token belongs to"),
    ],
    outputs: &[
        Read("output"),
        Read("present_key"),
        Read("present_value"),
        Absent("qk", "the product of query and key"),
    ],
    attributes: &[
        ("num_heads", Attribute::Read),
        ("scale", Attribute::Read),
        ("unidirectional", Attribute::Int(&[0, 1])),
        // What is added to a hidden score: key_padding_mask's, or a later key's, of which nothing is left either way.
        ("mask_filter_value", Attribute::Read),
    ],
};

/// ONNX `Attention` of opsets 23 to 25.
pub const ATTENTION: Schema = Schema {
    inputs: &[
        Read("Q"),
        Read("K"),
        Read("V"),
        Read("attn_mask"),
        Read("past_key"),
        Read("past_value"),
        Absent("nonpad_kv_seqlen", "the tokens in a cache that is written in place"),
    ],
    outputs: &[
        Read("Y"),
        Read("present_key"),
        Read("present_value"),
        Absent("qk_matmul_output", "the product of query and key"),
    ],
    attributes: &[
        ("q_num_heads", Attribute::Read),
        ("kv_num_heads", Attribute::Read),
        ("scale", Attribute::Read),
        ("softcap", Attribute::Read),
        ("is_causal", Attribute::Int(&[0, 1])),
        ("left_window_size", Attribute::Read),
        ("right_window_size", Attribute::Read),
        // Of an output that must be absent.
        ("qk_matmul_output_mode", Attribute::Read),
        // The softmax is computed in float32.
        ("softmax_precision", Attribute::Read),
    ],
};

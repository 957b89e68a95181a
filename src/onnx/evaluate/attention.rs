//! Shapes behind attention nodes.

use super::shapes::need;
use super::value::Value;
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

type Inputs<'v> = [Option<&'v Value>];

/// Output, present key and present value of an attention node, `None` if `node` is of another operator.
pub(super) fn infer(node: &NodeProto, inputs: &Inputs<'_>) -> Option<Result<Vec<Value>, String>> {
    let (past, of_kv_heads) = if node.is_onnx("Attention") {
        (4, "kv_num_heads")
    } else if node.is("com.microsoft", "GroupQueryAttention") {
        (3, "kv_num_heads")
    } else if node.is("com.microsoft", "MultiHeadAttention") {
        (6, "num_heads")
    } else {
        return None;
    };
    let of_heads = if node.is_onnx("Attention") { "q_num_heads" } else { "num_heads" };
    Some(output(node, inputs, of_heads, of_kv_heads).map(|output| {
        let presents = (0..2).map_while(|part| present(inputs, past + part, 1 + part));
        [output].into_iter().chain(presents).collect()
    }))
}

fn output(node: &NodeProto, inputs: &Inputs<'_>, of_heads: &str, of_kv_heads: &str) -> Result<Value, String> {
    let query = need(inputs, 0)?;
    let heads = |name: &str| {
        let heads = node.int(name).and_then(|h| usize::try_from(h).ok()).filter(|h| (1..=1 << 16).contains(h));
        heads.ok_or_else(|| format!("no attribute {name}"))
    };
    let mut shape = query.shape.clone();
    match (shape.as_mut_slice(), inputs.get(2).copied().flatten()) {
        ([_, _, _, size], Some(value)) if value.shape.len() == 4 => *size = value.shape[3],
        ([_, _, width], Some(value)) => {
            *width = match value.shape[..] {
                [_, _, wide] => (wide / heads(of_kv_heads)?).saturating_mul(heads(of_heads)?),
                [_, _, _, size] => size.saturating_mul(heads(of_heads)?),
                _ => return Err(format!("a value of rank {}", value.shape.len())),
            }
        }
        // Query, key and value in one.
        ([_, _, width], None) => {
            let (heads, kv_heads) = (heads(of_heads)?, heads(of_kv_heads)?);
            *width = (*width / (heads + 2 * kv_heads)).saturating_mul(heads);
        }
        _ => return Err(format!("a query of rank {}", query.shape.len())),
    }
    Ok(Value::shaped(query.kind, shape))
}

/// Past and new rows, `new` being the input that has the new ones, unless the query has them all.
fn present(inputs: &Inputs<'_>, past: usize, new: usize) -> Option<Value> {
    let past = inputs.get(past).copied().flatten().filter(|p| p.shape.len() == 4)?;
    let new = inputs.get(new).copied().flatten().or(inputs.first().copied().flatten())?;
    let tokens = match new.shape[..] {
        [_, tokens, _] | [_, _, tokens, _] => tokens,
        _ => return None,
    };
    let mut shape = past.shape.clone();
    shape[2] = shape[2].saturating_add(tokens);
    Some(Value::shaped(past.kind, shape))
}

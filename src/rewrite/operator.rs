//! What must be known of attention operators before their layers are searched for: where their past is, and their
//! output shapes.

use crate::onnx::NodeExt;
use crate::onnx::evaluate::{Inputs, Value, need};
use crate::onnx::proto::NodeProto;

/// An operator of attention.
pub struct Operator {
    /// Its domain.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The inputs that are past key and value. Outputs 1 and 2 are the present ones.
    pub past: [usize; 2],
    /// The attributes with the number of query heads and of KV heads.
    pub heads: [&'static str; 2],
}

impl Operator {
    /// Whether `node` is an instance of this operator.
    pub fn is(&self, node: &NodeProto) -> bool {
        node.is(self.domain, self.name)
    }

    /// Whether `node`, an instance of it, reads `tensor` as its past.
    pub fn reads_past(&self, node: &NodeProto, tensor: &str) -> bool {
        self.past.iter().any(|&input| node.input_at(input) == Some(tensor))
    }

    /// Output, present key and present value of `node`.
    fn infer(&self, node: &NodeProto, inputs: &Inputs<'_>) -> Result<Vec<Value>, String> {
        let output = self.output(node, inputs)?;
        let presents = (0..2).map_while(|part| present(inputs, self.past[part], 1 + part));
        Ok([output].into_iter().chain(presents).collect())
    }

    fn output(&self, node: &NodeProto, inputs: &Inputs<'_>) -> Result<Value, String> {
        let query = need(inputs, 0)?;
        let heads = |part: usize| {
            let name = self.heads[part];
            let heads = node.int(name).and_then(|h| usize::try_from(h).ok()).filter(|h| (1..=1 << 16).contains(h));
            heads.ok_or_else(|| format!("no attribute {name}"))
        };
        let mut shape = query.shape.clone();
        match (shape.as_mut_slice(), inputs.get(2).copied().flatten()) {
            ([_, _, _, size], Some(value)) if value.shape.len() == 4 => *size = value.shape[3],
            ([_, _, width], Some(value)) => {
                *width = match value.shape[..] {
                    [_, _, wide] => (wide / heads(1)?).saturating_mul(heads(0)?),
                    [_, _, _, size] => size.saturating_mul(heads(0)?),
                    _ => return Err(format!("a value of rank {}", value.shape.len())),
                }
            }
            // Packed query, key and value.
            ([_, _, width], None) => *width = (*width / (heads(0)? + 2 * heads(1)?)).saturating_mul(heads(0)?),
            _ => return Err(format!("a query of rank {}", query.shape.len())),
        }
        Ok(Value::shaped(query.kind, shape))
    }
}

/// The outputs of `node`, `None` if it is none of the `operators`.
pub fn infer(
    operators: &[Option<Operator>],
    node: &NodeProto,
    inputs: &Inputs<'_>,
) -> Option<Result<Vec<Value>, String>> {
    operators.iter().flatten().find(|o| o.is(node)).map(|operator| operator.infer(node, inputs))
}

/// Past and new rows; `new` is the input with the new ones, absent if they are packed in the query.
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

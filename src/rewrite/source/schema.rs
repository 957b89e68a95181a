//! All inputs, outputs and attributes that an attention operator may have. Anything not listed, such as an input of a
//! later version, is refused by name: nothing that changes the result is ignored.

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
    /// Handled by the source.
    Read(&'static str),
    /// Must be absent: its name, and what it is.
    Absent(&'static str, &'static str),
}

/// Values that an attribute may have.
pub enum Attribute {
    /// Any value: the source handles it, or it does not change the result.
    Read,
    /// One of these numbers.
    Int(&'static [i64]),
    /// This text.
    Text(&'static str),
}

impl Schema {
    /// Refuses what `node` has that this schema does not know, or knows that SparkAttention does not support.
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
            Some(Port::Read(_)) => {}
            Some(Port::Absent(port, what)) => {
                return Err(Refusal::new(node.title(), format!("no {port} ({what})"), format!("'{name}'")));
            }
            None => {
                let last = known.last().map_or("none", |port| match port {
                    Port::Read(name) | Port::Absent(name, _) => name,
                });
                let expected = format!("{kind}s of {} that are known, the last of them {last}", node.op_type());
                return Err(Refusal::new(node.title(), expected, format!("{kind} {index}, '{name}'")));
            }
        }
    }
    Ok(())
}

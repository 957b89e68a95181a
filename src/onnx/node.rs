//! Reading nodes.

use super::proto::{AttributeProto, NodeProto, TensorProto};

/// Access to a node's parts, with ONNX's defaults filled in.
pub trait NodeExt {
    /// Whether operator and domain are these; the default domain is "" or "ai.onnx".
    fn is(&self, domain: &str, operator: &str) -> bool;
    /// Whether it is this operator of the default domain.
    fn is_onnx(&self, operator: &str) -> bool;
    /// The name of input `index`, `None` where it is absent.
    fn input_at(&self, index: usize) -> Option<&str>;
    /// The name of output `index`, `None` where it is absent.
    fn output_at(&self, index: usize) -> Option<&str>;
    /// The attribute `name`.
    fn attribute_named(&self, name: &str) -> Option<&AttributeProto>;
    /// The int attribute `name`.
    fn int(&self, name: &str) -> Option<i64>;
    /// The ints attribute `name`.
    fn ints(&self, name: &str) -> Option<&[i64]>;
    /// The float attribute `name`.
    fn float(&self, name: &str) -> Option<f32>;
    /// The string attribute `name`.
    fn text(&self, name: &str) -> Option<String>;
    /// The tensor attribute `name`.
    fn tensor(&self, name: &str) -> Option<&TensorProto>;
    /// The node's name in messages: its name and operator, or its first output if it has no name.
    fn title(&self) -> String;
}

fn is_default(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

impl NodeExt for NodeProto {
    fn is(&self, domain: &str, operator: &str) -> bool {
        self.op_type() == operator && (self.domain() == domain || is_default(domain) && is_default(self.domain()))
    }

    fn is_onnx(&self, operator: &str) -> bool {
        self.is("", operator)
    }

    fn input_at(&self, index: usize) -> Option<&str> {
        self.input.get(index).map(String::as_str).filter(|n| !n.is_empty())
    }

    fn output_at(&self, index: usize) -> Option<&str> {
        self.output.get(index).map(String::as_str).filter(|n| !n.is_empty())
    }

    fn attribute_named(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name() == name)
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.attribute_named(name)?.i
    }

    fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attribute_named(name).map(|a| a.ints.as_slice())
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.attribute_named(name)?.f
    }

    fn text(&self, name: &str) -> Option<String> {
        self.attribute_named(name)?.s.as_ref().map(|s| String::from_utf8_lossy(s).into_owned())
    }

    fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.attribute_named(name)?.t.as_ref()
    }

    fn title(&self) -> String {
        match self.name() {
            "" => format!("the {} that makes '{}'", self.op_type(), self.output_at(0).unwrap_or("nothing")),
            name => format!("node '{name}' ({})", self.op_type()),
        }
    }
}

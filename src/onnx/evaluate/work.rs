//! How much work a graph is worth: masks and shapes of models in use take a small part of it, and a graph that was made
//! to keep the program busy no more than all of it.

use std::cell::Cell;

use super::value::Value;
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

/// What is left of it, in about nanoseconds.
pub(super) struct Work(Cell<usize>);

impl Default for Work {
    fn default() -> Self {
        Self(Cell::new(Self::ALL))
    }
}

impl Work {
    const ALL: usize = 4 << 30;

    /// To go from a node to another one.
    pub(super) const NODE: usize = 64;

    /// Takes `amount`, if there is as much.
    pub(super) fn spend(&self, amount: usize) -> bool {
        let left = self.0.get().checked_sub(amount);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }

    /// Takes what it costs to read the inputs of `node`.
    ///
    /// # Errors
    /// There is not as much left.
    pub(super) fn begin(&self, node: &NodeProto, inputs: &[Option<&Value>]) -> Result<(), String> {
        let elements: usize = inputs.iter().flatten().map(|value| value.known_elements()).sum();
        let each = if node.is_onnx("GatherND") || node.is_onnx("ScatterND") { 64 } else { 4 };
        let amount = elements.saturating_mul(each).saturating_add(Self::NODE * (1 + inputs.len()));
        match self.spend(amount) {
            true => Ok(()),
            false => Err("more work than masks and shapes of any model in use".into()),
        }
    }
}

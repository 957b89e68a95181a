//! A limit on the work spent on a graph: masks and shapes of real models take a small part of it, and a malicious
//! graph cannot take more.

use std::cell::Cell;

use super::value::Value;
use crate::onnx::NodeExt;
use crate::onnx::proto::NodeProto;

/// Remaining work, in about nanoseconds.
pub(super) struct Work(Cell<usize>);

impl Default for Work {
    fn default() -> Self {
        Self(Cell::new(Self::ALL))
    }
}

impl Work {
    const ALL: usize = 4 << 30;

    /// The cost of going from one node to another.
    pub(super) const NODE: usize = 64;

    /// Spends `amount`, if that much is left.
    pub(super) fn spend(&self, amount: usize) -> bool {
        let left = self.0.get().checked_sub(amount);
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }

    /// Spends the cost of reading the inputs of `node`.
    ///
    /// # Errors
    /// Not enough is left.
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

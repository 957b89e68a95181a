//! The operators on the CPU: [`crate::cpu`].

mod attention;
mod prune;

use half::f16;
use ort::operator::OperatorDomain;

use super::operator::{Place, add};
use crate::cpu::InstructionSet;

/// The CPU, with the instruction set that the process uses.
pub(super) struct Cpu;

impl Place for Cpu {
    const PROVIDER: Option<&'static str> = None;
    type Device = InstructionSet;
}

/// Adds the operators to `domain`.
pub(super) fn add_all(domain: OperatorDomain) -> ort::Result<OperatorDomain> {
    add::<Cpu, f16>(add::<Cpu, f32>(domain)?)
}

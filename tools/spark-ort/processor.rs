//! The instruction set that kernels are run with.

use anyhow::{Result, anyhow};
use spark_ort::cpu::InstructionSet;

/// Refuses a variable that names no instruction set of this processor, before a kernel fails for it.
///
/// # Errors
/// It is set so.
pub fn check() -> Result<()> {
    InstructionSet::chosen().map(drop).map_err(|problem| anyhow!(problem))
}

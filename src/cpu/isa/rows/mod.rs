//! Rows as vectors of any instruction set read them, sixteen channels at a time.

pub(in crate::cpu) mod decoded_planes;
pub(in crate::cpu) mod dense;
pub(in crate::cpu) mod keys;
pub(in crate::cpu) mod planes;
pub(in crate::cpu) mod values;
mod window;

//! Numbers that plans and kernels share: those of `ops/limits.h`.

#![allow(missing_docs)]

include!(concat!(env!("OUT_DIR"), "/limits.rs"));

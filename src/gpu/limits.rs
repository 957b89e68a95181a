//! Numbers shared by plans and kernels: those of `ops/limits.h`.

#![allow(missing_docs)]

include!(concat!(env!("OUT_DIR"), "/limits.rs"));

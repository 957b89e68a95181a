//! The kernels embedded in this library: sources, and code compiled from them (`ops/build.rs`).

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

//! The kernels as this library carries them: sources, and code compiled from them (`ops/build.rs`).

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

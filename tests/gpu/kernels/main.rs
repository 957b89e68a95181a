//! The kernels of `ops/` on the emulated GPU against the CPU operators: every setting, shape and element type, waves of
//! 64 and 32 lanes. The emulation stops at whatever touches memory that is not the call's, so every call here also
//! proves that nothing does. `tools/cuda.sh` runs the same tests on an NVIDIA GPU.

#[macro_use]
#[path = "../../support/needs.rs"]
mod needs;

#[path = "../../support/common.rs"]
mod common;
#[path = "../cuda/mod.rs"]
mod cuda;
#[path = "../emulation/mod.rs"]
mod emulation;

mod attention;
mod both;
mod on_device;
mod plans;
mod prefill;
mod pruning;
mod tail;
mod traps;

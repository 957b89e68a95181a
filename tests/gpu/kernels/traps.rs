//! The emulation's traps are sprung by what they are for.

use std::ptr::null;

use spark_ort::call::{Lengths, QueryLayout};
use spark_ort::format::{Bits, RowFormat};
use spark_ort::gpu::params::Call;
use spark_ort::gpu::plan::{self, AttentionTensors, Launch, Plan, Scalar};

use crate::emulation::Emulation;
use crate::emulation::gpu::{Gpu, Memory};
use crate::on_device::{Layout, OnDevice, case_of, device};

fn spoilt(spoil: impl FnOnce(&mut Plan)) -> Result<(), String> {
    let mut case = (5..).map(|s| case_of(RowFormat::V1, s, Scalar::F16, (64, Bits::B8, Bits::B8), 40, 1));
    let mut case = case.find(|c| c.geometry.new == 1).unwrap();
    let batch = case.geometry.batch;
    (case.geometry.past, case.attention.window) = (40, None);
    case.lengths = Lengths { total: 40, past: vec![39; batch], new: vec![1; batch] };
    let case = &case;
    let layout = Layout { query: QueryLayout::Heads, key_by_heads: true, value_by_heads: true };
    let on_device = OnDevice::new(case, Scalar::F16, layout, true);
    let output = Memory::new(&vec![0; case.query.len() * 2]);
    let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: output.at() };
    let device = device(64, 304);
    let mut plan =
        plan::attention(&device, &on_device.geometry, &case.lengths, &case.attention, &on_device.inputs, &tensors)
            .unwrap();
    spoil(&mut plan);
    on_device.run(plan, 64)
}

#[test]
fn a_sound_plan_runs() {
    needs!(crate::emulation::at_hand());
    spoilt(|_| ()).unwrap();
}

#[test]
fn global_memory_out_of_bounds() {
    needs!(crate::emulation::at_hand());
    let error =
        spoilt(|p| p.launches[0].call.output.data = p.launches[0].call.output.data.wrapping_byte_add(16)).unwrap_err();
    assert!(error.contains("global memory") && error.contains("spark_decode"), "{error}");
}

#[test]
fn more_lds_than_asked_for() {
    needs!(crate::emulation::at_hand());
    let error = spoilt(|p| p.launches[0].shared_bytes = 64).unwrap_err();
    assert!(error.contains("of LDS, of which the launch has 64"), "{error}");
}

#[test]
fn no_such_kernel() {
    needs!(crate::emulation::at_hand());
    let error = spoilt(|p| p.launches[0].kernel = "spark_nothing".into()).unwrap_err();
    assert!(error.contains("no kernel spark_nothing"), "{error}");
}

/// One launch of a kernel of `ops/emulation/faults.cpp`.
fn fault(kernel: &str) -> Result<(), String> {
    let (grid, block) = ([1, 1, 1], [256, 1, 1]);
    let launch =
        Launch { kernel: kernel.into(), grid, block, shared_bytes: 1028, call: Call::default(), in_basis: None };
    Emulation::get().run(&Plan { workspace_bytes: 0, launches: vec![launch] }, 64)
}

#[test]
fn faults_of_a_kernel() {
    needs!(crate::emulation::at_hand());
    fault("fault_none").unwrap();
    for (kernel, expected) in [
        ("fault_unwritten", "reads LDS that nobody wrote, at byte 1024"),
        ("fault_no_barrier", "LDS that another thread"),
        ("fault_no_wave_barrier", "LDS that "),
        ("fault_overwritten", "LDS that another thread"),
        ("fault_divergent", "wait for different things"),
        ("fault_left_alone", "some threads wait at a block barrier"),
    ] {
        let error = fault(kernel).unwrap_err();
        assert!(error.contains(expected) && error.contains(kernel), "{kernel}: {error}");
    }
}

//! Cases of the operators' tests as the emulated GPU takes them, and what its numbers are compared by.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use half::{bf16, f16};
use ndarray::{Array4, ArrayD, Axis, concatenate};
use spark_ort::call::{Geometry, QueryLayout};
use spark_ort::format::{Bits, RowFormat};
use spark_ort::gpu::plan::{self, AttentionTensors, Device, Inputs, MatrixCores, Plan, Scalar};

use crate::common::{Case, Random};
use crate::emulation::gpu::{Memory, gpu};

pub const SCALARS: [Scalar; 3] = [Scalar::F16, Scalar::F32, Scalar::Bf16];

pub fn device(wave: u32, compute_units: u32) -> Device {
    Device {
        wave_size: wave,
        compute_units,
        shared_bytes: 65536,
        matrix: if wave == 64 { MatrixCores::Mfma } else { MatrixCores::Mma },
        unpacked_bytes: plan::UNPACKED_BYTES,
    }
}

/// `x` as T holds it.
pub fn rounded(scalar: Scalar, x: f32) -> f32 {
    match scalar {
        Scalar::F16 => f16::from_f32(x).to_f32(),
        Scalar::F32 => x,
        Scalar::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

pub fn bytes_of(scalar: Scalar, numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    match scalar {
        Scalar::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        Scalar::F32 => numbers.flat_map(|x| x.to_le_bytes()).collect(),
        Scalar::Bf16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

pub fn numbers_of(scalar: Scalar, bytes: &[u8]) -> Vec<f32> {
    match scalar {
        Scalar::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Scalar::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Scalar::Bf16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
    }
}

/// Rounds all tensors of T, so that the CPU's kernels in float32 compute on the same numbers.
pub fn round_tensors(case: &mut Case, scalar: Scalar) {
    for array in
        [&mut case.query, &mut case.key, &mut case.value].into_iter().chain(&mut case.recent).chain(&mut case.bias)
    {
        array.mapv_inplace(|x| rounded(scalar, x));
    }
    for array in [&mut case.cos, &mut case.sin] {
        array.mapv_inplace(|x| rounded(scalar, x));
    }
}

/// How a case is laid out on the device.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub query: QueryLayout,
    pub key_by_heads: bool,
    pub value_by_heads: bool,
}

impl Layout {
    pub fn random(r: &mut Random) -> Self {
        Self {
            query: r.pick(&[QueryLayout::Heads, QueryLayout::Tokens, QueryLayout::Packed]),
            key_by_heads: r.coin(),
            value_by_heads: r.coin(),
        }
    }
}

pub fn tokens_first(by_heads: bool, x: &Array4<f32>) -> ArrayD<f32> {
    if by_heads { x.clone().into_dyn() } else { x.clone().permuted_axes([0, 2, 1, 3]).into_dyn() }
}

/// A case on the device.
pub struct OnDevice<'a> {
    pub case: &'a Case,
    pub geometry: Geometry,
    pub scalar: Scalar,
    layout: Layout,
    /// What `inputs` point to.
    _tensors: Vec<Memory>,
    pub past_key: Memory,
    pub past_value: Memory,
    pub inputs: Inputs,
}

/// Buffers of keys and values, `[B, Hk, P, row_bytes]`: the rows of past tokens, and what a host leaves in the others.
pub fn past_buffers(case: &Case) -> [Vec<u8>; 2] {
    let Geometry { key, value, past, .. } = &case.geometry;
    let buffer = |rows: &[Vec<u8>], free: &[Vec<u8>], row_bytes: usize| -> Vec<u8> {
        let region = |(h, rows): (usize, &Vec<u8>)| {
            let free = free.get(h).map_or(&[][..], |free| &free[..]);
            let all = [&rows[..], free].concat().into_iter().chain(std::iter::repeat(0xEE));
            all.take(past * row_bytes).collect::<Vec<u8>>()
        };
        rows.iter().enumerate().flat_map(region).collect()
    };
    let [free_key, free_value] = &case.free;
    [buffer(&case.past_key, free_key, key.row_bytes()), buffer(&case.past_value, free_value, value.row_bytes())]
}

impl<'a> OnDevice<'a> {
    pub fn new(case: &'a Case, scalar: Scalar, layout: Layout, saliency: bool) -> Self {
        let mut tensors: Vec<Memory> = Vec::new();
        let mut put = |bytes: Vec<u8>| -> *const c_void {
            tensors.push(Memory::new(&bytes));
            tensors.last().unwrap().at()
        };
        let mut put_t = |x: ArrayD<f32>| put(bytes_of(scalar, x.iter().copied()));
        let mut inputs = Inputs::none(scalar);
        if layout.query == QueryLayout::Packed {
            let all = concatenate(Axis(1), &[case.query.view(), case.key.view(), case.value.view()]).unwrap();
            inputs.query = put_t(tokens_first(false, &all));
        } else {
            inputs.query = put_t(tokens_first(layout.query == QueryLayout::Heads, &case.query));
            inputs.key = put_t(tokens_first(layout.key_by_heads, &case.key));
            inputs.value = put_t(tokens_first(layout.value_by_heads, &case.value));
        }
        (inputs.key_by_heads, inputs.value_by_heads) = (layout.key_by_heads, layout.value_by_heads);
        if case.prune.common.rotary.is_some() {
            inputs.cos_cache = put_t(case.cos.clone().into_dyn());
            inputs.sin_cache = put_t(case.sin.clone().into_dyn());
            inputs.positions = case.cos.nrows();
        }
        if let Some(recent) = &case.recent
            && !recent.is_empty()
        {
            inputs.past_recent = put_t(recent.clone().into_dyn());
            inputs.past_recent_rows = recent.dim().2;
        }
        inputs.position_ids = put(case.positions.iter().flat_map(|&p| (p as i64).to_le_bytes()).collect()).cast();
        if saliency {
            inputs.query_saliency = put(case.query_saliency.iter().flat_map(|n| n.to_le_bytes()).collect()).cast();
        }
        if let Some(basis) = &case.basis {
            let [key, query] = basis.each_ref().map(|m| put(m.iter().flat_map(|x| x.to_le_bytes()).collect()).cast());
            (inputs.key_basis, inputs.query_basis) = (key, query);
        }
        let [past_key, past_value] = past_buffers(case).map(|buffer| Memory::new(&buffer));
        (inputs.past_key, inputs.past_value) = (past_key.at(), past_value.at());
        let geometry = Geometry { layout: layout.query, ..case.geometry.clone() };
        Self { case, geometry, scalar, layout, _tensors: tensors, past_key, past_value, inputs }
    }

    pub fn run(&self, mut plan: Plan, wave: u32) -> Result<(), String> {
        // Aligned to 16 bytes, as plans ask for.
        let workspace = (plan.workspace_bytes > 0).then(|| Memory::new(&vec![0xFF; plan.workspace_bytes + 15]));
        plan.set_workspace(workspace.as_ref().map_or(null_mut(), |w| w.at().map_addr(|at| at.next_multiple_of(16))));
        gpu().run(&plan, wave)
    }

    /// Names of the kernels that attention launches.
    pub fn kernels(&self, device: &Device) -> Vec<String> {
        let tensors = AttentionTensors { bias: null(), bias_shape: [0; 4], output: null_mut() };
        let case = self.case;
        plan::attention(device, &self.geometry, &case.lengths, &case.attention, &self.inputs, &tensors)
            .map_or(Vec::new(), |plan| plan.launches.into_iter().map(|launch| launch.kernel).collect())
    }

    /// The attention output, `[B, Hq, L, D]`.
    pub fn attend(&self, device: &Device) -> Result<Array4<f32>, String> {
        let case = self.case;
        let (b, h, l, d) = case.query.dim();
        let bias = case.bias.as_ref().map(|x| (Memory::new(&bytes_of(self.scalar, x.iter().copied())), x.dim()));
        // Not a number, so that whatever is not written shows.
        let output = Memory::new(&bytes_of(self.scalar, std::iter::repeat_n(f32::NAN, case.query.len())));
        let tensors = AttentionTensors {
            bias: bias.as_ref().filter(|b| !b.0.bytes().is_empty()).map_or(null(), |b| b.0.at()),
            bias_shape: bias.as_ref().map_or([0; 4], |(_, (b, h, l, c))| [*b, *h, *l, *c]),
            output: output.at(),
        };
        let device = gpu().device(device);
        let plan = plan::attention(&device, &self.geometry, &case.lengths, &case.attention, &self.inputs, &tensors)
            .map_err(|e| e.to_string())?;
        self.run(plan, device.wave_size)?;
        let numbers = numbers_of(self.scalar, &output.bytes());
        Ok(match self.layout.query {
            QueryLayout::Heads => Array4::from_shape_vec((b, h, l, d), numbers).unwrap(),
            _ => Array4::from_shape_vec((b, l, h, d), numbers).unwrap().permuted_axes([0, 2, 1, 3]),
        })
    }
}

/// Compares an attention output with the CPU's; the error names the worst element.
pub fn compare(scalar: Scalar, got: &Array4<f32>, expected: &Array4<f32>) -> Result<(), String> {
    // Relative, and of what a number near zero may be off by, since values of size 1 sum to it.
    let (tolerance, zero) = match scalar {
        Scalar::F16 => (1e-3, 0.05),
        Scalar::F32 => (2e-5, 0.5),
        Scalar::Bf16 => (8e-3, 0.05),
    };
    for (at, &e) in expected.indexed_iter() {
        let g = got[at];
        // Also false for NaN.
        let close = (g - e).abs() <= tolerance * (zero + e.abs());
        if !close {
            return Err(format!("{at:?}: {g} instead of {e}"));
        }
    }
    Ok(())
}

/// A random case with these bits, head size and lengths; every fourth one is of format 2, and of format 3.
pub fn case(seed: u64, scalar: Scalar, d: usize, bits: (Bits, Bits), most_past: usize, most_new: usize) -> Case {
    let format = Random(!seed).pick(&[RowFormat::V1, RowFormat::V1, RowFormat::V2, RowFormat::V3]);
    case_of(format, seed, scalar, (d, bits.0, bits.1), most_past, most_new)
}

/// The same, of `format`.
pub fn case_of(
    format: RowFormat,
    seed: u64,
    scalar: Scalar,
    (d, key_bits, value_bits): (usize, Bits, Bits),
    most_past: usize,
    most_new: usize,
) -> Case {
    // The settings of a random case, and then a head size of one's own: its tensors are made anew.
    let mut case = Case::of(format, seed, most_past, most_new, Some((d, key_bits, value_bits)));
    round_tensors(&mut case, scalar);
    case
}

pub const HEAD_DIMS: [usize; 9] = [32, 40, 64, 72, 80, 96, 128, 192, 256];
pub const BITS: [Bits; 3] = [Bits::B16, Bits::B8, Bits::B4];

/// Every combination of head size, bits, T and wave, each with its own random settings.
pub fn grid(mut each: impl FnMut(u64, Scalar, u32, usize, (Bits, Bits))) {
    let mut seed = 0;
    for d in HEAD_DIMS {
        for key_bits in BITS {
            for value_bits in BITS {
                if value_bits == Bits::B4 && d % 32 != 0 {
                    continue;
                }
                for scalar in SCALARS {
                    for wave in [64, 32] {
                        seed += 1;
                        each(seed, scalar, wave, d, (key_bits, value_bits));
                    }
                }
            }
        }
    }
}

//! The operators inside a Rust program that runs ONNX Runtime through the `ort` crate: as the shared library that any
//! host loads, and as a crate. Needs ONNX Runtime's shared library (ORT_DYLIB_PATH, or `make venv`) and
//! `cargo build --release`; `make test` sees to both. Runs under valgrind too, so that whatever the glue does with a
//! host's pointers is seen.

#[macro_use]
#[path = "../support/needs.rs"]
mod needs;
#[path = "../support/common.rs"]
mod common;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex};

use common::Random;
use half::f16;
use ort::AsPointer;
use ort::environment::Environment;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{Session, SessionInputValue};
use ort::value::{PrimitiveTensorElementType, Shape, Tensor, TensorRefMut};

const HEADS: [usize; 2] = [4, 2];
const D: usize = 32;
/// Bytes of key and value rows of the test models.
const ROWS: [usize; 2] = [32, 36];
const RECENT: usize = 6;

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// ONNX Runtime, from ORT_DYLIB_PATH or the virtual environment that `make venv` creates.
fn runtime() -> Option<PathBuf> {
    std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).or_else(|| {
        let pythons = std::fs::read_dir(root(".venv/lib")).ok()?;
        let capi = pythons.flatten().map(|p| p.path().join("site-packages/onnxruntime/capi"));
        let files = capi.flat_map(|c| std::fs::read_dir(c).into_iter().flatten().flatten());
        files.map(|f| f.path()).find(|f| f.to_string_lossy().contains("libonnxruntime.so"))
    })
}

static ENVIRONMENT: LazyLock<Environment> =
    LazyLock::new(|| ort::init_from(runtime().unwrap()).unwrap().build().unwrap());

fn library() -> PathBuf {
    std::env::var_os("SPARK_ORT_LIBRARY").map_or_else(|| root("target/release/libspark_ort.so"), PathBuf::from)
}

fn at_hand() -> Result<(), &'static str> {
    if runtime().is_none() {
        return Err("no ONNX Runtime: set ORT_DYLIB_PATH to libonnxruntime.so, or run `make venv`");
    }
    match library().exists() {
        true => Ok(()),
        false => Err("no libspark_ort.so: run `cargo build --release`, or set SPARK_ORT_LIBRARY"),
    }
}

/// A session on a test model, with the shared library's operators or this crate's.
fn session(model: &str, shared_library: bool) -> Session {
    // ONNX Runtime may refuse a custom domain while several threads create their first sessions with it.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let builder = Session::builder(&ENVIRONMENT).unwrap();
    let builder = builder.with_log_level(ort::logging::LogLevel::Fatal).unwrap();
    let builder = match shared_library {
        true => builder.with_operator_library(library()).unwrap(),
        false => builder.with_operators(spark_ort::operators::domain().unwrap()).unwrap(),
    };
    // Without an arena every output is an allocation of its own, whose ends valgrind knows.
    let cpu = ort::ep::CPU::default().with_arena_allocator(false).build();
    let builder = builder.with_execution_providers([cpu]).unwrap();
    builder.with_intra_threads(2).unwrap().commit_from_file(root("tests/support/models").join(model)).unwrap()
}

type Inputs = Vec<(Cow<'static, str>, SessionInputValue<'static>)>;

fn tensor<T>(shape: &[usize], data: Vec<T>) -> SessionInputValue<'static>
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    match data.is_empty() {
        // The crate makes no tensor from an empty array, but it allocates one.
        true => Tensor::<T>::new(&Allocator::default(), shape).unwrap().into(),
        false => Tensor::from_array((shape, data)).unwrap().into(),
    }
}

/// Sets input `name`.
fn set<T>(inputs: &mut Inputs, name: &'static str, shape: &[usize], data: Vec<T>)
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    inputs.retain(|(n, _)| n != name);
    inputs.push((name.into(), tensor(shape, data)));
}

/// What a caller feeds back: keys, values and recent keys, with their shapes.
#[derive(Clone, Debug, PartialEq)]
struct Cache<C, T> {
    key: (Vec<usize>, Vec<C>),
    value: (Vec<usize>, Vec<C>),
    recent: (Vec<usize>, Vec<T>),
}

/// An element type of tensors in these tests.
trait Number: PrimitiveTensorElementType + Clone + Default + PartialEq + std::fmt::Debug + 'static {
    fn of(x: f32) -> Self;
    fn as_f32(&self) -> f32;
}
impl Number for f32 {
    fn of(x: f32) -> Self {
        x
    }
    fn as_f32(&self) -> f32 {
        *self
    }
}
impl Number for f16 {
    fn of(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn as_f32(&self) -> f32 {
        self.to_f32()
    }
}

impl<C: PrimitiveTensorElementType + Clone + Default, T: Number> Cache<C, T> {
    /// `past` rows of `bytes`.
    fn of_bytes(batch: usize, past: usize, mut bytes: impl FnMut(usize) -> Vec<C>) -> Self {
        let shape = |width: usize| vec![batch, HEADS[1], past, width / size_of::<C>()];
        let mut part = |width: usize| (shape(width), bytes(shape(width).iter().product()));
        let (key, value) = (part(ROWS[0]), part(ROWS[1]));
        Self { key, value, recent: (vec![batch, HEADS[1], 0, D], Vec::new()) }
    }
}

/// Inputs of a call with random tokens, everything optional without elements.
fn inputs<C, T>(r: &mut Random, batch: usize, new: usize, cache: &Cache<C, T>) -> Inputs
where
    C: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
    T: Number,
{
    let mut inputs = Inputs::new();
    let random = |r: &mut Random, n: usize| (0..n).map(|_| T::of(r.normal())).collect::<Vec<_>>();
    for (name, heads) in [("query", HEADS[0]), ("key", HEADS[1]), ("value", HEADS[1])] {
        set(&mut inputs, name, &[batch, new, heads * D], random(r, batch * new * heads * D));
    }
    set(&mut inputs, "past_key", &cache.key.0, cache.key.1.clone());
    set(&mut inputs, "past_value", &cache.value.0, cache.value.1.clone());
    set(&mut inputs, "past_key_recent", &cache.recent.0, cache.recent.1.clone());
    for name in ["cos_cache", "sin_cache", "attention_bias"] {
        set::<T>(&mut inputs, name, &[0], vec![]);
    }
    for name in ["seqlens_k", "total_sequence_length"] {
        set::<i32>(&mut inputs, name, &[0], vec![]);
    }
    set::<i64>(&mut inputs, "position_ids", &[0], vec![]);
    set::<f32>(&mut inputs, "query_saliency", &[0], vec![]);
    inputs
}

/// Output and new cache of a call.
fn run<C, T>(session: &mut Session, inputs: Inputs) -> ort::Result<(Vec<T>, Cache<C, T>)>
where
    C: PrimitiveTensorElementType + Clone,
    T: Number,
{
    let outputs = session.run(inputs)?;
    fn part<E: PrimitiveTensorElementType + Clone>(value: &ort::value::DynValue) -> (Vec<usize>, Vec<E>) {
        let (shape, data) = value.try_extract_tensor::<E>().unwrap();
        (shape.iter().map(|&d| d as usize).collect(), data.to_vec())
    }
    let cache = Cache {
        key: part(&outputs["present_key"]),
        value: part(&outputs["present_value"]),
        recent: part(&outputs["present_key_recent"]),
    };
    Ok((part::<T>(&outputs["output"]).1, cache))
}

/// A prompt of 20 tokens and three decoded ones.
fn generate<C, T>(session: &mut Session) -> Vec<(Vec<T>, Cache<C, T>)>
where
    C: PrimitiveTensorElementType + Clone + Default + std::fmt::Debug + 'static,
    T: Number,
{
    let r = &mut Random(5);
    let mut cache = Cache::of_bytes(2, 0, |_| vec![]);
    let mut steps = Vec::new();
    for new in [20, 1, 1, 1] {
        let call = inputs(r, 2, new, &cache);
        steps.push(run(session, call).unwrap());
        cache = steps.last().unwrap().1.clone();
    }
    steps
}

fn both_ways<C, T>(model: &str)
where
    C: PrimitiveTensorElementType + Clone + Default + PartialEq + std::fmt::Debug + 'static,
    T: Number,
{
    let shared = generate::<C, T>(&mut session(model, true));
    let linked = generate::<C, T>(&mut session(model, false));
    // As text: rows seen as float32 are NaN here and there, and no NaN equals another.
    assert_eq!(format!("{shared:?}"), format!("{linked:?}"), "the library and the crate differ");
    for (step, (output, cache)) in shared.iter().enumerate() {
        let total = 20 + step;
        assert_eq!(cache.key.0, [2, 2, total, ROWS[0] / size_of::<C>()]);
        assert_eq!(cache.value.0, [2, 2, total, ROWS[1] / size_of::<C>()]);
        assert_eq!(cache.recent.0, [2, 2, RECENT, D]);
        assert!(output.iter().all(|x| x.as_f32().is_finite()) && output.iter().any(|x| x.as_f32().abs() > 0.1));
    }
}

#[test]
fn float32_from_the_library_and_from_the_crate() {
    needs!(at_hand());
    both_ways::<f32, f32>("layer_f32.onnx");
}

#[test]
fn float16_in_bytes_from_the_library_and_from_the_crate() {
    needs!(at_hand());
    both_ways::<u8, f16>("layer_f16_u8.onnx");
}

/// Calls with a cache of random bytes and one thing wrong, or nothing: errors that name the node and the input, or
/// finite outputs, and a session that still works afterwards.
#[test]
fn hostile_calls_are_refused_by_name_or_finite() {
    needs!(at_hand());
    let mut session = session("layer_f16_u8.onnx", true);
    let (mut refused, mut taken) = (0, 0);
    for seed in 0..120 {
        let r = &mut Random(seed);
        let (batch, past, new) = (1 + r.below(2), r.below(9), r.below(4));
        let cache = Cache::<u8, f16>::of_bytes(batch, past, |n| Random(seed).bytes(n));
        let mut call = inputs(r, batch, new, &cache);
        let recent = past.min(RECENT);
        set(&mut call, "past_key_recent", &[batch, HEADS[1], recent, D], vec![f16::NAN; batch * HEADS[1] * recent * D]);
        let lengths = |r: &mut Random| (0..batch).map(|_| r.below(past + new + 2) as i32 - 1).collect::<Vec<_>>();
        // The input that is wrong, if what follows is wrong in this call.
        let suspect = match r.below(9) {
            0 => {
                set(&mut call, "seqlens_k", &[batch], lengths(r));
                set(&mut call, "total_sequence_length", &[1], vec![r.below(past + new + 3) as i32 - 1]);
                "seqlens_k|total_sequence_length"
            }
            1 => {
                set(&mut call, "seqlens_k", &[batch], vec![r.pick(&[i32::MIN, -7, i32::MAX]); batch]);
                "seqlens_k"
            }
            2 => {
                let width = r.pick(&[1, 31, 33, 64]);
                set(&mut call, "past_key", &[batch, HEADS[1], past, width], r.bytes(batch * HEADS[1] * past * width));
                "past_key"
            }
            3 => {
                set(&mut call, "past_value", &[batch, 1, past, ROWS[1]], r.bytes(batch * past * ROWS[1]));
                "past_value"
            }
            4 => {
                set(&mut call, "past_key_recent", &[batch, HEADS[1], 1, D], vec![f16::ONE; batch * HEADS[1] * D]);
                "past_key_recent"
            }
            5 => {
                set(
                    &mut call,
                    "query_saliency",
                    &[HEADS[1], D],
                    vec![r.pick(&[0.0, -1.0, f32::NAN, 1.0]); HEADS[1] * D],
                );
                "query_saliency"
            }
            6 => {
                let columns = past + r.below(5);
                let bias = vec![r.pick(&[f16::NAN, f16::INFINITY, f16::NEG_INFINITY, f16::MIN]); new * columns];
                set(&mut call, "attention_bias", &[1, 1, new, columns], bias);
                "attention_bias"
            }
            7 => {
                set(&mut call, "query", &[batch, new, 7], vec![f16::ONE; batch * new * 7]);
                "query"
            }
            _ => "",
        };
        match run::<u8, f16>(&mut session, call) {
            Ok((output, cache)) => {
                assert!(output.iter().all(|x| x.is_finite()), "seed {seed}");
                assert!(cache.recent.1.iter().all(|x| x.is_finite()) || past > 0, "seed {seed}");
                taken += 1;
            }
            Err(e) => {
                let message = e.to_string();
                let named = suspect.split('|').any(|s| !s.is_empty() && message.contains(&format!("({s}): ")));
                assert!(named && message.contains("node 'layer.0."), "seed {seed}, {suspect}: {message}");
                refused += 1;
            }
        }
    }
    assert!(refused > 20 && taken > 20, "{refused} refused, {taken} taken");
    let cache = Cache::<u8, f16>::of_bytes(1, 0, |_| vec![]);
    run::<u8, f16>(&mut session, inputs(&mut Random(1), 1, 3, &cache)).unwrap();
}

fn cpu_memory() -> MemoryInfo<'static> {
    MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default).unwrap()
}

/// A tensor over memory of the caller.
fn over<T: PrimitiveTensorElementType + std::fmt::Debug + 'static>(
    memory: *mut T,
    shape: &[usize],
) -> TensorRefMut<'static, T> {
    let shape = Shape::new(shape.iter().map(|&d| d as i64));
    // SAFETY: the tests keep the memory until they have dropped every tensor and binding over it.
    unsafe { TensorRefMut::from_raw(cpu_memory(), memory.cast(), shape).unwrap() }
}

/// Decodes into buffers of a capacity, the same memory as past and as present, two sequences of unequal length.
#[test]
fn a_shared_buffer_is_written_in_place() {
    needs!(at_hand());
    const CAPACITY: usize = 24;
    let mut session = session("layer_f32.onnx", true);
    let r = &mut Random(9);
    let shape = |part: usize, rows: usize| [2, HEADS[1], rows, ROWS[part] / 4];
    let mut buffers = [0, 1].map(|part| vec![-7f32; shape(part, CAPACITY).iter().product()]);
    let mut grown = Cache::<f32, f32>::of_bytes(2, 0, |_| vec![]);
    let valid = [[5, 9], [6, 10], [8, 12]];
    for (step, lengths) in valid.iter().enumerate() {
        let new = if step == 0 { 9 } else { lengths[0] - valid[step - 1][0] };
        let mut call = inputs(r, 2, new, &grown);
        set(&mut call, "seqlens_k", &[2], lengths.map(|n| n as i32 - 1).to_vec());
        set(&mut call, "total_sequence_length", &[1], vec![lengths[1] as i32]);
        let before = buffers.clone();
        let mut binding = session.create_binding().unwrap();
        for (name, value) in &call {
            match (&**name, value) {
                ("past_key" | "past_value", _) => {}
                (name, SessionInputValue::Owned(value)) => binding.bind_input(name, value).unwrap(),
                _ => unreachable!("every input is owned"),
            }
        }
        let parts = [("past_key", "present_key"), ("past_value", "present_value")];
        let shared: Vec<_> = (0..2).map(|part| over(buffers[part].as_mut_ptr(), &shape(part, CAPACITY))).collect();
        for ((part, (past, present)), shared) in parts.into_iter().enumerate().zip(&shared) {
            let past = std::ffi::CString::new(past).unwrap();
            // `bind_input` would bind a copy of borrowed memory.
            // SAFETY: binding and tensor are valid, and the tensor outlives the binding.
            let status = unsafe { (ort::api().BindInput)(binding.ptr_mut(), past.as_ptr(), shared.ptr()) };
            assert!(status.0.is_null());
            binding.bind_output(present, over(buffers[part].as_mut_ptr(), &shape(part, CAPACITY))).unwrap();
        }
        for output in ["output", "present_key_recent", "observed_saliency"] {
            binding.bind_output_to_device(output, &cpu_memory()).unwrap();
        }
        let output = session.run_binding(&binding).unwrap()["output"].try_extract_tensor::<f32>().unwrap().1.to_vec();
        drop(binding);
        drop(shared);

        let (expected, cache) = run::<f32, f32>(&mut session, call).unwrap();
        assert_eq!(output, expected, "step {step}");
        for (part, (_, rows)) in [&cache.key, &cache.value].into_iter().enumerate() {
            let width = ROWS[part] / 4;
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for (head, shared) in buffers[part].chunks(CAPACITY * width).enumerate() {
                let rows = &rows[head * lengths[1] * width..];
                let used = lengths[head / 2] * width;
                assert_eq!(bits(&shared[..used]), bits(&rows[..used]), "step {step}, head {head}");
                let untouched = &before[part][head * CAPACITY * width..][used..CAPACITY * width];
                assert_eq!(bits(&shared[used..]), bits(untouched), "step {step}, head {head}: wrote past its rows");
            }
        }
        grown = cache;
    }
}

//! The driver of language models, on tiny ones with random weights: `GroupQueryAttention`, and this crate's operators
//! with recent keys. Needs ONNX Runtime's shared library, as tests/onnxruntime/host.rs does.

#[macro_use]
#[path = "../support/needs.rs"]
mod needs;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use spark_ort::runtime::{
    CacheLayer, CachePair, Element, Error, Interface, Model, Options, Runtime, Sampler, Sampling, load,
};

const D: usize = 32;
const VOCABULARY: usize = 32;
const PROMPT: [i64; 9] = [3, 1, 4, 1, 5, 9, 2, 6, 5];

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// ONNX Runtime, from ORT_DYLIB_PATH or the virtual environment that `make venv` creates.
static RUNTIME: LazyLock<Result<&'static Runtime, Error>> = LazyLock::new(|| {
    if std::env::var_os("ORT_DYLIB_PATH").is_none() && root(".venv").exists() {
        // SAFETY: every test comes here first, and Rust's own readers of the environment wait for this.
        unsafe { std::env::set_var("VIRTUAL_ENV", root(".venv")) };
    }
    load()
});

fn at_hand() -> Result<(), &'static str> {
    match &*RUNTIME {
        Ok(_) => Ok(()),
        Err(_) => Err("no ONNX Runtime: set ORT_DYLIB_PATH to libonnxruntime.so, or run `make venv`"),
    }
}

fn pair(name: &str, width: usize) -> CachePair {
    let (past, present) = (format!("past_key_values.0.{name}"), format!("present.0.{name}"));
    CachePair { past, present, element: Element::Float32, width }
}

fn interface(pruned: bool) -> Interface {
    let [key, value] = if pruned { [8, 9] } else { [D, D] };
    let key_recent = pruned.then(|| pair("key_recent", D));
    let (key, value) = (pair("key", key), pair("value", value));
    let layer = CacheLayer { kv_heads: 1, head_dim: D, key, value, key_recent, tail_window: 0 };
    Interface { layers: vec![layer], shares_buffer: true }
}

fn file(pruned: bool) -> PathBuf {
    root(if pruned { "tests/support/models/language_pruned.onnx" } else { "tests/support/models/language.onnx" })
}

fn open(path: &Path, interface: &Interface) -> Result<Model, Error> {
    LazyLock::force(&RUNTIME);
    Model::open(path, interface, &Options { threads: Some(1) })
}

fn model(pruned: bool) -> Model {
    open(&file(pruned), &interface(pruned)).unwrap()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn a_runtime_is_loaded_once() {
    needs!(at_hand());
    let runtime = RUNTIME.as_ref().unwrap();
    let version: Vec<u32> = runtime.version().split('.').filter_map(|part| part.parse().ok()).collect();
    assert!(version[0] == 1 && version[1] >= 18, "{version:?}");
    assert!(runtime.path().to_string_lossy().contains("libonnxruntime.so"), "{:?}", runtime.path());
    assert!(std::ptr::eq(*runtime, load().unwrap()));
}

/// A prompt and 40 tokens, with one buffer and with a growing cache.
#[test]
fn a_shared_buffer_changes_nothing() {
    needs!(at_hand());
    for pruned in [false, true] {
        let mut model = model(pruned);
        assert_eq!(model.vocabulary(), Some(VOCABULARY));
        let [mut shared, mut growing] = [Some(64), None].map(|capacity| model.start(capacity).unwrap());
        assert_eq!((shared.capacity(), growing.capacity()), (Some(64), None));
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed: 4, ..Default::default() });
        let mut tokens = PROMPT.to_vec();
        for step in 0..40 {
            let logits = model.run(&mut shared, &tokens).unwrap();
            assert_eq!(logits, model.run(&mut growing, &tokens).unwrap(), "pruned: {pruned}, step {step}");
            tokens = vec![sampler.choose(&logits).unwrap() as i64];
        }
        let held = PROMPT.len() + 39;
        assert_eq!((shared.len(), growing.len()), (held, held));
        let per_token = if pruned { 32 + 36 } else { 2 * D * 4 };
        let recent = if pruned { 4 * D * 4 } else { 0 };
        assert_eq!(model.interface().bytes_per_token(), per_token);
        for sequence in [&shared, &growing] {
            assert_eq!(sequence.cache_bytes(), held * per_token + recent);
        }
        assert_eq!(shared.allocated_bytes(), 64 * per_token + recent);
        assert_eq!(growing.allocated_bytes(), growing.cache_bytes());
    }
}

#[test]
fn tokens_may_come_at_once_or_one_by_one() {
    needs!(at_hand());
    let mut model = model(false);
    let mut whole = model.start(None).unwrap();
    let all = model.run_all(&mut whole, &PROMPT).unwrap();
    assert_eq!(all.dim(), (PROMPT.len(), VOCABULARY));
    for capacity in [None, Some(PROMPT.len())] {
        let mut steps = model.start(capacity).unwrap();
        for (token, expected) in PROMPT.iter().zip(all.rows()) {
            let logits = model.run(&mut steps, &[*token]).unwrap();
            assert!(close(&logits, expected.as_slice().unwrap()), "{logits:?}, expected {expected}");
        }
        let full = model.run(&mut steps, &[1]).map_err(|e| e.to_string());
        match capacity {
            Some(_) => assert_eq!(full, Err("the cache has room for 9 tokens, 10 are needed".into())),
            None => assert!(full.is_ok()),
        }
    }
}

#[test]
fn other_outputs_can_be_asked_for() {
    needs!(at_hand());
    let mut model = model(true);
    let mut sequence = model.start(Some(16)).unwrap();
    let outputs = model.run_with_outputs(&mut sequence, &PROMPT, &["saliency", "logits"]).unwrap();
    assert_eq!(outputs[0].shape(), [1, 1, D]);
    assert!(outputs[0].iter().all(|&n| n > 0.0));
    let last = outputs[1].slice(ndarray::s![0, -1, ..]).to_vec();
    assert_eq!(last, model.run(&mut model.start(None).unwrap(), &PROMPT).unwrap());
    for (name, problem) in [("present.0.key", "belongs to the cache"), ("nothing", "nothing")] {
        let error = model.run_with_outputs(&mut sequence, &[1], &[name]).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    assert_eq!(sequence.len(), PROMPT.len());
}

#[test]
fn calls_that_cannot_be_are_refused_and_leave_the_sequence() {
    needs!(at_hand());
    let (mut model, other) = (model(false), self::model(false));
    let mut sequence = model.start(Some(12)).unwrap();
    let before = model.run(&mut sequence, &PROMPT).unwrap();
    let mut refused = |tokens: &[i64]| model.run(&mut sequence, tokens).unwrap_err();
    assert!(matches!(refused(&[]), Error::NoTokens));
    assert!(matches!(refused(&[1, 32]), Error::Token { id: 32, limit: 32 }));
    assert!(matches!(refused(&[-1]), Error::Token { id: -1, .. }));
    assert!(matches!(refused(&[1; 4]), Error::Full { capacity: 12, needed: 13 }));
    assert_eq!(sequence.len(), PROMPT.len());
    assert!(matches!(model.run(&mut other.start(None).unwrap(), &[1]), Err(Error::OtherModel)));
    let after = model.run(&mut sequence, &[7]).unwrap();
    let again = model.run(&mut model.start(None).unwrap(), &[&PROMPT[..], &[7]].concat()).unwrap();
    assert!(close(&after, &again) && !close(&before, &after));
}

#[test]
fn a_cancelled_call_returns_and_leaves_the_sequence() {
    needs!(at_hand());
    let mut model = model(true);
    let mut sequence = model.start(None).unwrap();
    let canceller = model.canceller();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        canceller.cancel();
    });
    let error = loop {
        let before = sequence.len();
        let result = model.run(&mut sequence, &PROMPT);
        assert_eq!(sequence.len(), before + if result.is_ok() { PROMPT.len() } else { 0 });
        if let Err(error) = result {
            break error;
        }
    };
    canceller.join().unwrap();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(matches!(model.run(&mut sequence, &[1]), Err(Error::Cancelled)));
    assert!(model.canceller().is_cancelled());
}

#[test]
fn models_that_cannot_be_driven_say_why() {
    needs!(at_hand());
    let refused = |path: PathBuf, interface: &Interface| {
        let error = open(&path, interface).err().unwrap();
        let cause = std::error::Error::source(&error).map(|e| e.to_string()).unwrap_or_default();
        format!("{error}: {cause}")
    };
    let plain = interface(false);
    let mut one_more = plain.clone();
    one_more.layers.push(CacheLayer { key: pair("other", D), ..plain.layers[0].clone() });
    let mut wider = plain.clone();
    wider.layers[0].value.width = 33;
    let mut halves = plain.clone();
    halves.layers[0].key.element = Element::Float16;
    let none = Interface { layers: vec![], shares_buffer: false };
    for (path, interface, problem) in [
        (root("nowhere.onnx"), &plain, "nowhere.onnx: "),
        (root("Cargo.toml"), &plain, "Cargo.toml: "),
        (root("tests/support/models/layer_f32.onnx"), &none, "its input 'query' (Tensor<f32>"),
        (file(false), &none, "its input 'past_key_values.0.key'"),
        (file(false), &one_more, "it has no cache input 'past_key_values.0.other'"),
        (file(false), &wider, "its cache input 'past_key_values.0.value' is "),
        (file(false), &halves, "expected [1, 1, rows, 32] of Float16"),
    ] {
        let message = refused(path, interface);
        assert!(message.contains(problem), "{message}, expected {problem}");
    }
}

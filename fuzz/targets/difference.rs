//! A model that is rewritten without loss computes what it did before.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

use half::f16;
use spark_ort::onnx;
use spark_ort::rewrite::{Calibration, Options, inspect, rewrite};
use spark_ort::runtime::{Model, Options as RunOptions};

use super::files::folder;

/// A file beside the mutants with numbers for weights that the graphs of the project are without: (name, bytes).
pub const WEIGHTS: (&str, usize) = ("weights", 4 << 20);

/// A file in the folder of a process while ONNX Runtime works on a mutant itself: should it end the process, that is no
/// fault of the rewriter's.
pub const FOREIGN: &str = "foreign";

/// A file in the folder of a process, with a byte for each mutant that was compared.
pub const COMPARED: &str = "compared";

/// Element types as ONNX numbers them.
const FLOAT: i32 = 1;
const FLOAT16: i32 = 10;

/// Tokens of the calls: a prompt, one more, several more, and one more.
const CALLS: [&[i64]; 4] = [&[5, 9, 2, 7, 11, 3, 8], &[4], &[6, 1, 9], &[10]];

/// A model file is refused or rewritten to one with the same logits, but for the rounding of the cache to float16.
pub fn difference(data: &[u8]) {
    let (input, output) = (folder().join("in/mutant.onnx"), folder().join("in/rewritten.onnx"));
    weights();
    fs::write(&input, data).expect("a file");
    // Attention of numbers that are none is no attention: a guard of the original's may hide it, the operators need not.
    if !weights_are_finite(&input) {
        return;
    }
    let lossless = Options {
        ratio: 0.0,
        key_bits: 16,
        value_bits: 16,
        calibrate: Calibration::Off,
        force: true,
        ..Options::default()
    };
    if rewrite(&input, &output, &lossless, &mut ()).is_err() {
        return;
    }
    let foreign = folder().join(FOREIGN);
    File::create(&foreign).expect("a file");
    let before = logits(&input);
    fs::remove_file(&foreign).expect("it is there");
    // What ONNX Runtime does not run has nothing to compare.
    let Ok(before) = before else { return };
    if before.iter().flatten().any(|x| !x.is_finite()) {
        return;
    }
    let after = logits(&output).unwrap_or_else(|problem| panic!("the rewritten model does not run: {problem}"));
    for (call, (before, after)) in before.iter().zip(&after).enumerate() {
        let largest = before.iter().fold(1e-3f32, |largest, x| largest.max(x.abs()));
        let error = before.iter().zip(after).fold(0f32, |error, (x, y)| error.max((x - y).abs())) / largest;
        // In the prompt keys and values are as they were.
        let within = if call == 0 { 2e-3 } else { 5e-2 };
        assert!(error <= within, "call {call} differs by {error} of its largest logit");
    }
    let compared = File::options().append(true).create(true).open(folder().join(COMPARED));
    compared.and_then(|mut file| file.write_all(b".")).expect("a file");
}

/// Whether what the file itself holds of weights and constants are numbers.
fn weights_are_finite(path: &Path) -> bool {
    let Ok(model) = onnx::read(path) else { return false };
    let constants = model.graph.node.iter().flat_map(|node| &node.attribute).map(|attribute| &attribute.t);
    let mut tensors = model.graph.initializer.iter().chain(constants.flat_map(|tensor| tensor.as_ref()));
    tensors.all(|tensor| {
        let raw = tensor.raw_data();
        tensor.float_data.iter().all(|x| x.is_finite())
            && match tensor.data_type() {
                FLOAT => raw.as_chunks().0.iter().all(|bytes| f32::from_le_bytes(*bytes).is_finite()),
                FLOAT16 => raw.as_chunks().0.iter().all(|bytes| f16::from_le_bytes(*bytes).is_finite()),
                _ => true,
            }
    })
}

/// Logits of the last token of each call.
fn logits(path: &Path) -> Result<Vec<Vec<f32>>, String> {
    let interface = inspect(path).map_err(|e| e.to_string())?.interface;
    let text =
        |e: spark_ort::runtime::Error| format!("{e}: {:?}", std::error::Error::source(&e).map(ToString::to_string));
    let mut model = Model::open(path, &interface, &RunOptions { threads: Some(1) }).map_err(text)?;
    let mut sequence = model.start(None).map_err(text)?;
    CALLS.iter().map(|tokens| model.run(&mut sequence, tokens).map_err(text)).collect()
}

/// Sees to it that the file is there.
fn weights() {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let bytes: Vec<u8> = (0..WEIGHTS.1 / 4).flat_map(|_| (0.3 * next()).to_le_bytes()).collect();
        fs::write(folder().join("in").join(WEIGHTS.0), bytes).expect("a file");
    });
}

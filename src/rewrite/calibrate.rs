//! Measuring query saliency: a lossless copy of the model reads some text and reports how large its queries are.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::apply::Names;
use super::basis::{Basis, Covariance};
use super::error::{Refusal, RewriteError};
use super::inspect::Inspection;
use super::layer::Layer;
use super::options::{Calibration, Options};
use super::progress::Progress;
use super::rows::Rows;
use crate::files;
use crate::onnx::proto::ModelProto;
use crate::runtime::{FolderSettings, Model, Options as RunOptions, Tokenizer};

/// Tokens read at once.
pub const CHUNK: usize = 512;

/// Most calls of a model that takes a fixed number of tokens, possibly one.
const MOST_FIXED_CALLS: usize = 256;

/// Fewest tokens that are worth measuring.
const FEWEST: usize = 64;

/// Text of the usual kinds, for models that come with a tokenizer.
const SAMPLE: &str = include_str!("calibration.txt");

/// What was measured.
pub struct Measured {
    /// What on.
    pub on: String,
    /// n of each layer, `[Hk, D]`.
    pub saliency: Vec<Vec<f32>>,
    /// Of each layer, where it was asked for.
    pub covariance: Vec<Covariance>,
}

/// What calibration reads.
pub enum Tokens {
    /// The tokens of a text, with its name.
    Text(Vec<i64>, String),
    /// This many random tokens.
    Random(usize),
}

/// The tokens that `options` ask for, for the model at `model` with these `layers` and their `rows`. `None`: no
/// calibration.
///
/// # Errors
/// There is no tokenizer for a text, or too little text, or a basis cannot be calibrated on it.
pub fn tokens(
    model: &Path,
    options: &Options,
    (layers, rows): (&[Layer], &[Rows]),
) -> Result<Option<Tokens>, RewriteError> {
    let tokens = tokens_of(model, options)?;
    check_basis(layers, rows, tokens.as_ref())?;
    Ok(tokens)
}

fn tokens_of(model: &Path, options: &Options) -> Result<Option<Tokens>, RewriteError> {
    let tokenizer = || match &options.tokenizer {
        Some(path) => Tokenizer::open(path),
        None => Tokenizer::beside(model),
    };
    let problem = |text: String| RewriteError::option("calibrate", text);
    let most = options.calibration_tokens;
    if most < FEWEST {
        return Err(RewriteError::option("calibration_tokens", format!("{most} is less than {FEWEST}")));
    }
    let (text, name, tokenizer) = match &options.calibrate {
        Calibration::Off => return Ok(None),
        Calibration::Random => return Ok(Some(Tokens::Random(most))),
        Calibration::Auto => match tokenizer() {
            Ok(tokenizer) => (SAMPLE.to_string(), "the bundled sample".to_string(), tokenizer),
            // A tokenizer that was named must exist.
            Err(e) if options.tokenizer.is_some() => return Err(RewriteError::option("tokenizer", chain(&e))),
            Err(crate::runtime::Error::NoTokenizer { .. }) => return Ok(Some(Tokens::Random(most))),
            Err(e) => return Err(problem(format!("{}; mend it, or say random", chain(&e)))),
        },
        Calibration::File(path) => {
            let text =
                files::read_text(path, files::MOST_TEXT).map_err(|e| problem(format!("{}: {e}", path.display())))?;
            let tokenizer = tokenizer().map_err(|e| {
                problem(format!("a text needs a tokenizer: {}; name one with --tokenizer, or say random", chain(&e)))
            })?;
            (text, path.display().to_string(), tokenizer)
        }
    };
    let mut tokens = tokenizer.encode(&text).map_err(|e| problem(e.to_string()))?;
    if tokens.len() < FEWEST {
        return Err(problem(format!("{name} has {} tokens, at least {FEWEST} are needed", tokens.len())));
    }
    tokens.truncate(most);
    Ok(Some(Tokens::Text(tokens, name)))
}

/// Refuses layers and tokens that a basis, where `rows` are in one, cannot be calibrated on.
///
/// # Errors
/// As [`can_find_basis`].
fn check_basis(layers: &[Layer], rows: &[Rows], tokens: Option<&Tokens>) -> Result<(), RewriteError> {
    let wanting = layers.iter().zip(rows).find(|(_, rows)| rows.have_basis());
    wanting.map_or(Ok(()), |(layer, _)| can_find_basis(layers, layer, tokens))
}

/// Checks that a basis of `layer`, one of `layers`, can be calibrated on `tokens`.
///
/// # Errors
/// Attention does not rotate its keys, or there is too little text, or none.
pub fn can_find_basis(layers: &[Layer], layer: &Layer, tokens: Option<&Tokens>) -> Result<(), RewriteError> {
    if let Some(other) = layers.iter().find(|layer| layer.rotary_inside().is_none()) {
        let found = "its keys are rotated elsewhere, or not in all their channels, so that a basis would be calibrated \
                     for the first positions only";
        return Err(Refusal::new(&other.title, "attention that rotates its keys, as with do_rotary", found).into());
    }
    let needed = Basis::fewest_tokens(layer.head_dim);
    let problem = match tokens {
        Some(Tokens::Text(tokens, _)) if tokens.len() >= needed => return Ok(()),
        Some(Tokens::Text(tokens, name)) => {
            format!("{} tokens of {name}, but a basis needs {needed} ({})", tokens.len(), layer.title)
        }
        Some(Tokens::Random(_)) => {
            "a basis from random tokens loses ten times as much as one from a text: name a text, and a tokenizer with \
             --tokenizer where none lies beside the model"
                .into()
        }
        None => "a basis is found by calibration: leave it on".into(),
    };
    Err(RewriteError::option("calibrate", problem))
}

/// The number of positions in the rotation tables of `layers`, where the model has them as constants.
pub fn positions(model: &ModelProto, layers: &[Layer]) -> Option<usize> {
    let tables: Vec<&str> = layers.iter().filter_map(|l| Some(l.rotary.as_ref()?.caches[0].as_str())).collect();
    let stored = model.graph.iter().flat_map(|graph| &graph.initializer);
    stored.filter(|t| tables.contains(&t.name())).filter_map(|t| usize::try_from(*t.dims.first()?).ok()).min()
}

/// Runs the model at `path`, whose outputs `names` report saliency, and `covariance` too if wanted, over `tokens`, at
/// most as many at once as it has `positions`.
///
/// # Errors
/// There is no ONNX Runtime, or it cannot run the model; or the caller cancelled.
pub fn measure(
    path: &Path,
    model: &Inspection,
    names: &[Names],
    covariance: bool,
    (tokens, positions): (Tokens, Option<usize>),
    options: &Options,
    progress: &mut dyn Progress,
) -> Result<Measured, RewriteError> {
    let failed = |e: crate::runtime::Error| RewriteError::Calibration(chain(&e));
    progress.step("calibrating", 0, 1);
    let mut session =
        Model::open_filling(path, &model.interface, &RunOptions { threads: options.threads }).map_err(failed)?;
    let context = FolderSettings::beside(path).ok().and_then(|s| s.context_length).unwrap_or(usize::MAX);
    let usual = CHUNK.min(context.max(1)).min(positions.unwrap_or(CHUNK).max(1));
    let fixed = session.fixed_tokens();
    let chunk = fixed.unwrap_or(usual).max(1);
    let (tokens, name) = match tokens {
        Tokens::Text(tokens, name) => (tokens, format!("tokens of {name}")),
        Tokens::Random(count) => {
            if session.vocabulary().is_none() {
                let mut sequence = session.start(None).map_err(failed)?;
                // A model without logits never tells the size of its vocabulary.
                session.run(&mut sequence, &[0]).ok();
            }
            let vocabulary = session.vocabulary().unwrap_or(FEWEST) as i64;
            let mut random = StdRng::seed_from_u64(0);
            ((0..count).map(|_| random.random_range(0..vocabulary)).collect(), "random tokens".to_string())
        }
    };
    let mut outputs: Vec<&str> = names.iter().map(|n| n.observed_saliency.as_str()).collect();
    if covariance {
        outputs.extend(names.iter().map(|n| n.observed_covariance.as_str()));
    }
    let mut squares: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let mut covariances: Vec<Covariance> = Vec::new();
    let mut read = 0;
    let most_calls = if fixed.is_some() { MOST_FIXED_CALLS } else { usize::MAX };
    for part in tokens.chunks(chunk).take(most_calls) {
        if progress.cancelled() {
            return Err(RewriteError::Cancelled);
        }
        // A short remainder adds little and costs a call.
        if part.len() < chunk.min(FEWEST) && read > 0 {
            break;
        }
        let repeated: Vec<i64>;
        let part = match fixed {
            Some(count) if part.len() < count => {
                repeated = part.iter().copied().cycle().take(count).collect();
                &repeated
            }
            _ => part,
        };
        let mut sequence = session.start(None).map_err(failed)?;
        let observed = session.run_with_outputs(&mut sequence, part, &outputs).map_err(failed)?;
        for (sums, n) in squares.iter_mut().zip(&observed) {
            sums.resize(n.len(), 0.0);
            sums.iter_mut().zip(n).for_each(|(sum, &n)| *sum += f64::from(n).powi(2));
        }
        for (layer, observed) in observed.iter().skip(names.len()).enumerate() {
            if covariances.len() == layer {
                covariances.push(Covariance { sums: vec![0.0; observed.len()], tokens: 0 });
            }
            let Covariance { sums, tokens } = &mut covariances[layer];
            sums.iter_mut().zip(observed).for_each(|(sum, x)| *sum += f64::from(*x));
            *tokens += part.len();
        }
        read += part.len();
        progress.step("calibrating", read, tokens.len());
    }
    let head_dim = model.heads().1;
    let saliency = squares.iter().map(|sums| sums.chunks(head_dim).flat_map(normalised).collect()).collect();
    Ok(Measured { on: format!("measured on {read} {name}"), saliency, covariance: covariances })
}

/// n from its squares, with geometric mean 1; channels with almost no signal get a small floor.
fn normalised(squares: &[f64]) -> Vec<f32> {
    let largest = squares.iter().fold(0.0f64, |a, &b| a.max(b)).sqrt();
    if largest == 0.0 || !largest.is_finite() {
        return vec![1.0; squares.len()];
    }
    let n: Vec<f64> = squares.iter().map(|s| s.sqrt().max(largest * 1e-6)).collect();
    let mean = (n.iter().map(|n| n.ln()).sum::<f64>() / n.len() as f64).exp();
    n.iter().map(|n| (n / mean) as f32).collect()
}

/// The message of an error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text = format!("{text}: {e}");
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::normalised;

    #[test]
    fn geometric_mean_is_one_and_nothing_is_zero() {
        let n = normalised(&[4.0, 1.0, 0.25, 1.0]);
        assert_eq!(n, [2.0, 1.0, 0.5, 1.0]);
        let n = normalised(&[0.0, 1.0, 9.0]);
        assert!(n.iter().all(|n| n.is_finite() && *n > 0.0) && n[2] / n[1] > 2.9, "{n:?}");
        assert_eq!(normalised(&[0.0; 3]), [1.0; 3]);
    }
}

//! Errors of running a model.

use std::path::PathBuf;

/// An error of this module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable ONNX Runtime was found.
    #[error("no usable ONNX Runtime found (1.{minimum} or later is needed); tried:{list}\n\
        Install one with `pip install onnxruntime`, or set ORT_DYLIB_PATH to a libonnxruntime.so",
        minimum = ort::MINOR_VERSION, list = tried.iter().map(|t| format!("\n  - {t}")).collect::<String>())]
    NoRuntime {
        /// In the order in which they were tried.
        tried: Vec<Tried>,
    },
    /// This process has already loaded an ONNX Runtime in another way.
    #[error("the `ort` crate in this process already uses another ONNX Runtime than {}", path.display())]
    OtherRuntime {
        /// The one that was found.
        path: PathBuf,
    },
    /// ONNX Runtime cannot make a session of a model.
    #[error("cannot load the model {}", path.display())]
    Open {
        /// The model.
        path: PathBuf,
        /// The error of ONNX Runtime.
        source: ort::Error,
    },
    /// The model has an unsupported input or output.
    #[error("the model {} cannot be driven: {problem}", path.display())]
    Unsupported {
        /// The model.
        path: PathBuf,
        /// Which one, and why.
        problem: String,
    },
    /// A token is not an index into the vocabulary.
    #[error("token {id} is not in the vocabulary of {limit} tokens")]
    Token {
        /// The token.
        id: i64,
        /// Size of the vocabulary, or number of tokens that the model's input type can represent.
        limit: usize,
    },
    /// An output of the cache was requested by name.
    #[error("output '{name}' belongs to the cache")]
    CacheOutput {
        /// Its name.
        name: String,
    },
    /// A call without tokens.
    #[error("a call needs at least one token")]
    NoTokens,
    /// The shared buffer has no room for the new tokens.
    #[error("the cache has room for {capacity} tokens, {needed} are needed")]
    Full {
        /// Rows of the buffer.
        capacity: usize,
        /// Held and new tokens together.
        needed: usize,
    },
    /// The sequence was started by another model.
    #[error("this sequence belongs to another model")]
    OtherModel,
    /// The call was cancelled by a [`super::Canceller`].
    #[error("cancelled")]
    Cancelled,
    /// An output differs from the model's interface.
    #[error("output '{output}' has shape {shape:?} where {expected} is expected")]
    Shape {
        /// Name of the output.
        output: String,
        /// Its shape.
        shape: Vec<i64>,
        /// The expected shape.
        expected: String,
    },
    /// ONNX Runtime rejects a call, or fails in it.
    #[error(transparent)]
    Ort(#[from] ort::Error),
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not have the expected contents.
    #[error("{} is malformed: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is no tokenizer at this path.
    #[error("there is no {}", path.display())]
    NoTokenizer {
        /// Where it should be.
        path: PathBuf,
    },
    /// Text cannot be encoded, or tokens cannot be decoded.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

/// A place where ONNX Runtime was searched for, and why it is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Description of the place.
    pub place: String,
    /// The problem there.
    pub problem: String,
}

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

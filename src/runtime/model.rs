//! A language model as an ONNX Runtime session.

use std::path::Path;
use std::sync::Arc;

use half::f16;
use ndarray::{Array2, ArrayD};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::DynValue;

use super::cancel::Canceller;
use super::error::Error;
use super::feeds::{Feed, feeds, fixed_past, fixed_tokens};
use super::interface::Interface;
use super::load::load;
use super::logits::Logits;
use super::sequence::Sequence;

/// How a model is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Number of compute threads; None leaves it to ONNX Runtime: one per physical core.
    pub threads: Option<usize>,
}

/// A model loaded on the CPU.
pub struct Model {
    session: Session,
    interface: Arc<Interface>,
    feeds: Vec<Feed>,
    /// Number of zero tokens that a new sequence holds.
    blank: usize,
    fixed_tokens: Option<usize>,
    vocabulary: Option<usize>,
    canceller: Canceller,
    memory: MemoryInfo<'static>,
}

impl Model {
    /// Loads a model, and ONNX Runtime if it is not loaded yet. `interface` describes its cache.
    ///
    /// ```no_run
    /// use std::path::Path;
    ///
    /// use spark_ort::runtime::{Model, Options, greedy};
    ///
    /// let path = Path::new("small.onnx");
    /// let interface = spark_ort::rewrite::inspect(path)?.interface;
    /// let mut model = Model::open(path, &interface, &Options::default())?;
    /// let mut sequence = model.start(Some(4096))?;
    /// let logits = model.run(&mut sequence, &[1, 450, 4996])?;
    /// println!("next token: {:?}, cache: {} bytes", greedy(&logits), sequence.cache_bytes());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If there is no ONNX Runtime, if it rejects the model, or if an input or output is not supported: inputs may be
    /// `input_ids`, `attention_mask` and `position_ids` (int64 or int32) and those of the cache; `logits` is required.
    pub fn open(path: &Path, interface: &Interface, options: &Options) -> Result<Self, Error> {
        Self::open_as(path, interface, options, false)
    }

    /// Like [`Self::open`], for calls whose logits do not matter: inputs of unknown meaning get harmless values,
    /// `logits` may be missing, and where the cache has a fixed number of tokens, sequences begin with that many
    /// zeros.
    ///
    /// # Errors
    /// If there is no ONNX Runtime, if it rejects the model, or if an input is not a numeric tensor.
    pub fn open_filling(path: &Path, interface: &Interface, options: &Options) -> Result<Self, Error> {
        Self::open_as(path, interface, options, true)
    }

    fn open_as(path: &Path, interface: &Interface, options: &Options, fill: bool) -> Result<Self, Error> {
        let runtime = load()?;
        let session = runtime.session(|mut builder| {
            if let Some(threads) = options.threads {
                builder = builder.with_intra_threads(threads)?;
            }
            builder.commit_from_file(path)
        });
        let session = session.map_err(|source| Error::Open { path: path.into(), source })?;
        let unsupported = |problem| Error::Unsupported { path: path.into(), problem };
        let blank = if fill { fixed_past(&session, interface) } else { 0 };
        let feeds = feeds(&session, interface, fill, blank).map_err(unsupported)?;
        let vocabulary = match Logits::declared_vocabulary(&session) {
            Err(_) if fill => None,
            declared => declared.map_err(unsupported)?,
        };
        let fixed_tokens = fixed_tokens(&session);
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
        let interface = Arc::new(interface.clone());
        let canceller = Canceller::new()?;
        Ok(Self { session, interface, feeds, blank, fixed_tokens, vocabulary, canceller, memory })
    }

    /// Size of the vocabulary, from the logits. For some models it is known only after the first call.
    pub fn vocabulary(&self) -> Option<usize> {
        self.vocabulary
    }

    /// The fixed number of tokens of every call, `None` if it is not fixed.
    pub fn fixed_tokens(&self) -> Option<usize> {
        self.fixed_tokens
    }

    /// The interface passed to [`Self::open`].
    pub fn interface(&self) -> &Interface {
        &self.interface
    }

    /// Cancels calls of this model from another thread.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// An empty sequence. With `capacity`, past and present are one buffer for that many tokens if the interface
    /// allows it; otherwise every call allocates a new present.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn start(&self, capacity: Option<usize>) -> Result<Sequence, Error> {
        let sequence = Sequence::new(&self.interface, capacity)?;
        match self.blank {
            0 => Ok(sequence),
            held => sequence.blank(held),
        }
    }

    /// Extends a sequence by tokens; returns the logits after the last one, `[vocabulary]`.
    ///
    /// # Errors
    /// If there are no tokens, or some are not in the vocabulary, if the sequence is full or belongs to another model,
    /// if the call was cancelled, or if ONNX Runtime fails.
    pub fn run(&mut self, sequence: &mut Sequence, tokens: &[i64]) -> Result<Vec<f32>, Error> {
        let logits = self.logits(sequence, tokens)?;
        logits.rows_from(logits.rows() - 1)
    }

    /// Like [`Self::run`], with the logits after each token, `[tokens, vocabulary]`.
    ///
    /// # Errors
    /// As [`Self::run`], and if the model computes only the last token's.
    pub fn run_all(&mut self, sequence: &mut Sequence, tokens: &[i64]) -> Result<Array2<f32>, Error> {
        let logits = self.logits(sequence, tokens)?;
        if logits.rows() != tokens.len() {
            return Err(logits.unexpected());
        }
        let shape = (logits.rows(), logits.vocabulary());
        Ok(Array2::from_shape_vec(shape, logits.rows_from(0)?).expect("as many as the shape says"))
    }

    /// Extends a sequence by tokens; returns the named outputs as float32, in that order.
    ///
    /// # Errors
    /// As [`Self::run`], and if there is no such output, if it belongs to the cache, or if it is neither float32 nor
    /// float16.
    pub fn run_with_outputs(
        &mut self,
        sequence: &mut Sequence,
        tokens: &[i64],
        names: &[&str],
    ) -> Result<Vec<ArrayD<f32>>, Error> {
        let outputs = self.call(sequence, tokens, names)?;
        let float32 = |value: &DynValue| match value.try_extract_array::<f16>() {
            Ok(values) => Ok(values.mapv(f16::to_f32)),
            Err(_) => Ok(value.try_extract_array::<f32>()?.into_owned()),
        };
        outputs.iter().map(float32).collect()
    }

    fn logits(&mut self, sequence: &mut Sequence, tokens: &[i64]) -> Result<Logits, Error> {
        let value = self.call(sequence, tokens, &[Logits::NAME])?.swap_remove(0);
        let logits = Logits::of(value, tokens.len())?;
        self.vocabulary = Some(logits.vocabulary());
        Ok(logits)
    }

    /// One call; returns the named outputs.
    fn call(&mut self, sequence: &mut Sequence, tokens: &[i64], names: &[&str]) -> Result<Vec<DynValue>, Error> {
        self.check(sequence, tokens)?;
        if let Some(name) = names.iter().find(|name| self.interface.pairs().any(|(_, pair)| pair.present == **name)) {
            return Err(Error::CacheOutput { name: (*name).into() });
        }
        // A binding keeps its output tensors, so each call needs its own.
        let mut binding = self.session.create_binding()?;
        for feed in &self.feeds {
            binding.bind_input(&feed.name, &feed.tensor(tokens, sequence.len())?)?;
        }
        sequence.bind(&mut binding, &self.memory)?;
        for name in names {
            binding.bind_output_to_device(*name, &self.memory)?;
        }
        let outputs = self.session.run_binding_with_options(&binding, self.canceller.options());
        let mut outputs = match outputs {
            Err(_) if self.canceller.is_cancelled() => return Err(Error::Cancelled),
            outputs => outputs?,
        };
        sequence.extend(&mut outputs, tokens.len())?;
        Ok(names.iter().map(|name| outputs.remove(name).expect("a bound output")).collect())
    }

    fn check(&self, sequence: &Sequence, tokens: &[i64]) -> Result<(), Error> {
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        let limit = Feed::token_limit(&self.feeds).min(self.vocabulary.unwrap_or(usize::MAX));
        if let Some(&id) = tokens.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= limit)) {
            return Err(Error::Token { id, limit });
        }
        sequence.check(&self.interface, tokens.len())?;
        match self.canceller.is_cancelled() {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

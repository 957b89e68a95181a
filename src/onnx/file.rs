//! Reading and writing `.onnx` files.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use protobuf::{CodedInputStream, CodedOutputStream, Message};

use super::measure;
use super::proto::ModelProto;
use crate::files;

/// Bytes that a model may take in memory in addition to twice its file size.
const MOST_MEMORY: u64 = 768 << 20;

/// Most bytes of a model's file, as protobuf allows them. Larger weights are in files of their own.
pub const MOST_BYTES: u64 = 2 << 30;

/// Why a model file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file system refuses.
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// Not protobuf, or truncated.
    #[error("{0} is not an ONNX model, or is cut short: {1}")]
    Malformed(PathBuf, protobuf::Error),
    /// Takes too much memory for its size.
    #[error("{0} is not read: its more than {1} MB in memory are many times its size, as of no model that is in use")]
    TooLarge(PathBuf, u64),
    /// Larger than protobuf allows.
    #[error("{0} has {1} bytes, and an .onnx file has 2 GiB at most, with larger weights in files beside it")]
    OverLimit(PathBuf, u64),
    /// Protobuf, but not a model.
    #[error("{0} is not an ONNX model: it has no graph")]
    NoGraph(PathBuf),
    /// ONNX Runtime's own format.
    #[error(
        "{0} is in ONNX Runtime's own format (.ort), which is not rewritten; name the .onnx file that it was made from"
    )]
    OrtFormat(PathBuf),
    /// External data whose location is not a plain relative path.
    #[error("{model}: tensor '{tensor}' has its data in '{location}', which is not a path inside the model's folder")]
    Location {
        /// The model's file.
        model: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The location that it states.
        location: String,
    },
    /// External data whose offset or length is not a number.
    #[error("{model}: tensor '{tensor}' has its data at {key} '{value}', which is no number of bytes")]
    Number {
        /// The model's file.
        model: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// offset or length
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A link that leads out of the model's folder.
    #[error(
        "{file} leads out of the model's folder, to {real}; if that is meant, put a copy or a hard link in its place"
    )]
    Leaves {
        /// The link.
        file: PathBuf,
        /// Where it leads.
        real: PathBuf,
    },
    /// External data is missing.
    #[error("{0} is missing, where {1} has the data of tensor '{2}'")]
    MissingData(PathBuf, PathBuf, String),
    /// External data that ends too early.
    #[error("{file} has {have} bytes, tensor '{tensor}' needs {need}: the file is cut short")]
    ShortData {
        /// The data file.
        file: PathBuf,
        /// Its bytes.
        have: u64,
        /// Bytes up to the end of the tensor.
        need: u64,
        /// The tensor's name.
        tensor: String,
    },
}

impl FileError {
    /// Turns an I/O error about `path` into one that names it.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |e| FileError::Io(path, e)
    }
}

/// Reads the model at `path`; external data is not read. Memory: about the size of the file.
///
/// # Errors
/// The file cannot be read, or is not a complete ONNX model.
pub fn read(path: &Path) -> Result<ModelProto, FileError> {
    let io = || FileError::io(path);
    let file = files::open(path).map_err(io())?;
    let bytes = file.metadata().map_err(io())?.len();
    let malformed = |e| FileError::Malformed(path.into(), e);
    let mut reader = BufReader::new(file);
    if reader.fill_buf().map_err(io())?.get(4..8) == Some(b"ORTM") {
        return Err(FileError::OrtFormat(path.into()));
    }
    if bytes > MOST_BYTES {
        return Err(FileError::OverLimit(path.into(), bytes));
    }
    let most = MOST_MEMORY.saturating_add(bytes.saturating_mul(2));
    let memory = measure::memory(&mut reader, bytes, most).map_err(io())?;
    if memory > most {
        return Err(FileError::TooLarge(path.into(), memory >> 20));
    }
    reader.rewind().map_err(io())?;
    let mut input = CodedInputStream::from_buf_read(&mut reader);
    let mut model = ModelProto::new();
    model.merge_from(&mut input).map_err(malformed)?;
    input.check_eof().map_err(malformed)?;
    if model.graph.is_none() {
        return Err(FileError::NoGraph(path.into()));
    }
    Ok(model)
}

/// Writes `model` to the new file `path` and waits until it is on disk.
///
/// # Errors
/// The file exists or cannot be written; a partial file may then be left.
pub fn write(model: &ModelProto, path: &Path) -> Result<(), FileError> {
    let file = File::create_new(path).map_err(FileError::io(path))?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let io = |e: protobuf::Error| FileError::Io(path.into(), std::io::Error::other(e));
    let mut output = CodedOutputStream::new(&mut writer);
    model.write_to(&mut output).map_err(io)?;
    output.flush().map_err(io)?;
    drop(output);
    let file = writer.into_inner().map_err(|e| FileError::Io(path.into(), e.into_error()))?;
    file.sync_all().map_err(FileError::io(path))
}

/// Writes `text` to the new file `path` and waits until it is on disk.
pub(crate) fn write_text(text: &str, path: &Path) -> Result<(), FileError> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(FileError::io(path))
}

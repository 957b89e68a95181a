//! Data that a model keeps in external files: checked, linked or copied, never read.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FileError;
use super::index::reads;
use super::proto::tensor_proto::DataLocation;
use super::proto::{AttributeProto, GraphProto, ModelProto, TensorProto};
use crate::files;

/// A data file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Where it lies, relative to the model's folder.
    pub location: PathBuf,
    /// Size of the file.
    pub bytes: u64,
}

/// How data files are brought to another folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// As a copy, which takes no space where the file system shares blocks.
    #[default]
    Copy,
    /// As a hard link, which never takes space, where the file system can. The `onnx` Python package refuses to load
    /// data with more than one link, of the original too.
    Link,
}

/// The data files of `model`, which lies at `path`.
///
/// # Errors
/// A file that is missing, too short for a tensor, or outside the model's folder; an offset or length that is not a
/// number.
pub fn data_files(model: &ModelProto, path: &Path) -> Result<Vec<DataFile>, FileError> {
    let homes = Homes::of(path);
    let mut files: BTreeMap<PathBuf, u64> = BTreeMap::new();
    for tensor in tensors(model) {
        let location = entry(tensor, "location").unwrap_or_default();
        let Some(inside) = relative(location) else {
            return Err(FileError::Location {
                model: path.into(),
                tensor: tensor.name().into(),
                location: location.into(),
            });
        };
        check_tensor(tensor, path, inside, &mut files, |file| homes.check(file))?;
    }
    Ok(files.into_iter().map(|(location, bytes)| DataFile { location, bytes }).collect())
}

/// Checks that the data files of `model`, which lies at `path`, are there and long enough for it to be run. Where links
/// lead to is left to ONNX Runtime, and so are locations that are no path inside the folder. What no node reads may be
/// missing, as there.
///
/// # Errors
/// A file that is missing or too short for a tensor; an offset or length that is not a number.
pub fn check_data(model: &ModelProto, path: &Path) -> Result<(), FileError> {
    let mut files = BTreeMap::new();
    let unread = unread(model);
    for tensor in tensors(model).into_iter().filter(|tensor| !unread.contains(tensor.name())) {
        if let Some(inside) = relative(entry(tensor, "location").unwrap_or_default()) {
            check_tensor(tensor, path, inside, &mut files, |_| Ok(()))?;
        }
    }
    Ok(())
}

/// Names of initializers of the graph that no node reads, and that are no output.
fn unread(model: &ModelProto) -> HashSet<&str> {
    let Some(graph) = model.graph.as_ref() else { return HashSet::new() };
    let read: HashSet<&str> = graph.node.iter().flat_map(reads).chain(graph.output.iter().map(|o| o.name())).collect();
    graph.initializer.iter().map(|tensor| tensor.name()).filter(|name| !read.contains(name)).collect()
}

/// The value of `key` of a tensor's external data.
fn entry<'t>(tensor: &'t TensorProto, key: &str) -> Option<&'t str> {
    tensor.external_data.iter().find(|e| e.key() == key).map(|e| e.value())
}

/// Checks that the file `location` has all bytes of `tensor`; `files` are those that were looked at before, with their
/// sizes, and `allowed` is asked of others.
fn check_tensor(
    tensor: &TensorProto,
    path: &Path,
    location: PathBuf,
    files: &mut BTreeMap<PathBuf, u64>,
    allowed: impl FnOnce(&Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let file = path.parent().unwrap_or(Path::new("")).join(&location);
    let have = match files.get(&location) {
        Some(&have) => have,
        None => match fs::metadata(&file) {
            Ok(status) if status.is_file() => {
                allowed(&file)?;
                status.len()
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(FileError::Io(file, error)),
            _ => return Err(FileError::MissingData(file, path.into(), tensor.name().into())),
        },
    };
    files.insert(location, have);
    let number = |key: &'static str| match entry(tensor, key).map(|v| (v, v.trim().parse::<u64>())) {
        None => Ok(0),
        Some((_, Ok(number))) => Ok(number),
        Some((value, Err(_))) => {
            let (model, tensor) = (path.into(), tensor.name().into());
            Err(FileError::Number { model, tensor, key, value: value.into() })
        }
    };
    let need = number("offset")?.saturating_add(number("length")?.max(bytes(tensor)));
    match need > have {
        true => Err(FileError::ShortData { file, have, need, tensor: tensor.name().into() }),
        false => Ok(()),
    }
}

/// Where the files of a model may lie after following links. A file of someone else's model may be a link to something
/// private, which must not be copied into the rewritten model.
pub(crate) struct Homes(Vec<PathBuf>);

impl Homes {
    /// The folder of the model at `path`. If `path` is a link, also the folder of its target, as in a hub's cache,
    /// where all files of a model are links into one folder.
    pub(crate) fn of(path: &Path) -> Self {
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let real = fs::canonicalize(path).ok().and_then(|real| real.parent().map(Path::to_path_buf));
        Self(fs::canonicalize(folder).into_iter().chain(real).collect())
    }

    /// These and `folder`, which contains the model's own.
    pub(crate) fn and(mut self, folder: &Path) -> Self {
        self.0.extend(fs::canonicalize(folder));
        self
    }

    /// # Errors
    /// `file` is a link to elsewhere, or cannot be followed.
    pub(crate) fn check(&self, file: &Path) -> Result<(), FileError> {
        let real = fs::canonicalize(file).map_err(FileError::io(file))?;
        match self.0.iter().any(|home| real.starts_with(home)) {
            true => Ok(()),
            false => Err(FileError::Leaves { file: file.into(), real }),
        }
    }
}

/// The locations of data that `model` states, if inside its folder; the files need not exist.
pub fn data_locations(model: &ModelProto) -> Vec<PathBuf> {
    let entries = tensors(model).into_iter().flat_map(|tensor| &tensor.external_data);
    let mut found: Vec<_> = entries.filter(|e| e.key() == "location").filter_map(|e| relative(e.value())).collect();
    found.sort();
    found.dedup();
    found
}

/// Changes the location of data in `model` from the file `from` to `to`.
pub fn move_data(model: &mut ModelProto, from: &Path, to: &str) {
    let mut rename = |tensor: &mut TensorProto| {
        if tensor.data_location() == DataLocation::EXTERNAL {
            let locations = tensor.external_data.iter_mut().filter(|e| e.key() == "location");
            for entry in locations.filter(|e| relative(e.value()).is_some_and(|location| location == from)) {
                entry.set_value(to.into());
            }
        }
    };
    if let Some(graph) = model.graph.as_mut() {
        for_graph(graph, &mut rename);
    }
    for function in &mut model.functions {
        function.node.iter_mut().flat_map(|n| &mut n.attribute).for_each(|a| for_attribute(a, &mut rename));
    }
}

/// A location as a plain path inside the model's folder; `None` if it leads elsewhere.
fn relative(location: &str) -> Option<PathBuf> {
    let components = || Path::new(location).components();
    let is_inside = components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let path: PathBuf = components().filter(|c| *c != Component::CurDir).collect();
    (is_inside && path != Path::new("")).then_some(path)
}

impl DataFile {
    /// Brings the file from the folder `from` to the folder `to`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn place(&self, from: &Path, to: &Path, how: Placement) -> Result<(), FileError> {
        place(&from.join(&self.location), &to.join(&self.location), how)
    }
}

/// Brings the file `from` to the new file `to` and waits until it is on disk. Its mode is kept, as far as the umask
/// allows.
///
/// # Errors
/// Something exists at `to`, `from` is not a file, or the file system refuses.
pub(crate) fn place(from: &Path, to: &Path, how: Placement) -> Result<(), FileError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(FileError::io(folder))?;
    }
    // A hard link to a symbolic link would still be a symbolic link; its target is wanted.
    let from = fs::canonicalize(from).map_err(FileError::io(from))?;
    if how == Placement::Link && fs::hard_link(&from, to).is_ok() {
        return Ok(());
    }
    let mut source = files::open(&from).map_err(FileError::io(&from))?;
    let status = source.metadata().map_err(FileError::io(&from))?;
    let target = File::options().write(true).create_new(true).mode(status.mode() & 0o777).open(to);
    let mut target = target.map_err(FileError::io(to))?;
    std::io::copy(&mut source, &mut target).and_then(|_| target.sync_all()).map_err(FileError::io(to))
}

/// Bytes of the elements of `tensor`; 0 for an unknown type.
fn bytes(tensor: &TensorProto) -> u64 {
    // Numbers of ONNX's types, of which this version of onnx.proto lacks the latest.
    let bits = match tensor.data_type() {
        25 | 26 => 2,
        21..=23 => 4,
        2 | 3 | 9 | 17..=20 | 24 => 8,
        4 | 5 | 10 | 16 => 16,
        1 | 6 | 12 => 32,
        7 | 11 | 13 | 14 => 64,
        15 => 128,
        _ => 0,
    };
    let count = tensor.dims.iter().fold(1u64, |n, &d| n.saturating_mul(u64::try_from(d).unwrap_or(0)));
    count.checked_mul(bits).map_or(u64::MAX, |bits| bits.div_ceil(8))
}

/// All tensors with external data, wherever they are.
fn tensors(model: &ModelProto) -> Vec<&TensorProto> {
    let mut found = Vec::new();
    if let Some(graph) = model.graph.as_ref() {
        in_graph(graph, &mut found);
    }
    for function in &model.functions {
        function.node.iter().flat_map(|n| &n.attribute).for_each(|a| in_attribute(a, &mut found));
    }
    found.retain(|t| t.data_location() == DataLocation::EXTERNAL);
    found
}

fn in_graph<'m>(graph: &'m GraphProto, found: &mut Vec<&'m TensorProto>) {
    found.extend(&graph.initializer);
    for sparse in &graph.sparse_initializer {
        found.extend(sparse.values.as_ref().into_iter().chain(sparse.indices.as_ref()));
    }
    graph.node.iter().flat_map(|n| &n.attribute).for_each(|a| in_attribute(a, found));
}

fn in_attribute<'m>(attribute: &'m AttributeProto, found: &mut Vec<&'m TensorProto>) {
    found.extend(attribute.t.as_ref().into_iter().chain(&attribute.tensors));
    attribute.g.iter().chain(&attribute.graphs).for_each(|g| in_graph(g, found));
}

fn for_graph(graph: &mut GraphProto, act: &mut dyn FnMut(&mut TensorProto)) {
    graph.initializer.iter_mut().for_each(&mut *act);
    for sparse in &mut graph.sparse_initializer {
        sparse.values.as_mut().into_iter().chain(sparse.indices.as_mut()).for_each(&mut *act);
    }
    graph.node.iter_mut().flat_map(|n| &mut n.attribute).for_each(|a| for_attribute(a, act));
}

fn for_attribute(attribute: &mut AttributeProto, act: &mut dyn FnMut(&mut TensorProto)) {
    attribute.t.as_mut().into_iter().chain(&mut attribute.tensors).for_each(&mut *act);
    attribute.g.as_mut().into_iter().chain(&mut attribute.graphs).for_each(|g| for_graph(g, act));
}

//! Paths in JSON reports: bytes that are no UTF-8 become U+FFFD.

use std::path::{Path, PathBuf};

use serde::Serializer;

/// For serde's `serialize_with`.
///
/// # Errors
/// Those of the serializer.
pub fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// As [`path()`]; null where there is none.
///
/// # Errors
/// Those of the serializer.
pub fn any_path<S: Serializer>(any: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match any {
        Some(any) => path(any, serializer),
        None => serializer.serialize_none(),
    }
}

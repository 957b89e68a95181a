//! Puts a file or folder in its place in one step, without losing what was there.
//!
//! Linux has `renameat2` for this. Each function says what it does on a file system without it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Whether `error` says that the system or file system does not support this kind of rename.
fn is_lacking(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
}

/// Moves `from` to `to`, where nothing may exist.
///
/// Without `renameat2`, a file gets a second name, which fails if the name exists, and loses the first one. A folder
/// is renamed normally, which fails unless `to` is absent or an empty folder.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`], where something is at `to`.
pub fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(error) if is_lacking(error) => {}
        done => return Ok(done?),
    }
    if !fs::symlink_metadata(from)?.is_dir() {
        fs::hard_link(from, to)?;
        // The first name lies in a folder that is removed anyway.
        fs::remove_file(from).ok();
        return Ok(());
    }
    fs::rename(from, to).map_err(|error| match error.kind() {
        ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => ErrorKind::AlreadyExists.into(),
        _ => error,
    })
}

/// Exchanges the folder `from` with whatever is at `to`, in one step.
///
/// # Errors
/// [`ErrorKind::Unsupported`], where the file system cannot; [`ErrorKind::NotFound`], where nothing is at `to`.
pub fn exchange(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
        Err(error) if is_lacking(error) => Err(ErrorKind::Unsupported.into()),
        done => Ok(done?),
    }
}

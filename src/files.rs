//! Opening files that others made: files only, of a stated size at most.

use std::fs::{File, FileType, Metadata};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Most bytes of a configuration.
pub const MOST_JSON: u64 = 16 << 20;

/// Most bytes of a tokenizer; the largest in use have about 40 MB.
pub const MOST_TOKENIZER: u64 = 256 << 20;

/// Most values in it.
pub const MOST_TOKENIZER_VALUES: usize = 8 << 20;

/// Most bytes of a text.
pub const MOST_TEXT: u64 = 256 << 20;

/// Opens the file `path` for reading: no pipe, which nobody may ever write to, no device, which may have no end, and
/// nothing of the kernel's own file systems, where to read can wait or do something.
///
/// # Errors
/// It is no regular file, which is checked before it is opened, or the file system refuses.
pub fn open(path: &Path) -> Result<File> {
    check(&std::fs::metadata(path)?)?;
    let system = rustix::fs::statfs(path)?.f_type as i64;
    if PSEUDO.contains(&system) {
        return Err(Error::other("is a file of the kernel's, such as those in /proc"));
    }
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // Whatever has taken its place since.
    check(&file.metadata()?)?;
    Ok(file)
}

/// What is at `path`, through any links; `None`: nothing.
///
/// # Errors
/// The file system does not say: a folder on the way may not be searched, or links lead in a circle.
pub fn kind(path: &Path) -> Result<Option<FileType>> {
    match std::fs::metadata(path) {
        Ok(status) => Ok(Some(status.file_type())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file is at `path`, through any links.
///
/// # Errors
/// As [`kind`].
pub fn is_file(path: &Path) -> Result<bool> {
    Ok(kind(path)?.is_some_and(|kind| kind.is_file()))
}

/// What statfs(2) calls procfs and sysfs.
const PSEUDO: [i64; 2] = [0x9fa0, 0x6265_6572];

fn check(status: &Metadata) -> Result<()> {
    match status.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(ErrorKind::IsADirectory.into()),
        _ => Err(Error::other("is a pipe, socket or device, not a file")),
    }
}

/// The contents of the file `path`.
///
/// # Errors
/// As [`open`]; it has more than `most` bytes.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    read_all(open(path)?, most)
}

/// All of `input`, which may be a pipe.
///
/// # Errors
/// It has more than `most` bytes, or cannot be read.
pub fn read_all(input: impl Read, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(most + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > most {
        true => Err(Error::other(format!("is larger than {} MB", most >> 20))),
        false => Ok(bytes),
    }
}

/// The same of a text.
///
/// # Errors
/// As [`read`]; it is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> Result<String> {
    text(read(path, most)?)
}

/// `bytes` as a text.
///
/// # Errors
/// They are not UTF-8.
pub fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::InvalidData, e.utf8_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_from_what_cannot_be_seen() {
        let folder = tempfile::tempdir().unwrap();
        let [file, circle, none] = ["file", "circle", "none"].map(|name| folder.path().join(name));
        std::fs::write(&file, "text").unwrap();
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        assert!(kind(&file).unwrap().unwrap().is_file() && kind(folder.path()).unwrap().unwrap().is_dir());
        assert!(kind(&none).unwrap().is_none());
        assert!(kind(&circle).is_err() && kind(&file.join("nested")).is_err());
    }

    #[test]
    fn only_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for path in [&pipe, Path::new("/dev/zero"), Path::new("/proc/self/status"), folder.path()] {
            assert!(open(path).is_err(), "{}", path.display());
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4).unwrap(), "text");
        assert!(read_all(std::io::repeat(0), 1000).is_err());
        assert!(read(&file, 3).unwrap_err().to_string().contains("larger"));
    }
}

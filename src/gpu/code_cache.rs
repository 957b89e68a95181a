//! Compiled kernels kept on disk, so that they are compiled only once for a device.
//!
//! A file is a header (magic, key, length, SHA-256 of the code) and a code object. The key, which is also the file
//! name, is the SHA-256 of everything that the code depends on. The code runs on a GPU with the user's rights, so
//! folder and file must belong to the user and be writable by no one else. A file is written beside its place, then
//! renamed. An invalid file is not an error: the kernels are then compiled again.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::sources::SOURCES;

const MAGIC: &[u8; 16] = b"spark-ort gpu 1\n";
const HEADER: usize = 16 + 32 + 8 + 32;
/// Far more than any code object of ours.
const MOST_BYTES: u64 = 256 << 20;

/// The cache entry for one architecture's kernels.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    path: PathBuf,
    key: [u8; 32],
}

impl Entry {
    /// The entry for `arch`, compiled by `compiler`, which states version and options; `None` if the user has no cache
    /// folder. It is in `folder`, within $XDG_CACHE_HOME/spark-ort or ~/.cache/spark-ort.
    pub(super) fn new(folder: &str, arch: &str, compiler: &str) -> Option<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        Some(Self::within(&caches.join("spark-ort").join(folder), arch, compiler))
    }

    fn within(folder: &Path, arch: &str, compiler: &str) -> Self {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        add(arch.as_bytes());
        add(compiler.as_bytes());
        for (name, content) in SOURCES {
            add(name.as_bytes());
            add(content.as_bytes());
        }
        let key: [u8; 32] = hash.finalize().into();
        let name: String = key.iter().map(|b| format!("{b:02x}")).collect();
        Self { path: folder.join(format!("{name}.co")), key }
    }

    /// The code, `None` if there is none that can be trusted and passes `is_code`.
    pub(super) fn read(&self, is_code: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        if !own(&fs::metadata(self.path.parent()?).ok()?) || !is_kept(&fs::symlink_metadata(&self.path).ok()?) {
            return None;
        }
        // If the file is replaced meanwhile, opening it neither blocks nor follows a link.
        let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let mut file: File = fs::OpenOptions::new().read(true).custom_flags(flags).open(&self.path).ok()?;
        if !is_kept(&file.metadata().ok()?) {
            return None;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let (header, code) = bytes.split_at_checked(HEADER)?;
        let right = header == self.header(code) && is_code(code);
        right.then(|| code.to_vec())
    }

    /// Stores `code`.
    ///
    /// # Errors
    /// If it cannot be written; no partial file stays.
    pub(super) fn write(&self, code: &[u8]) -> std::io::Result<()> {
        let folder = self.path.parent().expect("a file has a folder");
        if fs::metadata(folder).is_ok_and(|metadata| !own(&metadata)) {
            return Err(std::io::Error::other("others may write to the folder for compiled kernels"));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        // Readable only by the user, as tempfile creates it.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&self.header(code))?;
        file.write_all(code)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// Removes a code object that a device refused.
    pub(super) fn remove(&self) {
        // If this fails, the next write replaces it.
        fs::remove_file(&self.path).ok();
    }

    fn header(&self, code: &[u8]) -> Vec<u8> {
        [&MAGIC[..], &self.key, &(code.len() as u64).to_le_bytes(), &Sha256::digest(code)].concat()
    }
}

/// Whether only this user can have written the file or folder of `metadata`.
fn own(metadata: &Metadata) -> bool {
    // SAFETY: the function has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    metadata.uid() == user && metadata.mode() & 0o022 == 0
}

/// The same for a file that may be a code object.
fn is_kept(metadata: &Metadata) -> bool {
    metadata.is_file() && own(metadata) && metadata.len() <= MOST_BYTES
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn is_code(code: &[u8]) -> bool {
        code.starts_with(b"\x7fELF")
    }

    fn code() -> Vec<u8> {
        let mut code = vec![7; 500];
        code[..4].copy_from_slice(b"\x7fELF");
        code
    }

    #[test]
    fn what_is_written_is_read_by_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("deep/hip");
        let entry = Entry::within(&place, "gfx90a", "7");
        assert_eq!(entry.read(is_code), None);
        entry.write(&code()).unwrap();
        assert_eq!(entry.read(is_code), Some(code()));
        assert_eq!(Entry::within(&place, "gfx90a:xnack-", "7").read(is_code), None);
        assert_eq!(Entry::within(&place, "gfx90a", "8").read(is_code), None);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o700);
        entry.remove();
        assert_eq!(entry.read(is_code), None);
    }

    #[test]
    fn damage_of_any_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::within(folder.path(), "gfx90a", "7");
        entry.write(&code()).unwrap();
        let whole = fs::read(&entry.path).unwrap();
        for at in [0, 15, 16, 47, 48, 55, 56, 87, 88, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&entry.path, bytes).unwrap();
            assert_eq!(entry.read(is_code), None, "byte {at}");
        }
        for length in [0, 20, HEADER, whole.len() - 1] {
            fs::write(&entry.path, &whole[..length]).unwrap();
            assert_eq!(entry.read(is_code), None, "{length} bytes");
        }
        fs::write(&entry.path, &whole).unwrap();
        assert_eq!(entry.read(is_code), Some(code()));
    }

    #[test]
    fn what_others_may_write_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::within(folder.path(), "gfx90a", "7");
        entry.write(&code()).unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(&entry.path, 0o622);
        assert_eq!(entry.read(is_code), None);
        mode(&entry.path, 0o600);
        mode(folder.path(), 0o777);
        assert_eq!(entry.read(is_code), None);
        mode(folder.path(), 0o700);
        assert_eq!(entry.read(is_code), Some(code()));
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&entry.path, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &entry.path).unwrap();
        assert_eq!(entry.read(is_code), None);
        mode(folder.path(), 0o777);
        assert!(entry.write(&code()).is_err());
    }

    #[test]
    fn a_pipe_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let entry = Entry::within(folder.path(), "gfx90a", "7");
        rustix::fs::mknodat(rustix::fs::CWD, &entry.path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        // Opening a pipe for writing blocks until someone opens it for reading.
        let path = entry.path.clone();
        let writer = std::thread::spawn(move || fs::OpenOptions::new().write(true).open(path).unwrap());
        for _ in 0..200 {
            assert_eq!(entry.read(is_code), None);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!writer.is_finished());
        drop(fs::File::open(&entry.path).unwrap());
        writer.join().unwrap();
    }
}

//! Logits on disk, so that storing them takes no memory from the models.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Rows of logits of one vocabulary in an unnamed file, which is deleted when the process ends.
#[derive(Debug)]
pub struct LogitStore {
    file: File,
    vocabulary: usize,
    rows: usize,
}

impl LogitStore {
    /// An empty store, in the system's folder of temporary files.
    ///
    /// # Errors
    /// No file can be created there.
    pub fn new() -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, vocabulary: 0, rows: 0 })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a row.
    ///
    /// # Errors
    /// Its length differs from the rows before, or the disk is full.
    pub fn push(&mut self, logits: &[f32]) -> io::Result<()> {
        if self.rows > 0 && logits.len() != self.vocabulary {
            let text = format!("{} logits follow rows of {}", logits.len(), self.vocabulary);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, (self.rows * bytes.len()) as u64)?;
        self.vocabulary = logits.len();
        self.rows += 1;
        Ok(())
    }

    /// The row with this index.
    ///
    /// # Errors
    /// There is no such row, or the file cannot be read.
    pub fn row(&self, index: usize) -> io::Result<Vec<f32>> {
        if index >= self.rows {
            let text = format!("row {index} of {} rows of logits", self.rows);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut bytes = vec![0; self.vocabulary * 4];
        self.file.read_exact_at(&mut bytes, (index * self.vocabulary * 4) as u64)?;
        Ok(bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back() {
        let mut store = LogitStore::new().unwrap();
        assert!(store.row(0).is_err());
        store.push(&[1.0, f32::NEG_INFINITY]).unwrap();
        store.push(&[3.0, 4.5]).unwrap();
        assert_eq!((store.row(0).unwrap(), store.row(1).unwrap()), (vec![1.0, f32::NEG_INFINITY], vec![3.0, 4.5]));
        assert!(store.row(2).is_err() && store.push(&[1.0]).is_err());
        assert_eq!(store.len(), 2);
    }
}

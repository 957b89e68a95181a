//! Logits kept out of memory, so that keeping them does not count as the model's.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};

use anyhow::{Context, Result};

/// Logits written one after the other to a file that goes with the process.
pub struct Writer {
    file: BufWriter<File>,
    vocabulary: usize,
    count: usize,
}

impl Writer {
    pub fn new() -> Result<Self> {
        let file = tempfile::tempfile().context("cannot create a temporary file")?;
        Ok(Self { file: BufWriter::new(file), vocabulary: 0, count: 0 })
    }

    pub fn push(&mut self, logits: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.file.write_all(&bytes).context("cannot write to a temporary file")?;
        self.vocabulary = logits.len();
        self.count += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<Reader> {
        let Self { file, vocabulary, count } = self;
        let mut file = file.into_inner().context("cannot write to a temporary file")?;
        file.rewind().context("cannot read a temporary file")?;
        Ok(Reader { file: BufReader::new(file), vocabulary, left: count })
    }
}

/// The logits in the order in which they were written.
pub struct Reader {
    file: BufReader<File>,
    vocabulary: usize,
    left: usize,
}

impl Reader {
    /// How many are left.
    pub fn left(&self) -> usize {
        self.left
    }

    pub fn next(&mut self) -> Result<Vec<f32>> {
        let mut bytes = vec![0; self.vocabulary * 4];
        self.file.read_exact(&mut bytes).context("cannot read a temporary file")?;
        self.left -= 1;
        Ok(bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect())
    }
}

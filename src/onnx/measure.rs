//! How much memory a model takes once it is read, estimated from its bytes: an empty message takes two bytes in a file
//! and hundreds in memory.

use std::io::{BufRead, Result, Seek};

/// Bytes of a message, roughly.
const MESSAGE: u64 = 256;

/// Bytes of a string or byte list in a growing list, in addition to its contents, roughly.
const TEXT: u64 = 48;

/// Deepest nesting of messages.
const DEPTH: usize = 100;

/// Bytes of a number in a growing list.
const NUMBER: u64 = 16;

/// A kind of message: its message fields, by number and kind; and its fields that are lists of varints.
struct Kind(&'static [(u64, &'static Kind)], &'static [u64]);

static LEAF: Kind = Kind(&[], &[]);
static TENSOR: Kind = Kind(&[(3, &LEAF), (13, &LEAF), (16, &LEAF)], &[1, 5, 7, 11]);
static SPARSE: Kind = Kind(&[(1, &TENSOR), (2, &TENSOR)], &[3]);
static DIMENSIONS: Kind = Kind(&[(1, &LEAF)], &[]);
static TYPED: Kind = Kind(&[(1, &TYPE), (2, &DIMENSIONS)], &[]);
static MAP: Kind = Kind(&[(2, &TYPE)], &[]);
static TYPE: Kind = Kind(&[(1, &TYPED), (4, &TYPED), (5, &MAP), (8, &TYPED), (9, &TYPED)], &[]);
static VALUE: Kind = Kind(&[(2, &TYPE), (4, &LEAF)], &[]);
static ATTRIBUTE: Kind = Kind(
    &[(5, &TENSOR), (6, &GRAPH), (10, &TENSOR), (11, &GRAPH), (14, &TYPE), (15, &TYPE), (22, &SPARSE), (23, &SPARSE)],
    &[8],
);
static NODE: Kind = Kind(&[(5, &ATTRIBUTE), (9, &LEAF), (10, &LEAF)], &[]);
static GRAPH: Kind = Kind(
    &[(1, &NODE), (5, &TENSOR), (11, &VALUE), (12, &VALUE), (13, &VALUE), (14, &MAP), (15, &SPARSE), (16, &LEAF)],
    &[],
);
static FUNCTION: Kind = Kind(&[(7, &NODE), (9, &LEAF), (11, &ATTRIBUTE), (12, &VALUE), (14, &LEAF)], &[]);
static MODEL: Kind = Kind(&[(7, &GRAPH), (8, &LEAF), (14, &LEAF), (20, &LEAF), (25, &FUNCTION)], &[]);

/// Roughly how many bytes the model in `input` takes in memory, counted up to `most`; malformed bytes end the count.
/// Embedded weights are skipped, not read.
///
/// # Errors
/// The input cannot be read.
pub fn memory(input: &mut (impl BufRead + Seek), bytes: u64, most: u64) -> Result<u64> {
    let mut scan = Scan { input, at: 0, sum: 0, most };
    scan.message(&MODEL, bytes, 0)?;
    Ok(scan.sum)
}

struct Scan<'i, R> {
    input: &'i mut R,
    at: u64,
    sum: u64,
    most: u64,
}

impl<R: BufRead + Seek> Scan<'_, R> {
    /// Counts a message that ends at `end`.
    fn message(&mut self, kind: &Kind, end: u64, depth: usize) -> Result<()> {
        self.sum += MESSAGE;
        while self.at < end {
            if self.sum > self.most {
                return self.skip(end);
            }
            let Some(tag) = self.varint()? else { return self.skip(end) };
            match tag & 7 {
                0 => drop(self.varint()?),
                1 => self.skip(self.at.saturating_add(8).min(end))?,
                5 => self.skip(self.at.saturating_add(4).min(end))?,
                2 => {
                    let Some(length) = self.varint()? else { return self.skip(end) };
                    let to = self.at.saturating_add(length).min(end);
                    match kind.0.iter().find(|(number, _)| *number == tag >> 3) {
                        Some((_, inner)) if depth < DEPTH => self.message(inner, to, depth + 1)?,
                        _ if kind.1.contains(&(tag >> 3)) => self.numbers(to)?,
                        _ => {
                            self.sum += TEXT + (to - self.at);
                            self.skip(to)?;
                        }
                    }
                }
                _ => return self.skip(end),
            }
            self.sum += if tag & 7 == 2 { 0 } else { NUMBER };
        }
        Ok(())
    }

    /// Counts a list of varints that ends at `end`; the last byte of each is below 128.
    fn numbers(&mut self, end: u64) -> Result<()> {
        while self.at < end && self.sum <= self.most {
            let bytes = self.input.fill_buf()?;
            let bytes = &bytes[..bytes.len().min((end - self.at) as usize)];
            if bytes.is_empty() {
                break;
            }
            let (count, read) = (bytes.iter().filter(|&&byte| byte < 0x80).count(), bytes.len());
            self.sum += NUMBER * count as u64;
            self.at += read as u64;
            self.input.consume(read);
        }
        self.skip(end)
    }

    fn skip(&mut self, to: u64) -> Result<()> {
        self.input.seek_relative((to - self.at.min(to)) as i64)?;
        self.at = to.max(self.at);
        Ok(())
    }

    /// `None` at the end of the input, and for bytes that are not a varint.
    fn varint(&mut self) -> Result<Option<u64>> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            if self.input.read(&mut byte)? == 0 {
                return Ok(None);
            }
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn of(bytes: &[u8]) -> u64 {
        memory(&mut Cursor::new(bytes), bytes.len() as u64, u64::MAX).unwrap()
    }

    #[test]
    fn messages_and_not_weights_count() {
        // A graph of a thousand empty nodes, a thousand names, and an initializer.
        let graph =
            |inside: &[u8]| [&[7 << 3 | 2, inside.len() as u8 | 0x80, (inside.len() >> 7) as u8], inside].concat();
        assert_eq!(of(&graph(&[1 << 3 | 2, 0].repeat(1000))), 2 * MESSAGE + 1000 * MESSAGE);
        let weights = [&[5 << 3 | 2, 0x84, 7, 9 << 3 | 2, 0x81, 7][..], &[0; 897]].concat();
        assert_eq!(of(&graph(&weights)), 3 * MESSAGE + TEXT + 897);
        // 100 numbers of a byte each.
        let numbers = [&[5 << 3 | 2, 102, 7 << 3 | 2, 100][..], &[0; 100]].concat();
        assert_eq!(of(&graph(&numbers)), 3 * MESSAGE + 100 * NUMBER);
        // Truncated, or nonsense.
        of(&graph(&weights)[..20]);
        of(&[0xff; 100]);
        of(&[7 << 3 | 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
    }
}

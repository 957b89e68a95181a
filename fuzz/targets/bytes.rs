//! Numbers out of the bytes of a mutant.

/// Bytes that are taken one after the other; zeros behind the last one.
pub struct Bytes<'b>(pub &'b [u8]);

impl Bytes<'_> {
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    pub fn number(&mut self) -> i64 {
        i64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Mostly a small number, now and then any.
    pub fn size(&mut self) -> i64 {
        match self.byte() {
            255 => self.number(),
            254 => -1,
            253 => i64::MAX,
            small => i64::from(small % 17),
        }
    }
}

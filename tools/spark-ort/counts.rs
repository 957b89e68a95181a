//! How much a command may ask for.

/// More tokens than any model reads; sums of a few such numbers are far from overflowing.
pub const MOST: usize = 1 << 30;

/// A number of tokens as a command line spells it.
pub fn tokens(text: &str) -> Result<usize, String> {
    at_most(MOST, text, "tokens can be asked for")
}

/// A number as a command line spells it, of which `most` are allowed; an error ends with `why`.
pub fn at_most(most: usize, text: &str, why: &str) -> Result<usize, String> {
    let count: usize = text.parse().map_err(|e| format!("{e}"))?;
    if count <= most { Ok(count) } else { Err(format!("at most {most} {why}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_overflow_is_refused() {
        assert_eq!((tokens("0"), tokens("1073741824")), (Ok(0), Ok(MOST)));
        for text in ["1073741825", "18446744073709551615"] {
            assert_eq!(tokens(text).unwrap_err(), "at most 1073741824 tokens can be asked for");
        }
        assert!(tokens("-1").unwrap_err().contains("invalid digit"));
    }
}

//! How many threads a command may ask for.

use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use crate::counts::at_most;

/// For each processor. Each thread has memory of its own, so that some thousands fill a machine's.
const MOST_EACH: usize = 16;

/// Threads as a command line spells them.
pub fn count(text: &str) -> Result<usize, String> {
    let processors = available_parallelism().map_or(1, NonZeroUsize::get);
    let most = MOST_EACH * processors;
    at_most(most, text, &format!("make sense on {processors} processors"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_fill_the_memory_is_refused() {
        assert_eq!(count("2"), Ok(2));
        assert!(count("100000000").unwrap_err().starts_with("at most "));
        assert!(count("-1").unwrap_err().contains("invalid digit"));
    }
}

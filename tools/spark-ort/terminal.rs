//! The program's output: a closed or full output is an error, not a panic, and names from files cannot control the
//! terminal.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::{Context, Result};

/// Writes `text` for people to stdout.
///
/// # Errors
/// Stdout is closed or full.
pub fn show(text: &str) -> Result<()> {
    pass_on(&plain(text))
}

/// Writes `text` for programs, such as JSON, to stdout unchanged.
///
/// # Errors
/// Stdout is closed or full.
pub fn pass_on(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to stdout")
}

/// Writes `text` to stderr; a failure is ignored, because it cannot be reported.
pub fn note(text: &str) {
    std::io::stderr().lock().write_all(plain(text).as_bytes()).ok();
}

/// `text` with all terminal control characters escaped, except line ends and tabs.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        // Characters that change the writing direction are not control characters.
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match c {
            '\n' | '\t' => plain.push(c),
            c if c.is_control() || turns => write!(plain, "\\u{{{:x}}}", u32::from(c)).expect("a string takes all"),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_terminals_obey_is_spelt_out() {
        assert_eq!(plain("é\n\t\u{1b}[2J\r\u{202e}"), "é\n\t\\u{1b}[2J\\u{d}\\u{202e}");
    }
}

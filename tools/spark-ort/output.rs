//! The generated text.

use std::io::IsTerminal;

use anyhow::Result;

use crate::prompt::Speller;
use crate::terminal::{note, pass_on, show};

/// Text that is shown on stdout as it is generated, and collected.
pub struct Output<'a> {
    speller: Speller<'a>,
    text: String,
    shown: bool,
}

impl<'a> Output<'a> {
    /// `shown` is false if stdout is for something else.
    pub fn new(speller: Speller<'a>, shown: bool) -> Self {
        Self { speller, text: String::new(), shown }
    }

    pub fn push(&mut self, token: i64) -> Result<()> {
        let text = self.speller.push(token)?;
        self.text.push_str(&text);
        self.write(&text)
    }

    /// Ends the line; returns the whole text.
    pub fn finish(self) -> Result<String> {
        self.write("\n")?;
        // Statistics follow on the terminal.
        if self.shown && std::io::stdout().is_terminal() {
            note("\n");
        }
        Ok(self.text)
    }

    fn write(&self, text: &str) -> Result<()> {
        if !self.shown {
            return Ok(());
        }
        match std::io::stdout().is_terminal() {
            // Tokens of someone else's model may contain terminal control sequences.
            true => show(text),
            false => pass_on(text),
        }
    }
}

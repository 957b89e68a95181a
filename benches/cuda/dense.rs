//! Dense float16 attention by PyTorch, in a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::shape::Shape;

/// sdpa.py, which answers one line with one line.
pub struct Dense {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What it says of PyTorch and the device.
    pub about: Value,
}

impl Dense {
    /// Starts `script`.
    ///
    /// # Errors
    /// If there is no such Python, or it has no PyTorch for `device`.
    pub fn start(python: &str, script: &Path, device: &str) -> Result<Self> {
        let mut command = Command::new(python);
        command.arg(script).arg(device).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().with_context(|| format!("{python} does not start"))?;
        let requests = process.stdin.take().expect("piped");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut dense = Self { process, requests, answers, about: Value::Null };
        dense.about = dense.answer()?;
        Ok(dense)
    }

    /// Makes tensors for `count` layers of `context` cached tokens and `new` queries of each sequence, and picks the
    /// fastest of PyTorch's kernels for them. What it says of them.
    pub fn prepare(
        &mut self,
        shape: Shape,
        (batch, context, new): (usize, usize, usize),
        count: usize,
    ) -> Result<Value> {
        self.ask(json!({
            "batch": batch,
            "context": context,
            "new": new,
            "query_heads": shape.query_heads,
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "layers": count,
        }))
    }

    /// Milliseconds of one layer, the mean of all of them.
    pub fn time(&mut self) -> Result<f64> {
        let answer = self.ask(json!("time"))?;
        answer["ms"].as_f64().context("no ms in its answer")
    }

    /// Lets the tensors go.
    pub fn release(&mut self) -> Result<()> {
        self.ask(json!("release")).map(drop)
    }

    fn ask(&mut self, request: Value) -> Result<Value> {
        writeln!(self.requests, "{request}")?;
        self.requests.flush()?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("PyTorch's process ended");
        }
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{line:?}"))?;
        match answer.get("error") {
            Some(error) => bail!("{}", error.as_str().unwrap_or("an error without a text")),
            None => Ok(answer),
        }
    }
}

impl Drop for Dense {
    fn drop(&mut self) {
        // It waits for requests only. If it is gone already, all the better.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

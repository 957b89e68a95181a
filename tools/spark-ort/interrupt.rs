//! Ctrl-C, and other signals that ask a program to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use spark_ort::runtime::Canceller;

/// What shells expect of a program that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

/// The first Ctrl-C ends the model's call, so that the command can say what it has; the second one kills.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<State>);

/// Has `act` done at Ctrl-C, SIGTERM, and SIGHUP unless that is ignored, as `nohup` does. Once per process.
pub fn on_signals(act: impl FnMut() + Send + 'static) -> Result<()> {
    // SAFETY: it only asks, and sets what was set before; no handler of this program is there yet.
    let hangup = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    ctrlc::set_handler(act).context("cannot handle Ctrl-C")?;
    if hangup == libc::SIG_IGN {
        // SAFETY: to ignore a signal runs no code.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    Ok(())
}

#[derive(Default)]
struct State {
    interrupted: AtomicBool,
    current: Mutex<Option<Canceller>>,
}

impl Interrupt {
    /// Takes over Ctrl-C. Once per process.
    pub fn install() -> Result<Self> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        on_signals(move || handler.interrupt())?;
        Ok(interrupt)
    }

    /// Ends the calls of this model at Ctrl-C, at once if it was pressed before.
    pub fn watch(&self, canceller: Canceller) {
        let mut current = self.0.current.lock().unwrap_or_else(|e| e.into_inner());
        if self.0.interrupted.load(Ordering::SeqCst) {
            canceller.cancel();
        }
        *current = Some(canceller);
    }

    /// Whether Ctrl-C was pressed.
    pub fn is_set(&self) -> bool {
        self.0.interrupted.load(Ordering::SeqCst)
    }

    fn interrupt(&self) {
        if self.0.interrupted.swap(true, Ordering::SeqCst) {
            // Not `exit`, which would run destructors of ONNX Runtime under threads that use it.
            // SAFETY: it ends the process.
            unsafe { libc::_exit(i32::from(EXIT_CODE)) }
        }
        if let Some(canceller) = &*self.0.current.lock().unwrap_or_else(|e| e.into_inner()) {
            canceller.cancel();
        }
    }
}

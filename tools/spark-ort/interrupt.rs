//! Ctrl-C, and other signals that ask a program to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use spark_ort::runtime::Canceller;

/// The exit status that shells expect of a program ended by Ctrl-C.
pub const EXIT_CODE: u8 = 130;

/// The first Ctrl-C ends the model's call, so that the command can show partial results; the second one kills the
/// process.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<State>);

/// Runs `act` at Ctrl-C, SIGTERM, and SIGHUP unless that is ignored, as `nohup` does. Once per process.
pub fn on_signals(act: impl FnMut() + Send + 'static) -> Result<()> {
    // SAFETY: this only reads the setting, and restores it below; this program has no handler yet.
    let hangup = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    ctrlc::set_handler(act).context("cannot handle Ctrl-C")?;
    if hangup == libc::SIG_IGN {
        // SAFETY: ignoring a signal runs no code.
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
    /// Installs the Ctrl-C handler. Once per process.
    pub fn install() -> Result<Self> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        on_signals(move || handler.interrupt())?;
        Ok(interrupt)
    }

    /// Cancels the calls of this model at Ctrl-C, or at once if it was pressed before.
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
            // Not `exit`, which would run destructors of ONNX Runtime while threads still use it.
            // SAFETY: this ends the process.
            unsafe { libc::_exit(i32::from(EXIT_CODE)) }
        }
        if let Some(canceller) = &*self.0.current.lock().unwrap_or_else(|e| e.into_inner()) {
            canceller.cancel();
        }
    }
}

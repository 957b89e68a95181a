//! Ctrl-C, and other signals that ask a program to end.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use spark_ort::runtime::Canceller;

use crate::terminal::note;

/// The first signal that came, or 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// What a command exits with.
pub fn status(interrupted: bool) -> ExitCode {
    if interrupted { ExitCode::from(exit_code()) } else { ExitCode::SUCCESS }
}

/// Says that a measurement was interrupted before its first figure. What the command exits with.
pub fn nothing_measured() -> ExitCode {
    note("interrupted, nothing was measured, and no file is written\n");
    status(true)
}

/// The exit status that shells expect of a program ended by the signal that came.
fn exit_code() -> u8 {
    match SIGNAL.load(Ordering::SeqCst) {
        0 => 128 + SIGINT as u8,
        signal => 128 + signal as u8,
    }
}

/// The first Ctrl-C ends the model's call, so that the command can show partial results; the second one kills the
/// process.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<State>);

/// Runs `act`, on a thread of its own, at Ctrl-C, SIGTERM, and SIGHUP unless that is ignored, as `nohup` does. Once per
/// process.
pub fn on_signals(mut act: impl FnMut() + Send + 'static) -> Result<()> {
    let mut numbers = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        numbers.push(SIGHUP);
    }
    let mut signals = Signals::new(numbers).context("cannot handle Ctrl-C")?;
    let heed = move || {
        for signal in signals.forever() {
            // Those that follow do not change it.
            let _ = SIGNAL.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
            act();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(heed).context("cannot handle Ctrl-C")?;
    Ok(())
}

fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: zeros are a sigaction: the default one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: this only reads the setting into `action`.
    unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
    action.sa_sigaction == libc::SIG_IGN
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
            // Not the standard library's, which would run destructors of ONNX Runtime while threads still use it.
            signal_hook::low_level::exit(exit_code().into())
        }
        if let Some(canceller) = &*self.0.current.lock().unwrap_or_else(|e| e.into_inner()) {
            canceller.cancel();
        }
    }
}

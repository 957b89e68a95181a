//! Ctrl-C, and other signals that ask a program to end.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use spark_ort::runtime::Canceller;

use crate::terminal::note;

/// Whether SIGTERM came.
static TERMINATED: AtomicBool = AtomicBool::new(false);

/// The handler that `ctrlc` installed, which does not say which signal it was called for.
static HANDLER: AtomicUsize = AtomicUsize::new(0);

type Handler = extern "C" fn(libc::c_int);

/// What a command exits with.
pub fn status(interrupted: bool) -> ExitCode {
    if interrupted { ExitCode::from(exit_code()) } else { ExitCode::SUCCESS }
}

/// Says that a measurement was interrupted before its first figure. What the command exits with.
pub fn nothing_measured() -> ExitCode {
    note("interrupted, nothing was measured, and no file is written\n");
    status(true)
}

/// The exit status that shells expect of a program ended by the signal that came, of SIGTERM or Ctrl-C.
fn exit_code() -> u8 {
    if TERMINATED.load(Ordering::SeqCst) { 143 } else { 130 }
}

/// The first Ctrl-C ends the model's call, so that the command can show partial results; the second one kills the
/// process.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<State>);

/// Runs `act` at Ctrl-C, SIGTERM, and SIGHUP unless that is ignored, as `nohup` does. Once per process.
pub fn on_signals(act: impl FnMut() + Send + 'static) -> Result<()> {
    // SAFETY: this only reads the setting, and restores it below; this program has no handler yet.
    let hangup = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    ctrlc::set_handler(act).context("cannot handle Ctrl-C")?;
    tell_sigterm()?;
    if hangup == libc::SIG_IGN {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    Ok(())
}

/// Makes SIGTERM known by its exit status; then it is handled as before.
fn tell_sigterm() -> Result<()> {
    // SAFETY: zeros are a sigaction: the default one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: this only reads the setting into `action`.
    let read = unsafe { libc::sigaction(libc::SIGTERM, std::ptr::null(), &mut action) };
    HANDLER.store(action.sa_sigaction, Ordering::SeqCst);
    action.sa_sigaction = at_sigterm as Handler as usize;
    // SAFETY: the handler stores a number and calls the one before it, which signals may interrupt anything for.
    let set = unsafe { libc::sigaction(libc::SIGTERM, &action, std::ptr::null_mut()) };
    if read != 0 || set != 0 {
        bail!("cannot handle SIGTERM");
    }
    Ok(())
}

extern "C" fn at_sigterm(signal: libc::c_int) {
    TERMINATED.store(true, Ordering::SeqCst);
    // SAFETY: `tell_sigterm` stored the handler of `ctrlc` before it installed this one.
    let handler = unsafe { std::mem::transmute::<usize, Handler>(HANDLER.load(Ordering::SeqCst)) };
    handler(signal);
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
            unsafe { libc::_exit(i32::from(exit_code())) }
        }
        if let Some(canceller) = &*self.0.current.lock().unwrap_or_else(|e| e.into_inner()) {
            canceller.cancel();
        }
    }
}

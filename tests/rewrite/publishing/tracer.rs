//! A process of which one system call fails, or that is killed after one.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use libc::{c_long, pid_t, user_regs_struct};

/// What goes wrong, at which of the calls that count.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The call is not made and returns EIO.
    Error(usize),
    /// The process is killed when the call is done.
    Kill(usize),
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this status.
    Ended(i32),
    Killed,
}

/// The calls that touch files. Those on descriptors count above stderr only, and reading counts from the first folder
/// made on: what comes before changes nothing.
const CALLS: [(c_long, &str, bool); 32] = [
    (libc::SYS_open, "open", false),
    (libc::SYS_openat, "openat", false),
    (libc::SYS_stat, "stat", false),
    (libc::SYS_lstat, "lstat", false),
    (libc::SYS_statx, "statx", false),
    (libc::SYS_newfstatat, "newfstatat", false),
    (libc::SYS_fstat, "fstat", true),
    (libc::SYS_readlink, "readlink", false),
    (libc::SYS_readlinkat, "readlinkat", false),
    (libc::SYS_getdents64, "getdents64", true),
    (libc::SYS_read, "read", true),
    (libc::SYS_write, "write", true),
    (libc::SYS_writev, "writev", true),
    (libc::SYS_pwrite64, "pwrite64", true),
    (libc::SYS_copy_file_range, "copy_file_range", true),
    (libc::SYS_sendfile, "sendfile", true),
    (libc::SYS_fsync, "fsync", true),
    (libc::SYS_fdatasync, "fdatasync", true),
    (libc::SYS_ftruncate, "ftruncate", true),
    (libc::SYS_fchmod, "fchmod", true),
    (libc::SYS_chmod, "chmod", false),
    (libc::SYS_mkdir, "mkdir", false),
    (libc::SYS_mkdirat, "mkdirat", false),
    (libc::SYS_rmdir, "rmdir", false),
    (libc::SYS_unlink, "unlink", false),
    (libc::SYS_unlinkat, "unlinkat", false),
    (libc::SYS_link, "link", false),
    (libc::SYS_linkat, "linkat", false),
    (libc::SYS_rename, "rename", false),
    (libc::SYS_renameat, "renameat", false),
    (libc::SYS_renameat2, "renameat2", false),
    (libc::SYS_symlink, "symlink", false),
];

/// Whether this process may trace one that it starts.
pub fn is_allowed() -> bool {
    let mut command = Command::new("/bin/true");
    traced(&mut command).spawn().is_ok_and(|mut child| {
        let stopped = wait(child.id() as pid_t);
        child.kill().ok();
        child.wait().ok();
        libc::WIFSTOPPED(stopped)
    })
}

fn traced(command: &mut Command) -> &mut Command {
    // SAFETY: ptrace is async-signal-safe; the child has one thread here.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        })
    }
}

fn wait(process: pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` may be written to.
    assert_eq!(unsafe { libc::waitpid(process, &mut status, libc::__WALL) }, process);
    status
}

fn request(what: libc::c_uint, process: pid_t, data: usize) {
    // SAFETY: none of these requests writes to this process but GETREGS, whose `data` is a place for registers.
    let done = unsafe { libc::ptrace(what, process, 0, data) };
    assert_ne!(done, -1, "ptrace {what}: {}", std::io::Error::last_os_error());
}

/// Registers at the beginning or the end of a system call.
fn registers(process: pid_t) -> user_regs_struct {
    // SAFETY: registers are numbers.
    let mut registers = unsafe { std::mem::zeroed::<user_regs_struct>() };
    request(libc::PTRACE_GETREGS, process, &raw mut registers as usize);
    registers
}

/// Runs `command` with `fault`; how it ended, and the call that the fault happened to. `plain` is without renameat2.
#[expect(clippy::zombie_processes, reason = "it is waited for by its id, as ptrace wants")]
pub fn run(command: &mut Command, fault: Fault, plain: bool) -> (Outcome, Option<String>) {
    let child = traced(command.stdout(Stdio::null()).stderr(Stdio::null())).spawn().unwrap();
    let process = child.id() as pid_t;
    assert!(libc::WIFSTOPPED(wait(process)), "it stops when it is started");
    request(libc::PTRACE_SETOPTIONS, process, (libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL) as usize);
    let mut counter = Counter::default();
    let mut happened = None;
    let mut signal = 0;
    loop {
        request(libc::PTRACE_SYSCALL, process, signal);
        let status = wait(process);
        if libc::WIFEXITED(status) {
            return (Outcome::Ended(libc::WEXITSTATUS(status)), happened);
        }
        assert!(libc::WIFSTOPPED(status), "it ended by signal {}", libc::WTERMSIG(status));
        if libc::WSTOPSIG(status) != libc::SIGTRAP | 0x80 {
            signal = if libc::WSTOPSIG(status) == libc::SIGTRAP { 0 } else { libc::WSTOPSIG(status) as usize };
            continue;
        }
        signal = 0;
        let before = registers(process);
        let counted = counter.count(&before);
        let lacking = plain && before.orig_rax as c_long == libc::SYS_renameat2;
        let (number, error) = match fault {
            Fault::Error(number) => (number, Some(libc::EIO)),
            Fault::Kill(number) => (number, None),
        };
        let hit = counted.filter(|(at, _)| *at == number);
        let error = if hit.is_some() { error } else { None }.or(lacking.then_some(libc::EINVAL));
        if error.is_some() {
            // A call that does not exist.
            let nothing = user_regs_struct { orig_rax: u64::MAX, ..before };
            request(libc::PTRACE_SETREGS, process, &raw const nothing as usize);
        }
        request(libc::PTRACE_SYSCALL, process, 0);
        let status = wait(process);
        if libc::WIFEXITED(status) {
            return (Outcome::Ended(libc::WEXITSTATUS(status)), happened);
        }
        if let Some(error) = error {
            let failed = user_regs_struct { rax: -i64::from(error) as u64, ..registers(process) };
            request(libc::PTRACE_SETREGS, process, &raw const failed as usize);
        }
        if let Some((_, name)) = hit {
            happened = Some(name.to_string());
            if matches!(fault, Fault::Kill(_)) {
                // SAFETY: it is this function's own child, which nobody has waited for.
                unsafe { libc::kill(process, libc::SIGKILL) };
                while !libc::WIFSIGNALED(wait(process)) {}
                return (Outcome::Killed, happened);
            }
        }
    }
}

/// Numbers the calls that count.
#[derive(Default)]
struct Counter {
    next: usize,
    begun: bool,
}

impl Counter {
    /// The number and name of the call that begins with these registers, if it counts.
    fn count(&mut self, registers: &user_regs_struct) -> Option<(usize, &'static str)> {
        let call = registers.orig_rax as c_long;
        let &(_, name, of_descriptor) = CALLS.iter().find(|(number, ..)| *number == call)?;
        self.begun |= name.starts_with("mkdir");
        if !self.begun || of_descriptor && registers.rdi <= 2 {
            return None;
        }
        self.next += 1;
        Some((self.next - 1, name))
    }
}

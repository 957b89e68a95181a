//! `vpdpwssd` of AVX-VNNI for processors that lack it, for tests: there the instruction raises SIGILL, and a handler
//! does what it would have done, on the registers that the kernel saved and restores. The processor decides: where it
//! has the instruction, no signal comes, and the tests run on the real one.
//!
//! Only the form with registers of 256 bits and the VEX prefix is emulated, its last operand in a register or in
//! memory at a base register. Whatever else is illegal ends the process, as it would have without the handler.

use std::cell::Cell;
use std::ptr;
use std::sync::Once;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

/// Where the frame of a signal says what it has saved: a mark, then at 8 bytes behind it the components.
const MARK_AT: usize = 464;
const MARK: u32 = 0x4650_5853;
const COMPONENTS_AT: usize = 472;
/// Which components are not in their initial state, whose bytes then mean nothing.
const IN_USE_AT: usize = 512;
/// The lower halves of the registers, and the upper ones, 16 bytes each.
const LOWER_AT: usize = 160;
const UPPER_AT: usize = 576;
/// Components: the lower halves, the upper halves.
const SSE: u64 = 2;
const AVX: u64 = 4;

/// A base register's place among `gregs`, by its number in instructions.
const BASES: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The last operand of an instruction.
#[derive(Debug, PartialEq, Eq)]
enum Operand {
    Register(usize),
    /// A base register and what is added to it.
    Memory(usize, i32),
}

/// `vpdpwssd`, and how many bytes it takes.
#[derive(Debug, PartialEq, Eq)]
struct Instruction {
    sum: usize,
    first: usize,
    second: Operand,
    length: usize,
}

impl Instruction {
    /// The instruction that `code` begins with, if it is one of those emulated; `byte` reads one.
    fn decode(byte: impl Fn(usize) -> u8) -> Option<Self> {
        if byte(0) != 0xc4 {
            return None;
        }
        let (one, two) = (byte(1), byte(2));
        // Map 0f38, W 0, 256 bits, prefix 66.
        if one & 0x1f != 2 || two & 0x87 != 0x05 || byte(3) != 0x52 {
            return None;
        }
        // These bits are stored inverted.
        let [more_sum, _, more_base] = [0x80, 0x40, 0x20].map(|bit| if one & bit == 0 { 8 } else { 0 });
        let (form, low) = (byte(4) >> 6, usize::from(byte(4) & 7));
        let sum = more_sum + usize::from(byte(4) >> 3 & 7);
        let first = usize::from(!two >> 3 & 15);
        if form == 3 {
            return Some(Self { sum, first, second: Operand::Register(more_base + low), length: 5 });
        }
        // With 4 a byte follows that says the base; 0x24 is this base alone. Without a displacement, 5 is no register.
        let with_base = low == 4;
        let length = 5 + usize::from(with_base);
        if with_base && (byte(5) != 0x24 || one & 0x40 == 0) || low == 5 && form == 0 {
            return None;
        }
        let (displacement, length) = match form {
            0 => (0, length),
            1 => (i32::from(byte(length) as i8), length + 1),
            _ => (i32::from_le_bytes(std::array::from_fn(|n| byte(length + n))), length + 4),
        };
        Some(Self { sum, first, second: Operand::Memory(more_base + low, displacement), length })
    }
}

/// The sum of `sum` and the products of the pairs of `a` and `b`, all of them eight lanes.
fn dot(sum: [u32; 8], a: [u32; 8], b: [u32; 8]) -> [u32; 8] {
    let product = |a: u32, b: u32| (i32::from(a as i16) * i32::from(b as i16)) as u32;
    std::array::from_fn(|n| sum[n].wrapping_add(product(a[n], b[n])).wrapping_add(product(a[n] >> 16, b[n] >> 16)))
}

/// Registers as a signal's frame has them.
struct Saved(*mut u8);

impl Saved {
    /// # Safety
    /// `frame` is of a signal that is being handled.
    unsafe fn of(frame: *mut u8) -> Option<Self> {
        // SAFETY: the frame has 512 bytes, with these fields.
        let (mark, components) = unsafe {
            (frame.add(MARK_AT).cast::<u32>().read_unaligned(), frame.add(COMPONENTS_AT).cast::<u64>().read_unaligned())
        };
        (mark == MARK && components & AVX != 0).then_some(Self(frame))
    }

    fn in_use(&self) -> *mut u64 {
        self.0.wrapping_add(IN_USE_AT).cast()
    }

    fn halves(&self, register: usize) -> [*mut [u32; 4]; 2] {
        [LOWER_AT, UPPER_AT].map(|at| self.0.wrapping_add(at + 16 * register).cast())
    }

    fn read(&self, register: usize) -> [u32; 8] {
        let [lower, upper] = self.halves(register);
        // SAFETY: the frame has the upper halves too, as `of` found.
        let (lower, upper, in_use) =
            unsafe { (lower.read_unaligned(), upper.read_unaligned(), self.in_use().read_unaligned()) };
        let half = |part, half| if in_use & part == 0 { [0; 4] } else { half };
        let (lower, upper) = (half(SSE, lower), half(AVX, upper));
        std::array::from_fn(|n| if n < 4 { lower[n] } else { upper[n - 4] })
    }

    fn write(&self, register: usize, x: [u32; 8]) {
        // SAFETY: as in `read`.
        unsafe {
            let in_use = self.in_use().read_unaligned();
            for (part, at) in [(SSE, LOWER_AT), (AVX, UPPER_AT)] {
                if in_use & part == 0 {
                    ptr::write_bytes(self.0.add(at), 0, 16 * 16);
                }
            }
            self.in_use().write_unaligned(in_use | SSE | AVX);
            for (half, x) in self.halves(register).into_iter().zip(x.as_chunks::<4>().0) {
                half.write_unaligned(*x);
            }
        }
    }
}

/// Does the instruction that `context` stopped at. `None` if it is not emulated.
///
/// # Safety
/// `context` is that of a signal that is being handled.
unsafe fn emulate(context: &mut ucontext_t) -> Option<()> {
    let registers = &mut context.uc_mcontext.gregs;
    let at = registers[libc::REG_RIP as usize];
    // SAFETY: the processor has read the instruction, and decoding reads no byte that is not part of it.
    let instruction = Instruction::decode(|n| unsafe { *(at as *const u8).add(n) })?;
    // SAFETY: by this function's contract.
    let saved = unsafe { Saved::of(context.uc_mcontext.fpregs.cast()) }?;
    let second = match instruction.second {
        Operand::Register(register) => saved.read(register),
        Operand::Memory(base, displacement) => {
            let address = registers[BASES[base] as usize].wrapping_add(displacement.into());
            // SAFETY: the program is about to read these bytes.
            unsafe { (address as *const [u32; 8]).read_unaligned() }
        }
    };
    saved.write(instruction.sum, dot(saved.read(instruction.sum), saved.read(instruction.first), second));
    registers[libc::REG_RIP as usize] = at + instruction.length as i64;
    Some(())
}

thread_local! {
    static DONE: Cell<usize> = const { Cell::new(0) };
}

/// How many instructions this thread has had emulated.
pub(super) fn done() -> usize {
    DONE.get()
}

/// Handles SIGILL. It touches nothing but the frame of the signal and a number, so that it may run anywhere.
extern "C" fn on_illegal(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands over the context of the signal, and nobody else sees it.
    unsafe {
        match emulate(&mut *context.cast()) {
            Some(()) => DONE.set(DONE.get() + 1),
            // On return the instruction is tried once more, and ends the process.
            None => _ = libc::signal(signal, libc::SIG_DFL),
        }
    }
}

/// Has the instruction emulated from here on, where the processor lacks it.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: of a zeroed action all is set that the call reads; the handler may interrupt anything.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, ptr::null_mut()), 0, "no handler for SIGILL");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(code: &[u8]) -> Option<Instruction> {
        Instruction::decode(|n| code[n])
    }

    #[test]
    fn only_the_instruction_is_decoded() {
        let found = |sum, first, second, length| Some(Instruction { sum, first, second, length });
        // vpdpwssd ymm0, ymm1, ymm2; ymm9, ymm14, ymm11; ymm3, ymm4, [rdi + 32]; [r12]; [rbp - 256].
        assert_eq!(decode(&[0xc4, 0xe2, 0x75, 0x52, 0xc2]), found(0, 1, Operand::Register(2), 5));
        assert_eq!(decode(&[0xc4, 0x42, 0x0d, 0x52, 0xcb]), found(9, 14, Operand::Register(11), 5));
        assert_eq!(decode(&[0xc4, 0xe2, 0x5d, 0x52, 0x5f, 0x20]), found(3, 4, Operand::Memory(7, 32), 6));
        assert_eq!(decode(&[0xc4, 0xc2, 0x5d, 0x52, 0x1c, 0x24]), found(3, 4, Operand::Memory(12, 0), 6));
        let far = [0xc4, 0xe2, 0x5d, 0x52, 0x9d, 0x00, 0xff, 0xff, 0xff];
        assert_eq!(decode(&far), found(3, 4, Operand::Memory(5, -256), 9));
        // Registers of 128 bits; vpdpbusd; vpdpwssds; relative to the instruction; with an index; ud2.
        for code in [
            &[0xc4, 0xe2, 0x71, 0x52, 0xc2][..],
            &[0xc4, 0xe2, 0x75, 0x50, 0xc2],
            &[0xc4, 0xe2, 0x75, 0x53, 0xc2],
            &[0xc4, 0xe2, 0x75, 0x52, 0x05, 0, 0, 0, 0],
            &[0xc4, 0xe2, 0x75, 0x52, 0x04, 0x0f],
            &[0x0f, 0x0b],
        ] {
            assert_eq!(decode(code), None, "{code:x?}");
        }
    }

    #[test]
    fn halves_out_of_use_are_zero() {
        let mut frame = [0xff_u8; UPPER_AT + 16 * 16];
        frame[MARK_AT..][..4].copy_from_slice(&MARK.to_le_bytes());
        frame[IN_USE_AT..][..8].copy_from_slice(&SSE.to_le_bytes());
        // SAFETY: the array is as long as a frame, and has its fields.
        let saved = unsafe { Saved::of(frame.as_mut_ptr()) }.unwrap();
        assert_eq!(saved.read(3), std::array::from_fn(|n| if n < 4 { u32::MAX } else { 0 }));
        saved.write(5, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(saved.read(5), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(saved.read(3), std::array::from_fn(|n| if n < 4 { u32::MAX } else { 0 }));
        // Without the mark, and without upper halves, there is nothing to read.
        frame[COMPONENTS_AT] = 3;
        // SAFETY: likewise.
        assert!(unsafe { Saved::of(frame.as_mut_ptr()) }.is_none());
        frame[COMPONENTS_AT] = 7;
        frame[MARK_AT] = 0;
        // SAFETY: likewise.
        assert!(unsafe { Saved::of(frame.as_mut_ptr()) }.is_none());
    }

    #[test]
    fn other_illegal_instructions_end_the_process() {
        install();
        // SAFETY: the child does nothing but what ends it.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                std::arch::asm!("ud2", options(noreturn));
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGILL, "{status}");
        }
    }
}

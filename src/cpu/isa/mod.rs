//! Instruction sets: those that kernels are written for, those of this processor, and the one that is used. The only
//! place that knows the target's architecture.

pub(super) mod portable;
pub(super) mod rows;
#[cfg(test)]
mod tests;
pub(super) mod traits;
pub(super) mod vector;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ffi::OsStr;
use std::sync::OnceLock;

use portable::Portable;
use traits::{Isa, Work};
#[cfg(target_arch = "x86_64")]
use x86_64::{avx2::Avx2, avx512::Avx512, avx512_vnni::Avx512Vnni};

/// Names the instruction set to use instead of the fastest one: `scalar`, `portable`, `avx2`, `avxvnni`, `avx512` or
/// `vnni`. For tests and reports.
pub const CPU_VARIABLE: &str = "SPARK_ORT_CPU";

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// Plain Rust that follows the formulas: what the others are tested against.
    Scalar,
    /// Vectors as the compiler makes them for any processor of the target.
    Portable,
    /// AVX2, FMA, F16C and BMI2: quantised rows in int16.
    Avx2,
    /// The same with AVX-VNNI, as desktop processors without AVX-512 have it: fewer instructions for the same results.
    AvxVnni,
    /// AVX-512 with BW, DQ, VL and VBMI2, and FMA, F16C and BMI2: quantised rows as AVX2 reads them.
    Avx512,
    /// AVX-512 as before, with VBMI and VNNI: quantised rows with registers of 512 bits too.
    Vnni,
}

impl InstructionSet {
    /// All, the slowest first.
    pub const ALL: [Self; 6] = [Self::Scalar, Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Vnni];

    /// As [`CPU_VARIABLE`] has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Vnni => "vnni",
        }
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        self.try_with(Nothing).is_some()
    }

    /// Gives `work` the token of this set; [`InstructionSet::Scalar`] has the portable one.
    ///
    /// # Panics
    /// If this processor lacks the instructions.
    pub(super) fn with<W: Work>(self, work: W) -> W::Output {
        self.try_with(work).unwrap_or_else(|| panic!("this processor has no {}", self.name()))
    }

    /// Does `work`, compiled for this set as far as it is `inline(always)`.
    ///
    /// # Panics
    /// If this processor lacks the instructions.
    pub(super) fn run<W: Work>(self, work: W) -> W::Output {
        self.with(Compiled(work))
    }

    fn try_with<W: Work>(self, work: W) -> Option<W::Output> {
        fn of<I: Isa, W: Work>(work: W) -> Option<W::Output> {
            I::try_new().map(|isa| work.with(isa))
        }
        match self {
            Self::Scalar | Self::Portable => of::<Portable, W>(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => of::<Avx2, W>(work),
            // The token of AVX2 too, so that nothing but the kernels is compiled once more.
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Avx2::detect_vnni().map(|isa| work.with(isa)),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => of::<Avx512, W>(work),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => of::<Avx512Vnni, W>(work),
            // Sets of other architectures.
            #[allow(unreachable_patterns)]
            _ => None,
        }
    }

    /// The set of this process: the fastest available, or the one that [`CPU_VARIABLE`] names.
    ///
    /// # Errors
    /// The variable names no set, or one that this processor lacks.
    pub fn chosen() -> Result<Self, &'static str> {
        static CHOSEN: OnceLock<Result<InstructionSet, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| Self::choose(std::env::var_os(CPU_VARIABLE).as_deref()));
        chosen.as_ref().copied().map_err(String::as_str)
    }

    fn choose(named: Option<&OsStr>) -> Result<Self, String> {
        let available = || Self::ALL.into_iter().filter(|set| set.is_available());
        let Some(name) = named.filter(|n| !n.is_empty()) else {
            return Ok(available().next_back().unwrap_or(Self::Scalar));
        };
        available().find(|set| name == set.name()).ok_or_else(|| {
            let problem = match Self::ALL.into_iter().any(|set| name == set.name()) {
                true => "this processor lacks it",
                false => "it is no instruction set",
            };
            let names: Vec<_> = available().map(Self::name).collect();
            let name = name.to_string_lossy();
            format!(
                "{CPU_VARIABLE}={name}: {problem}; this processor has {}: set it to one of these, or unset it",
                names.join(", ")
            )
        })
    }
}

/// Asks whether the processor has a set.
struct Nothing;

impl Work for Nothing {
    type Output = ();

    fn with<I: Isa>(self, _: I) {}
}

/// Work to be compiled for the set.
struct Compiled<W>(W);

impl<W: Work> Work for Compiled<W> {
    type Output = W::Output;

    fn with<I: Isa>(self, isa: I) -> W::Output {
        isa.run(self.0)
    }
}

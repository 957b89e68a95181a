//! Which instructions the kernels use.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use super::vector::{Portable, Vector, Work};

/// Names the path to take instead of the fastest one: `scalar`, `portable`, `avx2`, `avx512` or
/// `vnni`. For tests and reports.
pub const PATH_VARIABLE: &str = "SPARK_ORT_CPU";

/// A set of instructions that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Plain Rust that follows the formulas: what the others are tested against.
    Scalar,
    /// Vectors as the compiler makes them for any processor of the target.
    Portable,
    /// AVX2, FMA, F16C and BMI2.
    Avx2,
    /// AVX-512 with BW, DQ, VL and VBMI2, and FMA, F16C and BMI2.
    Avx512,
    /// The same with VBMI and VNNI: quantised rows in whole numbers.
    Vnni,
}

impl Path {
    /// All, the slowest first.
    pub const ALL: [Path; 5] = [Path::Scalar, Path::Portable, Path::Avx2, Path::Avx512, Path::Vnni];

    /// As [`PATH_VARIABLE`] has it.
    pub fn name(self) -> &'static str {
        match self {
            Path::Scalar => "scalar",
            Path::Portable => "portable",
            Path::Avx2 => "avx2",
            Path::Avx512 => "avx512",
            Path::Vnni => "vnni",
        }
    }

    /// Whether this processor can take it.
    pub fn is_available(self) -> bool {
        match self {
            Path::Scalar => true,
            Path::Portable => Portable::is_available(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => Avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => Avx512::<false>::is_available(),
            #[cfg(target_arch = "x86_64")]
            Path::Vnni => Avx512::<true>::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Does `work`, compiled for this path's instructions as far as it is `inline(always)`.
    ///
    /// # Panics
    /// If this processor cannot take the path.
    pub(super) fn run<W: Work>(self, work: W) -> W::Output {
        assert!(self.is_available(), "path {} on a processor that has not its instructions", self.name());
        // SAFETY: the instructions are there.
        unsafe {
            match self {
                Path::Scalar | Path::Portable => Portable::run(work),
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => Avx2::run(work),
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 | Path::Vnni => Avx512::<false>::run(work),
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("not available"),
            }
        }
    }

    /// The path of this process: the fastest available, or the one that [`PATH_VARIABLE`] names.
    ///
    /// # Errors
    /// The variable names none, or one that this processor cannot take.
    pub fn chosen() -> Result<Path, &'static str> {
        static CHOSEN: OnceLock<Result<Path, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| Self::choose(std::env::var(PATH_VARIABLE).ok().as_deref()));
        chosen.as_ref().copied().map_err(String::as_str)
    }

    fn choose(named: Option<&str>) -> Result<Path, String> {
        let available = || Self::ALL.into_iter().filter(|p| p.is_available());
        let Some(name) = named.filter(|n| !n.is_empty()) else {
            return Ok(Self::ALL.into_iter().rfind(|p| p.is_available()).unwrap_or(Path::Scalar));
        };
        available().find(|p| p.name() == name).ok_or_else(|| {
            let names: Vec<_> = available().map(Path::name).collect();
            format!("{PATH_VARIABLE}={name}: this processor has {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_chooses() {
        assert_eq!(Path::choose(Some("scalar")), Ok(Path::Scalar));
        assert_eq!(Path::choose(Some("portable")), Ok(Path::Portable));
        assert_ne!(Path::choose(None), Ok(Path::Scalar));
        let error = Path::choose(Some("sse9")).unwrap_err();
        assert!(error.contains("SPARK_ORT_CPU=sse9") && error.contains("scalar, portable"), "{error}");
    }
}

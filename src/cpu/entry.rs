//! Where the kernels are entered. They are compiled here, for each element type once: users of generic functions would
//! compile them all again.

use half::f16;
use ndarray::{ArrayViewMut3, ArrayViewMut4};

use super::attend;
use super::attention::Attention;
use super::isa::InstructionSet;
use super::pool::Pool;
use super::prune::{self, HeadRows, Prune};
use crate::element::Element;

/// An element type that the kernels are compiled for.
pub trait KernelElement: Element {
    /// As the function [`attention`].
    fn attention(pool: &dyn Pool, set: InstructionSet, call: &Attention<'_, Self>, out: ArrayViewMut4<'_, Self>);

    /// As the function [`prune`](fn@prune).
    fn prune(
        pool: &dyn Pool,
        set: InstructionSet,
        call: &Prune<'_, Self>,
        rows: Vec<HeadRows<'_>>,
        observed: Option<ArrayViewMut3<'_, f32>>,
    );
}

macro_rules! compile_for {
    ($($element:ty),*) => {$(
        impl KernelElement for $element {
            fn attention(
                pool: &dyn Pool,
                set: InstructionSet,
                call: &Attention<'_, Self>,
                out: ArrayViewMut4<'_, Self>,
            ) {
                attend::attention(pool, set, call, out);
            }

            fn prune(
                pool: &dyn Pool,
                set: InstructionSet,
                call: &Prune<'_, Self>,
                rows: Vec<HeadRows<'_>>,
                observed: Option<ArrayViewMut3<'_, f32>>,
            ) {
                prune::prune(pool, set, call, rows, observed);
            }
        }
    )*};
}

compile_for!(f32, f16);

/// Writes the attention output of every query to `out`, `[B, Hq, L, D]`; zero for padding. Memory beside it is
/// proportional to the new tokens, never to the cache.
///
/// # Panics
/// If this processor lacks the instructions of `set`.
pub fn attention<T: KernelElement>(
    pool: &dyn Pool,
    set: InstructionSet,
    call: &Attention<'_, T>,
    out: ArrayViewMut4<'_, T>,
) {
    T::attention(pool, set, call, out);
}

/// Encodes the new tokens into `rows`, one entry for each (sequence, KV head) with the head varying fastest, and writes
/// n of the call to `observed` (`[B, Hk, D]`), if wanted. Rows do not depend on `set`.
///
/// # Panics
/// If this processor lacks the instructions of `set`.
pub fn prune<T: KernelElement>(
    pool: &dyn Pool,
    set: InstructionSet,
    call: &Prune<'_, T>,
    rows: Vec<HeadRows<'_>>,
    observed: Option<ArrayViewMut3<'_, f32>>,
) {
    T::prune(pool, set, call, rows, observed);
}

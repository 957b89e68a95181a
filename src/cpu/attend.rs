//! Attention on an instruction set: few queries read rows as they are, for many tiles of rows are decoded first.

use std::ops::Range;

use ndarray::ArrayViewMut4;

use super::attention::Attention;
use super::isa::InstructionSet;
use super::isa::traits::{Isa, Work};
use super::isa::vector::LANES;
use super::kv_source::KvSource;
use super::pool::Pool;
use super::queries::Queries;
use super::query_block::QueryBlock;
use super::reference::Reference;
use super::schedule::{Attend, run};
use super::softmax::SoftmaxState;
use super::{decode, prefill};
use crate::element::Element;

/// See [`super::attention`].
pub(super) fn attention<T: Element>(
    pool: &dyn Pool,
    set: InstructionSet,
    call: &Attention<'_, T>,
    out: ArrayViewMut4<'_, T>,
) {
    // Vectors hold whole groups of channels; other head sizes are rare.
    if set == InstructionSet::Scalar || !call.geometry.head_dim().is_multiple_of(LANES) {
        assert!(set.is_available(), "this processor has no {}", set.name());
        return run(pool, call, &Reference::new(call), out);
    }
    set.with(Call { pool, call, out });
}

/// A call to be done with an instruction set.
struct Call<'s, 'c, 'o, T> {
    pool: &'s dyn Pool,
    call: &'s Attention<'c, T>,
    out: ArrayViewMut4<'o, T>,
}

impl<T: Element> Work for Call<'_, '_, '_, T> {
    type Output = ();

    fn with<I: Isa>(self, isa: I) {
        let Self { pool, call, out } = self;
        let scratch = prefill::driver::ScratchPool::default();
        run(pool, call, &OnIsa { isa, source: KvSource::new(call), scratch }, out);
    }
}

/// One call on an instruction set.
struct OnIsa<'a, 'c, T, I> {
    isa: I,
    source: KvSource<'a, 'c, T>,
    scratch: prefill::driver::ScratchPool,
}

impl<T: Element, I: Isa> Attend for OnIsa<'_, '_, T, I> {
    fn attend(&self, queries: &Queries, keys: Range<usize>) -> Vec<SoftmaxState> {
        let block = QueryBlock::new(self.source.call, queries);
        let few = I::most_decode_queries(&self.source.call.geometry.key);
        match block.items.len() <= few {
            true => decode::driver::attend(self.isa, &self.source, &block, keys),
            false => prefill::driver::attend(self.isa, &self.source, &self.scratch, &block, keys),
        }
    }
}

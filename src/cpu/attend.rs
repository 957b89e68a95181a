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
    set.with(work(pool, call, out));
}

/// The same as work of an instruction set.
pub(super) fn work<'s, T: Element>(
    pool: &'s dyn Pool,
    call: &'s Attention<'_, T>,
    out: ArrayViewMut4<'_, T>,
) -> impl Work<Output = ()> {
    Call { pool, call, out }
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

/// Queries of a block.
struct Prepared {
    block: QueryBlock,
    /// As decoding takes them, `[items, D]`; `None` where there are so many that a tile is decoded for them.
    few: Option<Vec<f32>>,
}

impl<T: Element, I: Isa> Attend for OnIsa<'_, '_, T, I> {
    type Prepared = Prepared;

    fn prepare(&self, queries: &Queries) -> Prepared {
        let call = self.source.call;
        let block = QueryBlock::new(call, queries);
        let are_few = block.items.len() <= I::most_decode_queries(&call.geometry.key);
        let few = are_few.then(|| self.isa.run(ReadQueries { call, block: &block }));
        Prepared { block, few }
    }

    fn attend(&self, Prepared { block, few }: &Prepared, keys: Range<usize>) -> Vec<SoftmaxState> {
        match few {
            Some(queries) => decode::driver::attend(self.isa, &self.source, block, queries, keys),
            None => prefill::driver::attend(self.isa, &self.source, &self.scratch, block, keys),
        }
    }
}

/// The queries of a block, to be read.
struct ReadQueries<'s, 'c, T> {
    call: &'s Attention<'c, T>,
    block: &'s QueryBlock,
}

impl<T: Element> Work for ReadQueries<'_, '_, T> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with<I: Isa>(self, _: I) -> Vec<f32> {
        self.block.queries(self.call)
    }
}

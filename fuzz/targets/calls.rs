//! Shapes and lengths of a call: refused, or such that kernels may index by them.

use spark_ort::call::{Geometry, Input, Lengths, Shapes, positions};

use super::bytes::Bytes;
use crate::common::Case;

/// The first bytes choose the settings of a call, the others change its shapes and lengths.
pub fn calls(data: &[u8]) {
    let mut bytes = Bytes(data);
    let case = Case::new(u64::from(bytes.byte()), 4, 4);
    let settings = &case.prune.common;
    let mut shapes = case.shapes();
    for _ in 0..bytes.below(4) {
        let dims = shapes[bytes.below(Input::ALL.len())].get_or_insert_default();
        match (bytes.below(3), dims.len()) {
            (0, _) => dims.push(bytes.size()),
            (1, _) => drop(dims.pop()),
            (_, 0) => {}
            (_, rank) => dims[bytes.below(rank)] = bytes.size(),
        }
    }
    let Ok(known) = Shapes::new(|input| shapes[input.index()].clone()) else { return };
    let Ok(geometry) = Geometry::new(settings, &known, 4) else { return };
    let elements = |input: Input| known.get(input).map_or(0, |shape| shape.iter().product::<usize>());
    if geometry.past > 0 {
        let rows = geometry.batch * geometry.kv_heads * geometry.past;
        assert_eq!(elements(Input::PastKey) * 4, rows * geometry.key.row_bytes());
        assert_eq!(elements(Input::PastValue) * 4, rows * geometry.value.row_bytes());
    }
    if geometry.batch > 1 << 12 || geometry.new > 1 << 12 {
        return;
    }
    let number = |bytes: &mut Bytes<'_>| bytes.size().clamp(i32::MIN.into(), i32::MAX.into()) as i32;
    let seqlens: Option<Vec<i32>> =
        (bytes.below(4) > 0).then(|| (0..geometry.batch).map(|_| number(&mut bytes)).collect());
    let total = (bytes.below(4) > 0).then(|| number(&mut bytes));
    let Ok(lengths) = Lengths::new(&geometry, seqlens.as_deref(), total) else { return };
    for b in 0..geometry.batch {
        let (past, new) = (lengths.past[b], lengths.new[b]);
        assert!(past <= geometry.past && new <= geometry.new && past + new <= lengths.total);
    }
    assert!(lengths.total <= geometry.past + geometry.new && lengths.total <= lengths.present(&geometry));
    let ids: Vec<i64> = (0..geometry.batch * geometry.new).map(|_| bytes.size()).collect();
    if let Ok(positions) = positions(&geometry, &lengths, (bytes.byte() % 2 == 0).then_some(&ids), 10) {
        assert!(positions.iter().all(|&position| position < 10));
    }
}

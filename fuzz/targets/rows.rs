//! Key and value rows of any bytes, and tokens of any numbers, through both operators' kernels.

use spark_ort::cpu::{HeadRows, Serial, prune};

use super::bytes::Bytes;
use crate::common::{Case, paths};

/// The first bytes choose a call, the others are its rows and numbers. Attention is finite, on every path.
pub fn rows(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut case = Case::new(bytes.number() as u64, 24, 6);
    let any_numbers = bytes.byte() % 2 == 0;
    let rest = bytes.0;
    if !rest.is_empty() {
        let mut cycle = rest.iter().copied().cycle();
        for row in case.past_key.iter_mut().chain(&mut case.past_value) {
            row.fill_with(|| cycle.next().expect("it has no end"));
        }
        if any_numbers {
            let mut number = || f32::from_le_bytes(std::array::from_fn(|_| cycle.next().expect("it has no end")));
            case.key.iter_mut().chain(&mut case.value).chain(&mut case.query).for_each(|x| *x = number());
        }
    }
    let g = &case.geometry;
    for path in paths() {
        let out = case.attend(&Serial, path);
        assert!(out.iter().all(|x| x.is_finite()), "attention is not finite on {path:?}");
        let rows = |row_bytes: usize| -> Vec<Vec<u8>> {
            (0..g.batch * g.kv_heads).map(|h| vec![0xff; case.lengths.new[h / g.kv_heads] * row_bytes]).collect()
        };
        let (mut key, mut value) = (rows(g.key.row_bytes()), rows(g.value.row_bytes()));
        let into = key.iter_mut().zip(&mut value).map(|(key, value)| HeadRows { key, value }).collect();
        prune(&Serial, path, &case.prune_call(), into, None);
        let mut channels = vec![f32::NAN; g.head_dim()];
        for row in value.iter().flat_map(|v| v.chunks_exact(g.value.row_bytes())) {
            g.value.decode(row, &mut channels);
            assert!(channels.iter().all(|x| x.is_finite()), "a value is not finite on {path:?}");
        }
        for row in key.iter().flat_map(|k| k.chunks_exact(g.key.row_bytes())) {
            g.key.row(row).decode(&case.scale[..g.head_dim()], |_| 1.0, &mut channels);
            assert!(channels.iter().all(|x| x.is_finite()), "a key is not finite on {path:?}");
            let marked = (0..g.head_dim()).filter(|&j| g.key.row(row).marked(j)).count();
            assert_eq!(marked, g.key.kept(), "channels kept on {path:?}");
        }
    }
}

//! Mutants of bytes and of JSON.

use serde_json::{Map, Value};

use crate::common::Random;

/// Changes a few bytes, or takes a part of another seed.
pub fn bytes(r: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[r.below(seeds.len())].clone();
    for _ in 0..=r.below(4) {
        let at = r.below(data.len().max(1));
        match r.below(8) {
            _ if data.is_empty() => data = r.bytes(16),
            0 => data[at] ^= 1 << r.below(8),
            1 => data[at] = r.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            2 => data[at] = r.next() as u8,
            3 => data.truncate(at),
            4 => drop(data.drain(at..(at + r.below(16)).min(data.len()))),
            5 => {
                let count = 1 + r.below(16);
                let new = r.bytes(count);
                data.splice(at..at, new);
            }
            6 => {
                let end = (at + 1 + r.below(64)).min(data.len());
                let part = data[at..end].to_vec();
                data.splice(at..at, part);
            }
            _ => {
                let other = &seeds[r.below(seeds.len())];
                let from = r.below(other.len().max(1));
                data.truncate(at);
                data.extend_from_slice(other.get(from..).unwrap_or(&[]));
            }
        }
    }
    data
}

/// Changes a few values of a JSON text, now and then its bytes.
pub fn json(r: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let parsed = serde_json::from_slice::<Value>(&seeds[r.below(seeds.len())]);
    let (Ok(mut value), false) = (parsed, r.below(8) == 0) else { return bytes(r, seeds) };
    for _ in 0..=r.below(3) {
        let count = places(&value);
        let mut left = r.below(count);
        change(r, &mut value, &mut left);
    }
    serde_json::to_vec(&value).expect("JSON")
}

/// How many values there are. Of long lists and objects the first ones count: a vocabulary would hide all else.
fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().take(MOST).map(places).sum(),
        Value::Object(map) => map.values().take(MOST).map(places).sum::<usize>(),
        _ => 0,
    }
}

const MOST: usize = 24;

/// Changes value number `left`, in the order in which [`places`] counts; whether it was found.
fn change(r: &mut Random, value: &mut Value, left: &mut usize) -> bool {
    if *left == 0 {
        *value = other(r, value);
        return true;
    }
    *left -= 1;
    match value {
        Value::Array(items) => {
            if *left == 0 && !items.is_empty() && r.coin() {
                let copy = items[r.below(items.len())].clone();
                items.push(copy);
                return true;
            }
            items.iter_mut().take(MOST).any(|item| change(r, item, left))
        }
        Value::Object(map) => {
            if *left == 0 && r.coin() {
                let key = map.keys().nth(r.below(map.len().max(1))).cloned();
                drop(key.and_then(|key| map.shift_remove(&key)));
                return true;
            }
            map.values_mut().take(MOST).any(|item| change(r, item, left))
        }
        _ => false,
    }
}

/// A value in the place of another one.
fn other(r: &mut Random, value: &Value) -> Value {
    let texts =
        ["", "\0", "../model.onnx", "libspark_ort.so", "genai_config.json", "BPE", "ByteLevel", "(", "\u{1f980}"];
    match r.below(12) {
        0 => Value::Null,
        1 => Value::Bool(r.coin()),
        2 => r.pick(&[-1i64, 0, 1, i64::MIN, i64::MAX, 1 << 32]).into(),
        3 => r.pick(&[-0.5f64, 1e308, 1e-308]).into(),
        4 => u64::MAX.into(),
        5 | 6 => r.pick(&texts).into(),
        7 => Value::Array(vec![value.clone()]),
        8 => Value::Array(vec![]),
        9 => Value::Object(Map::new()),
        10 => (0..r.below(200)).fold(Value::Null, |inner, _| Value::Array(vec![inner])),
        _ => match value {
            Value::Number(n) => (n.as_i64().unwrap_or(1) ^ (1 << r.below(40))).into(),
            Value::String(s) => format!("{s}{}", r.pick(&texts)).into(),
            other => other.clone(),
        },
    }
}

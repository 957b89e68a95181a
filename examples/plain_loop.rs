//! Continues a prompt with any exported language model, knowing only the names of its inputs.
//!
//!     ORT_DYLIB_PATH=libonnxruntime.so cargo run --example plain_loop -- LIBRARY MODEL HEAD_SIZE NEW ID [ID ...]
//!
//! A Rust program needs the crate `ort` and the path of libspark_ort.so, not this crate.

use std::collections::HashMap;

use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue};
use ort::value::{DynTensor, DynValue, Tensor, TensorElementType};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, model, head_size, new, ids @ ..] = &arguments[..] else {
        return Err("usage: plain_loop LIBRARY MODEL HEAD_SIZE NEW ID [ID ...]".into());
    };
    let ids = ids.iter().map(|id| id.parse()).collect::<std::result::Result<Vec<i64>, _>>()?;
    let environment = ort::init().build()?;
    // with_operator_library is all that is new.
    let mut session = Session::builder(&environment)?.with_operator_library(library)?.commit_from_file(model)?;
    let told = generate(&mut session, head_size.parse()?, ids, new.parse()?)?;
    println!("{}", told.iter().map(i64::to_string).collect::<Vec<_>>().join(" "));
    Ok(())
}

/// The likeliest `new` tokens after a prompt.
fn generate(session: &mut Session, head_size: i64, prompt: Vec<i64>, new: usize) -> Result<Vec<i64>> {
    let mut cache: HashMap<String, DynValue> = HashMap::new();
    for input in session.inputs() {
        if let (true, Some(shape)) = (input.name().starts_with("past_key_values."), input.dtype().tensor_shape()) {
            // As wide as the original's heads, unless the model says another width.
            let width = if shape[3] > 0 { shape[3] } else { head_size };
            let empty = [1, shape[1], 0, width];
            let element = input.dtype().tensor_type().unwrap_or(TensorElementType::Float32);
            cache.insert(input.name().into(), DynTensor::new(&Allocator::default(), element, empty)?.into_dyn());
        }
    }
    let (mut tokens, mut told) = (prompt, Vec::new());
    let mut total = 0;
    while told.len() < new {
        let count = tokens.len() as i64;
        let positions: Vec<i64> = (total..total + count).collect();
        total += count;
        let mut feeds: Vec<(String, SessionInputValue)> = Vec::new();
        for input in session.inputs() {
            let value: SessionInputValue = match input.name() {
                "input_ids" => Tensor::from_array(([1, count], tokens.clone()))?.into(),
                "attention_mask" => Tensor::from_array(([1, total], vec![1i64; total as usize]))?.into(),
                "position_ids" => Tensor::from_array(([1, count], positions.clone()))?.into(),
                name => cache.remove(name).ok_or_else(|| format!("the model has an unknown input {name}"))?.into(),
            };
            feeds.push((input.name().into(), value));
        }
        let outputs = session.run(feeds)?;
        for (name, value) in outputs {
            if name == "logits" {
                told.push(likeliest(&value)?);
            } else {
                cache.insert(name.replace("present", "past_key_values"), value);
            }
        }
        tokens = told[told.len() - 1..].to_vec();
    }
    Ok(told)
}

/// The token of the greatest logit after the last one of a sequence.
fn likeliest(logits: &DynValue) -> Result<i64> {
    let vocabulary = logits.shape()[2] as usize;
    let last: Vec<f32> = match logits.try_extract_tensor::<f32>() {
        Ok((_, values)) => values[values.len() - vocabulary..].to_vec(),
        Err(_) => {
            let (_, values) = logits.try_extract_tensor::<half::f16>()?;
            values[values.len() - vocabulary..].iter().map(|x| x.to_f32()).collect()
        }
    };
    let greatest = last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    Ok(greatest.map_or(0, |(token, _)| token as i64))
}

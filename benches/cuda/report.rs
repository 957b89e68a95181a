//! Figures for people.

use std::fmt::Write;

use serde_json::Value;

/// A number with `digits` digits behind the point, or a dash.
fn number(value: &Value, digits: usize) -> String {
    value.as_f64().map_or("-".into(), |x| format!("{x:.digits$}"))
}

fn percent(value: &Value) -> String {
    value.as_f64().map_or("-".into(), |x| format!("{:.0} %", 100.0 * x))
}

/// What was measured, in a line.
pub fn progress(result: &Value) -> String {
    let dense = match &result["dense"]["error"] {
        Value::String(error) => format!("; dense attention: {error}"),
        _ => String::new(),
    };
    format!("measured: batch {}, {} past, {} new tokens{dense}", result["batch"], result["past"], result["new"])
}

/// Tables in Markdown.
pub fn tables(figures: &Value) -> String {
    let mut text = String::new();
    let results = || figures["results"].as_array().into_iter().flatten();
    let decoding = |result: &&Value| result["past"] != 0;
    let rows = |results: &mut dyn Iterator<Item = &Value>, each: &dyn Fn(&Value, &Value) -> String| {
        let mut rows = String::new();
        for result in results {
            for cache in result["caches"].as_array().into_iter().flatten() {
                writeln!(rows, "{}", each(result, cache)).expect("a string takes it");
            }
        }
        rows
    };
    let decoded = rows(&mut results().filter(decoding), &|result, cache| {
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            result["batch"],
            result["past"],
            cache["setting"].as_str().unwrap_or_default(),
            number(&cache["step_ms"], 4),
            number(&cache["attention_ms"], 4),
            number(&(cache["row_bytes"].as_f64().map(|b| b / 1e6).into()), 1),
            number(&cache["gb_per_s"], 0),
            percent(&cache["share_of_read_bandwidth"]),
            number(&result["dense_ms"], 4),
            number(&cache["times_as_fast_as_dense"], 2),
            correct(cache),
        )
    });
    let prompts = rows(&mut results().filter(|r| !decoding(r)), &|result, cache| {
        format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            result["new"],
            cache["setting"].as_str().unwrap_or_default(),
            number(&cache["step_ms"], 3),
            number(&cache["attention_ms"], 3),
            number(&result["dense_ms"], 3),
            number(&cache["times_as_fast_as_dense"], 2),
            correct(cache),
        )
    });
    if !decoded.is_empty() {
        text += "\nDecoding one token, one layer:\n\n\
            | batch | context | setting | ms | SparkAttention ms | MB of rows | GB/s | of read bandwidth | SDPA ms | \
            times as fast | as the CPU |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
        text += &decoded;
    }
    if !prompts.is_empty() {
        text += "\nA first prompt, one layer:\n\n\
            | tokens | setting | ms | SparkAttention ms | SDPA ms | times as fast | as the CPU |\n\
            |---|---|---|---|---|---|---|\n";
        text += &prompts;
    }
    text += "\nms: SparkPrune and SparkAttention. GB/s and share: of SparkAttention. SDPA: the fastest of PyTorch's \
        kernels, without\nwriting the cache.\n";
    for result in results() {
        writeln!(
            text,
            "batch {}, {} past, {} new: read {} GB/s, copy {} GB/s (both ways); SDPA: {}",
            result["batch"],
            result["past"],
            result["new"],
            number(&result["read_gb_per_s"], 0),
            number(&result["copy_gb_per_s"], 0),
            result["dense"]["kernel"].as_str().or(result["dense"]["error"].as_str()).unwrap_or("not timed"),
        )
        .expect("a string takes it");
    }
    text
}

/// Whether the results are the CPU's, and how nearly.
fn correct(cache: &Value) -> String {
    let difference = cache["difference"].as_f64().map_or("not a number".into(), |d| format!("within {d:.0e}"));
    match cache["differing_rows"].as_u64() {
        Some(0) => difference,
        rows => format!("{difference}, {} rows DIFFER", rows.unwrap_or_default()),
    }
}

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/support/common.rs"]
mod common;
#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (_, act) = targets::TARGETS.iter().find(|(name, _)| *name == "difference").expect("it is one of them");
    act(data);
});

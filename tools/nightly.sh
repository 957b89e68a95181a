#!/usr/bin/env bash
# What a nightly toolchain of Rust can check besides.
# asan: hostile calls, rows up to guard pages and mutants with AddressSanitizer and checked arithmetic;
#       SECONDS_OF_FUZZING=N for the mutants.
# miri: rows and calls, for behaviour that is not defined; PROPTEST_CASES=N of each property, 2 if not set: an
#       interpreted case takes seconds.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
need_rust
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "This needs a nightly toolchain: rustup toolchain install nightly --component miri --component rust-src" >&2
    exit 1
fi
case $1 in
asan)
    export RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions=on"
    sanitized=(cargo +nightly test --release --target "$(uname -m)-unknown-linux-gnu" --target-dir target/asan)
    "${sanitized[@]}" --test bounds --test robustness
    "${sanitized[@]}" --test fuzz -- --seconds "${SECONDS_OF_FUZZING:-300}" --seed "${SEED:-1}"
    ;;
miri)
    # The tests read no files but their own, and the clock.
    export MIRIFLAGS="-Zmiri-disable-isolation" PROPTEST_CASES="${PROPTEST_CASES:-2}"
    cargo +nightly miri test --target-dir target/miri --no-default-features --lib -- format:: call::
    ;;
esac

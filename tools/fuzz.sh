#!/usr/bin/env bash
# Mutants of files, rows and calls for an hour, or for SECONDS_OF_FUZZING=N. What fails is printed with
# the arguments that run it again. MUTANTS=N ends it after so many of each target, SEED=N makes others.
# shellcheck source=tools/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
need_rust
cargo test --release --test fuzz -- --seconds "${SECONDS_OF_FUZZING:-3600}" --seed "${SEED:-1}" \
    ${MUTANTS:+--mutants "$MUTANTS"}

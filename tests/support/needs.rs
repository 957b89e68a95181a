//! Tests that need what a fresh clone does not have: without it they pass, and say on standard error that they were
//! skipped and why. With SPARK_TEST_REQUIRE in the environment, which `make test` sets, they fail instead.

/// Leaves the test if `$found` is an error, which says what is missing.
macro_rules! needs {
    ($found:expr) => {
        if let Err(missing) = $found {
            return crate::needs::skip(missing);
        }
    };
}

/// # Panics
/// With SPARK_TEST_REQUIRE in the environment.
pub fn skip(missing: &str) {
    assert!(std::env::var_os("SPARK_TEST_REQUIRE").is_none(), "{missing}");
    let test = std::thread::current();
    // `eprintln!` would be captured, and shown of failed tests only.
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("skipped: {}: {missing}\n", test.name().unwrap_or("a test")).as_bytes(),
    );
}

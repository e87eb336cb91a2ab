//! What was written last on a connection of HTTP/2: the reason for which it was ended stands in its
//! GOAWAY, and hyper's error does not repeat it.

use crate::observed::Observer;
use std::sync::{Arc, Mutex};

/// Bytes that are remembered; h2's reasons are shorter.
const KEPT: usize = 32;

/// The last bytes of a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Farewell(Arc<Mutex<Vec<u8>>>);

impl Farewell {
    /// All that is remembered.
    pub(crate) fn said(&self) -> Vec<u8> {
        self.0.lock().expect("no holder panics").clone()
    }
}

impl Observer for Farewell {
    fn wrote(&mut self, octets: &[u8]) {
        let mut kept = self.0.lock().expect("no holder panics");
        kept.extend_from_slice(&octets[octets.len().saturating_sub(KEPT)..]);
        let old = kept.len().saturating_sub(KEPT);
        kept.drain(..old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_however_they_were_written() {
        let mut farewell = Farewell::default();
        for part in [&b"x".repeat(100)[..], b"too_many", b"_", b"", b"resets"] {
            farewell.wrote(part);
        }
        let said = farewell.said();
        assert_eq!(said.len(), KEPT);
        assert!(said.ends_with(b"xtoo_many_resets"), "{said:?}");
    }
}

//! How old our knowledge of an API server is: the last moment a byte of an answer came, per kind.

use std::time::{Duration, Instant, SystemTime};

/// Silence after which a watch counts as unheard. A healthy one speaks at least every
/// [`crate::follow::WATCH_SECONDS`], when the server ends it as asked.
pub const SILENCE: Duration = Duration::from_secs(28);

/// When something was last heard, by both clocks: one to measure ages, one to show people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub at: Instant,
    pub wall: SystemTime,
}

/// What one kind's watch knows of its own freshness.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KindHealth {
    /// One whole list has been seen; stays true through outages.
    pub synced: bool,
    /// Last answer of any sort, also an error answer.
    pub heard: Option<Moment>,
    /// Why it cannot be read just now; `None` while all is well.
    pub error: Option<String>,
    /// What else there is to know: `not installed`.
    pub note: Option<String>,
    /// The API server does not answer this watch: no connection, or silence.
    pub silent: bool,
    pub objects: usize,
}

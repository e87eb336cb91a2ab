//! One kind, followed for ever: list, watch, relist, back off, and never forget the last good state.

/// Seconds after which the server ends a watch as we ask it to; each end is a sign of life.
pub const WATCH_SECONDS: u32 = 23;

/// What became of the objects of a kind.
#[derive(Debug, Clone)]
pub enum Change<K> {
    /// All there are: a whole list was seen.
    Replaced(Vec<K>),
    Applied(K),
    Deleted(K),
}

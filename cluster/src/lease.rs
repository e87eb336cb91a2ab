//! Who may write: one leader, by a Lease and a monotonic clock.

//! The subscriber's half.

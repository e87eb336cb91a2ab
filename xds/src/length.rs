//! How long messages may be, and whether one was longer.

use tonic::{Code, Status};

/// Longest message of a proxy that is read, bytes.
pub(crate) const REQUEST_MAX: usize = 4 << 20;
/// Longest message of a control plane that is read, bytes. It is verified, and one resource is never
/// cut.
pub(crate) const RESPONSE_MAX: usize = 64 << 20;

/// Whether a message was not read since it is too long. Nothing but the sentence tells it from a
/// connection that broke within a message: tonic gives both the same code.
pub(crate) fn exceeded(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("length too large")
}

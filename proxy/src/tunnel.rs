//! Bytes both ways with half-close, and who ended it.

use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// How a tunnel went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes from `client` to `server`.
    pub sent: u64,
    /// Bytes from `server` to `client`.
    pub received: u64,
    pub end: End,
}

/// What ended a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides had said all.
    Finished,
    ClientFailed,
    ServerFailed,
    /// No byte either way for the idle time.
    Idle,
}

/// Copies until both sides have ended, one has failed, or nothing moved for `idle`.
pub async fn copy<A, B>(client: &mut A, server: &mut B, idle: Duration) -> Transferred
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let _ = (client, server, idle);
    todo!("engine")
}

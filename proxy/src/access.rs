//! The access log: one JSON object a line to standard output, in Envoy's keys.
//!
//! Lines go out in batches, at most [`BATCH`] late: a wake-up, a write and a preempted worker for
//! every request were a tenth of a proxy's time (Envoy flushes its file sinks each second).

use serde::Serialize;
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most bytes of one text field: names and paths are of strangers' making.
pub const FIELD_MAX: usize = 256;
/// Lines that wait for standard output; more are dropped rather than holding up traffic.
const LINES_MAX: usize = 4_096;
/// How long a batch is gathered after its first line: 4,096 lines are full at 80,000 a second.
const BATCH: Duration = Duration::from_millis(50);

/// One connection or request.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Line {
    /// RFC 3339, UTC, milliseconds: [`timestamp`].
    pub start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// 0 for TCP.
    pub response_code: u16,
    /// Envoy's flags; `-` for none.
    pub response_flags: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_code_details: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_termination_details: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_transport_failure_reason: Option<String>,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// Milliseconds.
    pub duration: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_service_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_forwarded_for: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_remote_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_name: Option<String>,
    /// Peers as verified (Envoy: `%UPSTREAM_PEER_URI_SAN%`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_peer_uri_san: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_peer_uri_san: Option<String>,
    /// How often an upstream was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_request_attempt_count: Option<u32>,
}

impl Line {
    /// The line without its newline: escaped by the JSON encoder, every field cut.
    pub fn to_json(mut self) -> String {
        self.cut();
        serde_json::to_string(&self).expect("texts and numbers are JSON")
    }

    /// Queues the line for standard output; never waits.
    pub fn write(self) {
        match OUT.try_send(Entry::Line(self.to_json())) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            // Standard output does not keep up: traffic goes on, the line is lost.
            Err(TrySendError::Full(_)) => tracing::debug!("an access log line was dropped"),
        }
    }

    fn cut(&mut self) {
        if self.response_flags.is_empty() {
            self.response_flags = "-".into();
        }
        for field in [
            &mut self.method,
            &mut self.path,
            &mut self.protocol,
            &mut self.response_code_details,
            &mut self.connection_termination_details,
            &mut self.upstream_transport_failure_reason,
            &mut self.x_forwarded_for,
            &mut self.user_agent,
            &mut self.request_id,
            &mut self.authority,
            &mut self.upstream_host,
            &mut self.upstream_cluster,
            &mut self.upstream_local_address,
            &mut self.downstream_local_address,
            &mut self.downstream_remote_address,
            &mut self.requested_server_name,
            &mut self.route_name,
            &mut self.upstream_peer_uri_san,
            &mut self.downstream_peer_uri_san,
        ]
        .into_iter()
        .flatten()
        {
            if field.len() > FIELD_MAX {
                let end = (0..=FIELD_MAX).rev().find(|at| field.is_char_boundary(*at));
                field.truncate(end.unwrap_or(0));
            }
        }
    }
}

static OUT: LazyLock<SyncSender<Entry>> = LazyLock::new(|| {
    let (sender, entries) = sync_channel(LINES_MAX);
    // A thread of its own: a full pipe must not hold up a worker. Without the thread the receiver is
    // gone, and `write` drops lines.
    let _ = std::thread::Builder::new()
        .name("access-log".into())
        .spawn(move || copy(&entries, &mut std::io::stdout()));
    sender
});

enum Entry {
    Line(String),
    /// Answered once all before it is out.
    Flush(SyncSender<()>),
}

/// How long the last lines of a process may take.
const FLUSH: Duration = Duration::from_secs(1);

/// Waits until every line queued so far is out, for at most [`FLUSH`]: a process does it last.
pub async fn flush() {
    let wait = || {
        let (out, done) = sync_channel(1);
        if OUT.try_send(Entry::Flush(out)).is_ok() {
            // Late or without the thread: what is not out by now is lost, as when killed.
            let _ = done.recv_timeout(FLUSH);
        }
    };
    let _ = tokio::task::spawn_blocking(wait).await;
}

/// Writes batch by batch until nobody can send any more, or `out` is closed.
fn copy(entries: &Receiver<Entry>, out: &mut impl std::io::Write) {
    let mut batch = Vec::new();
    while let Ok(first) = entries.recv() {
        // Asleep, not waiting: lines that come meanwhile wake nobody.
        if matches!(first, Entry::Line(_)) {
            std::thread::sleep(BATCH);
        }
        let mut flushed = Vec::new();
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Entry::Line(line)) => {
                    batch.extend_from_slice(line.as_bytes());
                    batch.push(b'\n');
                }
                Ok(Entry::Flush(done)) => flushed.push(done),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            next = entries.try_recv();
        }
        if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
            return;
        }
        batch.clear();
        for done in flushed {
            let _ = done.send(());
        }
    }
}

/// `2026-11-20T13:53:12.042Z`.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date: years begin in March, so that leap days come last
    // (H. Hinnant, "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_one_short_line() {
        let line = Line {
            requested_server_name: Some(format!("a\n\"\u{1b}[31m{}", "ü".repeat(1_000))),
            ..Line::default()
        };
        let json = line.to_json();
        assert!(!json.contains('\n') && !json.contains('\u{1b}'));
        let back: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(back["requested_server_name"].as_str().unwrap().len() <= FIELD_MAX);
        assert_eq!(back["response_flags"], "-");
    }

    #[test]
    fn a_batch_is_one_write_and_a_flush_ends_it() {
        #[derive(Default)]
        struct Writes(Vec<Vec<u8>>);
        impl std::io::Write for Writes {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.push(bytes.to_vec());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (sender, entries) = sync_channel(LINES_MAX);
        let (out, done) = sync_channel(1);
        sender.send(Entry::Line("a".into())).unwrap();
        sender.send(Entry::Line("b".into())).unwrap();
        sender.send(Entry::Flush(out)).unwrap();
        drop(sender);
        let mut writes = Writes::default();
        copy(&entries, &mut writes);
        assert_eq!(writes.0, [b"a\nb\n".to_vec()]);
        assert_eq!(done.try_recv(), Ok(()));
    }

    #[test]
    fn times_are_written_as_envoy_does() {
        let at = |seconds, millis| {
            timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_795_182_792, 42), "2026-11-20T13:53:12.042Z");
    }
}

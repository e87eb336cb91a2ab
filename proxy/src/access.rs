//! The access log: one JSON object a line to standard output, in Envoy's keys.

use serde::Serialize;
use std::io::Write as _;
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{SystemTime, UNIX_EPOCH};

/// Most bytes of one text field: names and paths are of strangers' making.
pub const FIELD_MAX: usize = 256;
/// Lines that wait for standard output; more are dropped rather than holding up traffic.
const LINES_MAX: usize = 4_096;

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
    pub fn to_json(&self) -> String {
        let mut line = self.clone();
        line.cut();
        serde_json::to_string(&line).expect("texts and numbers are JSON")
    }

    /// Queues the line for standard output; never waits.
    pub fn write(&self) {
        static OUT: LazyLock<SyncSender<String>> = LazyLock::new(writer);
        match OUT.try_send(self.to_json()) {
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

/// A thread of its own: a full pipe must not hold up a worker.
fn writer() -> SyncSender<String> {
    let (sender, lines) = sync_channel::<String>(LINES_MAX);
    let write = move || {
        while let Ok(line) = lines.recv() {
            let mut out = std::io::stdout().lock();
            let mut next = Some(line);
            // Whatever waits already goes out with one flush.
            while let Some(line) = next {
                if writeln!(out, "{line}").is_err() {
                    return;
                }
                next = lines.try_recv().ok();
            }
            let _ = out.flush();
        }
    };
    // Without the thread the receiver is gone, and `write` drops lines.
    let _ = std::thread::Builder::new().name("access-log".into()).spawn(write);
    sender
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
    use std::time::Duration;

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
    fn times_are_written_as_envoy_does() {
        let at = |seconds, millis| {
            timestamp(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis))
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400, 7), "2000-02-29T00:00:00.007Z");
        assert_eq!(at(1_795_182_792, 42), "2026-11-20T13:53:12.042Z");
    }
}

//! One request as the log and the metrics will have it, told exactly once, whatever ends it.

use crate::body::{Ended, Passed};
use crate::{grpc, headers};
use http::request::Parts;
use http::{Response, Version, header};
use proxy::access::{self, Line};
use proxy::telemetry::{self, Answered};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

/// Written when dropped: a request whose client left before the response is told too (`DC`).
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) line: Line,
    pub(crate) begun: Instant,
    /// Bytes of the request's body that were passed on.
    pub(crate) requested: Arc<AtomicU64>,
    /// Bytes of the response's body that were passed back.
    pub(crate) responded: u64,
    /// 0 while there was no response.
    pub(crate) code: u16,
    /// Envoy's response flags, empty for none.
    pub(crate) flags: &'static str,
    pub(crate) metrics: Option<telemetry::Http>,
    /// It is a gRPC call, and this is how it ended where that was said.
    pub(crate) grpc: bool,
    pub(crate) grpc_status: Option<u16>,
}

impl Record {
    pub(crate) fn begin(parts: &Parts) -> Self {
        let path = parts.uri.path_and_query().map_or("*", |path| path.as_str());
        let line = Line {
            start_time: access::timestamp(SystemTime::now()),
            method: Some(parts.method.to_string()),
            path: Some(path.to_owned()),
            protocol: Some(protocol(parts.version).to_owned()),
            x_forwarded_for: headers::text(&parts.headers, "x-forwarded-for"),
            user_agent: headers::text(&parts.headers, header::USER_AGENT),
            request_id: headers::id(&parts.headers),
            authority: match parts.uri.authority() {
                Some(authority) => Some(authority.to_string()),
                None => headers::text(&parts.headers, header::HOST),
            },
            ..Line::default()
        };
        Self {
            line,
            begun: Instant::now(),
            requested: Arc::default(),
            responded: 0,
            code: 0,
            flags: "DC",
            metrics: None,
            grpc: grpc::is_call(&parts.headers),
            grpc_status: None,
        }
    }
}

impl Record {
    /// A response has begun.
    pub(crate) fn answered<B>(&mut self, response: &Response<B>) {
        self.code = response.status().as_u16();
        self.flags = "";
        self.grpc_status = grpc::status_in(response.headers()).filter(|_| self.grpc);
    }

    /// The response's body ended; takes the record whole, so that it is written now.
    pub(crate) fn end(mut self, ended: Ended, passed: Passed) {
        self.responded = passed.bytes;
        self.grpc_status = passed.grpc_status.filter(|_| self.grpc).or(self.grpc_status);
        self.flags = ended.flags();
        if ended == Ended::NotTaken {
            self.line.response_code_details = Some("stream_idle_timeout".into());
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let took = self.begun.elapsed();
        let requested = self.requested.load(Ordering::Relaxed);
        self.line.response_code = self.code;
        self.line.response_flags = self.flags.to_owned();
        self.line.bytes_received = requested;
        self.line.bytes_sent = self.responded;
        self.line.duration = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        std::mem::take(&mut self.line).write();
        if let Some(metrics) = &self.metrics {
            let flags = if self.flags.is_empty() { "-" } else { self.flags };
            metrics.done(&Answered {
                code: self.code,
                flags,
                took,
                request_bytes: requested,
                response_bytes: self.responded,
                grpc: self.grpc,
                grpc_status: self.grpc_status,
            });
        }
    }
}

/// As Envoy's `%PROTOCOL%` writes it.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

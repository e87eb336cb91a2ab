//! The API server's clock: read once, and counted on by this machine's.

use super::{Operator, Silent};
use crate::remote::problem::{Verdict, judge};
use kube::client::Body;
use std::time::{Duration, Instant, SystemTime};

/// What an API server's clock says. Ages are counted when an answer is there, however long it took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Seconds since the epoch, when it was read.
    pub(super) at: i64,
    pub(super) read: Instant,
}

impl Clock {
    /// `ahead` of this machine's clock, which is believed where the API server does not tell.
    pub(super) fn new(ahead: Option<i64>) -> Self {
        Self { at: now() + ahead.unwrap_or_default(), read: Instant::now() }
    }

    /// Seconds since the epoch, at this moment.
    pub(super) fn now(self) -> i64 {
        self.at.saturating_add(i64::try_from(self.read.elapsed().as_secs()).unwrap_or(i64::MAX))
    }
}

impl Operator {
    /// Its version, and how far its clock is ahead of ours.
    pub(super) async fn version(&self, limit: Duration) -> Result<(String, Option<i64>), Silent> {
        let ahead = match tokio::time::timeout(limit, self.ahead()).await {
            Ok(Ok(ahead)) => ahead,
            Ok(Err(error)) => return Err(silent(&self.server, &error)),
            Err(_) => {
                let said = format!("no answer within {} s", limit.as_secs_f32());
                return Err(Silent { refused: false, reason: "NoAnswer".into(), said });
            }
        };
        // A refusal is an answer with a status; its text tells why.
        let info = self.client.apiserver_version();
        match tokio::time::timeout(limit, info).await {
            Ok(Ok(info)) => Ok((info.git_version, ahead)),
            Ok(Err(error)) => Err(silent(&self.server, &error)),
            Err(_) => Ok((String::new(), ahead)),
        }
    }

    /// Seconds by which its clock is ahead of ours; `None` where its answers have no date.
    pub(super) async fn ahead(&self) -> kube::Result<Option<i64>> {
        let request = http::Request::get("/version").body(Body::empty());
        let asked = self.client.send(request.expect("a literal path makes a request"));
        let answer = asked.await?;
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        Ok(theirs.map(|at| at.timestamp().as_second() - now()))
    }
}

/// Seconds since the epoch, by this machine's clock.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn silent(server: &str, error: &kube::Error) -> Silent {
    let said = crate::refusal::told(error);
    match judge(server, error) {
        Verdict::Silent(problem) => Silent { refused: false, reason: problem.reason, said },
        Verdict::Refused(problem) => Silent { refused: true, reason: problem.reason, said },
    }
}

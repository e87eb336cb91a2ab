//! One table of operations, good and bad, on this server and on a real kube-apiserver: the answers are the same,
//! or the difference is listed with its reason.

use crate::rows::{Row, Who, rows};
use crate::server::{ADMIN, Server, programs};
use crate::support::{Running, client};
use http_body_util::BodyExt;
use kube::Client;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// What is compared of an answer.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    code: u16,
    reason: String,
    causes: Vec<(String, String)>,
    shown: BTreeMap<String, Value>,
    message: String,
}

struct Subject {
    admin: Client,
    anonymous: Client,
    stranger: Client,
}

impl Subject {
    fn of(url: &str, authority: &str, admin: &str) -> Self {
        let client = |token| client(url, authority, token);
        Self {
            admin: client(Some(admin)),
            anonymous: client(None),
            stranger: client(Some("made-up")),
        }
    }

    /// Waits until a path is there.
    async fn serves(&self, path: &str) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            let request = http::Request::get(path).body(vec![]).unwrap();
            if self.admin.request_text(request).await.is_ok() {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{path} is never served");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ask(&self, row: &Row) -> Answer {
        let client = match row.who {
            Who::Admin => &self.admin,
            Who::Anonymous => &self.anonymous,
            Who::Stranger => &self.stranger,
        };
        let mut request = http::Request::builder().method(row.method).uri(row.path.as_str());
        request = request.header("content-type", row.media).header("accept", "application/json");
        let request =
            request.body(kube::client::Body::from(row.body.clone().into_bytes())).unwrap();
        let answer = client.send(request).await.unwrap();
        let code = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let causes = body["details"]["causes"].as_array().into_iter().flatten();
        let mut causes: Vec<_> =
            causes.map(|cause| (text(&cause["field"]), text(&cause["reason"]))).collect();
        causes.sort();
        causes.dedup();
        let shown = row.shows.split_whitespace();
        let shown =
            shown.map(|path| (path.to_owned(), body.pointer(path).cloned().unwrap_or_default()));
        let reason = if code < 300 { String::new() } else { text(&body["reason"]) };
        Answer { code, reason, causes, shown: shown.collect(), message: text(&body["message"]) }
    }
}

#[tokio::test]
async fn the_table_holds() {
    let Some(programs) = programs() else { return };
    let real = Server::start(&programs).await;
    let own = Running::start().await;
    let ours = Subject::of(&own.url(), &own.authority(), &own.token());
    let theirs = Subject::of(&real.url(), &real.authority(), ADMIN);
    let (mut equal, mut listed, mut wrong) = (0, 0, vec![]);
    for row in rows() {
        let wanted = theirs.ask(&row).await;
        let given = ours.ask(&row).await;
        if !row.brings.is_empty() {
            theirs.serves(row.brings).await;
            ours.serves(row.brings).await;
        }
        // Words may differ, not what a program reads.
        let same = {
            let mut given = given.clone();
            given.message.clone_from(&wanted.message);
            given == wanted
        };
        match (same, row.differs) {
            (true, None) => equal += 1,
            (false, Some(_)) => listed += 1,
            (true, Some(reason)) => wrong
                .push(format!("{}: listed ({reason}), but equal: take it off the list", row.name)),
            (false, None) => {
                wrong.push(format!("{}\n  real: {wanted:?}\n  ours: {given:?}", row.name))
            }
        }
    }
    println!("{equal} rows equal, {listed} listed");
    assert!(
        wrong.is_empty(),
        "{} of the table's rows are wrong ({equal} equal, {listed} listed):\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(equal >= 100 && listed * 5 < equal, "{equal} rows equal, {listed} listed");
    own.stop().await;
}

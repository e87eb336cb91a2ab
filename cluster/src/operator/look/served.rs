//! An API server in a function, for tests: what it answers to a path.

use crate::credential::ServerTrust;
use crate::operator::Operator;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::sync::Arc;

/// Its clock, as its answers say: 2026-01-01.
pub(super) const DATE: (&str, i64) = ("Thu, 01 Jan 2026 00:00:00 GMT", 1_767_225_600);

/// A cluster of which `answer` tells every object: by the path, and of the query what it goes on with
/// (`/api/v1/pods?continue=1`); what it has no answer to is not served.
pub(super) fn served(answer: impl Fn(&str) -> Option<Value> + Send + Sync + 'static) -> Operator {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let more = query.split('&').find(|it| it.starts_with("continue="));
        let path = more.map_or_else(|| path.to_owned(), |more| format!("{path}?{more}"));
        let found = answer(&path);
        async move {
            let (code, body) = match found {
                Some(body) => (200, body.to_string()),
                // As kube-apiserver says it of a kind that it does not serve.
                None => (404, "404 page not found\n".to_owned()),
            };
            let answer = http::Response::builder().status(code).header("date", DATE.0);
            let answer = answer.body(Body::from(body.into_bytes()));
            Ok::<_, kube::Error>(answer.expect("a literal head makes an answer"))
        }
    });
    Operator {
        context: "west".into(),
        client: Client::new(service, "default"),
        server: "https://10.0.0.2:6443".into(),
        trust: ServerTrust::default(),
    }
}

/// A list, of which there is more where `more` is not empty.
pub(super) fn list(items: impl IntoIterator<Item = Value>, more: &str) -> Value {
    let items: Vec<Value> = items.into_iter().collect();
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"continue": more}, "items": items})
}

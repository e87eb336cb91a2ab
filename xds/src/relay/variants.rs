//! What both variants of ADS say, as far as a relay listens.

use super::debts::{Clusters, Debts, Named};
use super::listeners::Listeners;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;
use prost::Message as _;
use std::sync::Mutex;
use tokio::time::Instant;

/// What both variants' requests say, as far as a relay listens.
pub(super) trait Asks: Send + 'static {
    fn type_url(&self) -> &str;
    /// Of an answer to a response: its nonce, and the reason where that was refused.
    fn answers(&self) -> Option<(&str, Option<&str>)>;
    /// True where what a request of listeners says is enough to serve by.
    fn of_listeners(&self, listeners: &mut Listeners) -> bool;
    /// Notes what the control plane now owes.
    fn asks(&self, now: Instant, debts: &mut Debts, clusters: &Mutex<Clusters>);
}

/// What both variants' responses say of what was owed.
pub(super) trait Tells: Send + 'static {
    fn type_url(&self) -> &str;
    /// Notes a response of listeners.
    fn of_listeners(&self, listeners: &mut Listeners);
    fn tells(&self, now: Instant, debts: &mut Debts, clusters: &Mutex<Clusters>);
}

/// A request without a nonce answers nothing.
fn answer<'a>(nonce: &'a str, error: Option<&'a Status>) -> Option<(&'a str, Option<&'a str>)> {
    let refusal = error.map(|status| status.message.as_str());
    (!nonce.is_empty()).then_some((nonce, refusal))
}

impl Asks for DeltaDiscoveryRequest {
    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn answers(&self) -> Option<(&str, Option<&str>)> {
        answer(&self.response_nonce, self.error_detail.as_ref())
    }

    fn of_listeners(&self, listeners: &mut Listeners) -> bool {
        let names = &self.resource_names_subscribe;
        listeners.asks(names, self.initial_resource_versions.keys())
    }

    fn asks(&self, now: Instant, debts: &mut Debts, _: &Mutex<Clusters>) {
        debts.asks_delta(now, self);
    }
}

impl Tells for DeltaDiscoveryResponse {
    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn of_listeners(&self, listeners: &mut Listeners) {
        let names = self.resources.iter().map(|resource| resource.name.as_str());
        listeners.tells(&self.nonce, names);
    }

    fn tells(&self, now: Instant, debts: &mut Debts, _: &Mutex<Clusters>) {
        debts.tells_delta(now, self);
    }
}

impl Asks for DiscoveryRequest {
    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn answers(&self) -> Option<(&str, Option<&str>)> {
        answer(&self.response_nonce, self.error_detail.as_ref())
    }

    fn of_listeners(&self, listeners: &mut Listeners) -> bool {
        // A version does not tell what it was the version of.
        listeners.asks(&self.resource_names, std::iter::empty())
    }

    fn asks(&self, now: Instant, debts: &mut Debts, clusters: &Mutex<Clusters>) {
        debts.asks_world(now, self, &clusters.lock().expect("no holder panics"));
    }
}

impl Tells for DiscoveryResponse {
    fn type_url(&self) -> &str {
        &self.type_url
    }

    fn of_listeners(&self, listeners: &mut Listeners) {
        let named = self.resources.iter().filter_map(|any| Named::decode(&*any.value).ok());
        let named: Vec<Named> = named.collect();
        listeners.tells(&self.nonce, named.iter().map(|named| named.name.as_str()));
    }

    fn tells(&self, now: Instant, debts: &mut Debts, clusters: &Mutex<Clusters>) {
        debts.tells_world(now, self, &mut clusters.lock().expect("no holder panics"));
    }
}

//! The application's probes, asked for the kubelet: it has no certificate, and what comes to the
//! application's port from outside may need one. Injection leads the kubelet to port 15020 and hands
//! the probes over as they were; here they are asked from where the redirect knows us.

mod grpc;
mod http;

use crate::inbound::dial;
use anyhow::ensure;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use runtime::admin::{Body, Pages};
use runtime::metrics::Metrics;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest time that one probe may be given, seconds.
const TIMEOUT_MAX: u64 = 3_600;

/// One probe of a container, with the fields of Kubernetes' own that say what is asked; when and how
/// often stays the kubelet's affair. Exactly one of the three is set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Probe {
    pub http_get: Option<HttpGet>,
    pub tcp_socket: Option<TcpSocket>,
    pub grpc: Option<Grpc>,
    #[serde(default = "one")]
    pub timeout_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpGet {
    #[serde(default)]
    pub path: String,
    pub port: u16,
    #[serde(default)]
    pub scheme: Scheme,
    #[serde(default)]
    pub http_headers: Vec<Header>,
}

/// As Kubernetes writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpSocket {
    pub port: u16,
}

/// `grpc.health.v1.Health/Check`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grpc {
    pub port: u16,
    #[serde(default)]
    pub service: String,
}

fn one() -> u64 {
    1
}

/// What asking found: the application's answer in a few words.
pub(crate) type Found = Result<String, String>;

impl Probe {
    /// What cannot be asked, said at the start.
    pub(crate) fn check(&self, path: &str) -> anyhow::Result<()> {
        let Self { http_get, tcp_socket, grpc, timeout_seconds } = self;
        let kinds = [http_get.is_some(), tcp_socket.is_some(), grpc.is_some()];
        ensure!(
            path.starts_with('/')
                && kinds.into_iter().filter(|set| *set).count() == 1
                && (1..=TIMEOUT_MAX).contains(timeout_seconds),
            "ISM1046 probes: {path:?} is no path with exactly one of httpGet, tcpSocket and grpc, and \
             timeoutSeconds from 1 to {TIMEOUT_MAX}. Fix: let `isthmus inject` write it"
        );
        Ok(())
    }

    /// Asks the application at the pod's address.
    pub(crate) async fn ask(&self, pod: IpAddr) -> Found {
        let limit = Duration::from_secs(self.timeout_seconds);
        let late = |_| Err(format!("no answer within {} s", self.timeout_seconds));
        tokio::time::timeout(limit, self.begin(pod)).await.unwrap_or_else(late)
    }

    async fn begin(&self, pod: IpAddr) -> Found {
        if let Some(get) = &self.http_get {
            return http::ask(get, (pod, get.port).into()).await;
        }
        if let Some(Grpc { port, service }) = &self.grpc {
            return grpc::ask(service, (pod, *port).into()).await;
        }
        let port = self.tcp_socket.as_ref().map_or(0, |socket| socket.port);
        connect((pod, port).into()).await.map(|_| "connected".to_owned())
    }
}

async fn connect(to: SocketAddr) -> Result<tokio::net::TcpStream, String> {
    dial(to).await.map_err(|error| format!("connecting to {to} failed: {error}"))
}

/// `isthmus_sidecar_probes_total{path,result}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    path: String,
    result: &'static str,
}

/// A page for each probe: 200 or 503, with the application's answer in a few words.
pub(crate) fn pages(probes: &BTreeMap<String, Probe>, pod: IpAddr, metrics: &Metrics) -> Pages {
    let asked = Family::<Labels, Counter>::default();
    metrics.register(|registry| {
        let help = "Probes of the application that were asked, by path and result";
        registry.register("isthmus_sidecar_probes", help, asked.clone());
    });
    probes.iter().fold(Pages::new(), |pages, (path, probe)| {
        let (probe, asked, label) = (probe.clone(), asked.clone(), path.clone());
        pages.with_asked(path, move || {
            let (probe, asked, path) = (probe.clone(), asked.clone(), label.clone());
            async move {
                let found = probe.ask(pod).await;
                let result = if found.is_ok() { "success" } else { "failure" };
                asked.get_or_create(&Labels { path, result }).inc();
                match found {
                    Ok(said) => Body::Text(format!("{said}\n")),
                    Err(why) => Body::Unavailable(format!("{why}\n")),
                }
            }
        })
    })
}

#[cfg(test)]
mod tests;

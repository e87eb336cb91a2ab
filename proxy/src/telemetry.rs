//! Istio's metric families with its standard labels; handles are looked up once per connection.

mod conversation;

pub use conversation::{Conversation, Party, Reporter, workload};

use crate::upstream::Key;
use crate::upstream::health::Evidence;
use crate::upstream::probe::Probed;
use conversation::Known;
use mesh::name::ClusterId;
use prometheus_client::encoding::{
    EncodeLabelKey, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use runtime::metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;

/// Istio's label set (Istio: "Istio Standard Metrics").
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Labels {
    conversation: Arc<Conversation>,
    protocol: &'static str,
    flags: String,
    /// `None` for TCP.
    code: Option<u16>,
    /// `grpc-status`, of gRPC calls that have one.
    grpc_status: Option<u16>,
}

fn known(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Conversation {
            reporter,
            source,
            destination,
            service,
            service_name,
            service_namespace,
            mutual_tls,
        } = &*self.conversation;
        let cluster = |party: &Party| {
            party.cluster.as_ref().map_or_else(String::new, |cluster| cluster.to_string())
        };
        let (from, to) = (cluster(source), cluster(destination));
        let policy = match (reporter, mutual_tls) {
            // Istio: only the destination knows.
            (Reporter::Source, _) => "unknown",
            (Reporter::Destination, true) => "mutual_tls",
            (Reporter::Destination, false) => "none",
        };
        let reporter = match reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        let flags = if self.flags.is_empty() { "-" } else { &self.flags };
        let code = self.code.map(|code| code.to_string());
        let grpc_status = self.grpc_status.map(|status| status.to_string()).unwrap_or_default();
        let mut labels: Vec<(&str, &str)> = vec![
            ("reporter", reporter),
            ("source_workload", &source.workload),
            ("source_workload_namespace", &source.namespace),
            ("source_principal", &source.principal),
            ("source_app", &source.app),
            ("source_version", ""),
            ("source_canonical_service", &source.app),
            ("source_canonical_revision", "latest"),
            ("source_cluster", &from),
            ("destination_workload", &destination.workload),
            ("destination_workload_namespace", &destination.namespace),
            ("destination_principal", &destination.principal),
            ("destination_app", &destination.app),
            ("destination_version", ""),
            ("destination_canonical_service", &destination.app),
            ("destination_canonical_revision", "latest"),
            ("destination_cluster", &to),
            ("destination_service", service),
            ("destination_service_name", service_name),
            ("destination_service_namespace", service_namespace),
            ("request_protocol", self.protocol),
            ("response_flags", flags),
            ("connection_security_policy", policy),
        ];
        if let Some(code) = &code {
            labels.push(("response_code", code));
            labels.push(("grpc_response_status", &grpc_status));
        }
        for (name, value) in labels {
            let value = if name == "grpc_response_status" { value } else { known(value) };
            let mut label = encoder.encode_label();
            let mut key = label.encode_label_key()?;
            EncodeLabelKey::encode(&name, &mut key)?;
            let mut text = key.encode_label_value()?;
            EncodeLabelValue::encode(&value, &mut text)?;
            text.finish()?;
        }
        Ok(())
    }
}

/// Istio's buckets for durations, milliseconds.
const DURATIONS: [f64; 20] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
    7_200_000.0,
];
/// And for sizes, bytes.
const SIZES: [f64; 10] = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry {
    requests: Family<Labels, Counter>,
    durations: Histograms,
    request_bytes: Histograms,
    response_bytes: Histograms,
    sent: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    known: Arc<Known>,
    beyond: Counter,
}

/// Counters of one TCP conversation.
#[derive(Debug, Clone)]
pub struct Tcp {
    sent: Counter,
    received: Counter,
    opened: Counter,
    closed: Counter,
}

/// Families of one HTTP conversation: its responses differ in code and flags.
#[derive(Debug, Clone)]
pub struct Http {
    telemetry: Telemetry,
    conversation: Arc<Conversation>,
}

impl Telemetry {
    /// Registers the families; once per process.
    pub fn register(metrics: &Metrics) -> Self {
        fn durations() -> Histogram {
            Histogram::new(DURATIONS)
        }
        fn sizes() -> Histogram {
            Histogram::new(SIZES)
        }
        let this = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            request_bytes: Family::new_with_constructor(sizes),
            response_bytes: Family::new_with_constructor(sizes),
            sent: Family::default(),
            received: Family::default(),
            opened: Family::default(),
            closed: Family::default(),
            known: Arc::default(),
            beyond: Counter::default(),
        };
        metrics.register(|registry| {
            registry.register("istio_requests", "HTTP requests", this.requests.clone());
            registry.register(
                "istio_request_duration_milliseconds",
                "From the first byte of a request to the last of its response",
                this.durations.clone(),
            );
            let (request, response) = (this.request_bytes.clone(), this.response_bytes.clone());
            registry.register("istio_request_bytes", "Bytes of request bodies", request);
            registry.register("istio_response_bytes", "Bytes of response bodies", response);
            let sent = "Bytes to the client of TCP connections";
            registry.register("istio_tcp_sent_bytes", sent, this.sent.clone());
            let received = "Bytes from the client of TCP connections";
            registry.register("istio_tcp_received_bytes", received, this.received.clone());
            let opened = "TCP connections opened";
            registry.register("istio_tcp_connections_opened", opened, this.opened.clone());
            let closed = "TCP connections closed";
            registry.register("istio_tcp_connections_closed", closed, this.closed.clone());
            let beyond = "Conversations told as \"other\", since there are too many to tell apart";
            registry.register("isthmus_conversations_beyond_limit", beyond, this.beyond.clone());
        });
        this
    }

    /// `flags` are Envoy's, empty for none.
    pub fn tcp(&self, conversation: &Conversation, flags: &str) -> Tcp {
        let labels = Labels {
            conversation: self.admit(conversation),
            protocol: "tcp",
            flags: flags.into(),
            code: None,
            grpc_status: None,
        };
        let of = |family: &Family<Labels, Counter>| family.get_or_create_owned(&labels);
        Tcp {
            sent: of(&self.sent),
            received: of(&self.received),
            opened: of(&self.opened),
            closed: of(&self.closed),
        }
    }

    pub fn http(&self, conversation: &Conversation) -> Http {
        Http { telemetry: self.clone(), conversation: self.admit(conversation) }
    }

    fn admit(&self, conversation: &Conversation) -> Arc<Conversation> {
        let (admitted, beyond) = self.known.admit(conversation);
        if beyond {
            self.beyond.inc();
        }
        admitted
    }
}

impl Tcp {
    pub fn opened(&self) {
        self.opened.inc();
    }

    /// `to_client` and `from_client` are whole byte counts of the connection.
    pub fn closed(&self, to_client: u64, from_client: u64) {
        self.sent.inc_by(to_client);
        self.received.inc_by(from_client);
        self.closed.inc();
    }
}

/// How one request ended.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    pub code: u16,
    /// Envoy's, empty or `-` for none.
    pub flags: &'a str,
    pub took: Duration,
    /// Of the body.
    pub request_bytes: u64,
    /// Of the body.
    pub response_bytes: u64,
    /// It was a gRPC call.
    pub grpc: bool,
    /// What its trailers said, where they came.
    pub grpc_status: Option<u16>,
}

impl Http {
    /// Tells of one request.
    pub fn done(&self, answered: &Answered<'_>) {
        let Answered { code, flags, took, request_bytes, response_bytes, .. } = *answered;
        let labels = Labels {
            conversation: self.conversation.clone(),
            protocol: if answered.grpc { "grpc" } else { "http" },
            flags: flags.into(),
            code: Some(code),
            // Codes that gRPC does not know are its UNKNOWN (grpc: "Status codes and their use").
            grpc_status: answered.grpc_status.map(|status| if status > 16 { 2 } else { status }),
        };
        let Telemetry { requests, durations, request_bytes: asked, response_bytes: said, .. } =
            &self.telemetry;
        requests.get_or_create(&labels).inc();
        durations.get_or_create(&labels).observe(took.as_secs_f64() * 1_000.0);
        asked.get_or_create(&labels).observe(request_bytes as f64);
        said.get_or_create(&labels).observe(response_bytes as f64);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attempted {
    destination_cluster: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Gateway {
    destination_cluster: String,
    gateway: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbedLabels {
    destination_cluster: String,
    gateway: String,
    result: &'static str,
}

/// The engine's own numbers: attempts and probes.
#[derive(Debug)]
pub(crate) struct Numbers {
    attempts: Family<Attempted, Counter>,
    probes: Family<ProbedLabels, Counter>,
    probe_seconds: Family<Gateway, Histogram, fn() -> Histogram>,
}

impl Numbers {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        fn seconds() -> Histogram {
            Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
        }
        let this = Self {
            attempts: Family::default(),
            probes: Family::default(),
            probe_seconds: Family::new_with_constructor(seconds),
        };
        metrics.register(|registry| {
            let attempts = "What became of connections and requests to endpoints, by cluster";
            registry.register("isthmus_upstream_evidence", attempts, this.attempts.clone());
            registry.register(
                "isthmus_gateway_probes",
                "Probes of gateways in use, by result",
                this.probes.clone(),
            );
            registry.register(
                "isthmus_gateway_probe_seconds",
                "Connect and handshake with a gateway itself",
                this.probe_seconds.clone(),
            );
        });
        this
    }

    pub(crate) fn evidence(&self, cluster: &ClusterId, evidence: Evidence) {
        let result = match evidence {
            Evidence::Connected { .. } => "connected",
            Evidence::Failed { timed_out: true, .. } => "timed_out",
            Evidence::Failed { timed_out: false, .. } => "failed",
            Evidence::Late(_) => "late",
            // Every answer is counted as a request elsewhere; this must stay cheap.
            Evidence::Answered => return,
            Evidence::ServerError => "server_error",
            Evidence::Reset => "reset",
            Evidence::Slow => "slow",
        };
        let labels = Attempted { destination_cluster: cluster.to_string(), result };
        self.attempts.get_or_create(&labels).inc();
    }

    pub(crate) fn probed(&self, key: &Key, probed: Probed, took: Option<Duration>) {
        let (destination_cluster, gateway) = (key.1.to_string(), key.0.to_string());
        if let Some(took) = took {
            let labels = Gateway {
                destination_cluster: destination_cluster.clone(),
                gateway: gateway.clone(),
            };
            self.probe_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        }
        let result = match probed {
            Probed::Alive => "alive",
            Probed::Missed => "missed",
            Probed::Foreign => "foreign",
            Probed::Blind => "no_socket",
        };
        self.probes.get_or_create(&ProbedLabels { destination_cluster, gateway, result }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_istios_names_and_labels() {
        let metrics = Metrics::new();
        let telemetry = Telemetry::register(&metrics);
        let conversation = Conversation {
            reporter: Reporter::Source,
            source: Party { cluster: Some("east".parse().unwrap()), ..Party::default() },
            destination: Party { cluster: Some("west".parse().unwrap()), ..Party::default() },
            service: "hello.shop.global".into(),
            service_name: "hello".into(),
            service_namespace: "shop".into(),
            mutual_tls: true,
        };
        telemetry.http(&conversation).done(&Answered {
            code: 200,
            flags: "",
            took: Duration::from_millis(7),
            request_bytes: 0,
            response_bytes: 5,
            grpc: false,
            grpc_status: None,
        });
        let tcp = telemetry.tcp(&conversation, "UF");
        tcp.opened();
        tcp.closed(11, 22);
        let text = metrics.encode();
        let line = |start: &str| {
            let found = text.lines().find(|line| line.starts_with(start));
            found.unwrap_or_else(|| panic!("{start} is not in\n{text}")).to_owned()
        };
        let requests = line("istio_requests_total{");
        for label in [
            "reporter=\"source\"",
            "source_cluster=\"east\"",
            "destination_cluster=\"west\"",
            "destination_service_name=\"hello\"",
            "response_code=\"200\"",
            "response_flags=\"-\"",
            "source_workload=\"unknown\"",
        ] {
            assert!(requests.contains(label), "{label} is not in {requests}");
        }
        assert!(requests.ends_with("} 1"));
        assert!(line("istio_tcp_sent_bytes_total{").ends_with("} 11"));
        assert!(line("istio_tcp_received_bytes_total{").contains("response_flags=\"UF\""));
        line("istio_request_duration_milliseconds_bucket{");
        line("istio_tcp_connections_opened_total{");
    }
}

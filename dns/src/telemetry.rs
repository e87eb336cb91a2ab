//! What the DNS server counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use runtime::metrics::Metrics;

/// `isthmus_dns_answers_total{rcode,source}` and `isthmus_dns_dropped_total{reason}`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Telemetry {
    answers: Family<AnswerLabels, Counter>,
    dropped: Family<DropLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    rcode: String,
    /// `mesh` (from memory), `upstream`, or `policy` (refused before it was looked at).
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

impl Telemetry {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let telemetry = Self::default();
        metrics.register(|registry| {
            registry.register(
                "isthmus_dns_answers",
                "DNS answers by response code and by where the answer came from",
                telemetry.answers.clone(),
            );
            registry.register(
                "isthmus_dns_dropped",
                "DNS packets and connections that got no answer, by reason",
                telemetry.dropped.clone(),
            );
        });
        telemetry
    }

    /// `code` is the low four bits of the response code, as in the header.
    pub(crate) fn answered(&self, code: u8, source: &'static str) {
        let rcode = match code {
            0 => "NOERROR".to_owned(),
            1 => "FORMERR".to_owned(),
            2 => "SERVFAIL".to_owned(),
            3 => "NXDOMAIN".to_owned(),
            4 => "NOTIMP".to_owned(),
            5 => "REFUSED".to_owned(),
            other => format!("RCODE{other}"),
        };
        self.answers.get_or_create(&AnswerLabels { rcode, source }).inc();
    }

    pub(crate) fn dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&DropLabels { reason }).inc();
    }
}

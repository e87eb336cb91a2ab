//! Ten thousand generated pods, good and broken, through injection: nothing panics, what is injected
//! is a pod, injecting again changes nothing, and what was there is there.

#[path = "inject/pods.rs"]
mod pods;

use cluster::inject::{Documents, Injection, NamespaceLabels, Settings, Why, apply, inject};
use k8s_openapi::api::core::v1::Pod;
use mesh::inventory::MeshConfig;
use serde_json::Value;
use std::collections::BTreeMap;

const PODS: u64 = 10_000;

fn settings() -> Settings {
    let mesh = MeshConfig {
        root_certificates: "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n".into(),
        ..MeshConfig::new(
            "east".parse().unwrap(),
            "net-east".parse().unwrap(),
            "east.mesh".parse().unwrap(),
        )
    };
    let data = BTreeMap::from([("image".to_owned(), "isthmus:test".to_owned())]);
    Settings::new(&data, &mesh, "isthmus-system").unwrap()
}

fn enabled() -> NamespaceLabels {
    NamespaceLabels::from([("istio-injection".into(), "enabled".into())])
}

/// A container without what may be rewritten: its three probes.
fn without_probes(container: &Value) -> Value {
    let mut container = container.clone();
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        container.as_object_mut().unwrap().remove(probe);
    }
    container
}

fn list<'a>(pod: &'a Value, name: &str) -> &'a [Value] {
    pod["spec"][name].as_array().map_or(&[], Vec::as_slice)
}

/// What holds for every pod, whatever became of it. Whether it was injected.
fn holds(before: &Value, settings: &Settings) -> bool {
    let labels = enabled();
    let injection = inject(before, &labels, settings);
    assert_eq!(injection, inject(before, &labels, settings), "it decides the same again");
    for warning in injection.warnings() {
        assert!(warning.chars().count() <= 256 && !warning.contains('\n'), "{warning}");
    }
    let Injection::Inject { patch, .. } = injection else { return false };
    let after = apply(before, &patch);
    serde_json::from_value::<Pod>(after.clone()).unwrap_or_else(|e| panic!("{e}: {after:#}"));
    assert_eq!(inject(&after, &labels, settings), Injection::Leave(Why::AlreadyOurs), "{after:#}");

    // All containers are there in their order, ours before the other init containers.
    let names: Vec<&str> =
        list(&after, "initContainers").iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["isthmus-init", "isthmus-proxy"]);
    for (list_name, skip) in [("containers", 0), ("initContainers", 2)] {
        let (old, new) = (list(before, list_name), &list(&after, list_name)[skip..]);
        assert_eq!(old.len(), new.len());
        for (old, new) in old.iter().zip(new) {
            assert_eq!(without_probes(old), without_probes(new));
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let (old, new) = (&old[probe], &new[probe]);
                // When and how often is the kubelet's, who is asked may be the sidecar.
                for field in ["periodSeconds", "timeoutSeconds", "exec"] {
                    assert_eq!(old[field], new[field]);
                }
                let led = new["httpGet"]["port"] == 15020;
                assert!(led || old == new, "{old} {new}");
            }
        }
    }
    let volumes = list(before, "volumes");
    assert_eq!(volumes, &list(&after, "volumes")[..volumes.len()]);
    // Everything else of the pod is as it was.
    let strip = |pod: &Value| {
        let mut pod = pod.clone();
        let spec = pod["spec"].as_object_mut().unwrap();
        for field in ["containers", "initContainers", "volumes"] {
            spec.remove(field);
        }
        let metadata = pod.as_object_mut().unwrap().entry("metadata").or_insert(Value::Null);
        for map in ["labels", "annotations"] {
            let ours = ["security.istio.io/tlsMode", "isthmus.dev/injected"];
            let emptied = metadata[map].as_object_mut().is_some_and(|map| {
                ours.iter().for_each(|key| drop(map.remove(*key)));
                map.is_empty()
            });
            if let Some(metadata) =
                metadata.as_object_mut().filter(|m| emptied || m.get(map) == Some(&Value::Null))
            {
                metadata.remove(map);
            }
        }
        if metadata.as_object().is_none_or(serde_json::Map::is_empty) {
            pod.as_object_mut().unwrap().remove("metadata");
        }
        pod
    };
    assert_eq!(strip(before), strip(&after));
    true
}

#[test]
fn ten_thousand_pods() {
    let settings = settings();
    let (mut injected, mut broken) = (0, 0);
    for seed in 0..PODS {
        injected += u64::from(holds(&pods::valid(seed), &settings));
        broken += u64::from(holds(&pods::broken(seed), &settings));
    }
    // The test means something only where most of them get that far.
    assert!(injected > PODS / 4 && injected < PODS, "{injected} of {PODS}");
    assert!(broken > PODS / 100 && broken < injected, "{broken} of {PODS} broken ones");
    println!("{PODS} pods: {injected} injected; of as many broken ones {broken}");
}

/// As `isthmus inject` has them: through YAML and back, nothing but the injection changes.
#[test]
fn manifests_keep_their_values() {
    let settings = settings();
    let labels = BTreeMap::from([("default".to_owned(), enabled())]);
    for seed in 0..PODS / 20 {
        let pod = pods::valid(seed);
        let text = serde_saphyr::to_string(&pod).unwrap();
        let done = Documents::read(&text).unwrap().inject(&labels, "default", &settings);
        let after: Value = serde_saphyr::from_str(&done.text).unwrap();
        match inject(&pod, &enabled(), &settings) {
            Injection::Inject { patch, .. } => assert_eq!(after, apply(&pod, &patch), "{seed}"),
            Injection::Leave(_) => assert_eq!(done.text, text, "{seed}"),
        }
    }
}

//! What is believed of a linked cluster, without a server.

use super::*;

fn options(services: usize) -> Options {
    Options {
        secret_namespaces: vec![],
        root_namespace: "isthmus-system".into(),
        rules: kubeconfig::Rules::default(),
        limits: super::super::Limits { services, ..Default::default() },
    }
}

fn exported(name: &str) -> Option<Box<Exported>> {
    let mut object = Object::new(name, Default::default());
    object.metadata.namespace = Some("shop".into());
    Some(Box::new(Exported { key: ("shop".into(), name.into()), value: object.value() }))
}

fn mesh() -> BTreeMap<String, String> {
    [
        ("cluster", "west"),
        ("network", "net-west"),
        ("trustDomain", "west.mesh"),
        ("rootCertificates", "pem"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

fn known(options: &Options) -> Known {
    let mut known = Known::default();
    known.services(Change::Replaced(vec![exported("a"), exported("b")]), options);
    known.gateways(Change::Replaced(vec![]));
    known.mesh(Change::Replaced(vec![mesh()]));
    known.probed("https://w", Ok("uid-1".into()));
    known.tell("https://w", options);
    known
}

#[test]
fn all_kinds_and_the_uid_make_it_whole() {
    let options = options(10);
    let mut known = Known::default();
    known.services(Change::Replaced(vec![]), &options);
    known.gateways(Change::Replaced(vec![]));
    known.mesh(Change::Replaced(vec![mesh()]));
    known.tell("https://w", &options);
    assert!(known.told.is_none());
    assert_eq!(known.waiting.as_ref().unwrap().reason, "Reading");
    known.probed("https://w", Ok("uid-1".into()));
    known.tell("https://w", &options);
    assert_eq!(known.told.as_ref().unwrap().uid, "uid-1");
    assert!(known.waiting.is_none());
}

#[test]
fn too_many_services_keep_the_last_good_list() {
    let options = options(2);
    let mut known = known(&options);
    known.services(Change::Replaced(vec![exported("a"), exported("c"), exported("d")]), &options);
    known.tell("https://w", &options);
    assert_eq!(known.waiting.as_ref().unwrap().reason, "TooManyServices");
    assert_eq!(known.told.as_ref().unwrap().services.len(), 2);
    // One at a time does not get past the limit either.
    known.services(Change::Replaced(vec![exported("a"), exported("c")]), &options);
    known.services(Change::Applied(exported("d")), &options);
    known.tell("https://w", &options);
    assert_eq!(known.waiting.as_ref().unwrap().reason, "TooManyServices");
    known.services(Change::Replaced(vec![exported("c")]), &options);
    known.tell("https://w", &options);
    assert!(known.waiting.is_none());
    assert_eq!(known.told.as_ref().unwrap().services.len(), 1);
}

#[test]
fn a_bad_object_costs_itself_only() {
    let options = options(10);
    let mut known = known(&options);
    let mut bad = Object::new("UPPER", Default::default());
    bad.metadata.namespace = Some("shop".into());
    let bad = Exported { key: ("shop".into(), "UPPER".into()), value: bad.value() };
    known.services(Change::Applied(Some(Box::new(bad))), &options);
    known.tell("https://w", &options);
    let told = known.told.unwrap();
    assert_eq!(told.services.len(), 2);
    assert!(
        told.findings.iter().any(|finding| finding.object.name == "UPPER"),
        "{:?}",
        told.findings
    );
}

#[test]
fn a_mesh_config_that_is_gone_or_wrong_keeps_the_last_good() {
    let options = options(10);
    let mut known = known(&options);
    known.mesh(Change::Deleted(mesh()));
    known.tell("https://w", &options);
    assert_eq!(known.waiting.as_ref().unwrap().reason, "NoMeshConfig");
    assert!(known.told.is_some());
    let mut wrong = mesh();
    wrong.insert("network".into(), "Net West".into());
    known.mesh(Change::Applied(wrong));
    known.tell("https://w", &options);
    let problem = known.waiting.as_ref().unwrap();
    assert_eq!(problem.reason, "BadMeshConfig");
    assert!(problem.message.contains("data[network]"), "{}", problem.message);
    assert!(known.told.is_some());
}

#[test]
fn a_server_without_our_kinds_exports_nothing_new() {
    let options = options(10);
    let mut known = known(&options);
    known.missing = Some("ExportedService".into());
    known.services(Change::Replaced(vec![]), &options);
    known.tell("https://w", &options);
    assert_eq!(known.waiting.as_ref().unwrap().reason, "NotInstalled");
    assert_eq!(known.told.as_ref().unwrap().services.len(), 2);
}

#[test]
fn gateway_addresses_are_read_in_istio_s_way() {
    let service: Service = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "gw"},
        "spec": {"ports": [{"name": "status", "port": 15021}, {"name": "tls", "port": 15443}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.8"}, {"hostname": "gw.example.com"}]}}
    }))
    .unwrap();
    let (name, addresses) = gateway(service.clone(), 64);
    assert_eq!(name, "gw");
    let text: Vec<String> = addresses.iter().map(|a| format!("{}:{}", a.host, a.port)).collect();
    assert_eq!(text, ["203.0.113.8:15443", "gw.example.com:15443"]);
    let mut labelled = service;
    labelled.metadata.labels =
        Some([("networking.istio.io/gatewayPort".to_owned(), "443".to_owned())].into());
    assert!(gateway(labelled, 1).1.iter().all(|a| a.port == 443));
}

//! The faults that `isthmus check` must name: how each is made, which words its line must have, and how
//! it is taken back.

use super::super::Stage;
use super::super::lies::start_forger;
use anyhow::{Context, Result};
use fleet::launcher::Service;
use fleet::link::secret_name;
use fleet::netns::Fault as Packets;
use fleet::objects::{api, apply, apply_status, delete};
use fleet::process::Process;
use fleet::{Cluster, GATEWAY, SYSTEM};
use serde_json::{Value, json};

/// One fault and what the first red line must say of it.
pub(super) struct Fault {
    pub(super) what: &'static str,
    pub(super) words: &'static [&'static str],
    kind: Kind,
}

enum Kind {
    ServerKilled,
    ServerHangs,
    NoMeshConfig,
    MeshConfig(&'static str, Says),
    NoCacerts,
    ForeignKey,
    ControllerKilled,
    ControlPlaneHangs,
    GatewayKilled,
    GatewayCutOff,
    Impostor,
    NoGatewayAddress,
    NoGatewayPort,
    SecretDeleted,
    WrongToken,
    Exec,
    NoConsent,
    BadRange,
    TwoProtocols,
    Export(fn() -> Value),
    ExportOfNothing,
    Object(fn() -> Value),
}

/// What north's ConfigMap says in place of the truth.
enum Says {
    Text(&'static str),
    Nothing,
    AnotherRoot,
    PrivateKey,
}

const fn fault(what: &'static str, words: &'static [&'static str], kind: Kind) -> Fault {
    Fault { what, words, kind }
}

pub(super) const FAULTS: &[Fault] = &[
    fault("west's API server is killed", &["ISM2601", "west", "refuses"], Kind::ServerKilled),
    fault("north's API server hangs", &["ISM2601", "north", "does not answer"], Kind::ServerHangs),
    fault("west has no ConfigMap isthmus-mesh", &["ISM2006", "west"], Kind::NoMeshConfig),
    fault(
        "north's ConfigMap has no trust domain",
        &["ISM3020", "north", "data.trustDomain"],
        Kind::MeshConfig("trustDomain", Says::Nothing),
    ),
    fault(
        "north calls itself west",
        &["ISM2607", "west", "north", "call themselves west"],
        Kind::MeshConfig("cluster", Says::Text("west")),
    ),
    fault(
        "north has another root",
        &["ISM2608", "north", "root"],
        Kind::MeshConfig("rootCertificates", Says::AnotherRoot),
    ),
    fault(
        "north publishes a private key",
        &["ISM3022", "north", "private key"],
        Kind::MeshConfig("rootCertificates", Says::PrivateKey),
    ),
    fault(
        "north's ConfigMap has another trust domain than its cacerts",
        &["ISM2609", "north", "elsewhere.mesh", "north.mesh"],
        Kind::MeshConfig("trustDomain", Says::Text("elsewhere.mesh")),
    ),
    fault("west has no Secret cacerts", &["ISM2302", "west", "cacerts"], Kind::NoCacerts),
    fault("west's cacerts has another's key", &["ISM5101", "west", "ca-key.pem"], Kind::ForeignKey),
    fault(
        "west's federation controller is killed",
        &["ISM2610", "west", "federation controller"],
        Kind::ControllerKilled,
    ),
    fault("east's control plane hangs", &["ISM2611", "east"], Kind::ControlPlaneHangs),
    fault(
        "one of west's gateways is killed",
        &["ISM2616", "west", "198.18.2.12:15443"],
        Kind::GatewayKilled,
    ),
    fault(
        "one of west's gateways is cut off",
        &["ISM2616", "west", "198.18.2.11:15443"],
        Kind::GatewayCutOff,
    ),
    fault("a liar in the place of west's gateways", &["ISM2617", "west"], Kind::Impostor),
    fault(
        "north's gateway Service has no address",
        &["ISM3032", "north", "status.loadBalancer.ingress"],
        Kind::NoGatewayAddress,
    ),
    fault(
        "north's gateway Service has no port for the mesh",
        &["ISM3033", "north", "spec.ports"],
        Kind::NoGatewayPort,
    ),
    fault("east's secret for west is deleted", &["ISM2618", "east->west"], Kind::SecretDeleted),
    fault(
        "east's secret for west has a wrong token",
        &["ISM2618", "east->west", "401"],
        Kind::WrongToken,
    ),
    fault("east's secret for west has exec", &["ISM2618", "east->west", "exec"], Kind::Exec),
    fault(
        "east takes its consent to north back",
        &["ISM2618", "east->north", "AwaitingConsent"],
        Kind::NoConsent,
    ),
    fault(
        "east's link to north has a range that is none",
        &["ISM2618", "east->north", "gatewayRanges"],
        Kind::BadRange,
    ),
    fault("a port with two protocols", &["ISM3106", "number=81"], Kind::TwoProtocols),
    fault(
        "an ExternalName is exported",
        &["ISM3203", "west", "shop/odd"],
        Kind::Export(|| json!({"type": "ExternalName", "externalName": "example.com"})),
    ),
    fault(
        "a service without pods is exported",
        &["ISM3205", "west", "shop/odd"],
        Kind::Export(
            || json!({"selector": {"app": "nobody"}, "ports": [{"name": "http", "port": 80}]}),
        ),
    ),
    fault("an export has no Service", &["ISM2620", "west", "shop/odd"], Kind::ExportOfNothing),
    fault(
        "a ServiceEntry takes a name of the mesh",
        &["ISM3302", "west", "ServiceEntry shop/odd"],
        Kind::Object(|| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
                "metadata": {"name": "odd", "namespace": "shop"},
                "spec": {
                    "hosts": ["hello.shop.global"], "resolution": "STATIC", "location": "MESH_INTERNAL",
                    "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                    "endpoints": [{"address": "10.244.0.99"}],
                },
            })
        }),
    ),
    fault(
        "a DestinationRule for a wildcard",
        &["ISM3080", "west", "DestinationRule shop/odd", "spec.host"],
        Kind::Object(|| {
            json!({
                "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                "metadata": {"name": "odd", "namespace": "shop"},
                "spec": {"host": "*.shop.global"},
            })
        }),
    ),
];

/// What takes a fault back.
pub(super) struct Undo<'a> {
    apply: Vec<(&'a Cluster, Value)>,
    status: Vec<(&'a Cluster, Value)>,
    delete: Vec<(&'a Cluster, Value)>,
    /// Clusters whose launcher keeps endpoints of `shop/odd`.
    served: Vec<&'a Cluster>,
    /// Programs in places that are not theirs.
    liars: Vec<Process>,
}

impl Undo<'_> {
    pub(super) async fn done(self, stage: &Stage<'_>) -> Result<()> {
        drop(self.liars);
        // No fault is both an object's and an API server's, and programs wait for good objects.
        for cluster in &self.served {
            {
                let mut services = cluster.launcher.services.lock().expect("no holder panics");
                services.retain(|service| service.name != "odd");
            }
            delete(cluster.client(), &named("v1", "Service", "odd")).await?;
            let slice = named("discovery.k8s.io/v1", "EndpointSlice", "odd-1");
            delete(cluster.client(), &slice).await?;
        }
        for (cluster, object) in &self.delete {
            delete(cluster.client(), object).await?;
        }
        for (cluster, object) in &self.apply {
            apply(cluster.client(), object).await?;
        }
        for (cluster, object) in &self.status {
            apply_status(cluster.client(), object).await?;
        }
        stage.fleet.mend().await
    }
}

/// An object as it stands, to be applied again.
async fn standing(
    cluster: &Cluster,
    version: &str,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Value> {
    let found = api(cluster.client(), version, kind, namespace).get(name).await?;
    let mut object = serde_json::to_value(found)?;
    let labels = object["metadata"]["labels"].clone();
    let annotations = object["metadata"]["annotations"].clone();
    object["metadata"] = json!({"name": name, "namespace": namespace});
    for (key, value) in [("labels", labels), ("annotations", annotations)] {
        if !value.is_null() {
            object["metadata"][key] = value;
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    Ok(object)
}

fn named(version: &str, kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"},
    })
}

const MCS: &str = "multicluster.x-k8s.io/v1beta1";
const OURS: &str = "isthmus.dev/v1alpha1";

impl Fault {
    /// Makes it; what it says to undo must be done whatever comes of it.
    pub(super) async fn make<'a>(&self, stage: &'a Stage<'a>) -> Result<Undo<'a>> {
        let (east, west, north) =
            (stage.cluster("east"), stage.cluster("west"), stage.cluster("north"));
        let mut undo =
            Undo { apply: vec![], status: vec![], delete: vec![], served: vec![], liars: vec![] };
        match &self.kind {
            Kind::ServerKilled => west.api.server.kill(),
            Kind::ServerHangs => north.api.server.stop(),
            Kind::ControllerKilled => west.federation.get().context("west's controller")?.kill(),
            Kind::ControlPlaneHangs => {
                east.control_plane.get().context("east's control plane")?.stop();
            }
            Kind::GatewayKilled => {
                west.pod("gateway-2")?.proxy.get().context("west's gateways run")?.kill();
            }
            Kind::GatewayCutOff => west.pod("gateway-1")?.spot.fault("wan", Packets::Drop)?,
            Kind::Impostor => {
                for name in ["gateway-1", "gateway-2"] {
                    west.pod(name)?.proxy.get().context("west's gateways run")?.kill();
                }
                undo.liars = start_forger(stage, "north")?;
            }
            Kind::NoMeshConfig => {
                let map = standing(west, "v1", "ConfigMap", SYSTEM, "isthmus-mesh").await?;
                delete(west.client(), &map).await?;
                undo.apply.push((west, map));
            }
            Kind::MeshConfig(field, says) => {
                let map = standing(north, "v1", "ConfigMap", SYSTEM, "isthmus-mesh").await?;
                // Its own programs look away: what they would make of it is not the question.
                for program in [north.control_plane.get(), north.federation.get()] {
                    program.context("north's programs run")?.stop();
                }
                let mut changed = map.clone();
                match says {
                    Says::Text(text) => changed["data"][*field] = json!(text),
                    Says::Nothing => {
                        let data = changed["data"].as_object_mut();
                        data.context("a ConfigMap has data")?.remove(*field);
                    }
                    Says::AnotherRoot => {
                        let root = fleet::authority::Authority::new("another root")?;
                        changed["data"][*field] = json!(root.certificate);
                    }
                    Says::PrivateKey => {
                        changed["data"][*field] = json!(fleet::authority::key_pair()?.0);
                    }
                }
                apply(north.client(), &changed).await?;
                undo.apply.push((north, map));
            }
            Kind::NoCacerts => {
                let secret = standing(west, "v1", "Secret", "isthmus-ca", "cacerts").await?;
                delete(west.client(), &secret).await?;
                undo.apply.push((west, secret));
            }
            Kind::ForeignKey => {
                let secret = standing(west, "v1", "Secret", "isthmus-ca", "cacerts").await?;
                let other = standing(north, "v1", "Secret", "isthmus-ca", "cacerts").await?;
                let mut changed = secret.clone();
                changed["data"]["ca-key.pem"] = other["data"]["ca-key.pem"].clone();
                apply(west.client(), &changed).await?;
                undo.apply.push((west, secret));
            }
            Kind::NoGatewayAddress => {
                let services = api(north.client(), "v1", "Service", SYSTEM);
                let status = serde_json::to_value(services.get(GATEWAY).await?)?["status"].clone();
                let object = |status: Value| {
                    json!({
                        "apiVersion": "v1", "kind": "Service", "status": status,
                        "metadata": {"name": GATEWAY, "namespace": SYSTEM},
                    })
                };
                apply_status(north.client(), &object(json!({"loadBalancer": {"ingress": []}})))
                    .await?;
                undo.status.push((north, object(json!({"loadBalancer": status["loadBalancer"]}))));
            }
            Kind::NoGatewayPort => {
                let service = standing(north, "v1", "Service", SYSTEM, GATEWAY).await?;
                let with = |port: u16, name: &str| {
                    let mut spec = json!({
                        "type": "LoadBalancer", "selector": {"istio": "eastwestgateway"},
                        "ports": [{"name": name, "port": port, "targetPort": 15443, "protocol": "TCP"}],
                    });
                    spec["clusterIP"] = service["spec"]["clusterIP"].clone();
                    json!({
                        "apiVersion": "v1", "kind": "Service", "spec": spec,
                        "metadata": service["metadata"].clone(),
                    })
                };
                apply(north.client(), &with(8443, "web")).await?;
                undo.apply.push((north, with(15443, "tls")));
            }
            Kind::SecretDeleted | Kind::WrongToken | Kind::Exec => {
                let name = secret_name("west");
                let secret = standing(east, "v1", "Secret", SYSTEM, &name).await?;
                let changed = |token: &str| {
                    let text = west.api.kubeconfig_for("west", &west.api.url, "no-such-token");
                    let mut secret = secret.clone();
                    secret.as_object_mut().map(|fields| fields.remove("data"));
                    secret["stringData"] =
                        json!({"west": text.replace("    token: no-such-token", token)});
                    secret
                };
                match self.kind {
                    Kind::SecretDeleted => delete(east.client(), &secret).await?,
                    Kind::WrongToken => {
                        _ = apply(east.client(), &changed("    token: no-such-token")).await?;
                    }
                    _ => {
                        let exec = "    exec: {command: /bin/true, apiVersion: \
                                    client.authentication.k8s.io/v1}";
                        _ = apply(east.client(), &changed(exec)).await?;
                    }
                }
                undo.apply.push((east, secret));
            }
            Kind::NoConsent | Kind::BadRange => {
                let link = standing(east, OURS, "ClusterLink", SYSTEM, "north").await?;
                let mut changed = link.clone();
                if matches!(self.kind, Kind::NoConsent) {
                    changed["spec"]["accepted"] = json!(false);
                } else {
                    changed["spec"]["import"]["gatewayRanges"] = json!(["west"]);
                }
                let mut good = link.clone();
                // Else what the fault wrote would stay: an absent field is nobody's.
                if good["spec"]["import"]["gatewayRanges"].is_null() {
                    good["spec"]["import"]["gatewayRanges"] = json!([]);
                }
                apply(east.client(), &changed).await?;
                undo.apply.push((east, good));
            }
            Kind::TwoProtocols => {
                for (cluster, port) in [(west, "tcp-a"), (north, "http-a")] {
                    // With its endpoints: that it has none would be another fault.
                    let service = Service {
                        namespace: "shop".into(),
                        name: "odd".into(),
                        selector: [("app".to_owned(), "hello".to_owned())].into(),
                        ports: vec![(port.into(), 81, 8080)],
                    };
                    cluster.launcher.serve(service).await?;
                    undo.served.push(cluster);
                    let object = named(MCS, "ServiceExport", "odd");
                    apply(cluster.client(), &object).await?;
                    undo.delete.push((cluster, object));
                }
            }
            Kind::Export(spec) => export(&mut undo, west, spec()).await?,
            Kind::ExportOfNothing => {
                let object = named(MCS, "ServiceExport", "odd");
                apply(west.client(), &object).await?;
                undo.delete.push((west, object));
            }
            Kind::Object(object) => {
                apply(west.client(), &object()).await?;
                undo.delete.push((west, object()));
            }
        }
        Ok(undo)
    }
}

/// A Service `shop/odd` and its export.
async fn export<'a>(undo: &mut Undo<'a>, cluster: &'a Cluster, spec: Value) -> Result<()> {
    let mut service = named("v1", "Service", "odd");
    service["spec"] = spec;
    for object in [service, named(MCS, "ServiceExport", "odd")] {
        apply(cluster.client(), &object).await?;
        undo.delete.push((cluster, object));
    }
    Ok(())
}

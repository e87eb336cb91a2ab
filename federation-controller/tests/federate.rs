//! Two real API servers, a controller on each: a link from its secret to its end.

mod support;

use cluster::credential::{self, Account};
use cluster::renewal;
use federation_controller::{Config, run};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Bare, Cluster, LINK, LINK_2, Parts, Port, condition, copies, until};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// A controller at work in this process.
struct Controller {
    end: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    admin: Port,
    _metrics: Port,
}

impl Controller {
    fn start(cluster: &Cluster, state: &Path) -> Self {
        Self::renewing(cluster, state, 0.5)
    }

    /// Renews credentials after this share of their life.
    fn renewing(cluster: &Cluster, state: &Path, renew_at: f64) -> Self {
        let (admin, metrics) = (Port::held(), Port::held());
        let config: Config = serde_json::from_value(json!({
            "kubeconfig": cluster.server.kubeconfig(),
            "admin": admin.address,
            "metrics": metrics.address,
            "holder": format!("{}-0", cluster.name),
            "state": state,
            "allowLoopback": true,
            "renewAt": renew_at,
        }))
        .unwrap();
        let end = CancellationToken::new();
        let task = tokio::spawn(run(config, end.clone()));
        Self { end, task, admin, _metrics: metrics }
    }

    async fn stop(self) {
        self.end.cancel();
        self.task.await.unwrap().unwrap();
    }

    async fn page(&self, path: &str) -> Option<String> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.admin.address).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }

    /// A condition of a link, as the admin page shows it.
    async fn shown(&self, link: &str, kind: &str) -> Option<Value> {
        let page: Value = serde_json::from_str(&self.page("/links").await?).ok()?;
        let links = page["links"].as_array()?;
        let link = links.iter().find(|shown| shown["name"] == link)?;
        link["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind).cloned()
    }
}

const ENTRY: &str = "hello.shop.global";
/// What follows at once has come by then, also on a machine that is slow.
const SOON: Duration = Duration::from_secs(15);
/// Longest median time between two clusters that is ours, and not that of their API servers.
const OURS_MAX: Duration = Duration::from_millis(500);
/// One test at a time: two API servers, their etcds and two controllers are enough for one machine.
static TURN: Mutex<()> = Mutex::const_new(());

async fn accept(cluster: &Cluster, link: &str) {
    let api = cluster.api("isthmus.dev/v1alpha1", "ClusterLink", "isthmus-system");
    let patch = json!({"spec": {"accepted": true, "import": {"namespaces": ["shop"]}}});
    api.patch(link, &Default::default(), &kube::api::Patch::Merge(&patch)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_from_its_secret_to_its_end() {
    let Some(parts) = Parts::find() else { return };
    let _turn = TURN.lock().await;
    runtime::telemetry::start();
    let root = trust::root::create("mesh", "passphrase").unwrap().certificate_pem;
    let (east, mut west) =
        tokio::join!(Cluster::start(&parts, "east"), Cluster::start(&parts, "west"));
    east.mesh(&root).await;
    west.mesh(&root).await;
    west.hello(2).await;
    let states = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut controller = Controller::start(&east, states[0].path());
    let in_west = Controller::start(&west, states[1].path());

    // West says what it exports.
    let (exported, _) = until("west exports hello", Duration::from_secs(30), async || {
        west.read("isthmus.dev/v1alpha1", "ExportedService", "shop", "hello").await
    })
    .await;
    assert_eq!(exported["spec"]["localities"][0]["ready"], 2, "{exported}");
    assert_eq!(exported["spec"]["accounts"], json!(["hello"]));

    // A secret that trusts the wrong CA: said at the link, by name.
    east.remote_secret(&west, LINK, &support::other_authority()).await;
    let (wrong, took) = until("the wrong CA is named", SOON, async || {
        let link = east.link("west").await?;
        condition(&link, "Reachable")
            .filter(|c| c["reason"] == "WrongCertificateAuthority")
            .cloned()
    })
    .await;
    println!("wrong CA -> condition: {took:?}");
    assert_eq!(wrong["status"], "False");

    // The right one: it is read, and waits for consent; nothing is imported.
    east.remote_secret(&west, LINK, &west.authority).await;
    let (link, took) = until("west is read", SOON, async || {
        let link = east.link("west").await?;
        condition(&link, "Synced").filter(|c| c["status"] == "True")?;
        Some(link)
    })
    .await;
    println!("secret -> synced: {took:?}");
    assert_eq!(condition(&link, "Accepted").unwrap()["reason"], "AwaitingConsent");
    let uid =
        west.read("v1", "Namespace", "", "kube-system").await.unwrap()["metadata"]["uid"].clone();
    assert_eq!(link["status"]["uid"], uid);
    assert_eq!(link["status"]["server"], west.url);
    assert_eq!(east.entry("shop", ENTRY).await, None, "imported without consent");

    // Accepted: the entry is there, as Istio's own CRD takes it.
    accept(&east, "west").await;
    let (entry, took) =
        until("hello is imported", SOON, async || east.entry("shop", ENTRY).await).await;
    println!("accepted -> entry: {took:?}");
    assert_eq!(entry["spec"]["hosts"], json!([ENTRY, "hello.shop.svc.clusterset.local"]));
    assert_eq!(
        (copies(&entry), &entry["spec"]["endpoints"][0]["network"]),
        (2, &json!("net-west"))
    );
    assert_eq!(entry["spec"]["subjectAltNames"], json!(["spiffe://west.mesh/ns/shop/sa/hello"]));
    until("the gateway stands", SOON, async || {
        let gateway = east
            .read("gateway.networking.k8s.io/v1", "Gateway", "isthmus-system", "isthmus-west")
            .await?;
        (gateway["spec"]["addresses"] == json!([{"type": "IPAddress", "value": "203.0.113.7"}]))
            .then_some(())
    })
    .await;

    // From none to some and back, each change seen from west's API server to east's; beside it the same
    // change makes the same way without us.
    let bare = Bare::between(&west, &east);
    let (mut times, mut ours) = (Vec::new(), Vec::new());
    for round in 0..20 {
        let ready = if round % 2 == 0 { 0 } else { 2 };
        let start = Instant::now();
        west.ready(ready).await;
        let ready = ready as u64;
        let (mut followed, mut without) = (None, None);
        until("the count follows, with us and without", SOON, async || {
            if without.is_none() && bare.arrived().await == Some(ready) {
                without = Some(start.elapsed());
            }
            if followed.is_none() && copies(&east.entry("shop", ENTRY).await?) == ready {
                followed = Some(start.elapsed());
            }
            (followed.is_some() && without.is_some()).then_some(())
        })
        .await;
        let (followed, without) = (followed.unwrap(), without.unwrap());
        times.push(followed);
        ours.push(followed.saturating_sub(without));
        // At most five changes a second are promised.
        tokio::time::sleep(Duration::from_millis(220)).await;
    }
    drop(bare);
    times.sort();
    ours.sort();
    println!(
        "0 <-> 2 ready in west -> entry in east: median {:?}, worst {:?}, of it ours {:?}",
        times[10], times[19], ours[10]
    );
    assert!(ours[10] < OURS_MAX, "ours {ours:?} of {times:?}");

    // What a person edits is taken back.
    let api = east.api("networking.istio.io/v1", "ServiceEntry", "shop");
    let edit = json!({"spec": {"hosts": ["evil.example.com"]}});
    api.patch(ENTRY, &Default::default(), &kube::api::Patch::Merge(&edit)).await.unwrap();
    until("the edit is taken back", SOON, async || {
        (east.entry("shop", ENTRY).await?["spec"]["hosts"][0] == ENTRY).then_some(())
    })
    .await;

    // Another credential takes over without a gap.
    let before = east.link("west").await.unwrap()["status"]["credential"].clone();
    east.remote_secret(&west, LINK_2, &west.authority).await;
    until("the new credential is in use", SOON, async || {
        let status = east.link("west").await?["status"].clone();
        (status["credential"] != before
            && condition(&json!({"status": status}), "Ready")?["status"] == "True")
            .then_some(())
    })
    .await;
    assert_eq!(copies(&east.entry("shop", ENTRY).await.unwrap()), 2);

    // A kubeconfig that would run a program is refused; what works goes on.
    let program = support::runs_a_program("west", &west.authority);
    let hostile = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "istio-remote-secret-west", "namespace": "isthmus-system", "labels": {"istio/multiCluster": "true"}},
        "stringData": {"west": program}
    });
    east.apply(hostile).await;
    until("the hostile kubeconfig is named", SOON, async || {
        let link = east.link("west").await?;
        let ready = condition(&link, "Ready")?;
        let named = ready["message"].as_str()?.contains("would start a program");
        (ready["status"] == "True" && named).then_some(())
    })
    .await;
    assert_eq!(copies(&east.entry("shop", ENTRY).await.unwrap()), 2);
    east.remote_secret(&west, LINK_2, &west.authority).await;

    // Other roots: nothing is imported, and both are named.
    let other = trust::root::create("other", "passphrase").unwrap().certificate_pem;
    west.mesh(&other).await;
    until("roots differ", SOON, async || {
        let link = east.link("west").await?;
        condition(&link, "TrustEstablished").filter(|c| c["reason"] == "RootsDiffer")?;
        east.entry("shop", ENTRY).await.is_none().then_some(())
    })
    .await;
    west.mesh(&root).await;
    until("trust is back", SOON, async || {
        (copies(&east.entry("shop", ENTRY).await?) == 2).then_some(())
    })
    .await;

    // West's API server dies: Unknown with an age, nothing withdrawn.
    west.server.kill();
    let (_, took) = until("west is Unknown", Duration::from_secs(15), async || {
        let link = east.link("west").await?;
        condition(&link, "Reachable").filter(|c| c["status"] == "Unknown").map(|_| ())
    })
    .await;
    println!("killed -> Unknown: {took:?}");
    let metrics = controller.page("/metrics").await.unwrap();
    until("the metric says so", SOON, async || {
        let metrics = controller.page("/metrics").await?;
        metrics
            .contains("isthmus_link_state{cluster=\"west\",condition=\"Reachable\"} -1")
            .then_some(())
    })
    .await;
    assert!(metrics.contains("isthmus_link_heartbeat_age_seconds{cluster=\"west\"}"), "{metrics}");
    assert_eq!(copies(&east.entry("shop", ENTRY).await.unwrap()), 2);

    // The controller restarts meanwhile: it knows who west was, and keeps what stands.
    let version = east.entry("shop", ENTRY).await.unwrap()["spec"].clone();
    controller.stop().await;
    controller = Controller::start(&east, states[0].path());
    until("the restarted controller has planned, and leads", Duration::from_secs(20), async || {
        let page: Value = serde_json::from_str(&controller.page("/links").await?).ok()?;
        let synced = controller.shown("west", "Synced").await?;
        let settled = page["writing"]["leading"] == true
            && page["writing"]["pending"] == 0
            && page["writing"]["written"].as_u64()? > 0;
        (settled && synced["status"] == "False").then_some(())
    })
    .await;
    assert_eq!(east.entry("shop", ENTRY).await.unwrap()["spec"], version, "lost by a restart");
    assert_eq!(controller.shown("west", "TrustEstablished").await.unwrap()["status"], "True");

    // It comes back, and so does its news.
    west.server.restart().await;
    west.ready(1).await;
    let (_, took) = until("west is heard again", Duration::from_secs(30), async || {
        (copies(&east.entry("shop", ENTRY).await?) == 1).then_some(())
    })
    .await;
    println!("back -> followed: {took:?}");

    let addresses = east.entry("shop", ENTRY).await.unwrap()["spec"]["addresses"].clone();
    // The secret goes: said at once, withdrawn soon; consent stays a person's.
    let secrets = east.api("v1", "Secret", "isthmus-system");
    secrets.delete("istio-remote-secret-west", &Default::default()).await.unwrap();
    let (_, took) = until("the condition says so", SOON, async || {
        let link = east.link("west").await?;
        condition(&link, "Synced")
            .filter(|c| c["reason"] == "SecretDeleted" || c["reason"] == "SecretMissing")
            .map(|_| ())
    })
    .await;
    println!("secret deleted -> condition: {took:?}");
    until("hello is withdrawn", SOON, async || {
        east.entry("shop", ENTRY).await.is_none().then_some(())
    })
    .await;
    // Its addresses rest where a restart finds them, and are its own again if it comes back.
    let rests = east.resting("shop", ENTRY).await.expect("its addresses rest");
    assert_eq!(rests.1, addresses);
    controller.stop().await;
    controller = Controller::start(&east, states[0].path());
    until("the restarted controller has planned", Duration::from_secs(20), async || {
        let page: Value = serde_json::from_str(&controller.page("/plan").await?).ok()?;
        (!page["resting"].as_array()?.is_empty()).then_some(())
    })
    .await;
    assert_eq!(east.resting("shop", ENTRY).await.as_ref(), Some(&rests), "forgotten by a restart");
    until("the gateway is withdrawn", SOON, async || {
        east.read("gateway.networking.k8s.io/v1", "Gateway", "isthmus-system", "isthmus-west")
            .await
            .is_none()
            .then_some(())
    })
    .await;
    assert_eq!(east.link("west").await.unwrap()["spec"]["accepted"], true);

    // And deleting the link's object withdraws consent, though the secret is there.
    east.remote_secret(&west, LINK, &west.authority).await;
    let (again, _) =
        until("hello is imported again", SOON, async || east.entry("shop", ENTRY).await).await;
    assert_eq!(again["spec"]["addresses"], addresses);
    let single = east.entry("shop", "hello.shop.west.global").await.unwrap();
    let uid = &west.read("v1", "Namespace", "", "kube-system").await.unwrap()["metadata"]["uid"];
    assert_eq!(&single["metadata"]["labels"]["isthmus.dev/source-uid"], uid);
    assert!(again["metadata"]["labels"]["isthmus.dev/source-uid"].is_null(), "of many sources");
    let links = east.api("isthmus.dev/v1alpha1", "ClusterLink", "isthmus-system");
    links.delete("west", &Default::default()).await.unwrap();
    until("hello is withdrawn", SOON, async || {
        east.entry("shop", ENTRY).await.is_none().then_some(())
    })
    .await;
    until("the link awaits consent anew", SOON, async || {
        let link = east.link("west").await?;
        condition(&link, "Accepted").filter(|c| c["reason"] == "AwaitingConsent").map(|_| ())
    })
    .await;

    // West no longer exports hello: its ExportedService goes.
    let exports = west.api("multicluster.x-k8s.io/v1beta1", "ServiceExport", "shop");
    exports.delete("hello", &Default::default()).await.unwrap();
    until("hello is no longer exported", SOON, async || {
        west.read("isthmus.dev/v1alpha1", "ExportedService", "shop", "hello")
            .await
            .is_none()
            .then_some(())
    })
    .await;
    controller.stop().await;
    in_west.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_renews_its_credential() {
    let Some(parts) = Parts::find() else { return };
    let _turn = TURN.lock().await;
    let root = trust::root::create("mesh", "passphrase").unwrap().certificate_pem;
    let (east, west) = tokio::join!(Cluster::start(&parts, "east"), Cluster::start(&parts, "west"));
    east.mesh(&root).await;
    west.mesh(&root).await;
    west.hello(2).await;

    // What `isthmus link` does: an account, its rights, and the shortest token an API server gives.
    let account =
        Account { namespace: "isthmus-system".into(), name: "isthmus-reader-east".into() };
    for object in credential::reader_objects("isthmus-system", &account) {
        west.apply(object).await;
    }
    let minted = credential::mint(&west.client, &account, Duration::from_secs(600)).await.unwrap();
    east.remote_secret(&west, minted.token.reveal(), &west.authority).await;
    let held = async || {
        let secret = east.read("v1", "Secret", "isthmus-system", "istio-remote-secret-west").await;
        secret.unwrap()["metadata"]["resourceVersion"].clone()
    };
    let ours =
        async || east.read("v1", "Secret", "isthmus-system", &renewal::secret_name("west")).await;
    let version = held().await;

    // Renewed after three seconds instead of five minutes.
    let states = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let in_west = Controller::start(&west, states[1].path());
    let controller = Controller::renewing(&east, states[0].path(), 0.005);
    until("the link is there", Duration::from_secs(30), async || east.link("west").await).await;
    accept(&east, "west").await;
    until("hello is imported", Duration::from_secs(30), async || east.entry("shop", ENTRY).await)
        .await;
    let (first, took) = until("it is renewed", Duration::from_secs(30), ours).await;
    println!("a token of 600 s -> renewed into our Secret: {took:?}");
    assert_eq!(first["metadata"]["labels"]["istio/multiCluster"], Value::Null, "registers twice");

    // Each new one takes over from the last, and nothing that stands is touched.
    let (_, took) = until("three took over", Duration::from_secs(60), async || {
        assert_eq!(copies(&east.entry("shop", ENTRY).await.unwrap()), 2);
        // A probe that is late is no gap: what stands is all that may never go.
        let link = east.link("west").await?;
        condition(&link, "Ready").filter(|c| c["status"] == "True")?;
        (link["status"]["generation"].as_u64()? >= 4).then_some(())
    })
    .await;
    println!("three renewals in use: {took:?}");
    assert_ne!(ours().await.unwrap()["data"]["token"], first["data"]["token"]);
    assert_eq!(held().await, version, "the Secret that people hold was written");
    let links = controller.page("/links").await.unwrap();
    let links: Value = serde_json::from_str(&links).unwrap();
    assert_eq!(links["links"].as_array().unwrap().len(), 1, "{links}");

    // The bond is kept: deleting the one object revokes the renewed credential too.
    let bonds = west.api("v1", "Secret", "isthmus-system");
    bonds.delete(&credential::binding_name(&account), &Default::default()).await.unwrap();
    let (_, took) = until("the credential is revoked", Duration::from_secs(60), async || {
        let link = east.link("west").await?;
        condition(&link, "Reachable").filter(|c| c["reason"] == "Unauthorized").map(|_| ())
    })
    .await;
    println!("bond deleted -> Unauthorized: {took:?}");
    // That it is not renewed shows where people look, not only in the log.
    until("the failed renewal is told", Duration::from_secs(30), async || {
        let link = east.link("west").await?;
        let said = condition(&link, "CredentialRenewed").filter(|c| c["status"] == "False")?;
        let message = said["message"].as_str()?;
        assert!(["ISM2502", "isthmus link west"].iter().all(|it| message.contains(it)), "{said}");
        let metrics = controller.page("/metrics").await?;
        metrics.contains("isthmus_link_renewal_failures{cluster=\"west\"}").then_some(())
    })
    .await;
    assert_eq!(copies(&east.entry("shop", ENTRY).await.unwrap()), 2, "withdrawn by a revocation");

    // A new one by hand is used at once, whatever ours says; with it gone, ours goes too.
    for object in credential::reader_objects("isthmus-system", &account) {
        west.apply(object).await;
    }
    let minted = credential::mint(&west.client, &account, Duration::from_secs(600)).await.unwrap();
    east.remote_secret(&west, minted.token.reveal(), &west.authority).await;
    until("the link works again", Duration::from_secs(30), async || {
        let link = east.link("west").await?;
        condition(&link, "Reachable").filter(|c| c["status"] == "True")?;
        condition(&link, "CredentialRenewed").filter(|c| c["status"] == "True").map(|_| ())
    })
    .await;
    let secrets = east.api("v1", "Secret", "isthmus-system");
    secrets.delete("istio-remote-secret-west", &Default::default()).await.unwrap();
    until("our Secret is removed", Duration::from_secs(30), async || {
        ours().await.is_none().then_some(())
    })
    .await;
    controller.stop().await;
    in_west.stop().await;
}

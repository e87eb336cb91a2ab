//! Mistakes that are no secret's: names, roots, ports, exports, entries, identities, files.

use super::cli::{Said, isthmus, judge_unnamed};
use super::links::linked;
use super::{HOST, Stage, call, call_until, resolve};
use anyhow::{Context, Result, bail};
use fleet::launcher::{PROXY_USER, Pod};
use fleet::link::{condition, read, until};
use fleet::objects::{api, apply, delete};
use fleet::spot::{Spot, http_get_at};
use fleet::{Cluster, SYSTEM, trust_domain};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// Findings of a program as sentences, from its admin page.
pub(super) async fn findings(spot: &Spot, port: u16) -> Result<Vec<String>> {
    let (door, address) = (spot.door(), SocketAddr::from(([127, 0, 0, 1], port)));
    let limit = Duration::from_secs(2);
    let (_, body) =
        tokio::task::spawn_blocking(move || http_get_at(&door, address, "/findings", limit))
            .await??;
    let list: Vec<Value> = serde_json::from_str(&body).context("/findings is no list")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sentence = |it: &Value| {
        let (object, field) = (text(&it["object"]), text(&it["field"]));
        let (problem, fix) = (text(&it["problem"]), text(&it["fix"]));
        format!("ISM{} {object} {field}: {problem} Fix: {fix}", it["code"])
    };
    Ok(list.iter().map(sentence).collect())
}

/// Waits until east's federation controller has a finding with all these words, and judges it.
pub(super) async fn finding(stage: &Stage<'_>, promise: &str, words: &[&str]) -> Result<()> {
    let start = tokio::time::Instant::now();
    loop {
        let all = findings(&stage.cluster("east").spot, 15024).await?;
        let found = all.iter().find(|text| words.iter().all(|word| text.contains(word)));
        if found.is_some() || start.elapsed() > LIMIT {
            let figure = found.cloned().unwrap_or_else(|| format!("only: {}", all.join(" | ")));
            stage.judge(promise, &figure, found.is_some(), &[]);
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn all(stage: &Stage<'_>) -> Result<()> {
    let done = names_and_roots(stage).await;
    stage.fleet.mend().await?;
    done?;
    linked(stage.fleet).await?;
    import_policies(stage).await?;
    exports(stage).await?;
    entries(stage).await?;
    identities(stage).await?;
    files(stage).await
}

/// North's ConfigMap says something else while its own programs look away.
async fn names_and_roots(stage: &Stage<'_>) -> Result<()> {
    let (east, north) = (stage.cluster("east"), stage.cluster("north"));
    let maps = api(north.client(), "v1", "ConfigMap", SYSTEM);
    let good = serde_json::to_value(maps.get("isthmus-mesh").await?)?["data"].clone();
    let says = async |field: &str, value: &str| -> Result<()> {
        let mut data = good.clone();
        data[field] = json!(value);
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"name": "isthmus-mesh", "namespace": SYSTEM},
        });
        apply(north.client(), &map).await.map(|_| ())
    };
    for program in [north.control_plane.get(), north.federation.get()] {
        program.context("north's programs run")?.stop();
    }
    let stranger = fleet::authority::Authority::new("another root")?.certificate;
    let cases = [
        (
            "two clusters with one id",
            "cluster",
            "west",
            "DuplicateClusterId",
            ["links north and west", "two clusters", "Fix:"],
        ),
        (
            "another root",
            "rootCertificates",
            stranger.as_str(),
            "RootsDiffer",
            ["cluster north", "other root certificates", "Fix:"],
        ),
    ];
    for (what, field, value, reason, words) in cases {
        says(field, value).await?;
        let named = |link: &Value| {
            ["Accepted", "Reachable", "TrustEstablished", "Synced", "Ready"]
                .iter()
                .filter_map(|kind| condition(link, kind))
                .find(|c| c.0 == "False" && c.1 == reason && words.iter().all(|w| c.2.contains(w)))
        };
        let told =
            until(east, "north", reason, LIMIT, |link| link.is_some_and(|l| named(l).is_some()));
        let told = told.await;
        let link = read(east, "north").await?.unwrap_or_default();
        let figure = match (&told, named(&link)) {
            (Ok(_), Some((_, reason, text))) => format!("{reason}: {text}"),
            _ => link["status"]["conditions"].to_string(),
        };
        let promise = format!("{what}: the link's condition says so and names both");
        stage.judge(&promise, &figure, told.is_ok(), &[]);
        let url = format!("http://{HOST}/");
        let answer = call_until(stage.fleet, stage.client()?, &url, LIMIT, |a| a.cluster == "west");
        let answer = answer.await;
        let figure = answer.as_ref().map_or_else(|e| format!("{e:#}"), |(_, a)| a.pod.clone());
        stage.judge("west goes on meanwhile", &figure, answer.is_ok(), &[]);
        let good = good[field].as_str().context("a ConfigMap with that key")?;
        says(field, good).await?;
        until(east, "north", "Ready again", LIMIT, |link| {
            link.and_then(|link| condition(link, "Ready")).is_some_and(|c| c.0 == "True")
        })
        .await?;
    }
    Ok(())
}

fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "spec": spec,
        "metadata": {"name": name, "namespace": namespace},
    })
}

fn export(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": name, "namespace": namespace},
    })
}

/// What is imported over a link of a policy that nobody can read any more stands.
async fn import_policies(stage: &Stage<'_>) -> Result<()> {
    let east = stage.cluster("east");
    let links = api(east.client(), "isthmus.dev/v1alpha1", "ClusterLink", SYSTEM);
    let says = async |ranges: Value| -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"import": {"gatewayRanges": ranges}}}));
        for name in ["west", "north"] {
            links.patch(name, &PatchParams::default(), &patch).await?;
        }
        Ok(())
    };
    let good = links.get("west").await?.data["spec"]["import"]["gatewayRanges"].clone();
    says(json!(["10.0.0.0/99"])).await?;
    for name in ["west", "north"] {
        let told = |link: &Value| condition(link, "Accepted").filter(|c| c.1 == "BadImportPolicy");
        let said = until(east, name, "BadImportPolicy", LIMIT, |link| {
            link.is_some_and(|link| told(link).is_some_and(|c| c.2.contains("10.0.0.0/99")))
        });
        said.await?;
    }
    let url = format!("http://{HOST}/");
    let (begun, mut answered, mut failed) = (Instant::now(), 0, vec![]);
    while begun.elapsed() < Duration::from_secs(3) {
        match call(stage.fleet, stage.client()?, &url, 2.0).await {
            Ok(_) => answered += 1,
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    let first = failed.first().map(|error| format!(", the first: {error}")).unwrap_or_default();
    let figure = format!("{answered} answered, {} failed{first}", failed.len());
    let promise = "both links' ranges mistyped: what they brought is called as before";
    stage.judge(promise, &figure, answered > 0 && failed.is_empty(), &[]);
    says(good).await?;
    linked(stage.fleet).await
}

async fn exports(stage: &Stage<'_>) -> Result<()> {
    let (west, north) = (stage.cluster("west"), stage.cluster("north"));
    let tcp = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP"});
    let mut made: Vec<(&Cluster, Value)> = vec![];
    let bank = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bank"}});
    apply(west.client(), &bank).await?;
    let ports = |list: Value| json!({"selector": {"app": "hello"}, "ports": list});
    let wests = ports(json!([tcp("http", 80), tcp("tcp-a", 81), tcp("http-c", 83)]));
    let norths = ports(json!([tcp("http-web", 80), tcp("http-a", 81)]));
    for (cluster, namespace, name, spec) in [
        (west, "shop", "ports", wests),
        (north, "shop", "ports", norths),
        (west, "shop", "elsewhere", json!({"type": "ExternalName", "externalName": "example.com"})),
        (
            west,
            "shop",
            "headless",
            json!({"clusterIP": "None", "ports": [tcp("http", 80)], "selector": {"app": "hello"}}),
        ),
        (west, "shop", "udp", ports(json!([{"name": "dns", "port": 53, "protocol": "UDP"}]))),
        (west, "bank", "vault", ports(json!([tcp("http", 80)]))),
    ] {
        for object in [service(namespace, name, spec), export(namespace, name)] {
            apply(cluster.client(), &object).await?;
            made.push((cluster, object));
        }
    }
    for (name, code, words) in [
        ("elsewhere", "ISM3203", "ExternalName"),
        ("headless", "ISM3202", "headless"),
        ("udp", "ISM3204", "port 53 is UDP"),
    ] {
        let exported = api(west.client(), "isthmus.dev/v1alpha1", "ExportedService", "shop");
        let start = tokio::time::Instant::now();
        let problems = loop {
            let object = exported.get_opt(name).await?;
            let said = object.map(|object| object.data["spec"]["problems"].to_string());
            if said.is_some() || start.elapsed() > LIMIT {
                break said.unwrap_or_else(|| format!("no ExportedService {name}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let kept = [code, words, "Fix:"].iter().all(|word| problems.contains(word));
        let promise = format!("the export of {name} says why it cannot be called");
        stage.judge(&promise, &problems, kept, &[]);
    }
    let promise = "a port with two protocols is left out of the newer export, by name";
    finding(stage, promise, &["ISM3106", "ports", "number=81", "west", "north", "Fix:"]).await?;
    let promise = "a port with two names is told";
    finding(stage, promise, &["ISM3105", "ports", "number=80", "http-web", "Fix:"]).await?;
    let promise = "a port that one cluster lacks is told";
    finding(stage, promise, &["ISM3108", "ports", "number=83", "north lacks", "Fix:"]).await?;
    let promise = "an import outside the link's policy is told";
    let words = ["ISM3102", "ClusterLink", "west", "spec.import.namespaces", "bank", "Fix:"];
    finding(stage, promise, &words).await?;
    // All of clusterset.local is the mesh's; `.global` of a namespace unknown here is the world's.
    let name = "vault.bank.svc.clusterset.local";
    judge_unnamed(stage, "and it does not exist in east (NXDOMAIN)", name).await;
    for (cluster, object) in made.iter().rev() {
        delete(cluster.client(), object).await?;
    }
    delete(west.client(), &bank).await
}

async fn entries(stage: &Stage<'_>) -> Result<()> {
    let east = stage.cluster("east");
    let vip = resolve(stage.fleet, stage.client()?, HOST).await?;
    let entry = |name: &str, host: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {
                "hosts": [host], "addresses": ["240.240.9.9"], "location": "MESH_INTERNAL",
                "resolution": "STATIC", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
                "endpoints": [{"address": "10.244.0.99"}],
            },
        })
    };
    let cases = [("reserved", HOST), ("foreign", "vault.bank.svc.cluster.local")];
    for (name, host) in cases {
        apply(east.client(), &entry(name, host)).await?;
        let object = format!("ServiceEntry shop/{name}");
        let promise = format!("a user's ServiceEntry for a {name} host is refused by name");
        finding(stage, &promise, &["ISM33", &object, "spec.hosts[0]", host, "Fix:"]).await?;
    }
    let after = resolve(stage.fleet, stage.client()?, HOST).await?;
    stage.judge("and the name means what it meant", &format!("{after:?}"), vip == after, &[]);
    for (name, host) in cases {
        delete(east.client(), &entry(name, host)).await?;
    }
    Ok(())
}

/// A configuration for a second gateway in a pod, on ports of its own.
fn second(pod: &Pod, control_plane: &str) -> Result<Value> {
    let state = pod.dir.join("second-state");
    std::fs::create_dir_all(&state)?;
    std::os::unix::fs::chown(&state, Some(PROXY_USER), Some(PROXY_USER))?;
    Ok(json!({
        "cluster": pod.cluster, "namespace": pod.namespace, "pod": pod.name,
        "account": pod.account, "trustDomain": trust_domain(&pod.cluster),
        "rootCertificates": pod.dir.join("root.pem"), "token": pod.dir.join("token"),
        "controlPlane": control_plane, "state": state, "listen": "0.0.0.0:15544",
        "admin": "127.0.0.1:15200", "metrics": "127.0.0.1:15290", "health": "127.0.0.1:15221",
    }))
}

/// Starts `isthmus gateway` in a pod and waits until it says a word in its log, or ends.
async fn until_says(stage: &Stage<'_>, pod: &Pod, config: &Value, word: &str) -> Result<String> {
    let file = pod.dir.join("second.yaml");
    std::fs::write(&file, serde_saphyr::to_string(config)?)?;
    let home = &stage.fleet.home;
    let name = format!("second-{}", fleet::load::micros_now());
    let process = pod
        .job(&name, &home.parts.isthmus, &home.logs)
        .user(PROXY_USER)
        .args(["gateway", "--config", &file.display().to_string()])
        .env("RUST_LOG", "info")
        .start()?;
    let start = tokio::time::Instant::now();
    loop {
        // In this order: what it says just before its end counts.
        let ended = process.ended();
        let log = std::fs::read_to_string(process.log())?;
        if let Some(line) = log.lines().find(|line| line.contains(word)) {
            return Ok(line.to_owned());
        }
        if ended.is_some() || start.elapsed() > LIMIT {
            bail!("{word} is not said ({ended:?}): {}", process.last_words());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn identities(stage: &Stage<'_>) -> Result<()> {
    let pod = stage.cluster("east").pod("client-1")?;
    let own = second(pod, "10.244.0.1:15012")?;
    let with = |pairs: &[(&str, &str)]| {
        let mut config = own.clone();
        for (key, value) in pairs {
            config[*key] = json!(value);
        }
        config
    };
    for (what, config, code) in [
        ("the role of a gateway", own.clone(), "ISM4006"),
        ("a pod that is not there", with(&[("pod", "client-9")]), "ISM4004"),
        ("another cluster", with(&[("cluster", "west")]), "ISM4002"),
    ] {
        let said = until_says(stage, pod, &config, code).await;
        let figure = said.as_ref().map_or_else(|e| format!("{e:#}"), Clone::clone);
        let kept = said.is_ok_and(|line| line.contains("Fix:"));
        let promise = format!("a proxy that asks for {what} with the client's token is refused");
        stage.judge(&promise, &figure, kept, &[]);
    }
    // What is signed is the token's account, whatever the configuration says.
    let other =
        with(&[("namespace", SYSTEM), ("pod", "gateway-1"), ("account", "isthmus-gateway")]);
    let said = until_says(stage, pod, &other, "ISM1014").await;
    let figure = said.as_ref().map_or_else(|e| format!("{e:#}"), Clone::clone);
    let words = ["signed spiffe://east.mesh/ns/shop/sa/client instead of", "Fix:"];
    let kept = said.is_ok_and(|line| words.iter().all(|word| line.contains(word)));
    let promise = "asking for the gateway's account with the client's token yields the client's";
    stage.judge(promise, &figure, kept, &[]);
    Ok(())
}

async fn files(stage: &Stage<'_>) -> Result<()> {
    let pod = stage.cluster("west").pod("gateway-1")?;
    let mut config = second(pod, "10.244.0.1:15012")?;
    config["listen"] = json!("0.0.0.0:15443");
    let said = until_says(stage, pod, &config, "ISM1005").await;
    let figure = said.as_ref().map_or_else(|e| format!("{e:#}"), Clone::clone);
    let kept = said.is_ok_and(|line| line.contains("15443") && line.contains("Fix:"));
    stage.judge("a port in use is named with its fix", &figure, kept, &[]);

    config["lisen"] = json!("0.0.0.0:15443");
    let file = pod.dir.join("typo.yaml");
    std::fs::write(&file, serde_saphyr::to_string(&config)?)?;
    let args = ["gateway", "--config", &file.display().to_string()];
    let said: Said = isthmus(stage, Some(&pod.spot), &args).await?;
    let kept = said.code == Some(1) && said.says(&["ISM1003", "typo.yaml", "lisen", "Fix:"]);
    stage.judge("an unknown field in a configuration is named", &said.figure(), kept, &[]);
    let url = "http://hello.shop.west.global/";
    let answer = call_until(stage.fleet, stage.client()?, url, LIMIT, |_| true).await;
    let figure = answer.as_ref().map_or_else(|e| format!("{e:#}"), |(_, a)| a.pod.clone());
    stage.judge("beside all of these calls go on", &figure, answer.is_ok(), &[]);
    Ok(())
}

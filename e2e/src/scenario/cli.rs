//! An operator's walk through the program `isthmus`, with one kubeconfig that has all clusters.

use super::links::{linked, unlink};
use super::{HOST, Stage, call, call_until, resolve};
use anyhow::{Context, Result, bail, ensure};
use fleet::client_hello::{Back, Name, client_hello, probe};
use fleet::launcher::PROXY_USER;
use fleet::link::{self, accept, secret_name, until, until_condition};
use fleet::objects::{api, apply, parse};
use fleet::spot::{Spot, http_get};
use fleet::{Cluster, SYSTEM};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(40);

/// What a command said and how it ended.
pub(super) struct Said {
    pub(super) code: Option<i32>,
    pub(super) out: String,
    err: String,
}

impl Said {
    /// One line of it for a verdict.
    pub(super) fn figure(&self) -> String {
        let text = format!("{} {}", self.out, self.err);
        let words: Vec<&str> = text.split_whitespace().collect();
        let code = self.code.map_or_else(|| "a signal".into(), |code| code.to_string());
        format!("exit {code}: {}", words.join(" ").chars().take(420).collect::<String>())
    }

    pub(super) fn says(&self, words: &[&str]) -> bool {
        // Long sentences are wrapped.
        let flat = self.out.split_whitespace().collect::<Vec<_>>().join(" ");
        let has = |word: &&str| [&self.out, &self.err, &flat].iter().any(|it| it.contains(*word));
        words.iter().all(has)
    }
}

/// Runs `isthmus`, inside a namespace where one is given.
pub(super) async fn isthmus(
    stage: &Stage<'_>,
    inside: Option<&Spot>,
    args: &[&str],
) -> Result<Said> {
    let home = &stage.fleet.home;
    let program = &home.parts.isthmus;
    let mut command: tokio::process::Command = match inside {
        Some(spot) => spot.door().command(program).into(),
        None => tokio::process::Command::new(program),
    };
    command.args(args).env("KUBECONFIG", home.operator()).kill_on_drop(true);
    let out = tokio::time::timeout(Duration::from_secs(120), command.output())
        .await
        .with_context(|| format!("isthmus {} does not end", args.join(" ")))??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Said { code: out.status.code(), out: text(out.stdout), err: text(out.stderr) })
}

/// Runs `isthmus` and judges its exit status and its words.
async fn expect(
    stage: &Stage<'_>,
    promise: &str,
    args: &[&str],
    code: i32,
    words: &[&str],
) -> Result<Said> {
    let said = isthmus(stage, None, args).await?;
    let kept = said.code == Some(code) && said.says(words);
    stage.judge(promise, &said.figure(), kept, &[]);
    Ok(said)
}

pub(super) async fn cli_walk(stage: &Stage<'_>) -> Result<()> {
    super::links::only_linked(stage.fleet).await?;
    status(stage).await?;
    why(stage).await?;
    exports(stage).await?;
    proxies(stage).await?;
    relink(stage).await?;
    secret_by_hand(stage).await?;
    let done = dead_peer(stage).await;
    stage.fleet.mend().await?;
    done?;
    mended(stage).await
}

async fn status(stage: &Stage<'_>) -> Result<()> {
    // Gateways that a scenario before held shut are knocked at again within seconds.
    for peer in ["west", "north"] {
        until_condition(stage.cluster("east"), peer, "GatewaysReachable", "True", LIMIT).await?;
    }
    let all = ["status", "--context", "east", "--context", "west", "--context", "north"];
    expect(
        stage,
        "status shows every link of all contexts Ready and exits 0",
        &all,
        0,
        &["east->west", "east->north", "west->east", "north->east"],
    )
    .await?;
    let json = isthmus(stage, None, &[&all[..], &["-o", "json"]].concat()).await?;
    let links: Value = serde_json::from_str(&json.out).unwrap_or_default();
    let ready = links["links"].as_array().is_some_and(|links| {
        links.len() == 4
            && links.iter().all(|link| link["ready"] == "True" && link["why"].is_null())
    });
    stage.judge("status -o json says the same", &json.figure(), ready, &[]);
    let node = &stage.cluster("east").spot;
    let said = isthmus(stage, Some(node), &["status", "--admin", "127.0.0.1:15024"]).await?;
    let kept = said.code == Some(0) && said.says(&["->west", "->north", "True"]);
    stage.judge("status --admin asks a controller itself", &said.figure(), kept, &[]);
    expect(
        stage,
        "an unknown context is refused with the contexts there are",
        &["status", "--context", "moon"],
        2,
        &["ISM2002", "moon", "east, north, west"],
    )
    .await
    .map(|_| ())
}

async fn why(stage: &Stage<'_>) -> Result<()> {
    let ask = |destination| ["why", "pod/client-1", "-n", "shop", destination, "--context", "east"];
    let words = [
        "240.240.",
        "listener",
        "route outbound|80||hello.shop.global",
        "in west",
        "in north",
        "through gateway 198.18.2.11:15443",
        "spiffe://west.mesh/ns/shop/sa/hello",
        "It can be called",
    ];
    let promise = "why names address, listener, route, gateways and identities, and exits 0";
    expect(stage, promise, &ask("hello.shop.global:80"), 0, &words).await?;
    let promise = "why of a service nobody exports exits 1 with the reason";
    expect(stage, promise, &ask("secret.shop.global:80"), 1, &["secret.shop.global", "announce"])
        .await?;
    let promise = "why of a port that is not offered exits 1 and names those that are";
    expect(stage, promise, &ask("hello.shop.global:81"), 1, &["no port 81", "80, 9000"]).await?;
    let promise = "why of a pod that is not there names those that are";
    let args = ["why", "pod/nobody", "-n", "shop", "hello.shop.global:80", "--context", "east"];
    expect(stage, promise, &args, 1, &["ISM2032", "nobody", "client-1"]).await.map(|_| ())
}

async fn exports(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client, west) = (stage.fleet, stage.client()?, stage.cluster("west"));
    let on = |verb, service| [verb, service, "-n", "shop", "--context", "west"];
    let standing = api(west.client(), "multicluster.x-k8s.io/v1beta1", "ServiceExport", "shop");
    let mut args = on("export", "svc/secret").to_vec();
    args.push("--dry-run");
    let said = isthmus(stage, None, &args).await?;
    let absent = standing.get_opt("secret").await?.is_none();
    let kept = said.code == Some(0) && said.says(&["would apply", "shop"]) && absent;
    stage.judge(
        "export --dry-run says what it would do and changes nothing",
        &said.figure(),
        kept,
        &[],
    );
    expect(
        stage,
        "export names the service's ports and its names",
        &on("export", "svc/secret"),
        0,
        &["80/TCP", "9000/TCP", "secret.shop.global", "secret.shop.svc.clusterset.local"],
    )
    .await?;
    let url = "http://secret.shop.global/";
    let answer = call_until(fleet, client, url, LIMIT, |answer| answer.cluster == "west").await;
    let figure = answer.as_ref().map_or_else(
        |e| format!("{e:#}"),
        |(took, answer)| format!("{} after {:.1} s", answer.pod, took.as_secs_f64()),
    );
    stage.judge("what was exported answers in east by name", &figure, answer.is_ok(), &[]);
    expect(stage, "unexport takes it back", &on("unexport", "svc/secret"), 0, &["no longer"])
        .await?;
    let promise = "what was unexported does not exist in east any more (NXDOMAIN)";
    judge_unnamed(stage, promise, "secret.shop.global").await;
    let promise = "export of a service that is not there says so";
    expect(stage, promise, &on("export", "svc/none"), 1, &["ISM2021", "none", "west"])
        .await
        .map(|_| ())
}

/// How glibc says NXDOMAIN: not "Temporary failure in name resolution" (SERVFAIL), nor "No address
/// associated with hostname" (NODATA).
const NXDOMAIN: &str = "Name or service not known";

/// Waits until a name does not exist in the client's pod (NXDOMAIN), while the resolver still
/// answers others; what the resolver said, and when.
async fn unnamed(stage: &Stage<'_>, name: &str) -> Result<String> {
    let start = tokio::time::Instant::now();
    loop {
        let client = stage.client()?;
        let found = resolve(stage.fleet, client, name).await;
        let others = resolve(stage.fleet, client, HOST).await;
        match (&found, &others) {
            (Err(error), Ok(_)) if format!("{error:#}").contains(NXDOMAIN) => {
                let took = start.elapsed().as_secs_f64();
                return Ok(format!("after {took:.2} s: {error:#}"));
            }
            _ if start.elapsed() > LIMIT => {
                bail!("{name} is {found:?} and {HOST} {others:?} after {LIMIT:?}")
            }
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Judges that a name comes not to exist.
pub(super) async fn judge_unnamed(stage: &Stage<'_>, promise: &str, name: &str) {
    let done = unnamed(stage, name).await;
    let figure = done.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
    stage.judge(promise, &figure, done.is_ok(), &[]);
}

fn judge_done(stage: &Stage<'_>, promise: &str, done: &Result<Duration>) {
    let figure = match done {
        Ok(took) => format!("after {:.2} s", took.as_secs_f64()),
        Err(error) => format!("{error:#}"),
    };
    stage.judge(promise, &figure, done.is_ok(), &[]);
}

async fn proxies(stage: &Stage<'_>) -> Result<()> {
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    let args = ["proxy-status", "--admin", "127.0.0.1:15014"];
    let said = isthmus(stage, Some(&east.spot), &args).await?;
    let rows = said.out.lines().filter(|line| line.contains("client-1")).count();
    let kept = said.code == Some(0) && rows >= 4 && said.out.contains("gateway-1");
    let promise = "proxy-status lists the proxies of a control plane and what they took";
    stage.judge(promise, &said.figure(), kept, &[]);

    let client = &stage.client()?.spot;
    let said = isthmus(stage, Some(client), &["proxy-config"]).await?;
    let wanted = ["Listener", "Cluster", "outbound|80||hello.shop.global"];
    let kept = said.code == Some(0) && said.says(&wanted);
    stage.judge("proxy-config prints a sidecar's resources as a table", &said.figure(), kept, &[]);
    let args = ["proxy-config", "endpoints", "--name", HOST, "-o", "json"];
    let said = isthmus(stage, Some(client), &args).await?;
    let list: Vec<Value> = serde_json::from_str(&said.out).unwrap_or_default();
    let fine = |it: &Value| it["@type"].as_str().is_some_and(|t| t.ends_with("LoadAssignment"));
    let kept = !list.is_empty() && list.iter().all(fine) && said.out.contains("198.18.2.11");
    stage.judge("proxy-config -o json has type and name as asked", &said.figure(), kept, &[]);

    // A second gateway beside west's first, from nothing but what the first prints.
    let pod = west.pod("gateway-1")?;
    let said = isthmus(stage, Some(&pod.spot), &["proxy-config", "-o", "json"]).await?;
    let file = pod.dir.join("resources.json");
    std::fs::write(&file, &said.out)?;
    let authority = stage.fleet.trust.authority("west")?;
    let svid = authority.workload("spiffe://west.mesh/ns/isthmus-system/sa/isthmus-gateway")?;
    let (chain, key) = (pod.dir.join("file-chain.pem"), pod.dir.join("file-key.pem"));
    std::fs::write(&chain, format!("{}{}", svid.certificate, authority.certificate))?;
    std::fs::write(&key, &svid.key)?;
    let config = json!({
        "cluster": "west", "namespace": SYSTEM, "pod": pod.name, "account": pod.account,
        "trustDomain": "west.mesh", "rootCertificates": pod.dir.join("root.pem"),
        "resources": file, "svid": {"chain": chain, "key": key}, "listen": "0.0.0.0:15444",
        "admin": "127.0.0.1:15100", "metrics": "127.0.0.1:15190", "health": "127.0.0.1:15121",
    });
    let config_file = pod.dir.join("from-file.yaml");
    std::fs::write(&config_file, serde_saphyr::to_string(&config)?)?;
    let home = &stage.fleet.home;
    let process = pod
        .job("gateway-from-file", &home.parts.isthmus, &home.logs)
        .user(PROXY_USER)
        .args(["gateway", "--config", &config_file.display().to_string()])
        .start()?;
    let start = tokio::time::Instant::now();
    let health = SocketAddr::from(([127, 0, 0, 1], 15121));
    let ready = loop {
        match http_get(&pod.spot, health, "/readyz", Duration::from_secs(1)) {
            Ok((200, _)) => break Ok(start.elapsed()),
            other if process.ended().is_some() || start.elapsed() > LIMIT => {
                break Err(anyhow::anyhow!("{other:?}: {}", process.last_words()));
            }
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    judge_done(stage, "a gateway starts from the file that proxy-config -o json printed", &ready);
    let door = SocketAddr::from((west.wan_address(11), 15444));
    for (sni, wanted) in [
        ("outbound_.80_._.hello.shop.global", Back::Octet(0x16)),
        ("outbound_.80_._.secret.shop.global", Back::Closed),
    ] {
        let flight = client_hello(Name::Host(sni), "istio");
        let back = probe(door, &flight, usize::MAX, Duration::from_secs(7));
        let figure = format!("{back:?}");
        let kept = back.is_ok_and(|(back, _)| back == wanted);
        stage.judge(&format!("and it treats {sni} as the first does"), &figure, kept, &[]);
    }
    Ok(())
}

/// What could differ after a command that should change nothing: versions of links and secrets.
pub(super) async fn versions(here: &Cluster) -> Result<Vec<String>> {
    let mut all = vec![];
    for (version, kind) in [("isthmus.dev/v1alpha1", "ClusterLink"), ("v1", "Secret")] {
        let list = api(here.client(), version, kind, SYSTEM).list(&Default::default()).await?;
        all.extend(list.items.into_iter().map(|object| {
            // A link's status moves by itself: its generation counts only changes of the spec.
            let meta = object.metadata;
            let stamp = match kind {
                "Secret" => meta.resource_version.unwrap_or_default(),
                _ => meta.generation.unwrap_or_default().to_string(),
            };
            format!(
                "{kind}/{} {} {stamp}",
                meta.name.unwrap_or_default(),
                meta.uid.unwrap_or_default()
            )
        }));
    }
    Ok(all)
}

async fn relink(stage: &Stage<'_>) -> Result<()> {
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    let before = (versions(east).await?, versions(west).await?);
    // Without --import: what was agreed must not be widened.
    let again = ["link", "east", "west"];
    let said = isthmus(stage, None, &again).await?;
    let after = (versions(east).await?, versions(west).await?);
    let kept = said.code == Some(0)
        && said.says(&["east reads west: kept", "west reads east: kept", "linked."])
        && before == after;
    stage.judge("link again keeps what works and changes nothing", &said.figure(), kept, &[]);
    let promise = "link of a cluster with itself is refused";
    expect(stage, promise, &["link", "east", "east"], 2, &["ISM2012", "itself"]).await.map(|_| ())
}

/// The token in a remote secret.
fn token_of(secret: &Value, cluster: &str) -> Result<String> {
    let kubeconfig = secret["stringData"][cluster].as_str().context("a kubeconfig by its name")?;
    let kubeconfig: Value = serde_saphyr::from_str(kubeconfig)?;
    let token = kubeconfig["users"][0]["user"]["token"].as_str();
    Ok(token.context("a token in the kubeconfig")?.to_owned())
}

async fn secret_by_hand(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client) = (stage.fleet, stage.client()?);
    let (east, north) = (stage.cluster("east"), stage.cluster("north"));
    unlink(east, "north").await?;
    let (before, far) = (versions(east).await?, versions(north).await?);
    let said = isthmus(stage, None, &["link", "east", "north", "--dry-run"]).await?;
    let same = (before, far) == (versions(east).await?, versions(north).await?);
    let kept = said.code == Some(0)
        && same
        && said.says(&["ClusterLink", "exportedservices", "nothing was changed"]);
    stage.judge(
        "link --dry-run prints what it would do and changes nothing",
        &said.figure(),
        kept,
        &[],
    );

    let text = link::remote_secret(&fleet.home, north)?;
    let shape = ["# This file is autogenerated, do not edit.", "istio/multiCluster: \"true\""];
    let kept = shape.iter().all(|word| text.contains(word));
    let documents = parse(&text)?;
    let secret = documents.first().context("create-remote-secret printed no object")?;
    let figure = format!("{} {}", secret["kind"], secret["metadata"]["name"]);
    stage.judge("create-remote-secret prints istioctl's shape", &figure, kept, &[]);
    for document in &documents {
        let mut document = document.clone();
        if document["kind"] == "Secret" {
            document["metadata"]["namespace"] = json!(SYSTEM);
        }
        apply(east.client(), &document).await?;
    }
    accept(east, "north", &["shop"]).await?;
    let ready = until_condition(east, "north", "Ready", "True", LIMIT).await;
    judge_done(stage, "its output applied by hand makes a link Ready", &ready);
    let url = "http://hello.shop.north.global/";
    let answer = call_until(fleet, client, url, LIMIT, |answer| answer.cluster == "north").await;
    let answer = answer.map(|(took, _)| took);
    judge_done(stage, "and calls go over it", &answer);
    rights(stage, north, &token_of(secret, "north")?).await
}

/// What a link's credential may do, by the API server's own word and by trying.
async fn rights(stage: &Stage<'_>, there: &Cluster, token: &str) -> Result<()> {
    let holder = fleet::apiserver::client(&there.api.url, &there.api.authority, token)?;
    let mut found = vec![];
    for namespace in [SYSTEM, "shop", "kube-system", "default"] {
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        });
        let request = http::Request::post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews")
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&body)?)?;
        let answer: Value = holder.request(request).await?;
        let rules = answer["status"]["resourceRules"].as_array().context("rules")?;
        ensure!(!rules.is_empty(), "the review of {namespace} lists no rules");
        for rule in rules {
            for resource in rule["resources"].as_array().into_iter().flatten() {
                let resource = resource.as_str().unwrap_or_default();
                let verbs = rule["verbs"].to_string();
                found.push(format!("{namespace}: {resource} {verbs}"));
            }
        }
    }
    let own = ["selfsubject", "serviceaccounts/token"];
    let reads = ["exportedservices", "clusterlinks", "services", "configmaps", "namespaces"];
    let excess: Vec<&String> = found
        .iter()
        .filter(|line| {
            let what = line.split(": ").nth(1).unwrap_or_default();
            let fine = own.iter().any(|word| what.starts_with(word))
                || reads.iter().any(|word| {
                    let verbs = what.strip_prefix(&format!("{word} "));
                    verbs.is_some_and(|v| {
                        !["create", "update", "patch", "delete", "*"].iter().any(|w| v.contains(w))
                    })
                });
            !fine
        })
        .collect();
    let figure = format!("beyond what is listed: {excess:?}; all: {}", found.join(", "));
    let promise = "the API server says a link's credential reads exports and no more";
    stage.judge(promise, &figure, excess.is_empty() && !found.is_empty(), &[]);
    for (version, kind, namespace) in [
        ("v1", "Secret", SYSTEM),
        ("v1", "Pod", "shop"),
        ("v1", "Node", ""),
        ("v1", "Service", "shop"),
    ] {
        let tried = api(&holder, version, kind, namespace).list(&Default::default()).await;
        let kept = matches!(&tried, Err(kube::Error::Api(status)) if status.code == 403);
        let figure =
            tried.map_or_else(|e| e.to_string(), |list| format!("{} items", list.items.len()));
        stage.judge(&format!("it may not list {kind}s in {namespace:?}"), &figure, kept, &[]);
    }
    let exported = api(&holder, "isthmus.dev/v1alpha1", "ExportedService", "");
    let exported = exported.list(&Default::default()).await;
    let figure = exported
        .as_ref()
        .map_or_else(ToString::to_string, |list| format!("{} items", list.items.len()));
    let kept = exported.is_ok_and(|list| !list.items.is_empty());
    stage.judge("it may list ExportedServices", &figure, kept, &[]);
    Ok(())
}

async fn dead_peer(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client) = (stage.fleet, stage.client()?);
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    west.api.server.kill();
    until_condition(east, "west", "Ready", "Unknown", LIMIT).await?;
    let words = ["east->west", "Unknown", "why", "stay published"];
    let promise = "status with west's API dead exits 1, says why and whether traffic is hurt";
    expect(stage, promise, &["status", "--context", "east"], 1, &words).await?;
    let promise = "unlink --dry-run with west's API dead says what it would delete";
    let args = ["unlink", "east", "west", "--dry-run"];
    expect(stage, promise, &args, 0, &["would delete ClusterLink west", "nothing was changed"])
        .await?;
    ensure!(link::read(east, "west").await?.is_some(), "unlink --dry-run has deleted the link");
    expect(
        stage,
        "unlink works with west's API dead and says what could not be done",
        &["unlink", "east", "west"],
        0,
        &["deleted ClusterLink west", "west did not answer", "unlinked."],
    )
    .await?;
    let gone = until(east, "west", "gone", LIMIT, |link| link.is_none()).await;
    judge_done(stage, "the link vanishes in east", &gone);
    let secret = api(east.client(), "v1", "Secret", SYSTEM).get_opt(&secret_name("west")).await?;
    let figure = if secret.is_some() { "still there" } else { "gone" };
    stage.judge("its secret is gone", figure, secret.is_none(), &[]);
    let promise = "what it imported does not exist in east any more (NXDOMAIN)";
    judge_unnamed(stage, promise, "hello.shop.west.global").await;
    let url = format!("http://{HOST}/");
    let answer = call_until(fleet, client, &url, LIMIT, |answer| answer.cluster == "north").await;
    judge_done(stage, "the shared name goes on with north's copy", &answer.map(|(took, _)| took));
    Ok(())
}

/// West is back with a credential that was revoked while it was dead.
async fn mended(stage: &Stage<'_>) -> Result<()> {
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    let said = isthmus(stage, None, &["link", "east", "west", "--import", "shop"]).await?;
    let kept = said.code == Some(0) && !said.out.contains("kept");
    let promise = "link afterwards renews both credentials, the revoked one too";
    stage.judge(promise, &said.figure(), kept, &[]);
    linked(stage.fleet).await?;
    for here in [(east, "west"), (west, "east")] {
        until_condition(here.0, here.1, "Ready", "True", LIMIT).await?;
    }
    let url = "http://hello.shop.west.global/";
    call_until(stage.fleet, stage.client()?, url, LIMIT, |answer| answer.cluster == "west").await?;
    let answer = call(stage.fleet, stage.client()?, url, 2.0).await;
    let figure = answer.as_ref().map_or_else(|e| format!("{e:#}"), |a| a.pod.clone());
    stage.judge("and west answers again", &figure, answer.is_ok(), &[]);
    Ok(())
}

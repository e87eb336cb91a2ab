//! Links come, are accepted, renewed and go; and what is refused on the way.

use super::{HOST, Load, Rates, Stage, call_until};
use anyhow::{Context, Result, bail};
use fleet::link::{self, accept, condition, secret_name, until, until_condition};
use fleet::objects::{api, apply, delete};
use fleet::verdict::{Kind, figures};
use fleet::{Cluster, Fleet, SYSTEM};
use serde_json::{Value, json};
use std::time::Duration;

/// The links every other scenario needs: east reads west and north, and both read east.
pub(super) async fn linked(fleet: &Fleet) -> Result<()> {
    let east = fleet.cluster("east");
    for peer in ["west", "north"] {
        let peer = fleet.cluster(peer);
        if link::read(east, peer.name()).await?.is_none() {
            println!("{}", link::both_ways(&fleet.home, east, peer).await?.trim_end());
        }
        for (here, remote) in [(east, peer), (peer, east)] {
            let limit = Duration::from_secs(40);
            until_condition(here, remote.name(), "Ready", "True", limit).await?;
        }
    }
    Ok(())
}

/// Returns once no other links are left, in the API and on the controllers' pages: those of secrets
/// that a scenario deleted go when the controller has heard of it.
pub(super) async fn only_linked(fleet: &Fleet) -> Result<()> {
    let start = tokio::time::Instant::now();
    for cluster in fleet.clusters.values() {
        let links = api(cluster.client(), "isthmus.dev/v1alpha1", "ClusterLink", SYSTEM);
        loop {
            let all = links.list(&Default::default()).await?;
            let names = all.items.iter().filter_map(|link| link.metadata.name.as_deref());
            let page = link::all_on_page(cluster).await?;
            let told = page.iter().filter_map(|link| link["name"].as_str());
            let others: Vec<&str> =
                names.chain(told).filter(|name| !fleet.clusters.contains_key(*name)).collect();
            if others.is_empty() {
                break;
            }
            if start.elapsed() > Duration::from_secs(60) {
                bail!("{} still has links to {}", cluster.name(), others.join(", "));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

pub(super) async fn link_life(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client) = (stage.fleet, stage.client()?);
    let (east, west, north) =
        (stage.cluster("east"), stage.cluster("west"), stage.cluster("north"));
    let limit = Duration::from_secs(30);
    linked(fleet).await?;
    // North anew, from nothing.
    unlink(east, "north").await?;
    let url = "http://hello.shop.north.global/";
    let secret = link::remote_secret_by_hand(north).await?;
    apply(east.client(), &secret).await?;
    let awaiting = until(east, "north", "AwaitingConsent", limit, |link| {
        link.and_then(|link| condition(link, "Accepted"))
            .is_some_and(|(status, reason, _)| status == "False" && reason == "AwaitingConsent")
    })
    .await?;
    within(stage, "a link secret applied shows Accepted=False/AwaitingConsent", awaiting, 2.0);
    let before = super::call(fleet, client, url, 2.0).await;
    stage.judge(
        "nothing is imported before consent",
        &before.as_ref().map_or_else(|e| format!("{e:#}"), |a| format!("answered by {}", a.pod)),
        before.is_err(),
        &[],
    );
    accept(east, "north", &["shop"]).await?;
    let (answered, told) = tokio::join!(
        call_until(fleet, client, url, limit, |answer| answer.cluster == "north"),
        until_condition(east, "north", "Accepted", "True", limit),
    );
    within(stage, "consent shows Accepted=True", told?, 2.0);
    within(stage, "the first answer comes after consent", answered?.0, 5.0);

    // Replacement under load: another credential for the same cluster.
    let rates = Rates { gets: 180.0, posts: 0.0, connects: 20.0, fresh: 0.0, seconds: 10.0 };
    let load = Load::start(fleet, client, HOST, rates)?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let generation = |link: Option<&Value>| link.and_then(|l| l["status"]["generation"].as_u64());
    let old = generation(link::read(east, "west").await?.as_ref());
    let fresh = link::remote_secret_by_hand(west).await?;
    apply(east.client(), &fresh).await?;
    let replaced = until(east, "west", "of the next generation", limit, |link| {
        generation(link) > old
            && link.and_then(|link| condition(link, "Ready")).is_some_and(|c| c.0 == "True")
    })
    .await?;
    within(stage, "a replaced secret shows its next generation, Ready", replaced, 2.0);
    let records = load.finish(Duration::from_secs(40)).await?;
    for kind in [Kind::Get, Kind::Tcp] {
        let figures = figures(&records, kind, 0, u64::MAX);
        let promise = format!("0 of {kind:?} fail during the replacement of a link secret");
        stage.judge(&promise, &figures.to_string(), figures.failed + figures.cut == 0, &[]);
    }

    delete(east.client(), &secret).await?;
    let deleted = until(east, "north", "gone or not Ready", limit, |link| {
        link.is_none_or(|link| {
            link["metadata"]["deletionTimestamp"].is_string()
                || condition(link, "Ready").is_none_or(|c| c.0 != "True")
        })
    })
    .await?;
    within(stage, "a deleted secret shows in the link", deleted, 2.0);
    unlink(east, "north").await?;
    linked(fleet).await
}

/// Takes a link away whole, and waits until nothing of it is left.
pub(super) async fn unlink(here: &Cluster, remote: &str) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": secret_name(remote), "namespace": SYSTEM},
    });
    let object = json!({
        "apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterLink",
        "metadata": {"name": remote, "namespace": SYSTEM},
    });
    delete(here.client(), &secret).await?;
    delete(here.client(), &object).await?;
    let limit = Duration::from_secs(20);
    until(here, remote, "gone", limit, |link| link.is_none()).await?;
    let gateways = api(here.client(), "gateway.networking.k8s.io/v1", "Gateway", SYSTEM);
    let name = format!("isthmus-{remote}");
    let deadline = tokio::time::Instant::now() + limit;
    while gateways.get_opt(&name).await?.is_some() {
        let late = tokio::time::Instant::now() > deadline;
        anyhow::ensure!(!late, "Gateway {name} outlives its link by {limit:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn within(stage: &Stage<'_>, promise: &str, took: Duration, seconds: f64) {
    stage.judge(
        &format!("{promise} within {seconds} s"),
        &format!("{:.2} s", took.as_secs_f64()),
        took.as_secs_f64() <= seconds,
        &[],
    );
}

/// One bad secret: what it is, and words its condition must say.
struct Bad {
    what: &'static str,
    name: &'static str,
    secret: Value,
    says: &'static [&'static str],
}

pub(super) async fn bad_input(stage: &Stage<'_>) -> Result<()> {
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    let good = west.api.kubeconfig_for("bad", &west.api.url, "no-such-token");
    let with = |from: &str, to: &str| good.replace(from, to);
    let bad = |what, name, kubeconfig: String, says| {
        let secret = link::secret_of(name, &kubeconfig);
        Bad { what, name, secret, says }
    };
    let mut table = vec![
        bad(
            "exec",
            "bad-exec",
            with(
                "    token: no-such-token",
                "    exec: {command: /bin/true, apiVersion: client.authentication.k8s.io/v1}",
            ),
            &["exec"][..],
        ),
        bad(
            "a token file",
            "bad-file",
            with("    token: no-such-token", "    tokenFile: /etc/passwd"),
            &["tokenFile"][..],
        ),
        bad(
            "insecure-skip-tls-verify",
            "bad-insecure",
            with("    server:", "    insecure-skip-tls-verify: true\n    server:"),
            &["insecure-skip-tls-verify"][..],
        ),
        bad(
            "a proxy",
            "bad-proxy",
            with("    server:", "    proxy-url: http://10.0.0.1:3128\n    server:"),
            &["proxy-url"][..],
        ),
        bad(
            "impersonation",
            "bad-as",
            with("    token:", "    as: system:admin\n    token:"),
            &["as"][..],
        ),
        bad("plain http", "bad-http", with("https://", "http://"), &["https"][..]),
        bad(
            "a server on loopback",
            "bad-loopback",
            with(&west.api.url, "https://127.0.0.1:6443"),
            &["127.0.0.1"][..],
        ),
        bad("no YAML", "bad-yaml", "{{{".into(), &["bad-yaml"][..]),
        bad("a wrong token", "bad-token", good.clone(), &["401"][..]),
    ];
    let mut wrong = fleet::apiserver::kubeconfig(
        "bad",
        &west.api.url,
        &fleet::authority::Authority::new("somebody else")?.certificate,
        "no-such-token",
    );
    table.push(bad("a wrong CA", "bad-ca", std::mem::take(&mut wrong), &["certificate"][..]));
    let mut empty = link::secret_of("bad-empty", "");
    empty.as_object_mut().context("an object")?.remove("stringData");
    table.push(Bad { what: "no data", name: "bad-empty", secret: empty, says: &["data"] });
    // West under a second name, and east itself: refused by the UID of kube-system.
    let mut twice = link::remote_secret_by_hand(west).await?;
    twice["metadata"]["name"] = json!(secret_name("vest"));
    twice["metadata"]["annotations"]["networking.istio.io/cluster"] = json!("vest");
    twice["stringData"] = json!({"vest": twice["stringData"]["west"]});
    table.push(Bad {
        what: "west under a second name",
        name: "vest",
        secret: twice,
        says: &["links vest and west", "one and the same cluster", "uid", "Fix:"],
    });
    let mut own = link::remote_secret_by_hand(east).await?;
    own["metadata"]["name"] = json!(secret_name("ost"));
    own["metadata"]["annotations"]["networking.istio.io/cluster"] = json!("ost");
    own["stringData"] = json!({"ost": own["stringData"]["east"]});
    table.push(Bad {
        what: "this cluster itself",
        name: "ost",
        secret: own,
        says: &["link ost", "east itself", "Fix:"],
    });

    for row in &table {
        apply(east.client(), &row.secret).await.with_context(|| row.what.to_owned())?;
    }
    // Accepted, so that what refuses them is no lack of consent.
    for name in ["vest", "ost"] {
        accept(east, name, &["shop"]).await?;
    }
    for row in &table {
        let told = until(east, row.name, "refused in words", Duration::from_secs(20), |link| {
            let Some(all) = link.and_then(|link| link["status"]["conditions"].as_array()) else {
                return false;
            };
            all.iter().any(|condition| {
                let text = condition["message"].as_str().unwrap_or_default();
                condition["status"] != "True" && row.says.iter().all(|word| text.contains(word))
            })
        })
        .await;
        let found = link::read(east, row.name).await?.unwrap_or_default();
        let message = ["Reachable", "Accepted", "Ready"]
            .iter()
            .find_map(|kind| condition(&found, kind).filter(|c| c.0 != "True"))
            .map_or_else(|| "no condition".into(), |(_, reason, text)| format!("{reason}: {text}"));
        let promise = format!("a secret with {} is refused in words that name it", row.what);
        stage.judge(&promise, &message, told.is_ok(), &[]);
    }
    let (fleet, client) = (stage.fleet, stage.client()?);
    let url = format!("http://{HOST}/");
    let good = call_until(fleet, client, &url, Duration::from_secs(10), |_| true).await;
    let figure = good.as_ref().map_or_else(|e| format!("{e:#}"), |(_, a)| a.pod.clone());
    stage.judge("the good links beside them still work", &figure, good.is_ok(), &[]);
    for row in &table {
        delete(east.client(), &row.secret).await?;
        let object = json!({
            "apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterLink",
            "metadata": {"name": row.name, "namespace": SYSTEM},
        });
        delete(east.client(), &object).await?;
    }
    super::mistakes::all(stage).await
}

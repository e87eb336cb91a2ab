//! One pair of clusters: what stands between them, what would be changed, and changing it.

use super::{Condition, conditions};
use crate::remedy::another_root;
use crate::remote_secret::{Place, reachable_server};
use ::trust::bundle::Bundle;
use anyhow::{Context as _, Result, bail, ensure};
use cluster::api::GROUP_VERSION;
use cluster::credential::{self, Account};
use cluster::operator::{Description, Operator};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Between two looks at a link's conditions.
const LOOK: Duration = Duration::from_millis(250);

/// One cluster of a link.
pub(super) struct End {
    pub(super) operator: Operator,
    pub(super) described: Description,
    /// Its API server as other clusters reach it, where that differs from the operator's way, and what
    /// says so.
    pub(super) server: Option<(String, &'static str)>,
    /// Where to say so, for an address that others cannot use.
    pub(super) hint: String,
}

/// What is agreed of a link, each way.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) root_namespace: String,
    /// Empty: those of a link that stands, else all.
    pub(super) import: Vec<String>,
    /// Empty: those of a link that stands, else any that is not loopback or link-local.
    pub(super) gateway_ranges: Vec<String>,
    pub(super) allow_loopback: bool,
    pub(super) renew: bool,
    pub(super) hours: u32,
}

/// A line to print: its name in a column of its own, and a text.
pub(super) type Fact = (&'static str, String);

/// What happens to a credential, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential {
    Kept,
    /// There is none yet.
    New,
    /// Its link is not Ready.
    Failing,
    /// What it is bound to was deleted.
    Revoked,
    /// `--renew` was given.
    Asked,
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept => "kept, it works",
            Self::New => "new",
            Self::Failing => "renewed, the link is not Ready",
            Self::Revoked => "renewed, it was revoked",
            Self::Asked => "renewed, as asked",
        })
    }
}

/// One direction, planned: what `reader` gets to read the other, and its consent.
pub(super) struct Half {
    pub(super) credential: Credential,
    /// The ClusterLink is there and says the same.
    pub(super) agreed: bool,
    pub(super) link: Value,
    pub(super) secret_name: String,
    pub(super) account: Account,
    server: String,
}

impl Half {
    /// Looks at what stands, and changes nothing.
    pub(super) async fn plan(reader: &End, read: &End, terms: &Terms) -> Result<Self> {
        let (reader_id, read_id) = (&reader.described.cluster, &read.described.cluster);
        let namespace = &terms.root_namespace;
        let account =
            Account { namespace: namespace.clone(), name: format!("isthmus-reader-{reader_id}") };
        let server = reachable_server(
            read.server.as_ref().map_or(&read.operator.server, |(server, _)| server),
            &read.operator.context,
            terms.allow_loopback,
            Place { given: read.server.as_ref().map(|(_, by)| *by), hint: &read.hint },
        )?;
        let secret_name = format!("istio-remote-secret-{read_id}");
        // Done again without words, it must not widen what was agreed.
        let standing = standing(reader, read_id, namespace).await?;
        let agreed = |field: &str| {
            let import = standing.as_ref().map(|link| link["spec"]["import"][field].clone());
            import.filter(|list| list.as_array().is_some_and(|list| !list.is_empty()))
        };
        let given = |list: &[String]| (!list.is_empty()).then(|| json!(list));
        let namespaces =
            given(&terms.import).or_else(|| agreed("namespaces")).unwrap_or_else(|| json!(["*"]));
        let ranges = given(&terms.gateway_ranges)
            .or_else(|| agreed("gatewayRanges"))
            .unwrap_or_else(|| json!([]));
        let link = json!({
            "apiVersion": GROUP_VERSION, "kind": "ClusterLink",
            "metadata": {"name": read_id, "namespace": namespace},
            "spec": {
                "accepted": true,
                "import": {"namespaces": namespaces, "gatewayRanges": ranges},
                "secret": {"namespace": namespace, "name": secret_name},
            },
        });
        let ready = standing
            .as_ref()
            .map(conditions)
            .unwrap_or_default()
            .get("Ready")
            .is_some_and(|condition| condition.status == "True");
        let secrets = reader.operator.remote_secrets(namespace).await?;
        let stored = |name: Option<&str>| name == Some(&secret_name);
        let has = secrets.iter().any(|secret| stored(secret.metadata.name.as_deref()));
        // A credential that was revoked (`unlink` while the reader was dead) shows as Ready until
        // the reader tries it.
        let bound = credential::binding_name(&account);
        let valid = read.operator.read("v1", "Secret", Some(namespace), &bound).await?.is_some();
        let credential = match () {
            () if !has => Credential::New,
            () if terms.renew => Credential::Asked,
            () if !valid => Credential::Revoked,
            () if !ready => Credential::Failing,
            () => Credential::Kept,
        };
        let agreed = standing.as_ref().is_some_and(|it| same(&it["spec"], &link["spec"]));
        Ok(Self { credential, agreed, link, secret_name, account, server })
    }

    /// Makes it so; what stands already is applied again, which changes nothing.
    pub(super) async fn make(&self, reader: &End, read: &End, terms: &Terms) -> Result<Vec<Fact>> {
        let (reader_id, read_id) = (&reader.described.cluster, &read.described.cluster);
        let namespace = &terms.root_namespace;
        let mut facts = Vec::new();
        read.operator.apply(&credential::reader_objects(namespace, &self.account)).await?;
        if self.credential == Credential::Kept {
            facts.push(("credential", format!("{reader_id} reads {read_id}: kept, it works")));
        } else {
            let lifetime = Duration::from_secs(u64::from(terms.hours) * 3600);
            let minted = read.operator.mint(namespace, &self.account, false, lifetime).await?;
            let secret = read.operator.remote_secret(
                read_id,
                &self.secret_name,
                namespace,
                Some(&self.server),
                None,
                &minted,
            );
            reader.operator.apply(&[secret.object()]).await?;
            let text =
                format!("{reader_id} reads {read_id} at {} until {}", self.server, minted.expires);
            facts.push(("credential", text));
        }
        facts.extend(credential::MAY_READ.iter().map(|right| ("", format!("may {right}"))));
        reader.operator.apply(std::slice::from_ref(&self.link)).await?;
        Ok(facts)
    }
}

/// Whether what is wanted stands: an API server leaves empty lists out.
fn same(stands: &Value, wanted: &Value) -> bool {
    let list =
        |spec: &Value, field: &str| spec["import"][field].as_array().cloned().unwrap_or_default();
    stands["accepted"] == wanted["accepted"]
        && stands["secret"] == wanted["secret"]
        && ["namespaces", "gatewayRanges"].iter().all(|it| list(stands, it) == list(wanted, it))
}

async fn standing(reader: &End, link: &str, namespace: &str) -> Result<Option<Value>> {
    reader.operator.read(GROUP_VERSION, "ClusterLink", Some(namespace), link).await
}

/// The probe from inside: `reader`'s own controller says that it reaches `read`.
pub(super) async fn wait_ready(
    reader: &End,
    read: &End,
    terms: &Terms,
    wait: Duration,
) -> Result<Fact> {
    let (from, to) = (&reader.described.cluster, &read.described.cluster);
    let started = Instant::now();
    loop {
        let link = standing(reader, to, &terms.root_namespace).await?;
        // What was just written stands in it; what is said of the spec before tells nothing.
        let mut conditions: BTreeMap<String, Condition> =
            link.map(|link| conditions(&link)).unwrap_or_default();
        conditions.retain(|_, condition| !condition.outdated);
        if conditions.get("Ready").is_some_and(|condition| condition.status == "True") {
            let took = started.elapsed().as_millis();
            let text = format!("{from} controller -> {to}: reached, synced, trusted ({took} ms)");
            return Ok(("from inside", text));
        }
        if let Some(differ) = conditions.get("TrustEstablished").filter(|c| c.status == "False") {
            bail!("ISM2013 {from} -> {to}: {} {}", differ.reason, differ.message);
        }
        if started.elapsed() >= wait {
            let mut said: Vec<String> = conditions
                .iter()
                .filter(|(_, condition)| condition.status != "True")
                .map(|(name, c)| {
                    let message = c.message.trim_end_matches('.');
                    format!("{name}={} {}: {message}", c.status, c.reason)
                })
                .collect();
            if said.is_empty() {
                said.push(format!(
                    "the federation controller of {from} has said nothing about what was written; is it running?"
                ));
            }
            bail!(
                "ISM2014 {from} does not reach {to} after {} s: {}. The link stays and is tried on; \
                 `isthmus status --context {}` shows it",
                wait.as_secs(),
                said.join("; "),
                reader.operator.context
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn short(uid: &str) -> &str {
    uid.get(..8).unwrap_or(uid)
}

/// What the two are to each other, or why they cannot be linked.
pub(super) fn check_pair(a: &End, b: &End) -> Result<Vec<Fact>> {
    let mut facts: Vec<Fact> = Vec::new();
    let mut fact = |name, text: String| facts.push((name, text));
    let (da, db) = (&a.described, &b.described);
    ensure!(
        da.uid != db.uid,
        "ISM2015 contexts {} and {} are one cluster (kube-system has UID {}). Fix: name two clusters",
        a.operator.context,
        b.operator.context,
        da.uid
    );
    ensure!(
        da.cluster != db.cluster,
        "ISM2015 both clusters call themselves {:?} (ConfigMap isthmus-mesh, data.cluster). Fix: rename one",
        da.cluster
    );
    fact(
        "identity",
        format!(
            "{} {}  {} {}  different clusters",
            da.cluster,
            short(&da.uid),
            db.cluster,
            short(&db.uid)
        ),
    );
    let fingerprint = |end: &End| -> Result<String> {
        let bundle = Bundle::from_pem(&end.described.root_certificates).with_context(|| {
            format!("ISM2013 ConfigMap isthmus-mesh in {}: data.rootCertificates. Fix: put the root's PEM there", end.operator.context)
        })?;
        Ok(bundle.fingerprint())
    };
    let (ra, rb) = (fingerprint(a)?, fingerprint(b)?);
    fact("roots", format!("{} {}", da.cluster, ra));
    fact("", format!("{} {}", db.cluster, rb));
    ensure!(
        ra == rb,
        "ISM2013 {} ({}) and {} ({}) trust different roots, so no workload of one would believe the \
         other. Fix: where {} has not the mesh's: {}; where {} has not: {}",
        da.cluster,
        short(&ra),
        db.cluster,
        short(&rb),
        db.cluster,
        another_root(&b.operator.context, &db.cluster),
        da.cluster,
        another_root(&a.operator.context, &da.cluster)
    );
    if da.trust_domain == db.trust_domain {
        fact(
            "trust",
            format!(
                "one trust domain {}: either may sign for the other's workloads",
                da.trust_domain
            ),
        );
    } else {
        fact("trust", format!("{} and {}, one root", da.trust_domain, db.trust_domain));
    }
    Ok(facts)
}

//! `isthmus link A B` and `isthmus unlink`: two clusters that read each other's exports.

use crate::output;
use crate::remote_secret::reachable_server;
use ::trust::bundle::Bundle;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use cluster::credential::{self, Account};
use cluster::operator::{Description, Operator};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks at a link's conditions.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Args)]
pub(crate) struct Link {
    /// Context of one cluster.
    a: String,
    /// Context of the other.
    b: String,
    /// Kubeconfig file with both contexts; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// API server of a context as the other cluster reaches it: CONTEXT=https://ADDRESS:PORT.
    #[arg(long, value_name = "CONTEXT=URL", value_parser = pair)]
    server: Vec<(String, String)>,
    /// Namespaces that may be imported, `*` for all; if not given, those of a link that stands,
    /// else all.
    #[arg(long, value_delimiter = ',')]
    import: Vec<String>,
    /// Ranges that gateway addresses must lie in; if not given, those of a link that stands, else
    /// any that is not loopback or link-local.
    #[arg(long, value_delimiter = ',')]
    gateway_ranges: Vec<String>,
    /// Both clusters run on this machine: addresses of loopback lead from one to the other.
    #[arg(long)]
    allow_loopback: bool,
    /// Isthmus' namespace in both clusters.
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    /// Print what would be applied; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Mint new credentials even if the link is ready.
    #[arg(long)]
    renew: bool,
    /// How long to wait for both controllers to say that they reach the other, seconds.
    #[arg(long, default_value_t = 60)]
    wait: u64,
    /// How long a token is good, in hours; the API server may grant less.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8760))]
    hours: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Unlink {
    /// Context of the cluster that forgets.
    a: String,
    /// Context of the other, or its cluster id where it is dead.
    b: String,
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    /// Print what would be deleted; change nothing.
    #[arg(long)]
    dry_run: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((context, url)) if !context.is_empty() && !url.is_empty() => {
            Ok((context.into(), url.into()))
        }
        _ => Err(format!("{text:?} is not CONTEXT=https://ADDRESS:PORT")),
    }
}

/// One fact a line, its name in a column of its own.
fn fact(name: &str, text: &str) {
    println!("  {name:<13}{text}");
}

fn short(uid: &str) -> &str {
    uid.get(..8).unwrap_or(uid)
}

/// One cluster of a link.
struct End {
    operator: Operator,
    described: Description,
}

impl Link {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        ensure!(
            self.a != self.b,
            "ISM2012 {:?} cannot be linked to itself. Fix: name two contexts",
            self.a
        );
        for (context, _) in &self.server {
            ensure!(
                context == &self.a || context == &self.b,
                "ISM2012 --server names context {context:?}, which is neither {:?} nor {:?}. Fix: correct it",
                self.a,
                self.b
            );
        }
        let (a, b) = tokio::try_join!(self.end(&self.a), self.end(&self.b))?;
        check_pair(&a, &b)?;
        self.half(&a, &b).await?;
        self.half(&b, &a).await?;
        if self.dry_run {
            println!("nothing was changed.");
            return Ok(ExitCode::SUCCESS);
        }
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        self.wait_ready(&a, &b, deadline).await?;
        self.wait_ready(&b, &a, deadline).await?;
        println!("linked. next: isthmus export svc/NAME -n NAMESPACE --context {}", self.a);
        Ok(ExitCode::SUCCESS)
    }

    async fn end(&self, context: &str) -> Result<End> {
        let operator = Operator::load(self.kubeconfig.as_deref(), Some(context)).await?;
        let described = operator.describe(&self.root_namespace).await?;
        Ok(End { operator, described })
    }

    /// `reader` gets what it needs to read `read`.
    async fn half(&self, reader: &End, read: &End) -> Result<()> {
        let (reader_id, read_id) = (&reader.described.cluster, &read.described.cluster);
        let account = Account {
            namespace: self.root_namespace.clone(),
            name: format!("isthmus-reader-{reader_id}"),
        };
        let given = self.server.iter().find(|(context, _)| context == &read.operator.context);
        let server = reachable_server(
            given.map_or(read.operator.server.as_str(), |(_, url)| url),
            &read.operator.context,
            self.allow_loopback,
            &format!("pass --server {}=https://ADDRESS:PORT", read.operator.context),
        )?;
        let secret_name = format!("istio-remote-secret-{read_id}");
        // Done again without words, it must not widen what was agreed.
        let standing = self.standing(reader, read_id).await?;
        let agreed = |field: &str| {
            let import = standing.as_ref().map(|link| link["spec"]["import"][field].clone());
            import.filter(|list| list.as_array().is_some_and(|list| !list.is_empty()))
        };
        let given = |list: &[String]| (!list.is_empty()).then(|| json!(list));
        let namespaces =
            given(&self.import).or_else(|| agreed("namespaces")).unwrap_or_else(|| json!(["*"]));
        let ranges = given(&self.gateway_ranges)
            .or_else(|| agreed("gatewayRanges"))
            .unwrap_or_else(|| json!([]));
        let link = json!({
            "apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterLink",
            "metadata": {"name": read_id, "namespace": self.root_namespace},
            "spec": {
                "accepted": true,
                "import": {"namespaces": namespaces, "gatewayRanges": ranges},
                "secret": {"namespace": self.root_namespace, "name": secret_name},
            },
        });
        if self.dry_run {
            println!("# in {} ({read_id}): who may read, and what", read.operator.context);
            print_objects(&credential::reader_objects(&self.root_namespace, &account))?;
            println!(
                "# in {} ({reader_id}): Secret {secret_name} with a token, and",
                reader.operator.context
            );
            print_objects(&[link])?;
            return Ok(());
        }
        let ready = standing
            .as_ref()
            .map(conditions)
            .unwrap_or_default()
            .get("Ready")
            .is_some_and(|c| c.status == "True");
        let secrets = reader.operator.remote_secrets(&self.root_namespace).await?;
        // A credential that was revoked (`unlink` while the reader was dead) shows as Ready until
        // the reader tries it.
        let bound = credential::binding_name(&account);
        let valid =
            read.operator.read("v1", "Secret", Some(&self.root_namespace), &bound).await?.is_some();
        let kept = ready
            && valid
            && !self.renew
            && secrets.iter().any(|secret| secret.metadata.name.as_deref() == Some(&secret_name));
        read.operator.apply(&credential::reader_objects(&self.root_namespace, &account)).await?;
        if kept {
            fact("credential", &format!("{reader_id} reads {read_id}: kept, it works"));
        } else {
            let lifetime = Duration::from_secs(u64::from(self.hours) * 3600);
            let minted =
                read.operator.mint(&self.root_namespace, &account, false, lifetime).await?;
            let secret = read.operator.remote_secret(
                read_id,
                &secret_name,
                &self.root_namespace,
                Some(&server),
                None,
                &minted,
            );
            reader.operator.apply(&[secret.object()]).await?;
            fact(
                "credential",
                &format!("{reader_id} reads {read_id} at {server} until {}", minted.expires),
            );
        }
        for right in credential::MAY_READ {
            fact("", &format!("may {right}"));
        }
        reader.operator.apply(&[link]).await
    }

    async fn standing(&self, reader: &End, link: &str) -> Result<Option<Value>> {
        let namespace = Some(self.root_namespace.as_str());
        reader.operator.read("isthmus.dev/v1alpha1", "ClusterLink", namespace, link).await
    }

    async fn conditions(&self, reader: &End, link: &str) -> Result<BTreeMap<String, Condition>> {
        let link = self.standing(reader, link).await?;
        Ok(link.map(|link| conditions(&link)).unwrap_or_default())
    }

    /// The probe from inside: `reader`'s own controller says that it reaches `read`.
    async fn wait_ready(&self, reader: &End, read: &End, deadline: Instant) -> Result<()> {
        let (from, to) = (&reader.described.cluster, &read.described.cluster);
        let started = Instant::now();
        loop {
            let conditions = self.conditions(reader, to).await?;
            if conditions.get("Ready").is_some_and(|condition| condition.status == "True") {
                let took = started.elapsed().as_millis();
                fact(
                    "from inside",
                    &format!("{from} controller -> {to}: reached, synced, trusted ({took} ms)"),
                );
                return Ok(());
            }
            if let Some(differ) = conditions.get("TrustEstablished").filter(|c| c.status == "False")
            {
                bail!("ISM2013 {from} -> {to}: {} {}", differ.reason, differ.message);
            }
            if Instant::now() >= deadline {
                let mut said: Vec<String> = conditions
                    .iter()
                    .filter(|(_, condition)| condition.status != "True")
                    .map(|(name, c)| format!("{name}={} {}: {}", c.status, c.reason, c.message))
                    .collect();
                if said.is_empty() {
                    said.push(format!(
                        "the federation controller of {from} has said nothing about it; is it running?"
                    ));
                }
                bail!(
                    "ISM2014 {from} does not reach {to} after {} s: {}. The link stays and is tried on; \
                     `isthmus status --context {}` shows it",
                    self.wait,
                    said.join("; "),
                    reader.operator.context
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn check_pair(a: &End, b: &End) -> Result<()> {
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
        &format!(
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
    fact("roots", &format!("{} {}", da.cluster, ra));
    fact("", &format!("{} {}", db.cluster, rb));
    ensure!(
        ra == rb,
        "ISM2013 {} and {} trust different roots, so no workload of one would believe the other. Fix: \
         issue both intermediates from one root (`isthmus trust issue`)",
        da.cluster,
        db.cluster
    );
    if da.trust_domain == db.trust_domain {
        fact(
            "trust",
            &format!(
                "one trust domain {}: either may sign for the other's workloads",
                da.trust_domain
            ),
        );
    } else {
        fact("trust", &format!("{} and {}, one root", da.trust_domain, db.trust_domain));
    }
    Ok(())
}

/// A condition of a ClusterLink.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) since: String,
}

pub(crate) fn conditions(link: &Value) -> BTreeMap<String, Condition> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    link["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            let condition = Condition {
                status: text(&c["status"]),
                reason: text(&c["reason"]),
                message: text(&c["message"]),
                since: text(&c["lastTransitionTime"]),
            };
            (text(&c["type"]), condition)
        })
        .collect()
}

fn print_objects(objects: &[Value]) -> Result<()> {
    for object in objects {
        output::value(output::Format::Yaml, object)?;
        println!("---");
    }
    Ok(())
}

impl Unlink {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let a = Operator::load(self.kubeconfig.as_deref(), Some(&self.a)).await?;
        let a_id = a.describe(&self.root_namespace).await?.cluster;
        // The peer may be dead, or not even in the kubeconfig any more: neither may stop us.
        let peer = match Operator::load(self.kubeconfig.as_deref(), Some(&self.b)).await {
            Ok(b) => match b.describe(&self.root_namespace).await {
                Ok(described) => Ok((b, described.cluster)),
                Err(e) => Err(e),
            },
            Err(e) => Err(e),
        };
        let b_id = match &peer {
            Ok((_, id)) => id.clone(),
            Err(_) => self.dead_peer(&a).await?,
        };
        self.forget(&a, &b_id).await?;
        let revoke = |id: &str| {
            let account = Account {
                namespace: self.root_namespace.clone(),
                name: format!("isthmus-reader-{id}"),
            };
            let mut objects = credential::reader_objects(&self.root_namespace, &account);
            objects.reverse();
            objects
        };
        self.delete(&a, &a_id, &revoke(&b_id)).await?;
        match peer {
            Ok((b, _)) => {
                self.forget(&b, &a_id).await?;
                self.delete(&b, &b_id, &revoke(&a_id)).await?;
            }
            Err(e) => {
                println!("  {b_id} did not answer, so what it holds stays there:");
                println!("    {e}");
                println!(
                    "    its credential for {a_id} is revoked; when it is back: isthmus unlink {} {a_id}",
                    self.b
                );
            }
        }
        println!("{}", if self.dry_run { "nothing was changed." } else { "unlinked." });
        Ok(ExitCode::SUCCESS)
    }

    /// The id of a peer that does not answer: the argument itself, or the link whose name it is.
    async fn dead_peer(&self, a: &Operator) -> Result<String> {
        let links =
            a.list("isthmus.dev/v1alpha1", "ClusterLink", Some(&self.root_namespace)).await?;
        let names: Vec<&str> =
            links.iter().filter_map(|link| link["metadata"]["name"].as_str()).collect();
        if names.contains(&self.b.as_str()) {
            return Ok(self.b.clone());
        }
        bail!(
            "ISM2016 {:?} does not answer and {} has no link of that name; it has: {}. Fix: give the \
             cluster id",
            self.b,
            self.a,
            names.join(", ")
        )
    }

    async fn forget(&self, holder: &Operator, peer: &str) -> Result<()> {
        let namespace = &self.root_namespace;
        let mut objects = vec![
            json!({"apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterLink", "metadata": {"name": peer, "namespace": namespace}}),
        ];
        for secret in holder.remote_secrets(namespace).await? {
            let annotations = secret.metadata.annotations.unwrap_or_default();
            let name = secret.metadata.name.unwrap_or_default();
            if annotations.get("networking.istio.io/cluster").map(String::as_str) == Some(peer) {
                objects.insert(0, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}}));
            }
        }
        self.delete(holder, &holder.context.clone(), &objects).await
    }

    async fn delete(&self, holder: &Operator, name: &str, objects: &[Value]) -> Result<()> {
        if self.dry_run {
            for object in objects {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                fact(
                    name,
                    &format!(
                        "would delete {} {}",
                        text(&object["kind"]),
                        text(&object["metadata"]["name"])
                    ),
                );
            }
            return Ok(());
        }
        for deleted in holder.delete(objects).await? {
            fact(name, &format!("deleted {deleted}"));
        }
        Ok(())
    }
}

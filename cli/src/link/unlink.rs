//! `isthmus unlink A B`: takes a link down, also while the peer is dead.

use super::fact;
use crate::bad_call::{bad_call, no_context};
use anyhow::{Result, bail};
use clap::Args;
use cluster::api::GROUP_VERSION;
use cluster::credential::{self, Account};
use cluster::operator::Operator;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Unlink {
    /// Context of the cluster that forgets.
    a: String,
    /// Context of the other, or its cluster id where it is dead.
    b: String,
    /// Kubeconfig file with the contexts; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Isthmus' namespace in both clusters.
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    /// Print what would be deleted; change nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A cluster of itself: there is no such link.
fn with_itself(name: &str) -> anyhow::Error {
    bad_call(format!("ISM2012 {name:?} has no link with itself. Fix: name two clusters"))
}

/// The id of a peer that does not answer: the argument itself, where a link of `a` has that name.
fn dead_peer(a: &str, links: &[&str], peer: &str, silent: &anyhow::Error) -> Result<String> {
    if links.contains(&peer) {
        return Ok(peer.to_owned());
    }
    let links = if links.is_empty() { "none".to_owned() } else { links.join(", ") };
    if no_context(silent) {
        return Err(bad_call(format!("{silent}, or the cluster id of a link of {a}: {links}")));
    }
    bail!(
        "ISM2016 {peer:?} does not answer and {a} has no link of that name; it has: {links}. Fix: give the \
         cluster id"
    )
}

/// The last line.
fn ending(a: &str, b: &str, found: usize, dry_run: bool) -> String {
    match (found, dry_run) {
        (0, true) => format!("there is no link between {a} and {b}; nothing was changed."),
        (0, false) => format!("there was no link between {a} and {b}; nothing was changed."),
        (_, true) => "nothing was changed.".into(),
        (_, false) => "unlinked.".into(),
    }
}

impl Unlink {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        if self.a == self.b {
            return Err(with_itself(&self.a));
        }
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
            Err(silent) => {
                let links =
                    a.list(GROUP_VERSION, "ClusterLink", Some(&self.root_namespace)).await?;
                let names: Vec<&str> =
                    links.iter().filter_map(|link| link["metadata"]["name"].as_str()).collect();
                dead_peer(&self.a, &names, &self.b, silent)?
            }
        };
        if a_id == b_id {
            return Err(with_itself(&self.b));
        }
        let mut found = self.forget(&a, &b_id).await?;
        let revoke = |id: &str| {
            let account = Account {
                namespace: self.root_namespace.clone(),
                name: format!("isthmus-reader-{id}"),
            };
            let mut objects = credential::reader_objects(&self.root_namespace, &account);
            objects.reverse();
            objects
        };
        found += self.delete(&a, &a_id, &revoke(&b_id)).await?;
        match peer {
            Ok((b, _)) => {
                found += self.forget(&b, &a_id).await?;
                found += self.delete(&b, &b_id, &revoke(&a_id)).await?;
            }
            Err(e) => {
                let (why, is) = (
                    if no_context(&e) { "was not asked" } else { "did not answer" },
                    if self.dry_run { "would be" } else { "is" },
                );
                say!("  {b_id} {why}, so what it holds stays there:");
                say!("    {e}");
                say!(
                    "    its credential for {a_id} {is} revoked; when it is back: isthmus unlink {} {a_id}",
                    self.b
                );
            }
        }
        say!("{}", ending(&a_id, &b_id, found, self.dry_run));
        Ok(ExitCode::SUCCESS)
    }

    /// How many objects were there.
    async fn forget(&self, holder: &Operator, peer: &str) -> Result<usize> {
        let namespace = &self.root_namespace;
        let mut objects = vec![
            json!({"apiVersion": GROUP_VERSION, "kind": "ClusterLink", "metadata": {"name": peer, "namespace": namespace}}),
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

    /// How many of them were there.
    async fn delete(&self, holder: &Operator, name: &str, objects: &[Value]) -> Result<usize> {
        if self.dry_run {
            let mut found = 0;
            for object in objects {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let (kind, object_name) =
                    (text(&object["kind"]), text(&object["metadata"]["name"]));
                let namespace = object["metadata"]["namespace"].as_str();
                let version = text(&object["apiVersion"]);
                if holder.read(&version, &kind, namespace, &object_name).await?.is_some() {
                    fact(name, &format!("would delete {kind} {object_name}"));
                    found += 1;
                }
            }
            return Ok(found);
        }
        let deleted = holder.delete(objects).await?;
        for object in &deleted {
            fact(name, &format!("deleted {object}"));
        }
        Ok(deleted.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bad_call::is_bad_call;
    use anyhow::anyhow;
    use cluster::operator::NoSuchContext;

    #[test]
    fn the_last_line_is_true() {
        assert_eq!(ending("east", "west", 9, false), "unlinked.");
        assert_eq!(ending("east", "west", 9, true), "nothing was changed.");
        assert!(ending("west", "north", 0, false).contains("was no link between west and north"));
        assert!(ending("west", "north", 0, true).contains("is no link between west and north"));
    }

    #[test]
    fn a_mistyped_context_is_not_a_dead_cluster() {
        let silent = anyhow!("ISM2005 reading Namespace kube-system failed");
        assert_eq!(dead_peer("east", &["west"], "west", &silent).unwrap(), "west");
        let error = dead_peer("east", &["west"], "wets", &silent).unwrap_err();
        assert!(!is_bad_call(&error) && error.to_string().contains("ISM2016"), "{error}");
        let absent = NoSuchContext { name: "wets".into(), known: "east, west".into() }.into();
        assert_eq!(dead_peer("east", &["west"], "west", &absent).unwrap(), "west");
        let error = dead_peer("east", &["north"], "wets", &absent).unwrap_err();
        let said = error.to_string();
        assert!(is_bad_call(&error) && said.starts_with("ISM2002"), "{said}");
        assert!(said.contains("of a link of east: north") && !said.contains("answer"), "{said}");
    }
}

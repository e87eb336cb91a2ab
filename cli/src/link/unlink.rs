//! `isthmus unlink A B`: takes a link down, also while the peer is dead.

use super::fact;
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
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    /// Print what would be deleted; change nothing.
    #[arg(long)]
    dry_run: bool,
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
                say!("  {b_id} did not answer, so what it holds stays there:");
                say!("    {e}");
                say!(
                    "    its credential for {a_id} is revoked; when it is back: isthmus unlink {} {a_id}",
                    self.b
                );
            }
        }
        say!("{}", if self.dry_run { "nothing was changed." } else { "unlinked." });
        Ok(ExitCode::SUCCESS)
    }

    /// The id of a peer that does not answer: the argument itself, or the link whose name it is.
    async fn dead_peer(&self, a: &Operator) -> Result<String> {
        let links = a.list(GROUP_VERSION, "ClusterLink", Some(&self.root_namespace)).await?;
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

//! `isthmus dns patch` and `isthmus dns unpatch`: pods without a sidecar ask the cluster's DNS, and
//! that asks the federation controller for the mesh's names.

mod corefile;

use crate::install::Manifests;
use crate::link::fact;
use crate::output::{self, Format};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use cluster::operator::Operator;
use cluster::operator::bring::Mode;
use mesh::export::ROOT_NAMESPACE;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::process::ExitCode;

/// Where every usual installer puts CoreDNS' configuration.
const NAMESPACE: &str = "kube-system";
const CONFIG_MAP: &str = "coredns";
const KEY: &str = "Corefile";
/// The controller's Service, as `deploy/base` names it.
const SERVICE: &str = "isthmus-dns";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Let CoreDNS forward `global` and `clusterset.local` to Isthmus; done again, it changes nothing.
    Patch(Call),
    /// Take out of CoreDNS' configuration what `patch` wrote there.
    Unpatch(Call),
}

#[derive(Debug, Args)]
pub(crate) struct Call {
    #[command(flatten)]
    targets: crate::Targets,
    /// Print the difference as the API server judges it; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the ConfigMap as it would be; change nothing.
    #[arg(short, long, value_enum)]
    output: Option<Manifests>,
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Patch,
    Unpatch,
}

impl Verb {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let (act, call) = match self {
            Self::Patch(call) => (Act::Patch, call),
            Self::Unpatch(call) => (Act::Unpatch, call),
        };
        let mut failed = false;
        for operator in call.targets.load().await? {
            if let Err(error) = call.one(act, &operator).await {
                output::error(&error.context(format!("in {}", operator.context)));
                failed = true;
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

impl Call {
    async fn one(&self, act: Act, operator: &Operator) -> Result<()> {
        let Some(map) = read(operator).await? else {
            ensure!(act == Act::Unpatch, no_config_map());
            fact(&operator.context, "there is no ConfigMap kube-system/coredns: nothing to undo");
            return Ok(());
        };
        let before = corefile_of(&map)?;
        let after = match act {
            Act::Patch => corefile::patch(before, &servers(operator).await?)?,
            Act::Unpatch => corefile::unpatch(before)?,
        };
        if self.output == Some(Manifests::Yaml) {
            say!("---\n# {}", operator.context);
            return output::value(Format::Yaml, &manifest(&map, &after));
        }
        if before == after {
            fact(&operator.context, "CoreDNS is configured so already; nothing was changed");
            return Ok(());
        }
        fact(&operator.context, &format!("ConfigMap {NAMESPACE}/{CONFIG_MAP}, data.{KEY}:"));
        put!("{}", difference(before, &after));
        if let Some(owner) = owner(&map) {
            fact(
                &operator.context,
                &format!(
                    "! {owner} writes this ConfigMap too and may take the change back. Fix: if it does, \
                     put the block into ConfigMap {NAMESPACE}/coredns-custom, key isthmus.server"
                ),
            );
        }
        let mode = if self.dry_run { Mode::DryRun } else { Mode::Apply };
        operator.amend(&map, &json!({"data": {KEY: after}}), mode).await?;
        if self.dry_run {
            fact(&operator.context, "nothing was changed");
        } else if corefile::reloads(&after) {
            fact(&operator.context, "written; CoreDNS reads it within two minutes");
        } else {
            fact(
                &operator.context,
                &format!(
                    "written; its Corefile has no `reload`, so restart CoreDNS: kubectl --context {} -n \
                     {NAMESPACE} rollout restart deployment/coredns",
                    operator.context
                ),
            );
        }
        Ok(())
    }
}

/// Whether CoreDNS' configuration has our block, or part of it.
pub(crate) async fn is_patched(operator: &Operator) -> Result<bool> {
    let Some(map) = read(operator).await? else { return Ok(false) };
    let Some(text) = map["data"][KEY].as_str() else { return Ok(false) };
    Ok(corefile::unpatch(text).as_deref() != Ok(text))
}

/// Takes our block out; what has none stays as it is.
pub(crate) async fn unpatch(operator: &Operator) -> Result<()> {
    let Some(map) = read(operator).await? else { return Ok(()) };
    let Some(text) = map["data"][KEY].as_str() else { return Ok(()) };
    let after = corefile::unpatch(text)?;
    if after != text {
        operator.amend(&map, &json!({"data": {KEY: after}}), Mode::Apply).await?;
    }
    Ok(())
}

async fn read(operator: &Operator) -> Result<Option<Value>> {
    operator.read("v1", "ConfigMap", Some(NAMESPACE), CONFIG_MAP).await
}

fn no_config_map() -> String {
    format!(
        "ISM2083 there is no ConfigMap {NAMESPACE}/{CONFIG_MAP}, so this cluster's DNS is not CoreDNS as \
         the usual installers set it up. Fix: let your DNS server forward the domains {} to the address \
         of Service {ROOT_NAMESPACE}/{SERVICE}",
        corefile::ZONES.join(" and ")
    )
}

fn corefile_of(map: &Value) -> Result<&str> {
    map["data"][KEY].as_str().with_context(|| {
        let keys = map["data"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        let keys = keys.collect::<Vec<_>>().join(", ");
        let keys = if keys.is_empty() { "none" } else { &keys };
        format!(
            "ISM2084 ConfigMap {NAMESPACE}/{CONFIG_MAP} has no key {KEY} (its keys: {keys}). Fix: add the \
             block that `isthmus dns patch -o yaml` prints elsewhere to the file that CoreDNS reads"
        )
    })
}

/// Where the controller's DNS is; a Service keeps its address as long as it lives.
async fn servers(operator: &Operator) -> Result<Vec<IpAddr>> {
    let service = operator.service(ROOT_NAMESPACE, SERVICE).await?;
    let Some(service) = service else {
        bail!(
            "ISM2087 there is no Service {ROOT_NAMESPACE}/{SERVICE} to forward to. \
             Fix: isthmus install --context {}",
            operator.context
        );
    };
    let spec = service.spec.unwrap_or_default();
    let all = spec.cluster_ips.unwrap_or_default().into_iter().chain(spec.cluster_ip);
    let mut servers: Vec<IpAddr> = vec![];
    for address in all.filter_map(|text| text.parse().ok()) {
        if !servers.contains(&address) {
            servers.push(address);
        }
    }
    ensure!(
        !servers.is_empty(),
        "ISM2087 Service {ROOT_NAMESPACE}/{SERVICE} has no cluster IP, and CoreDNS forwards to addresses \
         alone. Fix: make it anew without clusterIP: None"
    );
    Ok(servers)
}

/// Who else writes it, where that can be told: k3s and AKS put back what they shipped.
fn owner(map: &Value) -> Option<&'static str> {
    let metadata = &map["metadata"];
    if metadata["annotations"]["objectset.rio.cattle.io/id"].is_string() {
        return Some("k3s");
    }
    let mode = &metadata["labels"]["addonmanager.kubernetes.io/mode"];
    (mode == "Reconcile").then_some("the cluster's addon manager")
}

/// The whole ConfigMap, without what the API server notes.
fn manifest(map: &Value, corefile: &str) -> Value {
    let metadata = &map["metadata"];
    let mut object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "data": map["data"],
    });
    if metadata["labels"].is_object() {
        object["metadata"]["labels"] = metadata["labels"].clone();
    }
    object["data"][KEY] = json!(corefile);
    object
}

/// Lines around what differs that are shown with it.
const AROUND: usize = 3;

/// One change of a text, as `diff -u` writes it. There is only one: our block stands in one place.
fn difference(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let (old_rest, new_rest) = (&old[same..], &new[same..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let (gone, come) = (&old_rest[..old_rest.len() - tail], &new_rest[..new_rest.len() - tail]);
    let above = &old[same.saturating_sub(AROUND)..same];
    let below = &old[old.len() - tail..][..tail.min(AROUND)];
    let mut text = String::new();
    for (mark, lines) in [(' ', above), ('-', gone), ('+', come), (' ', below)] {
        for line in lines {
            text.push_str(format!("    {mark} {line}").trim_end());
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_changes_and_what_is_around() {
        let shown = difference("a\nb\nc\nd\ne\nf\ng\n", "a\nb\nc\nd\nX\nf\ng\n");
        assert_eq!(shown, "      b\n      c\n      d\n    - e\n    + X\n      f\n      g\n");
        assert_eq!(difference("b\n", "a\nb\n"), "    + a\n      b\n");
        assert_eq!(difference("a\na\n", "a\n"), "      a\n    - a\n");
        assert_eq!(difference("", "a"), "    + a\n");
    }

    #[test]
    fn a_config_map_without_a_corefile_names_its_keys() {
        let map = json!({"data": {"corefile": "x", "other": "y"}});
        let error = corefile_of(&map).unwrap_err().to_string();
        assert!(error.starts_with("ISM2084") && error.contains("corefile, other"), "{error}");
        assert!(corefile_of(&json!({})).unwrap_err().to_string().contains("(its keys: none)"));
    }

    #[test]
    fn who_puts_its_own_back_is_named() {
        let of = |metadata: Value| owner(&json!({"metadata": metadata}));
        assert_eq!(of(json!({"annotations": {"objectset.rio.cattle.io/id": ""}})), Some("k3s"));
        let aks = json!({"labels": {"addonmanager.kubernetes.io/mode": "Reconcile"}});
        assert!(of(aks).is_some());
        let kind = json!({"labels": {"k8s-app": "kube-dns"}});
        assert_eq!(of(kind), None);
    }

    #[test]
    fn a_manifest_keeps_the_other_keys() {
        let map = json!({
            "metadata": {"name": "coredns", "namespace": "kube-system", "resourceVersion": "7"},
            "data": {"Corefile": "old", "root.zone": "."},
        });
        let object = manifest(&map, "new");
        assert_eq!(object["data"], json!({"Corefile": "new", "root.zone": "."}));
        assert_eq!(object["metadata"], json!({"name": "coredns", "namespace": "kube-system"}));
    }
}

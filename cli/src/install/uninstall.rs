//! `isthmus uninstall`: everything of Isthmus out of clusters. What users wrote stays, but for the objects
//! of our own kinds.

use super::manifest::{self, PART_OF};
use crate::dns;
use crate::link::fact;
use crate::output;
use anyhow::{Result, bail, ensure};
use clap::Args;
use cluster::operator::Operator;
use mesh::export::ROOT_NAMESPACE;
use serde_json::{Value, json};
use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    #[command(flatten)]
    targets: crate::Targets,
    /// Print what would be deleted; delete nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// How long to wait until all of it is gone, seconds.
    #[arg(long, default_value_t = 120)]
    wait: u64,
}

/// Kinds that we write outside of our own namespaces, and the label by which ours are told.
const WRITTEN: [(&str, &str, &str); 6] = [
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", INSTALLED),
    ("networking.istio.io/v1", "ServiceEntry", FEDERATED),
    ("gateway.networking.k8s.io/v1", "Gateway", FEDERATED),
    ("multicluster.x-k8s.io/v1beta1", "ServiceImport", FEDERATED),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", INSTALLED),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", INSTALLED),
];
const CONTROLLER: &str = "isthmus-federation-controller";
const INSTALLED: &str = "app.kubernetes.io/part-of=isthmus";
const FEDERATED: &str = "app.kubernetes.io/managed-by=isthmus-federation";

impl Uninstall {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let operators = self.targets.load().await?;
        let finds = operators.iter().map(find);
        let found: Vec<Vec<Value>> = futures::future::try_join_all(finds).await?;
        let mut patched = false;
        for (operator, objects) in operators.iter().zip(&found) {
            for object in objects {
                fact(&operator.context, &format!("delete {}", title(object)));
            }
            if dns::is_patched(operator).await? {
                patched = true;
                fact(&operator.context, "take our block out of ConfigMap kube-system/coredns");
            }
        }
        if !patched && found.iter().all(Vec::is_empty) {
            say!("nothing of Isthmus is there.");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            say!("nothing was changed.");
            return Ok(ExitCode::SUCCESS);
        }
        if !self.yes && !agreed()? {
            say!("nothing was changed.");
            return Ok(ExitCode::FAILURE);
        }
        let work = operators.iter().map(async |operator| {
            let begun = Instant::now();
            let tell = |what: &str| {
                let took = begun.elapsed().as_secs_f64();
                fact(&operator.context, &format!("{what} after {took:.0} s"));
            };
            // Before its Service goes: CoreDNS would answer SERVFAIL for our names.
            dns::unpatch(operator).await?;
            // What it finds deleted it would write again.
            self.ended(operator, &format!("app={CONTROLLER}")).await?;
            tell("federation controller ended");
            let objects = find(operator).await?;
            // A webhook without its program would hold up every pod that is made.
            let (kinds, others): (Vec<_>, Vec<_>) =
                objects.iter().cloned().partition(|it| it["kind"] == "CustomResourceDefinition");
            let (namespaces, others): (Vec<_>, Vec<_>) =
                others.into_iter().partition(|it| it["kind"] == "Namespace");
            operator.delete(&others).await?;
            // Kubernetes waits for pods of a namespace by half of their grace at a time, and gateways
            // have 45 s of it: an empty namespace goes at once.
            self.ended(operator, "").await?;
            tell("every pod of the mesh ended");
            operator.delete(&namespaces).await?;
            self.until_gone(operator, &namespaces).await?;
            tell("namespaces gone");
            operator.delete(&kinds).await?;
            self.until_gone(operator, &objects).await
        });
        let mut whole = true;
        for (operator, end) in operators.iter().zip(futures::future::join_all(work).await) {
            let text = match &end {
                Ok(()) => "everything is gone".to_owned(),
                Err(error) => format!("× {error:#}"),
            };
            say!("{}", output::paragraph(&format!("  {} ", operator.context), 15, &text));
            whole &= end.is_ok();
        }
        say!(
            "pods keep their sidecars until they are made anew: kubectl rollout restart deployment -n \
             NAMESPACE"
        );
        Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Ends Deployments of our namespace and waits for the end of their pods.
    async fn ended(&self, operator: &Operator, selector: &str) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(self.wait);
        loop {
            let left = operator.end_deployments(ROOT_NAMESPACE, selector).await?;
            if left == 0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < until,
                "ISM2080 {left} pods in namespace {ROOT_NAMESPACE} still run after {} s. Fix: see what \
                 holds them (`kubectl --context {} -n {ROOT_NAMESPACE} get pods`), then call this again",
                self.wait,
                operator.context
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Namespaces end only when all in them has ended.
    async fn until_gone(&self, operator: &Operator, objects: &[Value]) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(self.wait);
        for object in objects {
            let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
            let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
            loop {
                if operator.is_gone(object).await? {
                    break;
                }
                ensure!(
                    Instant::now() < until,
                    "ISM2080 {} is still there after {} s. Fix: see what holds it (`kubectl --context \
                     {} get {kind} {name} -o yaml`: status, metadata.finalizers), then call this again",
                    title(object),
                    self.wait,
                    operator.context
                );
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        Ok(())
    }
}

fn title(object: &Value) -> String {
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let namespace = object["metadata"]["namespace"].as_str();
    let namespace = namespace.map(|it| format!("{it}/")).unwrap_or_default();
    format!("{} {namespace}{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// Everything of ours, in the order in which it has to go.
async fn find(operator: &Operator) -> Result<Vec<Value>> {
    let mut found = vec![];
    for (api_version, kind, selector) in WRITTEN {
        found.extend(named(operator, api_version, kind, selector).await?);
    }
    for kind in ["RoleBinding", "Role"] {
        let api = "rbac.authorization.k8s.io/v1";
        for object in named(operator, api, kind, INSTALLED).await? {
            let namespace = &object["metadata"]["namespace"];
            // Others go with their namespaces.
            if namespace != ROOT_NAMESPACE && namespace != cluster::secret::NAMESPACE {
                found.push(object);
            }
        }
    }
    for name in [ROOT_NAMESPACE, cluster::secret::NAMESPACE] {
        if operator.read("v1", "Namespace", None, name).await?.is_some() {
            found.push(reference("v1", "Namespace", None, name));
        }
    }
    found.extend(definitions(operator).await?);
    Ok(found)
}

/// Our own kinds, and those of others that we brought and of which nobody has an object.
async fn definitions(operator: &Operator) -> Result<Vec<Value>> {
    const CRD: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let mut found = named(operator, CRD.0, CRD.1, INSTALLED).await?;
    let ours: Vec<Value> =
        manifest::prerequisites()?.into_iter().map(|crd| crd["metadata"]["name"].clone()).collect();
    for name in ours.iter().filter_map(Value::as_str) {
        let Some(crd) = operator.read(CRD.0, CRD.1, None, name).await? else { continue };
        if crd["metadata"]["labels"][PART_OF.0] != PART_OF.1 {
            continue;
        }
        let group = crd["spec"]["group"].as_str().unwrap_or_default();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default();
        let versions = crd["spec"]["versions"].as_array().into_iter().flatten();
        let served = versions.filter(|it| it["storage"] == true).find_map(|it| it["name"].as_str());
        let Some(version) = served else { continue };
        let api_version = format!("{group}/{version}");
        let left = operator.list(&api_version, kind, None).await?;
        let users = left.iter().find(|object| {
            let labels = &object["metadata"]["labels"];
            labels["app.kubernetes.io/managed-by"] != "isthmus-federation"
                && object["metadata"]["namespace"] != ROOT_NAMESPACE
        });
        if let Some(kept) = users {
            found.retain(|it: &Value| it["metadata"]["name"] != name);
            let of = title(&reference_of(&api_version, kind, kept));
            fact(
                &operator.context,
                &format!("keep CustomResourceDefinition {name}: {of} is yours"),
            );
        }
    }
    Ok(found)
}

/// Objects of a kind with a label, by their names alone.
async fn named(
    operator: &Operator,
    api_version: &str,
    kind: &str,
    selector: &str,
) -> Result<Vec<Value>> {
    let listed = operator.labelled(api_version, kind, selector).await?;
    Ok(listed.iter().map(|object| reference_of(api_version, kind, object)).collect())
}

fn reference_of(api_version: &str, kind: &str, object: &Value) -> Value {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    reference(api_version, kind, object["metadata"]["namespace"].as_str(), name)
}

fn reference(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object
}

fn agreed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("ISM2081 there is no terminal to ask at. Fix: pass --yes");
    }
    put!("delete all of this? [y/N] ");
    crate::output::flush();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

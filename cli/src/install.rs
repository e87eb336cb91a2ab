//! `isthmus install` and `isthmus uninstall`: Isthmus into clusters and out again. The same manifests as
//! `deploy/base`; done again, it changes nothing.

mod authority;
mod manifest;
mod site;
mod uninstall;

use crate::bad_call::bad_call;
use crate::link::{fact, of_context};
use crate::output;
use anyhow::{Result, ensure};
use authority::Root;
use clap::Args;
use cluster::operator::Operator;
use cluster::operator::bring::{Change, Mode};
use mesh::export::ROOT_NAMESPACE;
use serde_json::Value;
use site::Site;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
pub(crate) use uninstall::Uninstall;

#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Contexts to install into, all at once; may be given several times. Else the current one.
    #[arg(long, value_name = "NAME")]
    context: Vec<String>,
    /// Kubeconfig file; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A cluster's id: CONTEXT=ID. If not given, what its ConfigMap isthmus-mesh says, else the
    /// context's name.
    #[arg(long, value_name = "CONTEXT=ID", value_parser = named)]
    name: Vec<(String, String)>,
    /// A cluster's network: CONTEXT=NETWORK. Clusters whose pods reach each other share one. If not
    /// given, what its ConfigMap isthmus-mesh says, else the cluster's id.
    #[arg(long, value_name = "CONTEXT=NETWORK", value_parser = named)]
    network: Vec<(String, String)>,
    /// Folder that `isthmus trust init` filled: signs each cluster's intermediate. Not needed where
    /// Secret cacerts stands.
    #[arg(long, value_name = "DIR")]
    trust_dir: Option<PathBuf>,
    /// File with the root key's passphrase; asked for at the terminal if not given.
    #[arg(long, value_name = "FILE", requires = "trust_dir")]
    passphrase_file: Option<PathBuf>,
    /// Where images come from: REGISTRY/control-plane:TAG and so on.
    #[arg(long, default_value = "isthmus")]
    registry: String,
    /// Tag of the images.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Print what would change, as each API server judges it; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print the manifests of each cluster instead of applying them; the signing key is left out.
    #[arg(short, long, value_enum)]
    output: Option<Manifests>,
    /// How long to wait until everything runs, seconds; 0: not at all.
    #[arg(long, default_value_t = 180)]
    wait: u64,
}

/// How manifests are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Manifests {
    Yaml,
}

fn named(text: &str) -> Result<(String, String), String> {
    of_context(text, "CONTEXT=NAME")
}

/// What runs in every cluster, as Deployments of the root namespace.
const DEPLOYMENTS: [&str; 3] =
    ["isthmus-control-plane", "isthmus-federation-controller", "isthmus-eastwestgateway"];

impl Install {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let contexts = self.contexts()?;
        let loads = contexts.iter().map(async |context| {
            let operator = Operator::load(self.kubeconfig.as_deref(), *context).await?;
            Site::look(operator, &self.name, &self.network).await
        });
        let sites: Vec<Site> = futures::future::try_join_all(loads).await?;
        site::distinct(&sites)?;
        if self.output == Some(Manifests::Yaml) {
            return self.print(&sites);
        }
        // Asked for once, and only where a key is needed.
        let root = Root::open(&sites, self.trust_dir.as_deref(), self.passphrase_file.as_deref())?;
        let mode = if self.dry_run { Mode::DryRun } else { Mode::Apply };
        let work = sites.iter().map(async |site| (site, self.install(site, &root, mode).await));
        let mut failed = 0;
        for (site, outcome) in futures::future::join_all(work).await {
            match outcome {
                Ok(()) => {}
                Err(error) => {
                    failed += 1;
                    let text = format!("× {error:#}");
                    say!("{}", output::paragraph(&format!("  {} ", site.name()), 15, &text));
                }
            }
        }
        let many = |number: usize| output::count(number.try_into().unwrap_or(u32::MAX), "cluster");
        if failed > 0 {
            say!("{} of {} failed.", failed, many(sites.len()));
            return Ok(ExitCode::FAILURE);
        }
        if self.dry_run {
            say!("nothing was changed.");
        } else if let [one, other, ..] = sites.as_slice() {
            let (a, b) = (&one.operator.context, &other.operator.context);
            say!("installed in {}. next: isthmus link {a} {b}", many(sites.len()));
        } else {
            say!("installed. next: the other clusters, then isthmus link A B");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Every context once; a `--name` or `--network` for another one is a mistake in the call.
    fn contexts(&self) -> Result<Vec<Option<&str>>> {
        let mut contexts: Vec<Option<&str>> = vec![];
        for context in &self.context {
            if !contexts.contains(&Some(context.as_str())) {
                contexts.push(Some(context));
            }
        }
        for (option, given) in [("--name", &self.name), ("--network", &self.network)] {
            for (context, _) in given {
                if !self.context.contains(context) {
                    return Err(bad_call(format!(
                        "ISM2071 {option} names context {context:?}, which is not installed into. \
                         Fix: add --context {context}, or correct the name"
                    )));
                }
            }
        }
        if contexts.is_empty() {
            contexts.push(None);
        }
        Ok(contexts)
    }

    fn objects(&self, site: &Site, root_pem: &str) -> Result<Vec<Value>> {
        manifest::objects(&manifest::Settings {
            cluster: &site.cluster,
            network: &site.network,
            trust_domain: &site.trust_domain,
            root_pem,
            registry: &self.registry,
            tag: &self.tag,
        })
    }

    fn print(&self, sites: &[Site]) -> Result<ExitCode> {
        for site in sites {
            say!("# {} ({})", site.operator.context, site.cluster);
            let root = authority::root_pem(site, self.trust_dir.as_deref())?;
            for object in manifest::prerequisites()?.iter().chain(&self.objects(site, &root)?) {
                say!("---");
                output::value(output::Format::Yaml, object)?;
            }
        }
        note!("Secret isthmus-ca/cacerts is left out: `isthmus trust issue` prints it");
        Ok(ExitCode::SUCCESS)
    }

    /// One cluster, in the order in which each thing needs the one before it.
    async fn install(&self, site: &Site, root: &Root, mode: Mode) -> Result<()> {
        let operator = &site.operator;
        let cacerts = root.cacerts(site)?;
        let mut counts: BTreeMap<Change, u32> = BTreeMap::new();
        let mut noted = |object: &Value, change: Change| {
            *counts.entry(change).or_default() += 1;
            if self.dry_run && change != Change::Unchanged {
                let word = if change == Change::Created { "create" } else { "change" };
                let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
                let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
                let namespace = metadata["namespace"].as_str().map(|it| format!("{it}/"));
                let name = text(&metadata["name"]);
                fact(
                    site.name(),
                    &format!("{word} {kind} {}{name}", namespace.unwrap_or_default()),
                );
            }
        };
        for crd in manifest::prerequisites()? {
            noted(&crd, operator.create_absent(&crd, mode).await?);
        }
        for object in self.objects(site, root.pem(site)?)? {
            noted(&object, operator.bring(&object, mode).await?);
            // The key comes after its namespace and before who reads it.
            if manifest::is_ca_namespace(&object)
                && let Some(secret) = &cacerts
            {
                noted(secret, operator.bring(secret, mode).await?);
            }
        }
        let of = |change| counts.get(&change).copied().unwrap_or_default();
        let [created, changed, same] =
            [Change::Created, Change::Changed, Change::Unchanged].map(of);
        let would = if mode == Mode::DryRun { "would be " } else { "" };
        fact(
            site.name(),
            &format!("objects {would}{created} created, {changed} changed, {same} as they were"),
        );
        if mode == Mode::Apply && self.wait > 0 {
            self.wait_for(site).await?;
        }
        Ok(())
    }

    /// Until every Deployment runs; then where the gateway is.
    async fn wait_for(&self, site: &Site) -> Result<()> {
        let begun = Instant::now();
        let limit = Duration::from_secs(self.wait);
        for name in DEPLOYMENTS {
            let mut said = String::new();
            loop {
                let rollout = site.operator.rollout(ROOT_NAMESPACE, name).await?;
                let waits = match &rollout {
                    Some(rollout) if rollout.done => break,
                    Some(rollout) if rollout.waits.is_empty() => {
                        format!("{} of {} ready", rollout.ready, rollout.wanted)
                    }
                    Some(rollout) => rollout.waits.join("; "),
                    None => "the Deployment is gone".to_owned(),
                };
                ensure!(
                    begun.elapsed() < limit,
                    "ISM2072 Deployment {ROOT_NAMESPACE}/{name} does not run after {} s: {waits}. \
                     Fix: mend that, then install again (`kubectl --context {} -n {ROOT_NAMESPACE} \
                     describe pods` tells more)",
                    self.wait,
                    site.operator.context
                );
                // What is only slow needs no line of its own.
                if waits != said && begun.elapsed() > Duration::from_secs(10) {
                    fact(site.name(), &format!("{name}: {waits}"));
                    said = waits;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            fact(site.name(), &format!("{name} runs after {:.0} s", begun.elapsed().as_secs_f64()));
        }
        match site.gateway_address(limit.saturating_sub(begun.elapsed())).await? {
            Some(address) => fact(site.name(), &format!("gateway at {address}")),
            None => {
                let text = format!(
                    "! ISM2073 Service {ROOT_NAMESPACE}/isthmus-eastwestgateway has no address, so \
                     other clusters cannot reach this one. Fix: see why the load balancer gives none \
                     (`kubectl --context {} -n {ROOT_NAMESPACE} describe svc isthmus-eastwestgateway`), \
                     or set spec.externalIPs",
                    site.operator.context
                );
                say!("{}", output::paragraph(&format!("  {} ", site.name()), 15, &text));
            }
        }
        Ok(())
    }
}

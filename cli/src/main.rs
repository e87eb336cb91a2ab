//! `isthmus`: every question an operator has about the mesh, and every program of it as a verb.

#[macro_use]
mod output;

mod agent;
mod bad_call;
mod check;
mod demo;
mod dns;
mod explain;
mod export;
mod inject;
mod install;
mod link;
mod look;
mod manual;
mod program;
mod proxy;
mod remedy;
mod remote_secret;
mod status;
mod trust;
mod why;

use clap::{Args, Parser, Subcommand};
use cluster::operator::Operator;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;
use tokio::runtime::Runtime;

/// Joins the services of many Kubernetes clusters.
///
/// Exit status: 0 it holds, 1 it failed or something is broken, 2 the words of the call are wrong.
#[derive(Debug, Parser)]
#[command(name = "isthmus", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

/// How a cluster is found, as kubectl does it.
#[derive(Debug, Clone, Args)]
struct Target {
    /// Kubeconfig file; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context in it; else its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl Target {
    async fn load(&self) -> anyhow::Result<Operator> {
        Operator::load(self.kubeconfig.as_deref(), self.context.as_deref()).await
    }
}

/// How several clusters are found.
#[derive(Debug, Clone, Args)]
struct Targets {
    /// Contexts of the clusters; may be given several times. Else the current one.
    #[arg(long, value_name = "NAME")]
    context: Vec<String>,
    /// Kubeconfig file; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

impl Targets {
    /// Each context once, in the order they were named.
    async fn load(&self) -> anyhow::Result<Vec<Operator>> {
        self.load_by(None).await
    }

    /// The same, where no plug-in of the kubeconfig may take longer than `deadline`.
    async fn load_by(&self, deadline: Option<Instant>) -> anyhow::Result<Vec<Operator>> {
        let mut contexts: Vec<Option<&str>> = self.context.iter().map(|it| Some(&**it)).collect();
        if contexts.is_empty() {
            contexts.push(None);
        }
        let mut operators: Vec<Operator> = vec![];
        for context in contexts {
            if operators.iter().all(|known| Some(known.context.as_str()) != context) {
                let kubeconfig = self.kubeconfig.as_deref();
                operators.push(match deadline {
                    Some(deadline) => {
                        let left = deadline.saturating_duration_since(Instant::now());
                        Operator::load_within(kubeconfig, context, left).await?
                    }
                    None => Operator::load(kubeconfig, context).await?,
                });
            }
        }
        Ok(operators)
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// See it work: three clusters on this machine, linked, attacked and hurt under load.
    Demo(demo::Demo),
    /// Make the root of trust and each cluster's intermediate.
    #[command(subcommand)]
    Trust(trust::Verb),
    /// Install Isthmus into clusters; done again, it changes nothing.
    Install(install::Install),
    /// Take Isthmus out of clusters again.
    Uninstall(install::Uninstall),
    /// Print a Secret that lets another cluster read this one's exports (istioctl's shape).
    CreateRemoteSecret(remote_secret::Call),
    /// Link two clusters, both ways; done again, it changes nothing.
    Link(link::Link),
    /// Take a link down, also while the peer is dead.
    Unlink(link::Unlink),
    /// Make a service callable from linked clusters (writes a ServiceExport).
    Export(export::Export),
    /// Take an export back.
    Unexport(export::Call),
    /// Let pods without a sidecar ask the cluster's DNS for the mesh's names.
    #[command(subcommand)]
    Dns(dns::Verb),
    /// Give the pods of a file of manifests their sidecars, exactly as the webhook does.
    Inject(inject::Call),
    /// What is broken first, since when, and whether traffic is hurt.
    Status(status::Call),
    /// What is broken, the cause first, with its fix; `--pre`: what linking still needs.
    Check(check::Call),
    /// Which proxies a control plane serves, and what they accepted or refused.
    ProxyStatus(proxy::StatusCall),
    /// What a proxy runs.
    ProxyConfig(proxy::ConfigCall),
    /// Why traffic from CLIENT to HOST:PORT goes where it goes.
    Why(why::Call),
    /// What an ISM code means, what happens to traffic, and how to mend it.
    Explain(explain::Call),
    /// Print what a shell needs to complete verbs and options.
    Completion(manual::Completion),
    /// Print the manual page, or write one for every verb.
    Man(manual::Man),
    /// Print the CustomResourceDefinitions of isthmus.dev as YAML.
    Crds,
    /// Run a small Kubernetes API server, for demos and tests.
    Apiserver(program::Config),
    /// Run a cluster's control plane.
    ControlPlane(program::Config),
    /// Run a cluster's federation controller and its DNS.
    FederationController(program::Config),
    /// Run an east-west gateway.
    Gateway(program::Config),
    /// Run a workload's sidecar.
    Sidecar(program::Config),
    /// Give a foreign proxy (Envoy, gRPC) its certificate, configuration and bootstrap.
    Agent(agent::Call),
    /// Capture a workload's traffic into its sidecar (nftables; needs NET_ADMIN).
    SidecarRedirect(sidecar::redirect::Redirect),
    #[command(name = demo::VERB, hide = true, subcommand)]
    DemoPart(demo::Part),
}

fn main() -> ExitCode {
    if let Err(e) = fleet::process::end_with_parent() {
        output::error(&e);
        return ExitCode::FAILURE;
    }
    output::end(run(Cli::parse().verb).unwrap_or_else(|e| {
        output::error(&e);
        if bad_call::is_bad_call(&e) { ExitCode::from(2) } else { ExitCode::FAILURE }
    }))
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Demo(demo) => work(demo.run()),
        Verb::DemoPart(part) => work(part.run()),
        Verb::Trust(verb) => work(verb.run()),
        Verb::Install(call) => work(call.run()),
        Verb::Uninstall(call) => work(call.run()),
        Verb::CreateRemoteSecret(call) => work(call.run()),
        Verb::Link(call) => work(call.run()),
        Verb::Unlink(call) => work(call.run()),
        Verb::Export(call) => work(call.run()),
        Verb::Unexport(call) => work(call.unexport()),
        Verb::Dns(verb) => work(verb.run()),
        Verb::Inject(call) => work(call.run()),
        Verb::Status(call) => work(call.run()),
        Verb::Check(call) => work(call.run()),
        Verb::ProxyStatus(call) => work(call.run()),
        Verb::ProxyConfig(call) => work(call.run()),
        Verb::Why(call) => work(call.run()),
        Verb::Explain(call) => call.run(),
        Verb::Completion(call) => call.run(),
        Verb::Man(call) => call.run(),
        Verb::Crds => {
            for (_, yaml) in cluster::api::crd_yaml() {
                say!("---\n{}", yaml.trim_end());
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Apiserver(config) => config.run(|_| every_processor(), apiserver::run),
        Verb::ControlPlane(config) => config.run(|_| every_processor(), control_plane::run),
        Verb::FederationController(config) => {
            config.run(|_| every_processor(), federation_controller::run)
        }
        Verb::Gateway(config) => config.run(|_| every_processor(), gateway::run),
        Verb::Sidecar(config) => config.run(sidecar::threads, sidecar::run),
        Verb::Agent(call) => work(call.run()),
        Verb::SidecarRedirect(redirect) => redirect.run().map(|()| ExitCode::SUCCESS),
    }
}

fn work(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    block_on(every_processor()?, Box::pin(work))
}

fn every_processor() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// Behind a pointer, so that it is compiled once for all verbs.
fn block_on<T>(runtime: Runtime, work: Pin<Box<dyn Future<Output = T> + '_>>) -> T {
    let done = runtime.block_on(work);
    // What still blocks a thread (a connect to somebody who is gone) is waited for by nobody.
    runtime.shutdown_background();
    done
}

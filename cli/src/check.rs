//! `isthmus check`: whether clusters can be joined (`--pre`), and whether what is joined works; the
//! first red line names the cause and its fix.

mod item;
mod judge;
mod look;
mod report;
mod seen;

use crate::bad_call::bad_call;
use crate::output::{self, Format};
use anyhow::Result;
use clap::Args;
use cluster::api::cluster_link::ClusterLinkStatus;
use cluster::operator::Operator;
use cluster::plain::plain;
use item::{Group, Mark};
use runtime::page::Place;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Seconds that all of it takes at most.
const WAIT: u32 = 5;

#[derive(Debug, Args)]
pub(crate) struct Call {
    #[command(flatten)]
    targets: crate::Targets,
    /// Only what installing and linking need: versions, rights, kinds, clocks, roots, gateways.
    #[arg(long)]
    pre: bool,
    /// Pages of a context's control plane: NAME=HOST:PORT or NAME=unix:PATH (port-forward to 15014).
    #[arg(long, value_name = "NAME=PLACE")]
    control_plane: Vec<At>,
    /// Pages of a context's federation controller (port-forward to 15024).
    #[arg(long, value_name = "NAME=PLACE")]
    controller: Vec<At>,
    /// Isthmus' namespace.
    #[arg(long, default_value = mesh::export::ROOT_NAMESPACE)]
    root_namespace: String,
    /// Namespace of Secret cacerts.
    #[arg(long, default_value = cluster::secret::NAMESPACE)]
    ca_namespace: String,
    /// Seconds for all of it.
    #[arg(long, default_value_t = WAIT, value_parser = clap::value_parser!(u32).range(1..=600))]
    wait: u32,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// A cause that was found, and whether it breaks something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) broken: bool,
    /// Cluster, what is wrong, its fix and its code.
    pub(crate) sentence: String,
}

/// What is wrong in clusters beside their links, as `isthmus status` says it: causes only. A cluster
/// that is silent, and a link that does not hold, say so themselves.
pub(crate) async fn causes(clusters: Vec<Operator>, root_namespace: &str) -> Vec<Wrong> {
    let call = Call {
        targets: crate::Targets { context: vec![], kubeconfig: None },
        pre: false,
        control_plane: vec![],
        controller: vec![],
        root_namespace: root_namespace.to_owned(),
        ca_namespace: cluster::secret::NAMESPACE.into(),
        wait: WAIT,
        output: Format::Table,
    };
    let lines = report::fold(judge::judge(&look::look(&call, clusters).await));
    let causes = lines.into_iter().map(|line| line.item).filter(|item| {
        let silent = matches!(item.about, item::About::Server(_));
        // Whoever may read little is not told so line by line: that is what check is asked for.
        let unread = item.code == judge::UNREAD;
        item.mark != Mark::Good && item.group != Group::Links && !silent && !unread
    });
    let wrong =
        |item: item::Item| Wrong { broken: item.mark == Mark::Broken, sentence: item.to_string() };
    causes.map(wrong).collect()
}

/// What is wrong with a link of a cluster, as `isthmus why` says it.
pub(crate) fn wrong_link(context: &str, name: &str, status: &ClusterLinkStatus) -> Option<String> {
    let now = jiff::Timestamp::now().as_second();
    let (_, sentence) = judge::wrong_link(context, name, status, now)?;
    Some(plain(&sentence, item::TEXT_MAX))
}

/// Where the pages of a context's program are.
#[derive(Debug, Clone)]
struct At {
    context: String,
    place: Place,
    text: String,
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (context, place) = text
            .split_once('=')
            .filter(|(context, _)| !context.is_empty())
            .ok_or_else(|| format!("{text:?} is not CONTEXT=HOST:PORT or CONTEXT=unix:PATH"))?;
        let parsed = place.parse().map_err(|why| format!("{why}"))?;
        Ok(Self { context: context.into(), place: parsed, text: place.into() })
    }
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let clusters = self.clusters().await?;
        let begun = Instant::now();
        let seen = look::look(&self, clusters).await;
        let seconds = begun.elapsed().as_secs_f64();
        let mut items = judge::judge(&seen);
        if self.pre {
            // What links and exports need is not asked of a cluster that has none yet.
            items.retain(|it| it.group <= Group::Signing || it.group == Group::Gateways);
        }
        let lines = report::fold(items);
        if self.output == Format::Table {
            let colour = coloured();
            let mut text = report::text(&lines, colour, output::columns());
            text.push_str(&format!(
                "\n{}\n",
                report::closing(&lines, seen.clusters.len(), seconds)
            ));
            if let Some(rest) = self.not_asked(&seen) {
                let lines = output::wrap(&rest, output::columns());
                text.push_str(&format!("{}\n", lines.join("\n")));
            }
            output::print(text.as_bytes());
        } else {
            output::value(self.output, &report::json(&lines, seconds))?;
        }
        let broken = report::count(&lines, Mark::Broken) > 0;
        Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Programs whose pages nobody said the place of: what only they know was not looked at.
    fn not_asked(&self, seen: &seen::Seen) -> Option<String> {
        let silent = |asked: fn(&seen::Cluster) -> bool| {
            let all = seen.clusters.iter().filter(|cluster| !asked(cluster));
            all.map(|cluster| cluster.context.as_str()).collect::<Vec<_>>().join(", ")
        };
        let planes = silent(|cluster| cluster.control_plane.is_some());
        let controllers = silent(|cluster| cluster.controller.is_some());
        if self.pre || (planes.is_empty() && controllers.is_empty()) {
            return None;
        }
        let mut parts = vec![];
        if !planes.is_empty() {
            parts.push(format!("proxies and what they refuse in {planes} (--control-plane)"));
        }
        if !controllers.is_empty() {
            parts.push(format!("DNS in {controllers} (--controller)"));
        }
        Some(format!("not looked at: {}", parts.join("; ")))
    }

    /// The clusters to check. A context that is not there is a mistake in the call.
    async fn clusters(&self) -> Result<Vec<Operator>> {
        let wait = Duration::from_secs(self.wait.into());
        let clusters = self.targets.load_by(Some(Instant::now() + wait)).await?;
        for at in self.control_plane.iter().chain(&self.controller) {
            if !clusters.iter().any(|cluster| cluster.context == at.context) {
                return Err(bad_call(format!(
                    "ISM2625 a place is given for context {:?}, which is not checked. Fix: add --context \
                     {}",
                    at.context, at.context
                )));
            }
        }
        Ok(clusters)
    }
}

/// Colours are for terminals whose reader has not said otherwise (no-color.org).
fn coloured() -> bool {
    let unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stdout().is_terminal() && unset("NO_COLOR") && !dumb
}

//! `isthmus status`: what is broken first, since when, and whether traffic is hurt: links, then all that
//! `isthmus check` finds beside them.

use crate::check;
use crate::link::{Condition, conditions};
use crate::output::{self, Format};
use anyhow::{Context as _, Result};
use clap::Args;
use cluster::api::cluster_link::CONDITIONS;
use cluster::operator::Operator;
use futures::future::join_all;
use runtime::page::{self, Place};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Call {
    #[command(flatten)]
    targets: crate::Targets,
    /// Ask a federation controller itself (HOST:PORT or unix:PATH): answers while the API is down.
    #[arg(long, conflicts_with = "context")]
    admin: Option<Place>,
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// One link as status shows it.
struct Line {
    from: String,
    to: String,
    ready: String,
    conditions: BTreeMap<String, Condition>,
    services: i64,
    endpoints: i64,
    last_heard: String,
}

impl Line {
    fn of(from: &str, link: &Value) -> Self {
        let conditions = conditions(link);
        let ready =
            conditions.get("Ready").map_or_else(|| "Unknown".to_owned(), |c| c.status.clone());
        let status = &link["status"];
        Self {
            from: from.to_owned(),
            to: link["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            ready,
            services: status["services"].as_i64().unwrap_or_default(),
            endpoints: status["endpoints"].as_i64().unwrap_or_default(),
            last_heard: status["lastHeard"].as_str().unwrap_or_default().to_owned(),
            conditions,
        }
    }

    /// A link as a controller's own page has it: flat, with ages.
    fn of_page(link: &Value) -> Self {
        let heard = link["heartbeatAgeSeconds"].as_i64().map(|age| {
            let now = jiff::Timestamp::now().as_second();
            jiff::Timestamp::from_second(now - age).map(|at| at.to_string()).unwrap_or_default()
        });
        let mut conditions = link["conditions"].clone();
        for condition in conditions.as_array_mut().into_iter().flatten() {
            condition["lastTransitionTime"] = condition["since"].clone();
        }
        let object = json!({
            "metadata": {"name": link["name"]},
            "status": {
                "conditions": conditions, "services": link["services"],
                "endpoints": link["endpoints"], "lastHeard": heard,
            },
        });
        Self::of("here", &object)
    }

    fn is_whole(&self) -> bool {
        let shut = self.conditions.get("GatewaysReachable");
        self.ready == "True" && shut.is_none_or(|shut| shut.reason != "NoneAnswers")
    }

    /// The condition that explains a link which is not whole: the first that does not hold.
    fn culprit(&self) -> Option<(&'static str, &Condition)> {
        CONDITIONS.into_iter().find_map(|name| {
            let condition = self.conditions.get(name)?;
            (condition.status != "True").then_some((name, condition))
        })
    }

    fn row(&self) -> Vec<String> {
        let state =
            |name: &str| self.conditions.get(name).map_or_else(|| "-".into(), |c| c.status.clone());
        let since = self.conditions.get("Ready").map_or_else(|| "-".into(), |c| since(&c.since));
        vec![
            format!("{}->{}", self.from, self.to),
            self.ready.clone(),
            since,
            state("Reachable"),
            since_or_dash(&self.last_heard),
            state("TrustEstablished"),
            state("GatewaysReachable"),
            self.services.to_string(),
            self.endpoints.to_string(),
        ]
    }

    /// What is wrong and whether traffic is hurt, as two sentences.
    fn why(&self) -> Option<String> {
        let (name, condition) = self.culprit()?;
        let refused = name == "Accepted" && condition.reason != "BadImportPolicy";
        let hurt = if refused || name == "TrustEstablished" {
            "nothing is imported over it".to_owned()
        } else if condition.reason == "NoneAnswers" {
            "calls go to other clusters, or fail".to_owned()
        } else if condition.reason == "SomeSilent" {
            "calls go by its other gateways".to_owned()
        } else if name == "CredentialRenewed" {
            "calls go on".to_owned()
        } else if self.endpoints > 0 {
            format!(
                "its {} endpoints stay published, so traffic goes on with data from {} ago",
                self.endpoints,
                since_or_dash(&self.last_heard)
            )
        } else {
            "nothing had been imported over it, so nothing can be called".to_owned()
        };
        Some(format!(
            "{}->{}: {name}={} for {} ({}: {}); {hurt}",
            self.from,
            self.to,
            condition.status,
            since(&condition.since),
            condition.reason,
            condition.message
        ))
    }
}

fn since_or_dash(stamp: &str) -> String {
    if stamp.is_empty() { "-".into() } else { since(stamp) }
}

/// Age of an RFC 3339 moment.
fn since(stamp: &str) -> String {
    match stamp.parse::<jiff::Timestamp>() {
        Ok(at) => output::age(jiff::Timestamp::now().as_second() - at.as_second()),
        Err(_) => "-".into(),
    }
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let mut lines = Vec::new();
        let mut silent = Vec::new();
        let mut causes = Vec::new();
        if let Some(admin) = &self.admin {
            let text = page::read(admin, "/links").await?;
            let page: Value = serde_json::from_str(&text).context("the page /links is not JSON")?;
            for link in page["links"].as_array().into_iter().flatten() {
                lines.push(Line::of_page(link));
            }
        } else {
            // A context that is not there is a mistake in the call, not a cluster that is silent.
            let operators = self.targets.load().await?;
            let links = join_all(operators.iter().map(|operator| self.ask(operator)));
            let checked = check::causes(operators.clone(), &self.root_namespace);
            let (links, checked) = tokio::join!(links, checked);
            causes = checked;
            for (operator, links) in operators.iter().zip(links) {
                match links {
                    Ok(more) => lines.extend(more),
                    Err(e) => silent.push((operator.context.clone(), e)),
                }
            }
        }
        // Broken first, then by name.
        lines.sort_by_key(|line| (line.is_whole(), line.from.clone(), line.to.clone()));
        let broken = lines.iter().filter(|line| !line.is_whole()).count();
        if self.output == Format::Table {
            for (context, error) in &silent {
                say!("unknown {context}: {error:#}");
                say!(
                    "  its proxies go on with what they have; ask its controller: isthmus status --admin HOST:PORT"
                );
            }
            let rows: Vec<Vec<String>> = lines.iter().map(Line::row).collect();
            output::table(
                &[
                    "LINK",
                    "READY",
                    "SINCE",
                    "API",
                    "HEARD",
                    "TRUST",
                    "GATEWAYS",
                    "SERVICES",
                    "ENDPOINTS",
                ],
                &rows,
            );
            for why in lines.iter().filter_map(Line::why) {
                say!("why  {why}");
            }
            for check::Wrong { broken, sentence } in &causes {
                say!("{}  {sentence}", if *broken { "broken " } else { "warning" });
            }
        } else {
            let list: Vec<Value> = lines
                .iter()
                .map(|line| {
                    json!({
                        "from": line.from, "to": line.to, "ready": line.ready,
                        "services": line.services, "endpoints": line.endpoints,
                        "lastHeard": line.last_heard, "why": line.why(),
                        "conditions": line.conditions,
                    })
                })
                .collect();
            let silent: Vec<Value> = silent
                .iter()
                .map(|(context, error)| json!({"context": context, "error": format!("{error:#}")}))
                .collect();
            let causes: Vec<Value> = causes
                .iter()
                .map(|wrong| json!({"broken": wrong.broken, "says": wrong.sentence}))
                .collect();
            let all = json!({"links": list, "silent": silent, "causes": causes});
            output::value(self.output, &all)?;
        }
        let broken = broken + causes.iter().filter(|wrong| wrong.broken).count();
        Ok(if broken == 0 && silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn ask(&self, operator: &Operator) -> Result<Vec<Line>> {
        let own = operator.describe(&self.root_namespace).await?.cluster;
        let links = operator
            .list("isthmus.dev/v1alpha1", "ClusterLink", Some(&self.root_namespace))
            .await?;
        Ok(links.iter().map(|link| Line::of(&own, link)).collect())
    }
}

//! `isthmus link A B`, `isthmus link --fleet FILE` and `isthmus unlink`: clusters that read each
//! other's exports.

mod fleet;
mod pair;
mod unlink;

use crate::bad_call::bad_call;
use crate::output;
use anyhow::Result;
use clap::Args;
use cluster::credential;
use cluster::operator::Operator;
use mesh::export;
use pair::{End, Half, Terms, check_pair, wait_ready};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
pub(crate) use unlink::Unlink;

#[derive(Debug, Args)]
#[command(
    override_usage = "isthmus link [OPTIONS] <A> <B>\n       isthmus link [OPTIONS] --fleet <FILE>"
)]
pub(crate) struct Link {
    /// Context of one cluster.
    #[arg(required_unless_present = "fleet")]
    a: Option<String>,
    /// Context of the other.
    #[arg(required_unless_present = "fleet")]
    b: Option<String>,
    /// Link all clusters of this file, each with each or in the pairs it lists; prints a plan first.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["a", "b", "server"])]
    fleet: Option<PathBuf>,
    /// Of the fleet, only links of these clusters; the others are left alone.
    #[arg(long, value_name = "CLUSTER", value_delimiter = ',', requires = "fleet", conflicts_with_all = ["a", "b"])]
    only: Vec<String>,
    /// Kubeconfig file with both contexts; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// API server of a context as the other cluster reaches it: CONTEXT=https://ADDRESS:PORT.
    #[arg(long, value_name = "CONTEXT=URL", value_parser = address)]
    server: Vec<(String, String)>,
    /// Namespaces that may be imported, `*` for all; if not given, those of a link that stands,
    /// else all.
    #[arg(long, value_name = "NAMESPACE", value_delimiter = ',', value_parser = namespace)]
    import: Vec<String>,
    /// Ranges that gateway addresses must lie in; if not given, those of a link that stands, else
    /// any that is not loopback or link-local.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = range)]
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

fn address(text: &str) -> Result<(String, String), String> {
    of_context(text, "CONTEXT=https://ADDRESS:PORT")
}

/// What is said of one context: `CONTEXT=` and a word; `form` shows it whole.
pub(crate) fn of_context(text: &str, form: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((context, word)) if !context.is_empty() && !word.is_empty() => {
            Ok((context.into(), word.into()))
        }
        Some(_) | None => Err(format!("{text:?} is not {form}")),
    }
}

fn namespace(text: &str) -> Result<String, String> {
    export::importable(text).map(|()| text.into())
}

fn range(text: &str) -> Result<String, String> {
    export::range(text).map(|_| text.into())
}

/// One fact a line, its name in a column of its own.
pub(crate) fn fact(name: &str, text: &str) {
    say!("  {name:<13}{text}");
}

impl Link {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        if let Some(file) = &self.fleet {
            return fleet::run(&self, file).await;
        }
        let (Some(a), Some(b)) = (&self.a, &self.b) else {
            unreachable!("clap asks for both where no fleet is given")
        };
        if a == b {
            return Err(bad_call(format!(
                "ISM2012 {a:?} cannot be linked to itself. Fix: name two contexts"
            )));
        }
        if let Some((other, _)) = self.server.iter().find(|(it, _)| it != a && it != b) {
            return Err(bad_call(format!(
                "ISM2012 --server names context {other:?}, which is neither {a:?} nor {b:?}. Fix: correct it"
            )));
        }
        let terms = self.terms();
        let (a, b) = tokio::try_join!(self.end(a), self.end(b))?;
        print(&check_pair(&a, &b)?);
        for (reader, read) in [(&a, &b), (&b, &a)] {
            let half = Half::plan(reader, read, &terms).await?;
            if self.dry_run {
                self.show(reader, read, &half)?;
            } else {
                print(&half.make(reader, read, &terms).await?);
            }
        }
        if self.dry_run {
            say!("nothing was changed.");
            return Ok(ExitCode::SUCCESS);
        }
        let begun = std::time::Instant::now();
        let wait = Duration::from_secs(self.wait);
        print(&[wait_ready(&a, &b, &terms, wait).await?]);
        print(&[wait_ready(&b, &a, &terms, wait.saturating_sub(begun.elapsed())).await?]);
        say!("linked. next: isthmus export svc/NAME -n NAMESPACE --context {}", a.operator.context);
        Ok(ExitCode::SUCCESS)
    }

    fn terms(&self) -> Terms {
        Terms {
            root_namespace: self.root_namespace.clone(),
            import: self.import.clone(),
            gateway_ranges: self.gateway_ranges.clone(),
            allow_loopback: self.allow_loopback,
            renew: self.renew,
            hours: self.hours,
        }
    }

    async fn end(&self, context: &str) -> Result<End> {
        let operator = Operator::load(self.kubeconfig.as_deref(), Some(context)).await?;
        let described = operator.describe(&self.root_namespace).await?;
        let given = self.server.iter().find(|(named, _)| named == context);
        let server = given.map(|(_, url)| (url.clone(), "--server"));
        let hint = format!("pass --server {context}=https://ADDRESS:PORT");
        Ok(End { operator, described, server, hint })
    }

    /// What would be applied, as YAML; the token is not minted.
    fn show(&self, reader: &End, read: &End, half: &Half) -> Result<()> {
        let (reader_id, read_id) = (&reader.described.cluster, &read.described.cluster);
        say!("# in {} ({read_id}): who may read, and what", read.operator.context);
        print_objects(&credential::reader_objects(&self.root_namespace, &half.account))?;
        say!(
            "# in {} ({reader_id}): Secret {} with a token, and",
            reader.operator.context,
            half.secret_name
        );
        print_objects(std::slice::from_ref(&half.link))
    }
}

fn print(facts: &[pair::Fact]) {
    for (name, text) in facts {
        fact(name, text);
    }
}

/// A condition of a ClusterLink.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Condition {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) since: String,
    /// Whether it may be of the spec before; a controller that does not say is believed.
    pub(crate) outdated: bool,
}

pub(crate) fn conditions(link: &Value) -> BTreeMap<String, Condition> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let generation = link["metadata"]["generation"].as_i64();
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
                outdated: c["observedGeneration"].as_i64().is_some_and(|it| Some(it) < generation),
            };
            (text(&c["type"]), condition)
        })
        .collect()
}

fn print_objects(objects: &[Value]) -> Result<()> {
    for object in objects {
        output::value(output::Format::Yaml, object)?;
        say!("---");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_was_said_of_the_spec_before_is_outdated() {
        let outdated = |generation: Value, observed: Value| {
            let condition =
                json!({"type": "Ready", "status": "True", "observedGeneration": observed});
            let metadata = json!({"name": "west", "generation": generation});
            let link = json!({"metadata": metadata, "status": {"conditions": [condition]}});
            conditions(&link)["Ready"].outdated
        };
        assert!(outdated(json!(2), json!(1)));
        assert!(!outdated(json!(2), json!(2)));
        assert!(!outdated(json!(2), Value::Null), "an older controller");
        assert!(!outdated(Value::Null, json!(2)));
    }
}

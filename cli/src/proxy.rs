//! `isthmus proxy-status` and `proxy-config`: what proxies were told, took, and run.

use crate::output::{self, Format};
use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use runtime::page::{self, Place};
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct StatusCall {
    /// Admin place of a control plane: HOST:PORT or unix:PATH (port-forward to it in a cluster).
    #[arg(long, default_value = "127.0.0.1:15014")]
    admin: Place,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

impl StatusCall {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let text = page::read(&self.admin, "/sessions").await?;
        let sessions: Value =
            serde_json::from_str(&text).with_context(|| {
                format!(
                    "ISM2019 the page /sessions of {} is not JSON. Fix: name a control plane's admin port",
                    self.admin
                )
            })?;
        if self.output != Format::Table {
            output::value(self.output, &sessions)?;
            return Ok(ExitCode::SUCCESS);
        }
        let list = sessions.as_array().cloned().unwrap_or_default();
        let mut refused = false;
        let text = |value: &Value| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut rows = Vec::new();
        for session in &list {
            for state in session["types"].as_array().into_iter().flatten() {
                refused |= !state["nack"].is_null();
                rows.push(vec![
                    text(&session["proxy"]),
                    text(&state["kind"]),
                    text(&state["sent"]),
                    text(&state["acked"]),
                    text(&state["nack"]),
                ]);
            }
        }
        output::table(&["PROXY", "TYPE", "SENT", "ACKED", "REFUSED"], &rows);
        Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConfigCall {
    /// Only resources of this type.
    #[arg(value_enum, default_value_t = Kind::All)]
    kind: Kind,
    /// Only resources whose name contains this.
    #[arg(long)]
    name: Option<String>,
    /// Admin place of a proxy: HOST:PORT or unix:PATH.
    #[arg(long, default_value = "127.0.0.1:15000", conflicts_with = "file")]
    admin: Place,
    /// Read a saved configuration instead.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    All,
    #[value(alias = "listener")]
    Listeners,
    #[value(alias = "route")]
    Routes,
    #[value(alias = "cluster")]
    Clusters,
    #[value(alias = "endpoint")]
    Endpoints,
    #[value(alias = "secret")]
    Secrets,
}

impl Kind {
    fn covers(self, type_url: &str) -> bool {
        let ending = match self {
            Self::All => return true,
            Self::Listeners => ".Listener",
            Self::Routes => ".RouteConfiguration",
            Self::Clusters => ".Cluster",
            Self::Endpoints => ".ClusterLoadAssignment",
            Self::Secrets => ".Secret",
        };
        type_url.ends_with(ending)
    }
}

/// The list of resources that `source` holds.
fn resources(text: &str, source: &str) -> Result<Vec<Value>> {
    let wrong = || {
        format!(
            "ISM2018 {source} holds no list of xDS resources. Fix: give what `isthmus proxy-config \
             -o json` printed, or the admin port of a proxy"
        )
    };
    serde_json::from_str(text).with_context(wrong)
}

impl ConfigCall {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let text = match &self.file {
            Some(path) => std::fs::read_to_string(path)
                .with_context(|| format!("ISM2017 cannot read {}", path.display()))?,
            None => page::read(&self.admin, "/config").await?,
        };
        let source = match &self.file {
            Some(path) => path.display().to_string(),
            None => format!("/config of {}", self.admin),
        };
        let all = resources(&text, &source)?;
        let chosen: Vec<Value> = all
            .into_iter()
            .filter(|resource| self.kind.covers(resource["@type"].as_str().unwrap_or_default()))
            .filter(|resource| {
                self.name.as_ref().is_none_or(|name| name_of(resource).contains(name))
            })
            .collect();
        if self.output != Format::Table {
            output::value(self.output, &chosen)?;
            return Ok(ExitCode::SUCCESS);
        }
        let rows: Vec<Vec<String>> = chosen
            .iter()
            .map(|resource| {
                let kind = resource["@type"].as_str().unwrap_or_default();
                vec![kind.rsplit('.').next().unwrap_or_default().to_owned(), name_of(resource)]
            })
            .collect();
        output::table(&["TYPE", "NAME"], &rows);
        Ok(ExitCode::SUCCESS)
    }
}

fn name_of(resource: &Value) -> String {
    let name = resource["name"].as_str().or_else(|| resource["clusterName"].as_str());
    name.or_else(|| resource["cluster_name"].as_str()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_configuration_is_named() {
        for text in ["clusters: []", "{}", "7"] {
            let said = super::resources(text, "bad.yaml").unwrap_err().to_string();
            assert!(said.starts_with("ISM2018 bad.yaml ") && said.contains("Fix: "), "{said}");
        }
        assert_eq!(super::resources("[{}]", "good.json").unwrap().len(), 1);
    }
}

//! `ExportedService`: what a cluster tells the others about one of its services.

#![allow(clippy::duplicated_attributes, reason = "kube repeats keys in each printcolumn")]

use crate::api::label;
use kube::CustomResource;
use mesh::export as value;
use mesh::finding::{Finding, ObjectRef, Severity};
use mesh::name::{Locality, Protocol, ServiceName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What one cluster exports of one service; written by its federation controller, read by linked
/// clusters. The object has the Service's name and namespace.
#[derive(
    CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "ExportedService",
    namespaced,
    derive = "PartialEq",
    shortname = "exsvc",
    category = "isthmus",
    printcolumn(name = "Ports", type_ = "string", json_path = ".spec.ports[*].number"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".spec.localities[*].ready"),
    printcolumn(name = "Problems", type_ = "string", json_path = ".spec.problems[*]"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ExportedServiceSpec {
    /// Sorted by number; never UDP.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub ports: Vec<ExportedPort>,
    /// Service accounts behind it.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    pub accounts: Vec<String>,
    /// Subset name to the labels that select it.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    pub subsets: BTreeMap<String, BTreeMap<String, String>>,
    /// Ready meshed endpoints per locality.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub localities: Vec<LocalityCount>,
    /// Creation of the Service, seconds since the epoch; the older export wins a conflict.
    #[serde(default)]
    pub created: i64,
    /// Why it cannot be called from other clusters; empty when it can.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportedPort {
    #[schemars(range(min = 1, max = 65535))]
    pub number: u16,
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub name: String,
    /// http, http2, grpc, tcp, or auto where nobody says.
    #[schemars(length(max = 16), regex(pattern = "^(http|http2|grpc|tcp|auto)$"))]
    pub protocol: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalityCount {
    /// `region/zone/subzone`; may be empty.
    #[schemars(length(max = 256))]
    pub locality: String,
    #[schemars(range(max = 100_000))]
    pub ready: u32,
    /// Ready endpoints per subset name.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    pub subsets: BTreeMap<String, u32>,
}

/// Objects of a hostile or broken remote are cut off here, whatever its CRD allows.
const PORTS_MAX: usize = 256;
const ACCOUNTS_MAX: usize = 256;
const SUBSETS_MAX: usize = 64;
const LOCALITIES_MAX: usize = 256;
const READY_MAX: u32 = 100_000;
const TEXT_MAX: usize = 1024;
/// Longest label key (prefix `/` name) and the longest account name.
const NAME_MAX: usize = 317;

impl ExportedService {
    /// The object that says `service`, owned by us (labels included).
    pub fn of(service: &value::ExportedService) -> Self {
        let spec = ExportedServiceSpec {
            ports: service
                .ports
                .iter()
                .map(|port| ExportedPort {
                    number: port.number,
                    name: port.name.clone(),
                    protocol: port.protocol.to_string(),
                })
                .collect(),
            accounts: service.accounts.iter().cloned().collect(),
            subsets: service.subsets.clone(),
            localities: service
                .localities
                .iter()
                .map(|count| LocalityCount {
                    locality: count.locality.to_string(),
                    ready: count.ready,
                    subsets: count.subsets.clone(),
                })
                .collect(),
            created: service.created,
            problems: service.problems.clone(),
        };
        let mut object = Self::new(&service.name.name, spec);
        object.metadata.namespace = Some(service.name.namespace.clone());
        object.metadata.labels =
            Some(BTreeMap::from([(label::MANAGED_BY.into(), label::MANAGER.into())]));
        object
    }

    /// What it says, or why it is not believed. A stranger wrote it: every part is checked.
    pub fn value(&self) -> Result<value::ExportedService, Box<Finding>> {
        let meta = &self.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        let refuse = |field: &str, problem: String| {
            Box::new(Finding {
                severity: Severity::Refused,
                code: 2201,
                object: ObjectRef::new("ExportedService", namespace, name),
                field: field.into(),
                problem,
                fix: "let the federation controller of that cluster write it, of the same version"
                    .into(),
            })
        };
        let name = ServiceName::new(namespace, name)
            .map_err(|e| refuse("metadata", format!("{e}; it is not imported.")))?;
        let spec = &self.spec;
        let bounded = |field: &str, length: usize, max: usize| {
            if length > max {
                return Err(refuse(
                    field,
                    format!(
                        "it has {length} elements, at most {max} are read; it is not imported."
                    ),
                ));
            }
            Ok(())
        };
        bounded("spec.ports", spec.ports.len(), PORTS_MAX)?;
        bounded("spec.accounts", spec.accounts.len(), ACCOUNTS_MAX)?;
        bounded("spec.subsets", spec.subsets.len(), SUBSETS_MAX)?;
        bounded("spec.localities", spec.localities.len(), LOCALITIES_MAX)?;

        let mut ports = Vec::new();
        let mut seen = BTreeSet::new();
        for (index, port) in spec.ports.iter().enumerate() {
            let field = format!("spec.ports[{index}]");
            let protocol = match port.protocol.as_str() {
                "http" => Protocol::Http,
                "http2" => Protocol::Http2,
                "grpc" => Protocol::Grpc,
                "tcp" => Protocol::Tcp,
                "auto" => Protocol::Auto,
                other => {
                    let other: String = other.chars().take(32).collect();
                    return Err(refuse(
                        &field,
                        format!(
                            "protocol {other:?} is not http, http2, grpc, tcp or auto; it is not imported."
                        ),
                    ));
                }
            };
            if port.number == 0 || port.name.len() > 63 || !seen.insert(port.number) {
                return Err(refuse(
                    &field,
                    "the number is 0 or twice there, or the name is too long; it is not imported."
                        .into(),
                ));
            }
            ports.push(value::ExportedPort {
                number: port.number,
                name: port.name.clone(),
                protocol,
            });
        }
        ports.sort();

        let account_ok = |account: &String| {
            let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
            !account.is_empty() && account.len() <= 253 && account.bytes().all(fine)
        };
        if let Some(bad) = spec.accounts.iter().position(|account| !account_ok(account)) {
            return Err(refuse(
                &format!("spec.accounts[{bad}]"),
                "it is not the name of a service account; it is not imported.".into(),
            ));
        }
        let subset_ok = |(name, labels): (&String, &BTreeMap<String, String>)| {
            name.len() <= 63
                && labels.len() <= SUBSETS_MAX
                && labels.iter().all(|(key, value)| key.len() <= NAME_MAX && value.len() <= 63)
        };
        if !spec.subsets.iter().all(subset_ok) {
            return Err(refuse(
                "spec.subsets",
                "a name or label in it is too long; it is not imported.".into(),
            ));
        }
        let mut localities = Vec::new();
        for (index, count) in spec.localities.iter().enumerate() {
            let field = format!("spec.localities[{index}]");
            if count.ready > READY_MAX
                || count.subsets.len() > SUBSETS_MAX
                || count.locality.len() > 256
            {
                return Err(refuse(
                    &field,
                    format!(
                        "it is out of bounds (at most {READY_MAX} ready, {SUBSETS_MAX} subsets); it is not imported."
                    ),
                ));
            }
            localities.push(value::LocalityCount {
                locality: Locality::from(count.locality.clone()),
                ready: count.ready,
                subsets: count.subsets.clone(),
            });
        }
        localities.sort();
        let cut = |text: &String| text.chars().take(TEXT_MAX).collect();
        Ok(value::ExportedService {
            name,
            ports,
            accounts: spec.accounts.iter().cloned().collect(),
            subsets: spec.subsets.clone(),
            localities,
            created: spec.created,
            problems: spec.problems.iter().take(32).map(cut).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> value::ExportedService {
        value::ExportedService {
            name: ServiceName::new("shop", "hello").unwrap(),
            ports: vec![value::ExportedPort {
                number: 80,
                name: "http".into(),
                protocol: Protocol::Http,
            }],
            accounts: BTreeSet::from(["hello".into()]),
            subsets: BTreeMap::from([(
                "v1".into(),
                BTreeMap::from([("version".into(), "v1".into())]),
            )]),
            localities: vec![value::LocalityCount {
                locality: Locality::from("eu/eu-1".to_owned()),
                ready: 3,
                subsets: BTreeMap::from([("v1".into(), 2)]),
            }],
            created: 17,
            problems: vec![],
        }
    }

    #[test]
    fn it_says_what_was_exported() {
        let object = ExportedService::of(&hello());
        let json = serde_json::to_string(&object).unwrap();
        let back: ExportedService = serde_json::from_str(&json).unwrap();
        assert_eq!(back.value().unwrap(), hello());
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut ExportedService), field: &str) {
        let mut object = ExportedService::of(&hello());
        change(&mut object);
        let finding = object.value().unwrap_err();
        assert_eq!(finding.field, field, "{finding}");
    }

    #[test]
    fn a_stranger_s_object_is_checked_in_every_part() {
        refused(|o| o.metadata.name = Some("Hello".into()), "metadata");
        refused(|o| o.metadata.namespace = Some("a/b".into()), "metadata");
        refused(|o| o.spec.ports[0].protocol = "udp".into(), "spec.ports[0]");
        refused(|o| o.spec.ports[0].number = 0, "spec.ports[0]");
        refused(|o| o.spec.ports.push(o.spec.ports[0].clone()), "spec.ports[1]");
        refused(|o| o.spec.accounts[0] = "a/../b".into(), "spec.accounts[0]");
        refused(|o| o.spec.accounts[0] = String::new(), "spec.accounts[0]");
        refused(|o| o.spec.localities[0].ready = 4_000_000_000, "spec.localities[0]");
        refused(|o| o.spec.localities = vec![o.spec.localities[0].clone(); 257], "spec.localities");
        refused(|o| o.spec.accounts = vec!["a".into(); 257], "spec.accounts");
        refused(|o| drop(o.spec.subsets.insert("v".repeat(64), BTreeMap::new())), "spec.subsets");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(name in ".*", account in ".*", locality in ".*", protocol in ".*") {
            let mut object = ExportedService::of(&hello());
            object.metadata.name = Some(name);
            object.spec.accounts = vec![account];
            object.spec.localities[0].locality = locality;
            object.spec.ports[0].protocol = protocol;
            let _ = object.value();
        }
    }
}

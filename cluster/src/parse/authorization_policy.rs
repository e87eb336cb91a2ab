//! Istio's AuthorizationPolicy: who may call which workloads, as far as a connection shows it.
//!
//! Read field by field, and strictly: what cannot be judged never lets anybody in. An ALLOW rule with
//! such a part never matches, a DENY rule matches by the rest (Istio's own rule for fields of requests
//! on TCP ports: `pilot/pkg/security/authz/model`).

use super::{Notes, Parsed};
use kube::api::DynamicObject;
use mesh::authorize::{AccountName, Clause, KIND, Operation, Pattern, Rule, Source, block};
use mesh::inventory::{AuthorizationPolicy, PolicyAction};
use mesh::name::Identity;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Most values of one policy: each is compared with every call, and sent to every proxy it selects.
const VALUES_MAX: usize = 2_000;
/// Most findings about one policy: whoever made more mistakes reads these first.
const FINDINGS_MAX: usize = 50;
/// Istio evaluates a policy with this annotation and lets it decide nothing.
const DRY_RUN: &str = "istio.io/dry-run";

/// Fields of requests, which no connection shows.
const OF_REQUESTS: [&str; 8] = [
    "requestPrincipals",
    "notRequestPrincipals",
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
];

/// Fields about what a proxy in front writes down.
const OF_PROXIES: [&str; 2] = ["remoteIpBlocks", "notRemoteIpBlocks"];

/// A policy that decides something; a policy for gateways, a dry run and AUDIT do not.
pub fn parse(object: &DynamicObject) -> Parsed<AuthorizationPolicy> {
    let mut notes = Notes::of(KIND, &object.metadata);
    if decides_nothing(object, &mut notes) {
        return notes.done(None);
    }
    let empty = Value::Object(Map::new());
    let spec = object.data.get("spec").unwrap_or(&empty);
    let mut reader = Reader { notes: &mut notes, values: 0, partial: false, findings: 0 };
    let known = ["selector", "action", "rules", "provider"];
    let fields = reader.fields(spec, "spec", &known);
    let selector = fields.get("selector").map_or_else(BTreeMap::new, |it| reader.selector(it));
    let action = reader.action(fields.get("action"));
    // What the whole policy is about is not known whole: none of its rules lets anybody in.
    let whole = !std::mem::take(&mut reader.partial);
    let list = reader.list(fields.get("rules"), "spec.rules");
    if action != PolicyAction::Allow && list.is_empty() {
        reader.notes.warn(
            3409,
            "spec.rules",
            format!("a {action} policy without rules matches nobody; it decides nothing."),
            "write rules, `rules: [{}]` for everybody, or delete it.",
        );
    }
    let rules = list.iter().enumerate().map(|(number, rule)| {
        reader.partial = !whole;
        reader.rule(rule, &format!("spec.rules[{number}]"), action)
    });
    let rules = rules.collect();
    if object.metadata.namespace.as_deref() == Some("istio-system") {
        notes.warn(
            3410,
            "metadata.namespace",
            "it holds for the workloads of istio-system alone, as Istio's root namespace is not ours.",
            "for the whole mesh, write it in isthmus-system.",
        );
    }
    let object = notes.object.clone();
    notes.done(Some(AuthorizationPolicy { object, selector, action, rules }))
}

fn decides_nothing(object: &DynamicObject, notes: &mut Notes) -> bool {
    let annotations = object.metadata.annotations.as_ref();
    // What Go's strconv.ParseBool takes for true.
    let dry = annotations
        .and_then(|all| all.get(DRY_RUN))
        .is_some_and(|text| ["1", "t", "T", "TRUE", "true", "True"].contains(&text.as_str()));
    if dry {
        notes.warn(
            3411,
            "metadata.annotations",
            "it is a dry run and decides nothing; what it would decide is not counted either.",
            "remove the annotation istio.io/dry-run to enforce it.",
        );
        return true;
    }
    let spec = object.data.get("spec");
    let said = |key: &str| spec.and_then(|spec| spec.get(key)).is_some_and(|it| !is_empty(it));
    for key in ["targetRef", "targetRefs"] {
        if said(key) {
            notes.refuse(
                3412,
                &format!("spec.{key}"),
                "it is for a gateway or a waypoint, of which Isthmus runs none; sidecars do not apply it.",
                "select workloads by spec.selector.matchLabels.",
            );
            return true;
        }
    }
    if spec.and_then(|spec| spec.get("action")).is_some_and(|action| action == "AUDIT") {
        notes.warn(
            3413,
            "spec.action",
            "AUDIT decides nothing, and nothing is recorded for it.",
            "see the access log of the workload's sidecar; use ALLOW or DENY to decide.",
        );
        return true;
    }
    false
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Reads one policy; remembers whether all that was said so far can be judged.
struct Reader<'a> {
    notes: &'a mut Notes,
    /// So many were read.
    values: usize,
    partial: bool,
    findings: usize,
}

impl Reader<'_> {
    /// Part of the policy is not judged: what is read around it never lets anybody in.
    fn refuse(&mut self, code: u16, field: &str, problem: impl Into<String>, fix: &str) {
        self.partial = true;
        let problem = format!(
            "{} An ALLOW rule with it never matches, a DENY rule matches without it.",
            problem.into()
        );
        if self.may_tell() {
            self.notes.refuse(code, field, problem, fix);
        }
    }

    fn may_tell(&mut self) -> bool {
        self.findings += 1;
        self.findings <= FINDINGS_MAX
    }

    /// The fields of an object; those that are not `known` are told, and so is what is no object.
    fn fields(&mut self, value: &Value, path: &str, known: &[&str]) -> Map<String, Value> {
        let fields = match value {
            Value::Object(fields) => fields.clone(),
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                self.unreadable(path, "an object");
                Map::new()
            }
        };
        for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
            let field = format!("{path}.{key}");
            if OF_REQUESTS.contains(&key.as_str()) {
                self.of_requests(&field);
            } else if OF_PROXIES.contains(&key.as_str()) {
                self.of_proxies(&field);
            } else {
                let fix = "remove it, or correct its spelling.";
                self.refuse(3402, &field, "this field is not supported.", fix);
            }
        }
        fields
    }

    fn of_proxies(&mut self, field: &str) {
        self.refuse(
            3416,
            field,
            "it is about the address that a request says it comes from, which whoever calls can write.",
            "use ipBlocks (source.ip), which are compared with the address that connects.",
        );
    }

    fn of_requests(&mut self, field: &str) {
        self.refuse(
            3403,
            field,
            "it is about requests, and policies are judged by what a connection shows.",
            "decide by source and by port; bind a DENY rule to ports.",
        );
    }

    fn unreadable(&mut self, path: &str, wanted: &str) {
        let fix = "write it as its CRD says; kubectl explain shows the fields.";
        self.refuse(3401, path, format!("it is not {wanted} and cannot be read."), fix);
    }

    fn list(&mut self, value: Option<&Value>, path: &str) -> Vec<Value> {
        match value {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) => list.clone(),
            Some(_) => {
                self.unreadable(path, "a list");
                Vec::new()
            }
        }
    }

    fn selector(&mut self, value: &Value) -> BTreeMap<String, String> {
        let selector = self.fields(value, "spec.selector", &["matchLabels"]);
        let path = "spec.selector.matchLabels";
        let mut wanted = BTreeMap::new();
        match selector.get("matchLabels") {
            None | Some(Value::Null) => {}
            Some(Value::Object(pairs)) => {
                for (key, value) in pairs {
                    match value.as_str() {
                        Some(value) => drop(wanted.insert(key.clone(), value.to_owned())),
                        None => self.unreadable(&format!("{path}.{key}"), "a text"),
                    }
                }
            }
            Some(_) => self.unreadable(path, "an object"),
        }
        wanted
    }

    fn action(&mut self, value: Option<&Value>) -> PolicyAction {
        match value.map(Value::as_str) {
            None | Some(Some("ALLOW")) => PolicyAction::Allow,
            Some(Some("DENY")) => PolicyAction::Deny,
            Some(Some("CUSTOM")) => {
                self.notes.refuse(
                    3414,
                    "spec.action",
                    "nobody asks the provider of a CUSTOM policy here: callers that its rules match are \
                     denied, as Istio denies them while a provider is missing.",
                    "use ALLOW or DENY.",
                );
                PolicyAction::Custom
            }
            Some(_) if value == Some(&Value::Null) => PolicyAction::Allow,
            Some(other) => {
                let found =
                    other.map_or_else(|| "this".to_owned(), |text| format!("{:?}", cut(text)));
                let problem = format!("{found} is no action; it is taken for ALLOW.");
                self.refuse(3404, "spec.action", problem, "write ALLOW or DENY.");
                PolicyAction::Allow
            }
        }
    }

    fn rule(&mut self, value: &Value, path: &str, action: PolicyAction) -> Rule {
        let mut rule = Rule::default();
        if value.is_null() {
            // Nothing is not the empty rule, which is for everybody.
            self.unreadable(path, "an object");
        }
        let fields = self.fields(value, path, &["from", "to", "when"]);
        let from = format!("{path}.from");
        for (number, value) in self.list(fields.get("from"), &from).iter().enumerate() {
            let path = format!("{from}[{number}].source");
            let outer = self.fields(value, &format!("{from}[{number}]"), &["source"]);
            rule.from.push(self.source(outer.get("source"), &path, action));
        }
        let to = format!("{path}.to");
        for (number, value) in self.list(fields.get("to"), &to).iter().enumerate() {
            let path = format!("{to}[{number}].operation");
            let outer = self.fields(value, &format!("{to}[{number}]"), &["operation"]);
            rule.to.push(self.operation(outer.get("operation"), &path));
        }
        let when = format!("{path}.when");
        for (number, value) in self.list(fields.get("when"), &when).iter().enumerate() {
            self.condition(value, &format!("{when}[{number}]"), action, &mut rule);
        }
        rule.partial = self.partial;
        rule
    }

    fn source(
        &mut self,
        value: Option<&Value>,
        path: &str,
        action: PolicyAction,
    ) -> Vec<Clause<Source>> {
        const KNOWN: [&str; 10] = [
            "principals",
            "notPrincipals",
            "namespaces",
            "notNamespaces",
            "serviceAccounts",
            "notServiceAccounts",
            "trustDomains",
            "notTrustDomains",
            "ipBlocks",
            "notIpBlocks",
        ];
        let fields = self.fields(value.unwrap_or(&Value::Null), path, &KNOWN);
        self.not_empty(&fields, path);
        let all = [
            self.clause(&fields, path, "principals", "notPrincipals", principal),
            self.clause(&fields, path, "namespaces", "notNamespaces", namespace),
            self.clause(&fields, path, "serviceAccounts", "notServiceAccounts", account),
            self.clause(&fields, path, "trustDomains", "notTrustDomains", trust_domain),
            self.clause(&fields, path, "ipBlocks", "notIpBlocks", source_ip),
        ];
        let all: Vec<_> = all.into_iter().flatten().collect();
        self.anonymous(&all, path, action);
        self.nobody(&all, path);
        all
    }

    fn operation(&mut self, value: Option<&Value>, path: &str) -> Vec<Clause<Operation>> {
        let fields = self.fields(value.unwrap_or(&Value::Null), path, &["ports", "notPorts"]);
        self.not_empty(&fields, path);
        self.clause(&fields, path, "ports", "notPorts", port).into_iter().collect()
    }

    fn condition(&mut self, value: &Value, path: &str, action: PolicyAction, rule: &mut Rule) {
        let fields = self.fields(value, path, &["key", "values", "notValues"]);
        if ["values", "notValues"].iter().all(|key| fields.get(*key).is_none_or(is_empty)) {
            self.refuse(3405, path, "it has no values.", "write values or notValues.");
        }
        fn read<T>(
            reader: &mut Reader<'_>,
            fields: &Map<String, Value>,
            path: &str,
            read: Read<T>,
        ) -> Option<Clause<T>> {
            reader.clause(fields, path, "values", "notValues", read)
        }
        let from: Read<Source> = match fields.get("key").and_then(Value::as_str) {
            Some("source.principal") => principal,
            Some("source.namespace") => namespace,
            Some("source.serviceAccount" | "source.serviceaccount") => account,
            Some("source.trustDomain") => trust_domain,
            Some("source.ip") => source_ip,
            key => {
                let to: Read<Operation> = match key {
                    Some("destination.port") => port,
                    Some("destination.ip") => destination_ip,
                    Some("connection.sni") => server_name,
                    Some("remote.ip") => return self.of_proxies(&format!("{path}.key")),
                    Some(key) if key.starts_with("request.") => {
                        return self.of_requests(&format!("{path}.key"));
                    }
                    Some(_) | None => {
                        let fix = "write source.principal, source.namespace, source.ip, \
                                   destination.port, destination.ip or connection.sni.";
                        let problem = "this condition is not supported.";
                        return self.refuse(3402, &format!("{path}.key"), problem, fix);
                    }
                };
                rule.when_to.extend(read(self, &fields, path, to));
                return;
            }
        };
        let clause = read(self, &fields, path, from);
        self.anonymous(clause.as_slice(), path, action);
        self.nobody(clause.as_slice(), path);
        rule.when_from.extend(clause);
    }

    /// An object that says nothing would match everybody; Istio refuses it too.
    fn not_empty(&mut self, fields: &Map<String, Value>, path: &str) {
        if fields.values().all(is_empty) {
            let fix = "write a field in it, or leave it out to mean everybody.";
            self.refuse(3405, path, "it is empty.", fix);
        }
    }

    fn clause<T>(
        &mut self,
        fields: &Map<String, Value>,
        path: &str,
        yes: &str,
        no: &str,
        read: Read<T>,
    ) -> Option<Clause<T>> {
        let any_of = self.values(fields.get(yes), &format!("{path}.{yes}"), read);
        let none_of = self.values(fields.get(no), &format!("{path}.{no}"), read);
        (!any_of.is_empty() || !none_of.is_empty()).then_some(Clause { any_of, none_of })
    }

    fn values<T>(&mut self, value: Option<&Value>, path: &str, read: Read<T>) -> Vec<T> {
        let list = self.list(value, path);
        self.values += list.len();
        if self.values > VALUES_MAX && !list.is_empty() {
            let problem = format!("with it the policy has more than {VALUES_MAX} values.");
            self.refuse(3406, path, problem, "split the policy, or match by namespace.");
            return Vec::new();
        }
        let mut all = Vec::new();
        for (number, value) in list.iter().enumerate() {
            let field = format!("{path}[{number}]");
            let Some(text) = value.as_str() else {
                self.unreadable(&field, "a text");
                continue;
            };
            match read(text, &self.notes.object.namespace) {
                Ok(value) => all.push(value),
                Err(problem) => {
                    let fix = "correct it; Istio's reference of AuthorizationPolicy has the forms.";
                    self.refuse(3407, &field, format!("{problem}."), fix);
                }
            }
        }
        all
    }

    /// A whole principal that no identity of the mesh can be: judged, and never true.
    fn nobody(&mut self, clauses: &[Clause<Source>], path: &str) {
        for source in clauses.iter().flat_map(|it| it.any_of.iter().chain(&it.none_of)) {
            if let Source::Principal(Pattern::Exact(text)) = source
                && format!("spiffe://{text}").parse::<Identity>().is_err()
                && self.may_tell()
            {
                self.notes.warn(
                    3415,
                    path,
                    format!("{:?} is nobody's identity; it matches nobody.", cut(text)),
                    "write DOMAIN/ns/NAMESPACE/sa/ACCOUNT.",
                );
            }
        }
    }

    /// An ALLOW rule that only says who not: a caller in plaintext is nobody, and let in.
    fn anonymous(&mut self, clauses: &[Clause<Source>], path: &str, action: PolicyAction) {
        let names = |list: &[Source]| list.iter().any(|it| !matches!(it, Source::Ip(_)));
        let only = clauses.iter().any(|clause| names(&clause.none_of))
            && !clauses.iter().any(|clause| names(&clause.any_of));
        if only && action == PolicyAction::Allow && self.may_tell() {
            self.notes.warn(
                3408,
                path,
                "it names who may not call: callers in plaintext, who prove no name, are let in by it.",
                "add `principals: [\"*\"]`, or make the workloads' PeerAuthentication STRICT.",
            );
        }
    }
}

/// What is shown of a stranger's text.
fn cut(text: &str) -> String {
    text.chars().take(128).collect()
}

/// Reads one value; the second text is the policy's namespace.
type Read<T> = fn(&str, &str) -> Result<T, String>;

fn pattern(text: &str) -> Result<Pattern, String> {
    text.parse().map_err(|problem: mesh::authorize::NotAPattern| problem.to_string())
}

/// With or without `spiffe://`; Istio's own form is without.
fn principal(text: &str, _: &str) -> Result<Source, String> {
    pattern(text.strip_prefix("spiffe://").unwrap_or(text)).map(Source::Principal)
}

fn namespace(text: &str, _: &str) -> Result<Source, String> {
    pattern(text).map(Source::Namespace)
}

fn trust_domain(text: &str, _: &str) -> Result<Source, String> {
    pattern(text).map(Source::TrustDomain)
}

/// `NAMESPACE/NAME`, or a NAME of the policy's namespace; no wildcards.
fn account(text: &str, home: &str) -> Result<Source, String> {
    let full = if text.contains('/') { text.to_owned() } else { format!("{home}/{text}") };
    if text.is_empty() || text.contains('*') {
        return Err(format!("{:?} is no service account's name", cut(text)));
    }
    AccountName::try_from(full).map(Source::ServiceAccount).map_err(str::to_owned)
}

fn no_block(text: &str) -> String {
    format!("{:?} is neither an IP address nor a CIDR", cut(text))
}

fn source_ip(text: &str, _: &str) -> Result<Source, String> {
    block(text).map(Source::Ip).ok_or_else(|| no_block(text))
}

fn destination_ip(text: &str, _: &str) -> Result<Operation, String> {
    block(text).map(Operation::Ip).ok_or_else(|| no_block(text))
}

fn port(text: &str, _: &str) -> Result<Operation, String> {
    let number = text.parse::<u16>().ok().filter(|number| *number != 0);
    number.map(Operation::Port).ok_or_else(|| format!("{:?} is no port from 1 to 65535", cut(text)))
}

fn server_name(text: &str, _: &str) -> Result<Operation, String> {
    pattern(text).map(Operation::ServerName)
}

#[cfg(test)]
mod tests;

//! The table of rights in `deploy/README.md`, held against what a real API server grants, as
//! `kubectl auth can-i --list` shows it. `UPDATE_EXPECT=1` writes the table.

#[path = "own/server.rs"]
mod server;

use kube::Client;
use serde_json::{Value, json};
use server::Server;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ROLES: &str = include_str!("../../deploy/base/roles.yaml");
const ACCOUNTS: [&str; 3] =
    ["isthmus-control-plane", "isthmus-federation-controller", "isthmus-gateway"];
const SYSTEM: &str = "isthmus-system";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const BEGIN: &str =
    "<!-- written by UPDATE_EXPECT=1 cargo test -p isthmus-cluster --test rights -->\n";
const END: &str = "<!-- end -->\n";

/// What one may do with one resource in one namespace, as kubectl prints it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    resource: String,
    names: String,
    verbs: String,
}

/// `kubectl auth can-i --list` with the rights of a kubeconfig.
fn list(kubectl: &Path, kubeconfig: &Path, namespace: &str) -> BTreeSet<Right> {
    let out = Command::new(kubectl)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["auth", "can-i", "--list", "--namespace", namespace])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "kubectl auth can-i --list: {said}");
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("Resources"), "no table: {text}");
    // URLs have no name in the first column.
    let rows = text.lines().skip(1).filter(|line| !line.starts_with([' ', '[']));
    rows.map(|line| {
        let (resource, lists) = line.split_once(' ').expect("a row has columns");
        let lists: Vec<&str> = lists.split(['[', ']']).collect();
        let [_, _urls, _, names, _, verbs, ..] = lists.as_slice() else {
            panic!("not a row of three lists: {line}")
        };
        let mut verbs: Vec<&str> = verbs.split_whitespace().collect();
        verbs.sort_unstable();
        Right { resource: resource.into(), names: (*names).into(), verbs: verbs.join(" ") }
    })
    .collect()
}

async fn kubeconfig(server: &Server, namespace: &str, account: &str) -> PathBuf {
    let (hour, audience) = (Duration::from_secs(3600), "https://kubernetes.default.svc");
    let admin = server.client().await;
    let token = cluster::token::request(&admin, namespace, account, audience, None, hour).await;
    server.kubeconfig_of(&token.unwrap())
}

/// A role is in force a moment after it was written: gives one more account a role and a cluster role, and
/// waits for both. The API server hears of each kind's objects in the order they were written in, so all
/// that was written before is in force by then.
async fn last_rights(kubectl: &Path, server: &Server, admin: &Client) {
    let meta = json!({"name": "last", "namespace": "elsewhere"});
    server::create(admin, "test", "v1", "ServiceAccount", json!({"metadata": meta})).await;
    let subjects = json!([{"kind": "ServiceAccount", "name": "last", "namespace": "elsewhere"}]);
    for (kind, resource) in [("ClusterRole", "configmaps"), ("Role", "secrets")] {
        let meta = if kind == "Role" { meta.clone() } else { json!({"name": "last"}) };
        let rules = json!([{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]);
        let role = json!({"metadata": meta, "rules": rules});
        server::create(admin, "test", RBAC, kind, role).await;
        let refers = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "last"});
        let binding = json!({"metadata": meta, "roleRef": refers, "subjects": subjects});
        server::create(admin, "test", RBAC, &format!("{kind}Binding"), binding).await;
    }
    let file = kubeconfig(server, "elsewhere", "last").await;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        let all = list(kubectl, &file, "elsewhere");
        let has = |resource: &str| all.iter().any(|right| right.resource == resource);
        if has("configmaps") && has("secrets") {
            return;
        }
        assert!(Instant::now() < deadline, "the roles never came into force: {all:?}");
    }
}

#[tokio::test]
async fn the_table_of_rights_is_what_the_api_server_grants() {
    let Some(programs) = server::programs() else { return };
    let kubectl = programs.join("kubectl");
    let server = Server::start(&programs).await;
    let admin = server.client().await;
    for name in [SYSTEM, "elsewhere"] {
        let namespace = json!({"metadata": {"name": name}});
        server::create(&admin, "test", "v1", "Namespace", namespace).await;
    }
    for text in ROLES.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(text).unwrap();
        let said = |key: &str| object[key].as_str().unwrap().to_owned();
        let (version, kind) = (said("apiVersion"), said("kind"));
        server::create(&admin, "test", &version, &kind, object.clone()).await;
    }
    let nobody = json!({"metadata": {"name": "nobody", "namespace": "elsewhere"}});
    server::create(&admin, "test", "v1", "ServiceAccount", nobody).await;

    last_rights(&kubectl, &server, &admin).await;
    // What every account may: who it is, and what the server speaks.
    let common = list(&kubectl, &kubeconfig(&server, "elsewhere", "nobody").await, "elsewhere");
    let ca = cluster::secret::NAMESPACE;
    let mut table = String::from("| account | where | of | may |\n|---|---|---|---|\n");
    for account in ACCOUNTS {
        let file = kubeconfig(&server, SYSTEM, account).await;
        let everywhere: BTreeSet<Right> =
            list(&kubectl, &file, "elsewhere").difference(&common).cloned().collect();
        let mut rows = vec![];
        for (place, namespace) in [("everywhere", "elsewhere"), (SYSTEM, SYSTEM), (ca, ca)] {
            for right in list(&kubectl, &file, namespace).difference(&common) {
                if place == "everywhere" || !everywhere.contains(right) {
                    let Right { resource, names, verbs } = right;
                    let names = if names.is_empty() { String::new() } else { format!(" {names}") };
                    rows.push(format!(
                        "| `{account}` | {place} | `{resource}`{names} | {verbs} |\n"
                    ));
                }
            }
        }
        if rows.is_empty() {
            rows.push(format!("| `{account}` | | nothing | |\n"));
        }
        table.extend(rows);
    }

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/README.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) =
        page.split_once(BEGIN).expect("deploy/README.md has a place for the table");
    let (written, after) = rest.split_once(END).expect("and its end");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(written, table, "deploy/README.md is not what the API server says");
    }
}

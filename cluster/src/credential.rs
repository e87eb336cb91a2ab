//! A link's credential: an account that may read what is exported and nothing else, a token for it,
//! and the Secret in Istio's shape that carries it to another cluster.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

/// The account a link reads with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

/// A bearer token; it never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one place that writes it into a Secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// A minted credential and when it ends (RFC 3339).
#[derive(Debug, Clone)]
pub struct Minted {
    pub token: Token,
    pub expires: String,
}

/// How a server proves itself: certificate authorities (DER) and the name to ask for.
#[derive(Debug, Clone, Default)]
pub struct ServerTrust {
    pub certificate_authorities: Vec<Vec<u8>>,
    pub server_name: Option<String>,
}

/// All that a link's credential may do, as sentences for `link` to print; the rules are in
/// [`reader_objects`] and a test holds the two together.
pub const MAY_READ: [&str; 5] = [
    "read ExportedServices in all namespaces",
    "read ClusterLinks and Services in the root namespace",
    "read ConfigMap isthmus-mesh",
    "read Namespace kube-system (its UID)",
    "renew its own token",
];

/// The account, its rights (decision 3: no Secrets, no Pods, no Nodes), and the object its token is
/// bound to: deleting that Secret revokes the credential.
pub fn reader_objects(root_namespace: &str, account: &Account) -> Vec<Value> {
    let Account { namespace, name } = account;
    let labels = json!({"app.kubernetes.io/managed-by": "isthmus-cli", "app.kubernetes.io/part-of": "isthmus"});
    let subject = json!([{"kind": "ServiceAccount", "name": name, "namespace": namespace}]);
    let read = json!(["get", "list", "watch"]);
    let role = "rbac.authorization.k8s.io";
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace, "labels": labels}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": binding_name(account), "namespace": namespace, "labels": labels,
            "annotations": {"isthmus.dev/purpose": "deleting this Secret revokes the link credential that is bound to it"}}, "type": "Opaque"}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": [
            {"apiGroups": ["isthmus.dev"], "resources": ["exportedservices"], "verbs": read},
            {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": read},
        ]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name, "labels": labels},
            "roleRef": {"apiGroup": role, "kind": "ClusterRole", "name": name}, "subjects": subject}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name, "namespace": root_namespace, "labels": labels}, "rules": [
            {"apiGroups": ["isthmus.dev"], "resources": ["clusterlinks"], "verbs": read},
            {"apiGroups": [""], "resources": ["services"], "verbs": read},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["isthmus-mesh"], "verbs": read},
        ]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name, "namespace": root_namespace, "labels": labels},
            "roleRef": {"apiGroup": role, "kind": "Role", "name": name}, "subjects": subject}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": format!("{name}-renew"), "namespace": namespace, "labels": labels}, "rules": [
            {"apiGroups": [""], "resources": ["serviceaccounts/token"], "resourceNames": [name], "verbs": ["create"]},
        ]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": format!("{name}-renew"), "namespace": namespace, "labels": labels},
            "roleRef": {"apiGroup": role, "kind": "Role", "name": format!("{name}-renew")}, "subjects": subject}),
    ]
}

/// Name of the Secret that a credential of `account` is bound to.
pub fn binding_name(account: &Account) -> String {
    format!("{}-credential", account.name)
}

/// Asks for a token of `account` bound to its [`binding_name`] Secret.
pub async fn mint(client: &Client, account: &Account, lifetime: Duration) -> Result<Minted> {
    let secrets = Api::<Secret>::namespaced(client.clone(), &account.namespace);
    let bound = binding_name(account);
    let secret =
        secrets.get_opt(&bound).await.context("ISM2008 reading the credential's Secret failed")?;
    let bound_object_ref = secret.map(|secret| BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Secret".into()),
        name: Some(bound),
        uid: secret.metadata.uid,
    });
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            bound_object_ref,
            expiration_seconds: Some(lifetime.as_secs().try_into().unwrap_or(i64::MAX)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &account.namespace);
    let answer = accounts
        .create_token_request(&account.name, &PostParams::default(), &request)
        .await
        .with_context(|| {
            format!(
                "ISM2008 no token for ServiceAccount {}/{}. Fix: create it, or pass \
                 --create-service-account",
                account.namespace, account.name
            )
        })?;
    let status =
        answer.status.context("ISM2008 the API server answered a TokenRequest without a status")?;
    let expires = status.expiration_timestamp.map(|at| at.0.to_string()).unwrap_or_default();
    let token =
        status.token.context("ISM2008 the API server answered a TokenRequest without a token")?;
    Ok(Minted { token: Token::new(token), expires })
}

/// The Secret that carries a credential, in Istio's exact shape (`istioctl create-remote-secret`).
#[derive(Debug, Clone)]
pub struct RemoteSecret {
    pub cluster: String,
    pub name: String,
    pub namespace: String,
    pub server: String,
    pub trust: ServerTrust,
    pub token: Token,
}

impl RemoteSecret {
    /// As `istioctl create-remote-secret` prints it, to the byte; the trailing `---` included.
    pub fn yaml(&self) -> String {
        let Self { cluster, name, namespace, .. } = self;
        let kubeconfig: String =
            self.kubeconfig().lines().map(|line| format!("    {line}\n")).collect();
        format!(
            "# This file is autogenerated, do not edit.\n\
             apiVersion: v1\n\
             kind: Secret\n\
             metadata:\n  annotations:\n    networking.istio.io/cluster: {cluster}\n  labels:\n    \
             istio/multiCluster: \"true\"\n  name: {name}\n  namespace: {namespace}\n\
             stringData:\n  {cluster}: |\n{kubeconfig}---\n"
        )
    }

    /// The same as an object to apply.
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": self.name, "namespace": self.namespace,
                "annotations": {"networking.istio.io/cluster": self.cluster},
                "labels": {"istio/multiCluster": "true"},
            },
            "stringData": {self.cluster.clone(): self.kubeconfig()},
        })
    }

    fn kubeconfig(&self) -> String {
        let Self { cluster, server, trust, token, .. } = self;
        let pem: String = trust.certificate_authorities.iter().map(|der| pem_of(der)).collect();
        let authority = base64::engine::general_purpose::STANDARD.encode(pem);
        let server_name = match &trust.server_name {
            Some(name) => format!("    tls-server-name: {name}\n"),
            None => String::new(),
        };
        format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {authority}\n    \
             server: {server}\n{server_name}  name: {cluster}\ncontexts:\n- context:\n    cluster: {cluster}\n    \
             user: {cluster}\n  name: {cluster}\ncurrent-context: {cluster}\nkind: Config\nusers:\n\
             - name: {cluster}\n  user:\n    token: {}\n",
            token.reveal()
        )
    }
}

fn pem_of(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden text of `istioctl/pkg/multicluster/remote_secret_test.go`, with a PEM inside.
    #[test]
    fn the_secret_is_istios_to_the_byte() {
        let secret = RemoteSecret {
            cluster: "c2".into(),
            name: "istio-remote-secret-c2".into(),
            namespace: "istio-system".into(),
            server: "https://10.0.0.2:6443".into(),
            trust: ServerTrust {
                certificate_authorities: vec![b"caData".to_vec()],
                server_name: None,
            },
            token: Token::new("the-token".into()),
        };
        let authority = base64::engine::general_purpose::STANDARD
            .encode("-----BEGIN CERTIFICATE-----\nY2FEYXRh\n-----END CERTIFICATE-----\n");
        let expected = format!(
            "# This file is autogenerated, do not edit.
apiVersion: v1
kind: Secret
metadata:
  annotations:
    networking.istio.io/cluster: c2
  labels:
    istio/multiCluster: \"true\"
  name: istio-remote-secret-c2
  namespace: istio-system
stringData:
  c2: |
    apiVersion: v1
    clusters:
    - cluster:
        certificate-authority-data: {authority}
        server: https://10.0.0.2:6443
      name: c2
    contexts:
    - context:
        cluster: c2
        user: c2
      name: c2
    current-context: c2
    kind: Config
    users:
    - name: c2
      user:
        token: the-token
---
"
        );
        assert_eq!(secret.yaml(), expected);
    }

    #[test]
    fn a_credential_reads_no_secret_no_pod_no_node() {
        let account =
            Account { namespace: "isthmus-system".into(), name: "isthmus-reader-east".into() };
        for object in reader_objects("isthmus-system", &account) {
            for rule in object["rules"].as_array().into_iter().flatten() {
                for resource in rule["resources"].as_array().unwrap() {
                    let resource = resource.as_str().unwrap();
                    let fine = [
                        "exportedservices",
                        "clusterlinks",
                        "namespaces",
                        "services",
                        "configmaps",
                        "serviceaccounts/token",
                    ];
                    assert!(fine.contains(&resource), "{resource} is more than a link may read");
                    let verbs: Vec<&str> = rule["verbs"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|v| v.as_str().unwrap())
                        .collect();
                    let writes = verbs.iter().any(|verb| !["get", "list", "watch"].contains(verb));
                    assert_eq!(
                        writes,
                        resource == "serviceaccounts/token",
                        "{resource}: {verbs:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_token_does_not_show_itself() {
        assert_eq!(format!("{:?}", Token::new("abc".into())), "Token(redacted)");
    }
}

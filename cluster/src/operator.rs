//! What the command line does with clusters: loads the operator's kubeconfig as kubectl does, mints
//! link credentials, writes and reads the few objects that people steer by.

pub mod bring;
pub mod look;
pub mod rollout;
pub mod sweep;

use crate::credential::{self, Account, RemoteSecret, ServerTrust};
use crate::refusal;
use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, Service};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::KubeConfigOptions;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Who we are in server-side applies from the command line.
pub const FIELD_MANAGER: &str = "isthmus-cli";
/// Longest wait for one answer of an API server.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// A context that the kubeconfig does not have.
#[derive(Debug, thiserror::Error)]
#[error(
    "ISM2002 there is no context {name:?} in the kubeconfig; it has {known}. Fix: name one of these \
     (`kubectl config get-contexts` lists them)"
)]
pub struct NoSuchContext {
    pub name: String,
    /// Those it has, in one sentence.
    pub known: String,
}

/// Longest wait for an exec plug-in of the kubeconfig, which may ask its user to log in.
const PLUG_IN_MAX: Duration = Duration::from_secs(120);

fn unusable(context: &str) -> String {
    format!(
        "ISM2003 context {context:?} cannot be used. Fix: correct what the cause names in its cluster \
         or user, until `kubectl --context {context} get ns` works"
    )
}

/// One cluster as the operator reaches it.
#[derive(Clone)]
pub struct Operator {
    /// The kubeconfig's context, as the operator calls this cluster.
    pub context: String,
    pub client: Client,
    /// `https://host:port` of its API server, as the operator reaches it.
    pub server: String,
    pub trust: ServerTrust,
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator")
            .field("context", &self.context)
            .field("server", &self.server)
            .finish()
    }
}

/// How a cluster describes itself, read once.
#[derive(Debug, Clone)]
pub struct Description {
    pub cluster: String,
    pub network: String,
    pub trust_domain: String,
    /// UID of Namespace `kube-system`.
    pub uid: String,
    /// PEM.
    pub root_certificates: String,
}

impl Operator {
    /// Loads `kubeconfig` (else `$KUBECONFIG`, else `~/.kube/config`) at `context` (else current).
    ///
    /// # Errors
    /// A sentence that names the context and the contexts there are.
    pub async fn load(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self> {
        Self::load_within(kubeconfig, context, PLUG_IN_MAX).await
    }

    /// The same, with another limit on what a plug-in of the kubeconfig may take.
    pub async fn load_within(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        limit: Duration,
    ) -> Result<Self> {
        let file = crate::client::kubeconfig(kubeconfig)?.context(
            "ISM2001 there is no kubeconfig. Fix: pass --kubeconfig FILE or set KUBECONFIG",
        )?;
        let name = match context {
            Some(name) => name.to_owned(),
            None => file.current_context.clone().context(
                "ISM2002 the kubeconfig has no current context. Fix: pass --context NAME",
            )?,
        };
        if !file.contexts.iter().any(|known| known.name == name) {
            let known: Vec<&str> = file.contexts.iter().map(|c| c.name.as_str()).collect();
            return Err(NoSuchContext { name, known: known.join(", ") }.into());
        }
        let options = KubeConfigOptions { context: Some(name.clone()), ..Default::default() };
        let mut config = Config::from_custom_kubeconfig(file, &options)
            .await
            .with_context(|| unusable(&name))?;
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(ANSWER_MAX);
        let trust = ServerTrust {
            certificate_authorities: config.root_cert.clone().unwrap_or_default(),
            server_name: config.tls_server_name.clone(),
        };
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        // A plug-in is waited for on this thread: another one, which may be given up.
        let client = tokio::task::spawn_blocking(move || Client::try_from(config));
        let client = tokio::time::timeout(limit, client)
            .await
            .map_err(|_| {
                anyhow!("the exec plug-in of its user has not answered within {limit:.1?}")
                    .context(unusable(&name))
            })?
            .context("asking for a credential")?
            .map_err(|error| anyhow!(refusal::told(&error)).context(unusable(&name)))?;
        Ok(Self { context: name, client, server, trust })
    }

    /// Names every answer's failure with this cluster and server.
    fn asked<T>(&self, what: &str, answer: kube::Result<T>) -> Result<T> {
        answer.map_err(|error| {
            anyhow!(refusal::told(&error)).context(format!(
                "ISM2005 {what} failed in {} ({}). Fix: {}",
                self.context,
                self.server,
                refusal::fix(&error, &self.context)
            ))
        })
    }

    /// Who this cluster is: ConfigMap `isthmus-mesh` and the UID of `kube-system`.
    pub async fn describe(&self, root_namespace: &str) -> Result<Description> {
        let system = self.asked(
            "reading Namespace kube-system",
            Api::<Namespace>::all(self.client.clone()).get("kube-system").await,
        )?;
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), root_namespace);
        let map =
            self.asked("reading ConfigMap isthmus-mesh", maps.get_opt("isthmus-mesh").await)?;
        let map = map.ok_or_else(|| self.not_installed(root_namespace))?;
        let data = map.data.unwrap_or_default();
        let field = |key: &str| {
            data.get(key).cloned().filter(|value| !value.trim().is_empty()).with_context(|| {
                format!(
                    "ISM2006 ConfigMap {root_namespace}/isthmus-mesh in {} has no data.{key}. Fix: add it",
                    self.context
                )
            })
        };
        Ok(Description {
            cluster: field("cluster")?,
            network: field("network")?,
            trust_domain: field("trustDomain")?,
            root_certificates: field("rootCertificates")?,
            uid: system.metadata.uid.unwrap_or_default(),
        })
    }

    fn not_installed(&self, root_namespace: &str) -> anyhow::Error {
        anyhow::anyhow!(
            "ISM2006 {} has no ConfigMap {root_namespace}/isthmus-mesh: Isthmus is not installed \
             there. Fix: `isthmus install --context {}`, or name its namespace by --root-namespace",
            self.context,
            self.context
        )
    }

    /// UID of Namespace `kube-system`, Istio's default cluster name.
    pub async fn uid(&self) -> Result<String> {
        let system = self.asked(
            "reading Namespace kube-system",
            Api::<Namespace>::all(self.client.clone()).get("kube-system").await,
        )?;
        Ok(system.metadata.uid.unwrap_or_default())
    }

    /// Applies objects in order, server side; each must name its kind.
    pub async fn apply(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            let (api, name) = self.api_of(object)?;
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let what = format!("applying {} {name}", object["kind"].as_str().unwrap_or_default());
            self.asked(&what, api.patch(&name, &params, &Patch::Apply(object)).await)?;
        }
        Ok(())
    }

    /// Deletes objects in order; what is not there is fine. Returns what was there.
    pub async fn delete(&self, objects: &[Value]) -> Result<Vec<String>> {
        let mut deleted = Vec::new();
        for object in objects {
            let (api, name) = self.api_of(object)?;
            let what = format!("{} {name}", object["kind"].as_str().unwrap_or_default());
            match api.delete(&name, &DeleteParams::default()).await {
                Ok(_) => deleted.push(what),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(e) => return self.asked(&format!("deleting {what}"), Err(e)),
            }
        }
        Ok(deleted)
    }

    fn api_of(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, api_version) = (text(&object["kind"]), text(&object["apiVersion"]));
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let name = text(&object["metadata"]["name"]);
        anyhow::ensure!(!kind.is_empty() && !name.is_empty(), "an object without kind or name");
        let api = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        Ok((api, name))
    }

    /// Mints a credential that lets another cluster read this one's exports (decision 3), making the
    /// account and its rights first.
    pub async fn mint(
        &self,
        root_namespace: &str,
        account: &Account,
        create: bool,
        lifetime: Duration,
    ) -> Result<credential::Minted> {
        if create {
            self.apply(&credential::reader_objects(root_namespace, account)).await?;
        }
        credential::mint(&self.client, account, lifetime)
            .await
            .with_context(|| format!("in {} ({})", self.context, self.server))
    }

    /// Reads one object of ours or a standard one; `None` where it is absent.
    pub async fn read(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>> {
        let mut object =
            json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
        if let Some(namespace) = namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let (api, name) = self.api_of(&object)?;
        let found = self.asked(&format!("reading {kind} {name}"), api.get_opt(&name).await)?;
        found.map(|found| serde_json::to_value(found).context("an object read is JSON")).transpose()
    }

    /// Lists objects of a kind, in all namespaces or one.
    pub async fn list(
        &self,
        api_version: &str,
        kind: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<Value>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let list =
            self.asked(&format!("listing {kind}"), api.list(&ListParams::default()).await)?;
        list.items
            .into_iter()
            .map(|item| serde_json::to_value(item).context("an object read is JSON"))
            .collect()
    }

    /// The MCS API version this cluster serves, newest first.
    pub async fn service_export_version(&self) -> Result<String> {
        let groups = self.asked("discovery", self.client.list_api_groups().await)?;
        let group = groups.groups.iter().find(|group| group.name == "multicluster.x-k8s.io");
        let Some(group) = group else {
            bail!(
                "ISM2007 {} does not serve multicluster.x-k8s.io. Fix: install the MCS API's CRDs \
                 (sigs.k8s.io/mcs-api, config/crd)",
                self.context
            );
        };
        let served = |version: &str| group.versions.iter().any(|known| known.version == version);
        Ok(if served("v1beta1") {
            "multicluster.x-k8s.io/v1beta1".into()
        } else {
            "multicluster.x-k8s.io/v1alpha1".into()
        })
    }

    /// A Service, or `None`.
    pub async fn service(&self, namespace: &str, name: &str) -> Result<Option<Service>> {
        let services = Api::<Service>::namespaced(self.client.clone(), namespace);
        self.asked(&format!("reading Service {namespace}/{name}"), services.get_opt(name).await)
    }

    /// Link secrets of this cluster, by the label Istio uses.
    pub async fn remote_secrets(&self, namespace: &str) -> Result<Vec<Secret>> {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().labels("istio/multiCluster=true");
        Ok(self.asked("listing remote secrets", secrets.list(&params).await)?.items)
    }

    /// The remote secret that lets a holder read this cluster under `cluster`'s name.
    pub fn remote_secret(
        &self,
        cluster: &str,
        secret_name: &str,
        namespace: &str,
        server: Option<&str>,
        tls_server_name: Option<&str>,
        token: &credential::Minted,
    ) -> RemoteSecret {
        let mut trust = self.trust.clone();
        if let Some(name) = tls_server_name {
            trust.server_name = Some(name.to_owned());
        }
        RemoteSecret {
            cluster: cluster.to_owned(),
            name: secret_name.to_owned(),
            namespace: namespace.to_owned(),
            server: server.unwrap_or(&self.server).to_owned(),
            trust,
            token: token.token.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refused(script: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {
                "server": "https://192.0.2.1:6443", "insecure-skip-tls-verify": true,
            }}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "users": [{"name": "a", "user": {"exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
                "command": "sh", "args": ["-c", script],
            }}}],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        let limit = Duration::from_secs(2);
        let operator = Operator::load_within(Some(&path), None, limit).await;
        format!("{:#}", operator.unwrap_err())
    }

    #[tokio::test]
    async fn a_plug_in_that_fails_shows_no_token_and_one_that_hangs_is_given_up() {
        let said = refused("echo eyJSECRET; echo log in first >&2; exit 3").await;
        let whole = [
            "ISM2003",
            "Fix: ",
            "plug-in of the kubeconfig failed",
            "exit status: 3: log in first",
        ];
        assert!(whole.iter().all(|word| said.contains(word)), "{said}");
        assert!(!said.contains("SECRET"), "{said}");
        let said = refused("echo 'token: eyJSECRET'; echo '  [ eyJSECRET'").await;
        assert!(said.contains("ISM2003") && !said.contains("SECRET"), "{said}");
        let said = refused("exec sleep 4").await;
        assert!(said.contains("ISM2003") && said.contains("within 2.0s"), "{said}");
    }
}

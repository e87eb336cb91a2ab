//! A running server, and the few words all tests speak to it.

use apiserver::Config;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A server in this process.
pub(crate) struct Running {
    pub(crate) folder: tempfile::TempDir,
    config: Config,
    end: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = serde_json::json!({
            "listen": "127.0.0.1:0", "kubeconfig": folder.path().join("kubeconfig"),
        });
        let mut config: Config = serde_json::from_value(text).unwrap();
        change(&mut config);
        Self::run(folder, config).await
    }

    async fn run(folder: tempfile::TempDir, config: Config) -> Self {
        let end = CancellationToken::new();
        let task = tokio::spawn(apiserver::run(config.clone(), end.clone()));
        let server = Self { folder, config, end, task };
        server.ready().await;
        server
    }

    /// Stops it, and starts it on what it left.
    pub(crate) async fn restart(self) -> Self {
        let Self { folder, config, end, task } = self;
        end.cancel();
        task.await.unwrap().unwrap();
        std::fs::remove_file(&config.kubeconfig).unwrap();
        Self::run(folder, config).await
    }

    async fn ready(&self) {
        let file = self.kubeconfig();
        until("the kubeconfig is there", || {
            assert!(!self.task.is_finished(), "the server ended");
            file.is_file().then_some(())
        })
        .await;
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub(crate) fn text(&self) -> Value {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    }

    pub(crate) fn url(&self) -> String {
        self.text()["clusters"][0]["cluster"]["server"].as_str().unwrap().to_owned()
    }

    pub(crate) fn authority(&self) -> String {
        use base64::Engine;
        let text = self.text();
        let data = text["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
        let bytes = base64::engine::general_purpose::STANDARD.decode(data).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    pub(crate) fn token(&self) -> String {
        self.text()["users"][0]["user"]["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn client(&self) -> Client {
        cluster::client::connect(&self.kubeconfig()).await.unwrap()
    }

    pub(crate) async fn client_with(&self, token: &str) -> kube::Client {
        let text = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let file = self.folder.path().join("other.kubeconfig");
        std::fs::write(&file, text.replace(&self.token(), token)).unwrap();
        cluster::client::connect(&file).await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.end.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Waits for a state, at most half a minute.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn dynamic(client: &kube::Client, object: &Value) -> Api<DynamicObject> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let gvk = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
    let resource = ApiResource::from_gvk(&gvk);
    match &*text(&object["metadata"]["namespace"]) {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

pub(crate) async fn apply(client: &kube::Client, object: &Value) -> kube::Result<DynamicObject> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("test").force();
    dynamic(client, object).patch(name, &params, &Patch::Apply(object)).await
}

/// The code of a refusal; 200 for an answer.
#[track_caller]
pub(crate) fn code<T: std::fmt::Debug>(answer: kube::Result<T>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(other) => panic!("{other:?}"),
    }
}

/// A client with a token, or without.
pub(crate) fn client(url: &str, authority: &str, token: Option<&str>) -> Client {
    let mut config = kube::Config::new(url.parse().unwrap());
    let authority = CertificateDer::pem_slice_iter(authority.as_bytes());
    config.root_cert = Some(authority.map(|certificate| certificate.unwrap().to_vec()).collect());
    config.auth_info.token = token.map(|token| token.to_owned().into());
    Client::try_from(config).unwrap()
}

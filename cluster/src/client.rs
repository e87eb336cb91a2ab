//! Connecting to an API server, with a limit on everything we would otherwise wait for.

use crate::follow::WATCH_SECONDS;
use crate::kubeconfig::{self, Rules};
use crate::yaml;
use anyhow::{Context as _, Result, anyhow, bail};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpStream;

/// The client of a process for its own API server: from `kubeconfig`, or where that file does not
/// exist, from the pod's service account.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    let config = if kubeconfig.exists() {
        let file = Kubeconfig::read_from(kubeconfig).map_err(|error| {
            anyhow!(
                "ISM2321 kubeconfig {} cannot be read: {}. \
                 Fix: let `kubectl --kubeconfig FILE config view` read it, as this process's user",
                kubeconfig.display(),
                unread(&error)
            )
        })?;
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .with_context(|| {
                format!(
                    "ISM2322 kubeconfig {} names no usable cluster. Fix: set current-context to a \
                     context whose cluster and user are in the file, and files it names beside it",
                    kubeconfig.display()
                )
            })?
    } else {
        kube::Config::incluster().with_context(|| {
            let path = kubeconfig.display();
            format!(
                "ISM2323 kubeconfig {path} does not exist, and this process does not run in a pod. \
                 Fix: correct `kubeconfig` in its configuration file, or run it in a pod with a \
                 service account"
            )
        })?
    };
    build(config).with_context(|| {
        format!("kubeconfig {} of this process's own cluster", kubeconfig.display())
    })
}

/// The operator's kubeconfig as kubectl finds it: the given file, else the files of `KUBECONFIG`
/// merged, else `~/.kube/config`; `None` where there is none. (kube's own loader fails where one file
/// of `KUBECONFIG` does not exist; kubectl skips it.)
pub(crate) fn kubeconfig(given: Option<&Path>) -> Result<Option<Kubeconfig>> {
    let read = |path: &Path| {
        Kubeconfig::read_from(path).map_err(|error| {
            let (path, why) = (path.display(), unread(&error));
            match error {
                KubeconfigError::ReadConfig(..) => anyhow!(
                    "ISM2001 kubeconfig {path} cannot be read: {why}. \
                     Fix: name a kubeconfig this user may read"
                ),
                _ => anyhow!(
                    "ISM2001 kubeconfig {path} is no kubeconfig: {why}. Fix: correct it until \
                     `kubectl --kubeconfig {path} config view` reads it, or name another"
                ),
            }
        })
    };
    if let Some(path) = given {
        return read(path).map(Some);
    }
    let listed: Vec<PathBuf> = match std::env::var_os("KUBECONFIG") {
        Some(paths) => {
            std::env::split_paths(&paths).filter(|p| !p.as_os_str().is_empty()).collect()
        }
        None => Vec::new(),
    };
    let named = !listed.is_empty();
    let paths = if listed.is_empty() {
        std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect()
    } else {
        listed
    };
    let mut merged: Option<Kubeconfig> = None;
    for path in present(&paths, named)? {
        let next = read(path)?;
        merged = Some(match merged {
            None => next,
            Some(before) => before.merge(next).with_context(|| {
                format!("kubeconfig {} does not fit the others", path.display())
            })?,
        });
    }
    Ok(merged)
}

/// The files that exist; it is a mistake if KUBECONFIG names some, and none does.
fn present(paths: &[PathBuf], named: bool) -> Result<Vec<&PathBuf>> {
    let present: Vec<_> = paths.iter().filter(|path| path.exists()).collect();
    if named && present.is_empty() {
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        bail!(
            "ISM2001 no file that KUBECONFIG names exists: {}. Fix: correct the variable, or pass \
             --kubeconfig FILE",
            paths.join(", ")
        );
    }
    Ok(present)
}

/// Why a file is no kubeconfig, without a word of it: it holds credentials.
fn unread(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(why, _) => why.to_string(),
        KubeconfigError::Parse(error) => yaml::told(error),
        other => other.to_string(),
    }
}

/// TCP connect and TLS handshake together.
pub const CONNECT: Duration = Duration::from_secs(5);
/// Silence on a connection while an answer, or the next piece of one, is awaited. A quiet watch is
/// ended by the server before that, so that a hung server is told from a quiet one.
pub const READ: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 4);
/// A write that the kernel does not take.
pub const WRITE: Duration = Duration::from_secs(20);
/// Bytes sent and not acknowledged, keepalive probes included: a dead path is found in 20 s.
pub const USER_TIMEOUT: Duration = Duration::from_secs(20);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// A client from any configuration, with our limits instead of kube's (connect 30 s, read never,
/// 15 retries on 503 that hide an outage for minutes).
pub fn build(config: kube::Config) -> Result<Client> {
    connect_by(config, HttpConnector::new())
}

/// The same for a linked cluster's API server: a name that resolves to this machine, or to a cloud's
/// metadata service, is not dialled (an address in its place is refused by `kubeconfig`).
pub fn build_remote(config: kube::Config, rules: Rules) -> Result<Client> {
    let resolve = tower::service_fn(move |name: Name| async move {
        let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        let (bad, good): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|address| kubeconfig::forbidden(address.ip(), rules).is_some());
        match bad.first() {
            Some(bad) if good.is_empty() => Err(std::io::Error::other(format!(
                "{} resolves to {}, which is not another cluster's API server",
                name.as_str(),
                bad.ip()
            ))),
            Some(_) | None => Ok(good.into_iter()),
        }
    });
    connect_by(config, HttpConnector::new_with_resolver(resolve))
}

fn connect_by<R>(config: kube::Config, mut tcp: HttpConnector<R>) -> Result<Client>
where
    HttpConnector<R>:
        tower::Service<http::Uri, Response = TokioIo<TcpStream>> + Clone + Send + Sync + 'static,
    <HttpConnector<R> as tower::Service<http::Uri>>::Error:
        std::error::Error + Send + Sync + 'static,
    <HttpConnector<R> as tower::Service<http::Uri>>::Future: Send + Unpin + 'static,
{
    if let Some(proxy) = &config.proxy_url {
        bail!(
            "ISM2324 proxy-url {proxy} is not supported. \
             Fix: name the API server itself as `server`, and leave proxy-url out"
        );
    }
    // rustls wants one provider per process; another one already in place is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    tcp.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let tls = config.rustls_https_connector_with_connector(tcp).context(
        "ISM2325 the kubeconfig's certificates cannot be used. Fix: write PEM into \
             certificate-authority-data, client-certificate-data and client-key-data, as base64",
    )?;
    // Around TLS too: a stopped server accepts, and never says hello.
    let mut limited = TimeoutConnector::new(tls);
    limited.set_connect_timeout(Some(CONNECT));
    limited.set_read_timeout(Some(READ));
    limited.set_write_timeout(Some(WRITE));
    // Else the time a pooled connection lay idle would count against the next answer.
    limited.set_reset_reader_on_write(true);
    let http: HttpClient<_, Body> =
        HttpClient::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(limited);
    let service = tower::ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().context(
            "ISM2326 the kubeconfig's credential cannot be used. Fix: name a token, a readable \
             tokenFile or a client certificate",
        )?)
        .layer(config.extra_headers_layer().context(
            "ISM2327 the kubeconfig's `as` and `as-groups` make no headers. Fix: correct them",
        )?)
        .map_err(tower::BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn error(text: Option<&str>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.kubeconfig");
        if let Some(text) = text {
            std::fs::write(&path, text).unwrap();
        }
        match connect(&path).await {
            Ok(_) => "it can be used".into(),
            Err(error) => format!("{error:#}"),
        }
    }

    fn file(cluster: &str, user: &str, context: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: {context}, clusters: [{{name: a, \
             cluster: {{server: 'https://192.0.2.1:6443', {cluster}}}}}], contexts: [{{name: a, context: \
             {{cluster: a, user: a}}}}], users: [{{name: a, user: {{{user}}}}}]}}"
        )
    }

    #[test]
    fn an_operators_kubeconfig_says_whether_its_words_or_its_rights_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, "users:\n- name: a\n  user:\n    token: eyJSECRET\n  x: [\n")
            .unwrap();
        let said = format!("{:#}", kubeconfig(Some(&path)).unwrap_err());
        let whole = ["ISM2001", "is no kubeconfig", " at line ", "Fix: correct it"];
        assert!(whole.iter().all(|word| said.contains(word)), "{said}");
        assert!(!said.contains("SECRET") && !said.contains("may read"), "{said}");
        let said = format!("{:#}", kubeconfig(Some(&folder.path().join("none"))).unwrap_err());
        let whole = ["ISM2001", "/none cannot be read", "No such file", "this user may read"];
        assert!(whole.iter().all(|word| said.contains(word)), "{said}");
    }

    #[test]
    fn files_that_the_variable_names_and_that_are_not_there_are_named() {
        let paths: Vec<PathBuf> = vec!["/nope".into(), "/nope2".into()];
        let said = present(&paths, true).unwrap_err().to_string();
        assert!(said.contains("/nope, /nope2") && said.contains("KUBECONFIG"), "{said}");
        assert!(present(&paths, false).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_kubeconfig_that_cannot_be_used_says_which_why_and_what_to_do() {
        let hidden = "c2VjcmV0"; // A credential is never shown.
        let token = format!("token: {hidden}");
        let cases = [
            (None, "ISM2323", "does not exist"),
            (Some("{not yaml".to_owned()), "ISM2321", "cannot be read"),
            (Some(format!("users:\n- {token}\n  a: [\n{token}")), "ISM2321", "line "),
            (Some(format!("users: {hidden}\n")), "ISM2321", "line 1"),
            (Some(file("", &token, "b")), "ISM2322", "current-context"),
            (
                Some(file("certificate-authority: nowhere.pem", &token, "a")),
                "ISM2322",
                "nowhere.pem",
            ),
            (Some(file("proxy-url: 'http://192.0.2.9:1'", &token, "a")), "ISM2324", "192.0.2.9"),
            (
                Some(file(
                    "",
                    &format!("client-certificate-data: {hidden}, client-key-data: {hidden}"),
                    "a",
                )),
                "ISM2325",
                "PEM",
            ),
        ];
        for (text, code, word) in cases {
            let said = error(text.as_deref()).await;
            let whole = [code, word, "own.kubeconfig", "Fix:"].iter().all(|it| said.contains(it));
            assert!(whole && !said.contains(hidden), "{code} {word}: {said}");
        }
    }
}

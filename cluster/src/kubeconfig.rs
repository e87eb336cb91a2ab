//! A kubeconfig from a Secret, read by an allow-list: whoever may write that Secret gets a TLS
//! connection to one server out of this process, and nothing else (decision 17, threat A9).

use crate::yaml;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Longest kubeconfig that is read, bytes. Istio's have about 3 KiB.
pub const KUBECONFIG_MAX: usize = 64 * 1024;
/// Certificates in `certificate-authority-data`.
const CERTIFICATES_MAX: usize = 16;
const TOKEN_MAX: usize = 16 * 1024;
/// Longest piece of a stranger's text in an error.
const ECHO_MAX: usize = 80;

/// Reads `text` into what is allowed, or says why not. Touches no file and starts no process.
pub fn parse(text: &[u8], rules: Rules) -> Result<Remote, Refused> {
    if text.len() > KUBECONFIG_MAX {
        return Err(Refused::TooLarge { size: text.len() });
    }
    let fingerprint = hex::encode(Sha256::digest(text));
    let text = std::str::from_utf8(text).map_err(|_| Refused::NotUtf8)?;
    let file = read(text)?;
    if let Some(kind) = file.kind.as_deref().filter(|kind| *kind != "Config") {
        return Err(Refused::NotAKubeconfig(format!("its kind is {:?}", echo(kind))));
    }
    if let Some(version) = file.api_version.as_deref().filter(|version| *version != "v1") {
        return Err(Refused::NotAKubeconfig(format!("its apiVersion is {:?}", echo(version))));
    }
    unknown("", &file.rest)?;

    let context = the_one("contexts", file.contexts)?;
    let current = file.current_context.unwrap_or_default();
    if context.name != current {
        return Err(Refused::Mismatch { what: "current-context", named: echo(&current) });
    }
    let context = context.context.ok_or(Refused::Missing("contexts[0].context"))?;
    unknown("contexts[0].context", &context.rest)?;
    let cluster = the_one("clusters", file.clusters)?;
    if Some(&cluster.name) != context.cluster.as_ref() {
        let named = echo(context.cluster.as_deref().unwrap_or_default());
        return Err(Refused::Mismatch { what: "contexts[0].context.cluster", named });
    }
    let user = the_one("users", file.users)?;
    if Some(&user.name) != context.user.as_ref() {
        let named = echo(context.user.as_deref().unwrap_or_default());
        return Err(Refused::Mismatch { what: "contexts[0].context.user", named });
    }
    let cluster = cluster.cluster.ok_or(Refused::Missing("clusters[0].cluster"))?;
    let user = user.user.ok_or(Refused::Missing("users[0].user"))?;

    let (server, authorities) = server(cluster, rules)?;
    let credential = credential(user)?;
    Ok(Remote { server, authorities, credential, fingerprint })
}

/// What the caller lets pass.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Servers on 127.0.0.0/8 and ::1; for tests and the demo on one machine.
    pub allow_loopback: bool,
}

/// All that a remote kubeconfig may say. Printing it shows no credential.
#[derive(Clone)]
pub struct Remote {
    server: Server,
    authorities: Vec<Vec<u8>>,
    credential: Credential,
    fingerprint: String,
}

#[derive(Debug, Clone)]
struct Server {
    uri: http::Uri,
    tls_name: Option<String>,
}

#[derive(Clone)]
enum Credential {
    Token(String),
    Certificate { chain: String, key: String },
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("server", &self.server)
            .field("credential", &self.credential)
            .field("fingerprint", &self.short_fingerprint())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token(..)",
            Self::Certificate { .. } => "Certificate(..)",
        })
    }
}

impl Remote {
    /// The API server's URL.
    pub fn server(&self) -> String {
        self.server.uri.to_string().trim_end_matches('/').to_owned()
    }

    /// SHA-256 of the whole kubeconfig, hex: two equal ones are the same credential.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Its first 16 digits, for people.
    pub fn short_fingerprint(&self) -> &str {
        &self.fingerprint[..16]
    }

    pub(crate) fn token(&self) -> Option<&str> {
        match &self.credential {
            Credential::Token(token) => Some(token),
            Credential::Certificate { .. } => None,
        }
    }

    /// The same server by the same CA, with another token: another credential.
    pub(crate) fn with_token(&self, token: String) -> Self {
        let mut digest = Sha256::new_with_prefix(&self.fingerprint);
        digest.update(&token);
        let fingerprint = hex::encode(digest.finalize());
        Self { credential: Credential::Token(token), fingerprint, ..self.clone() }
    }

    /// The client's configuration, built by hand: only what was parsed is in it.
    pub fn config(&self) -> kube::Config {
        let mut config = kube::Config::new(self.server.uri.clone());
        config.root_cert = Some(self.authorities.clone());
        config.tls_server_name = self.server.tls_name.clone();
        match &self.credential {
            Credential::Token(token) => config.auth_info.token = Some(token.clone().into()),
            Credential::Certificate { chain, key } => {
                config.auth_info.client_certificate_data = Some(STANDARD.encode(chain));
                config.auth_info.client_key_data = Some(STANDARD.encode(key).into());
            }
        }
        // A retry inside the client would hide a dead server from the probe's clock.
        config.default_retry = false;
        config.disable_compression = true;
        config
    }
}

/// Why a kubeconfig is not used. Each variant is one rule; the sentence has the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "the kubeconfig has {size} bytes, at most {KUBECONFIG_MAX} are read. Fix: kubectl config view --minify --flatten --raw"
    )]
    TooLarge { size: usize },
    #[error("the kubeconfig is not UTF-8 text. Fix: store the file itself, once base64-encoded")]
    NotUtf8,
    #[error("the kubeconfig is empty. Fix: isthmus create-remote-secret writes a whole one")]
    Empty,
    #[error(
        "the kubeconfig is not readable as YAML: {0}. Fix: isthmus create-remote-secret writes a whole one"
    )]
    NotYaml(String),
    #[error(
        "this is no kubeconfig: {0}. Fix: the Secret's value must be a kubeconfig of kind Config, apiVersion v1"
    )]
    NotAKubeconfig(String),
    #[error(
        "{field} is not allowed here: it would start a program in the controller. Fix: use a token, as isthmus create-remote-secret does"
    )]
    Exec { field: &'static str },
    #[error(
        "users[0].user.auth-provider is not allowed here: it would start a program or call a third party. Fix: use a token, as isthmus create-remote-secret does"
    )]
    AuthProvider,
    #[error(
        "{field} is not allowed here: it names a file on the controller's own disk. Fix: put the content in {instead}"
    )]
    FilePath { field: &'static str, instead: &'static str },
    #[error(
        "clusters[0].cluster.proxy-url is not allowed here: a Secret must not choose whom the controller's credentials pass through. Fix: remove it, route on the network"
    )]
    Proxy,
    #[error(
        "clusters[0].cluster.insecure-skip-tls-verify is not allowed here: anybody in between could be that cluster. Fix: remove it and give certificate-authority-data"
    )]
    InsecureTls,
    #[error(
        "{field} is not allowed here: impersonation hides whose credential it is. Fix: remove it and bind the roles to the credential's own account"
    )]
    Impersonation { field: &'static str },
    #[error(
        "{field} is not allowed here: basic authentication left Kubernetes in 1.19. Fix: use a token"
    )]
    BasicAuth { field: &'static str },
    #[error("{field} is unknown here and may change who is trusted. Fix: remove it")]
    UnknownField { field: String },
    #[error(
        "the kubeconfig has {count} {what}, exactly one is read. Fix: kubectl config view --minify --flatten --raw"
    )]
    NotOne { what: &'static str, count: usize },
    #[error("{what} names {named:?}, which is not the one that is there. Fix: let the names agree")]
    Mismatch { what: &'static str, named: String },
    #[error("{0} is missing. Fix: isthmus create-remote-secret writes a whole kubeconfig")]
    Missing(&'static str),
    #[error(
        "server {0:?} is not an https URL of host and port. Fix: write it like https://203.0.113.7:6443"
    )]
    BadServer(String),
    #[error(
        "server {0:?} is not https, the credential would be readable on the way. Fix: use the API server's https address"
    )]
    NotHttps(String),
    #[error(
        "self-pointing server {0}: from here that is this machine, not the other cluster. Fix: isthmus create-remote-secret --server https://ADDRESS:6443 with an address that other clusters reach"
    )]
    SelfPointing(String),
    #[error(
        "server {host} is {what}, which no API server has. Fix: give the address that other clusters reach"
    )]
    ForbiddenAddress { host: String, what: &'static str },
    #[error(
        "tls-server-name {0:?} is no DNS name or IP address. Fix: remove it, or give a name from the API server's certificate"
    )]
    BadTlsName(String),
    #[error(
        "certificate-authority-data is missing: only the CA tells the other cluster from an impostor. Fix: add the cluster's CA, kubectl config view --flatten --raw shows it"
    )]
    NoAuthority,
    #[error("{field} is not base64. Fix: base64 -w0 the PEM file")]
    NotBase64 { field: &'static str },
    #[error("{field} is no PEM {expected}: {why}. Fix: base64 -w0 the PEM file")]
    NotPem { field: &'static str, expected: &'static str, why: String },
    #[error(
        "users[0].user has no credential. Fix: give token, or client-certificate-data with client-key-data"
    )]
    NoCredential,
    #[error(
        "users[0].user has both a token and a client certificate; who the other cluster sees would be chance. Fix: keep one"
    )]
    TwoCredentials,
    #[error(
        "client-certificate-data and client-key-data belong together, one is missing. Fix: give both, or a token"
    )]
    HalfCertificate,
    #[error(
        "token is not printable ASCII of at most {TOKEN_MAX} bytes. Fix: store the token itself, not its base64 or its file"
    )]
    BadToken,
}

impl Refused {
    /// One CamelCase word for a condition's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "KubeconfigTooLarge",
            Self::NotUtf8 | Self::NotYaml(_) | Self::NotAKubeconfig(_) => "KubeconfigUnreadable",
            Self::Empty => "KubeconfigEmpty",
            Self::Exec { .. } => "ExecNotAllowed",
            Self::AuthProvider => "AuthProviderNotAllowed",
            Self::FilePath { .. } => "FilePathNotAllowed",
            Self::Proxy => "ProxyNotAllowed",
            Self::InsecureTls => "InsecureTlsNotAllowed",
            Self::Impersonation { .. } => "ImpersonationNotAllowed",
            Self::BasicAuth { .. } => "BasicAuthNotAllowed",
            Self::UnknownField { .. } => "UnknownField",
            Self::NotOne { .. } | Self::Mismatch { .. } => "ContextMismatch",
            Self::Missing(_) => "KubeconfigIncomplete",
            Self::BadServer(_) | Self::NotHttps(_) => "BadServer",
            Self::SelfPointing(_) => "SelfPointingServer",
            Self::ForbiddenAddress { .. } => "ForbiddenServer",
            Self::BadTlsName(_) => "BadTlsServerName",
            Self::NoAuthority => "NoCertificateAuthority",
            Self::NotBase64 { .. } | Self::NotPem { .. } => "BadCertificateData",
            Self::NoCredential => "NoCredential",
            Self::TwoCredentials | Self::HalfCertificate => "AmbiguousCredential",
            Self::BadToken => "BadToken",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    clusters: Option<Vec<NamedCluster>>,
    #[serde(default)]
    users: Option<Vec<NamedUser>>,
    #[serde(default)]
    contexts: Option<Vec<NamedContext>>,
    current_context: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: Option<String>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: Option<bool>,
    #[serde(flatten)]
    rest: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, IgnoredAny>,
}

/// YAML with bounds on depth, nodes and anchors: a bomb is refused before it is a value.
fn read(text: &str) -> Result<File, Refused> {
    if text.trim().is_empty() {
        return Err(Refused::Empty);
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 16,
            max_nodes: 1000,
            max_events: 4000,
            max_anchors: 0,
            max_aliases: 0,
            max_documents: 1,
            max_merge_keys: 0,
        },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| Refused::NotYaml(yaml::told(&error)))
}

fn echo(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(ECHO_MAX).collect()
}

fn the_one<T>(what: &'static str, list: Option<Vec<T>>) -> Result<T, Refused> {
    let list = list.unwrap_or_default();
    let count = list.len();
    match <[T; 1]>::try_from(list) {
        Ok([one]) => Ok(one),
        Err(_) => Err(Refused::NotOne { what, count }),
    }
}

/// Fields that change nothing for us; kubectl, kind and minikube write them.
const HARMLESS: [&str; 4] = ["preferences", "extensions", "namespace", "disable-compression"];

fn unknown(place: &str, rest: &BTreeMap<String, IgnoredAny>) -> Result<(), Refused> {
    match rest.keys().find(|key| !HARMLESS.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) if place.is_empty() => Err(Refused::UnknownField { field: echo(key) }),
        Some(key) => Err(Refused::UnknownField { field: format!("{place}.{}", echo(key)) }),
    }
}

fn server(cluster: Cluster, rules: Rules) -> Result<(Server, Vec<Vec<u8>>), Refused> {
    for key in cluster.rest.keys() {
        match key.as_str() {
            "proxy-url" => return Err(Refused::Proxy),
            "certificate-authority" => {
                return Err(Refused::FilePath {
                    field: "clusters[0].cluster.certificate-authority",
                    instead: "certificate-authority-data",
                });
            }
            _ => {}
        }
    }
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Err(Refused::InsecureTls);
    }
    unknown("clusters[0].cluster", &cluster.rest)?;

    let text = cluster.server.ok_or(Refused::Missing("clusters[0].cluster.server"))?;
    let bad = || Refused::BadServer(echo(&text));
    let uri: http::Uri = text.parse().map_err(|_| bad())?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") => return Err(Refused::NotHttps(echo(&text))),
        Some(_) | None => return Err(bad()),
    }
    let authority = uri.authority().ok_or_else(bad)?;
    // `user:password@host` would print a secret in every log line, and hides the real host.
    // A port above 65535 parses as none, and the default would be dialled.
    let port_lost =
        authority.port_u16().is_none() && !authority.as_str().ends_with(authority.host());
    if authority.as_str().contains('@') || uri.query().is_some() || port_lost {
        return Err(bad());
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    if host.is_empty() {
        return Err(bad());
    }
    check_host(&host, rules)?;
    if let Some(name) = &cluster.tls_server_name {
        rustls::pki_types::ServerName::try_from(name.as_str())
            .map_err(|_| Refused::BadTlsName(echo(name)))?;
    }
    let data = cluster.certificate_authority_data.filter(|data| !data.trim().is_empty());
    let data = data.ok_or(Refused::NoAuthority)?;
    let authorities = certificates("certificate-authority-data", &data)?;
    Ok((Server { uri, tls_name: cluster.tls_server_name }, authorities))
}

/// Refuses names and literals that mean "this machine" or "this cloud's metadata service". What a
/// DNS name resolves to is checked again when it is dialled ([`forbidden`]).
fn check_host(host: &str, rules: Rules) -> Result<(), Refused> {
    let local = host == "localhost" || host.ends_with(".localhost") || host == "ip6-localhost";
    if local {
        return if rules.allow_loopback { Ok(()) } else { Err(Refused::SelfPointing(host.into())) };
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return match forbidden(address, rules) {
            None => Ok(()),
            Some("loopback") => Err(Refused::SelfPointing(host.into())),
            Some(what) => Err(Refused::ForbiddenAddress { host: host.into(), what }),
        };
    }
    // Other spellings of an address (0x7f000001, 2130706433, 127.1) are what resolvers of old
    // accept: a name's last label is never numeric (RFC 3696).
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let numeric = last.starts_with(|c: char| c.is_ascii_digit())
        && last.chars().all(|c| c.is_ascii_hexdigit() || c == 'x');
    if numeric {
        return Err(Refused::BadServer(echo(host)));
    }
    if host == "metadata.google.internal" || host == "metadata" || host == "instance-data" {
        return Err(Refused::ForbiddenAddress {
            host: host.into(),
            what: "a cloud's metadata service",
        });
    }
    let kubernetes = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    if kubernetes.contains(&host) || host == "kubernetes.default.svc.cluster.local" {
        return Err(Refused::SelfPointing(host.into()));
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if host.len() > 253 || !host.chars().all(fine) {
        return Err(Refused::BadServer(echo(host)));
    }
    Ok(())
}

/// What is wrong with dialling `address` for another cluster's API server, if anything is.
pub fn forbidden(address: IpAddr, rules: Rules) -> Option<&'static str> {
    let address = address.to_canonical();
    if address.is_loopback() {
        return (!rules.allow_loopback).then_some("loopback");
    }
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.is_link_local() => {
            Some("link-local (the metadata service lives there)")
        }
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("in 0.0.0.0/8"),
        // Alibaba's metadata service.
        IpAddr::V4(v4) if v4.octets() == [100, 100, 100, 200] => Some("a cloud's metadata service"),
        // AWS's over IPv6.
        IpAddr::V6(v6) if v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => {
            Some("a cloud's metadata service")
        }
        IpAddr::V6(v6) if (v6.segments()[0] & 0xffc0) == 0xfe80 => Some("link-local"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn credential(user: User) -> Result<Credential, Refused> {
    for key in user.rest.keys() {
        match key.as_str() {
            "exec" => return Err(Refused::Exec { field: "users[0].user.exec" }),
            "auth-provider" => return Err(Refused::AuthProvider),
            "tokenFile" | "token-file" => {
                return Err(Refused::FilePath {
                    field: "users[0].user.tokenFile",
                    instead: "token",
                });
            }
            "client-certificate" => {
                return Err(Refused::FilePath {
                    field: "users[0].user.client-certificate",
                    instead: "client-certificate-data",
                });
            }
            "client-key" => {
                return Err(Refused::FilePath {
                    field: "users[0].user.client-key",
                    instead: "client-key-data",
                });
            }
            "as" => return Err(Refused::Impersonation { field: "users[0].user.as" }),
            "as-uid" => return Err(Refused::Impersonation { field: "users[0].user.as-uid" }),
            "as-groups" => return Err(Refused::Impersonation { field: "users[0].user.as-groups" }),
            "as-user-extra" => {
                return Err(Refused::Impersonation { field: "users[0].user.as-user-extra" });
            }
            "username" => return Err(Refused::BasicAuth { field: "users[0].user.username" }),
            "password" => return Err(Refused::BasicAuth { field: "users[0].user.password" }),
            _ => {}
        }
    }
    unknown("users[0].user", &user.rest)?;

    let some = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    match (some(user.token), some(user.client_certificate_data), some(user.client_key_data)) {
        (None, None, None) => Err(Refused::NoCredential),
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(Refused::TwoCredentials),
        (None, Some(_), None) | (None, None, Some(_)) => Err(Refused::HalfCertificate),
        (Some(token), None, None) => {
            let token = token.trim();
            if token.len() > TOKEN_MAX || !token.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(Refused::BadToken);
            }
            Ok(Credential::Token(token.to_owned()))
        }
        (None, Some(chain), Some(key)) => {
            let chain_pem = pem_text("client-certificate-data", &chain)?;
            certificates("client-certificate-data", &chain)?;
            let key_pem = pem_text("client-key-data", &key)?;
            use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|_| Refused::NotPem {
                field: "client-key-data",
                expected: "private key",
                why: "no key is in it".into(),
            })?;
            Ok(Credential::Certificate { chain: chain_pem, key: key_pem })
        }
    }
}

fn pem_text(field: &'static str, data: &str) -> Result<String, Refused> {
    let compact: String = data.split_whitespace().collect();
    let bytes = STANDARD.decode(compact).map_err(|_| Refused::NotBase64 { field })?;
    String::from_utf8(bytes).map_err(|_| Refused::NotPem {
        field,
        expected: "text",
        why: "it is not text".into(),
    })
}

/// The certificates in base64 of PEM, each DER.
fn certificates(field: &'static str, data: &str) -> Result<Vec<Vec<u8>>, Refused> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let text = pem_text(field, data)?;
    let not = |why: String| Refused::NotPem { field, expected: "certificate", why };
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|_| not("a block in it is broken".into()))?;
        found.push(certificate.to_vec());
    }
    if found.is_empty() || found.len() > CERTIFICATES_MAX {
        return Err(not(format!("{} certificates are in it", found.len())));
    }
    Ok(found)
}

#[cfg(test)]
#[path = "kubeconfig_tests.rs"]
mod tests;

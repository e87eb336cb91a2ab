//! Renewing a link's credential: its token says whose it is and how long it lives, its own account
//! asks for the next one, and a Secret of ours keeps that beside the one that people hold
//! (decision 17).

use crate::api::label;
use crate::client;
use crate::credential::Token;
use crate::kubeconfig::{self, Rules};
use crate::lease::REQUEST_TIMEOUT;
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde::Deserialize;
use serde_json::json;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a linked API server has to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// API servers give no token a shorter life.
const LIFE_MIN: Duration = Duration::from_secs(600);

/// When a token was issued, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    pub issued: SystemTime,
    pub expires: SystemTime,
}

/// A link's credential, where it is a service account's token with an end.
#[derive(Clone)]
pub struct Credential {
    /// As people hold it.
    held: kubeconfig::Remote,
    /// The same, or with a newer token of ours.
    in_use: kubeconfig::Remote,
    life: Life,
}

impl PartialEq for Credential {
    fn eq(&self, other: &Self) -> bool {
        (self.held.fingerprint(), self.in_use.fingerprint())
            == (other.held.fingerprint(), other.in_use.fingerprint())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, {:?})", self.in_use.short_fingerprint(), self.life)
    }
}

impl Credential {
    /// `None` where it is not ours to renew: a certificate, or a token without an end.
    pub(crate) fn of(held: kubeconfig::Remote, in_use: kubeconfig::Remote) -> Option<Self> {
        let life = Claims::of(in_use.token()?)?.life();
        Some(Self { held, in_use, life })
    }

    /// Of the token in use.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Which token it is, without saying it.
    pub fn fingerprint(&self) -> &str {
        self.in_use.fingerprint()
    }

    /// Asks the linked API server for the next token, of the same account, life, and bond: what
    /// revokes the one revokes the other. Where ours is no longer taken, the held one asks.
    pub async fn ask(&self, rules: Rules) -> Result<Fresh> {
        let newest = ask(&self.in_use, rules).await;
        let fresh = match newest {
            Err(_) if self.in_use.fingerprint() != self.held.fingerprint() => {
                ask(&self.held, rules).await
            }
            newest => newest,
        };
        let (token, life) = fresh?;
        Ok(Fresh { of: self.held.fingerprint().to_owned(), token, life })
    }
}

/// A new token for a held credential.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// Fingerprint of the kubeconfig that people hold.
    of: String,
    token: Token,
    life: Life,
}

impl Fresh {
    pub fn life(&self) -> Life {
        self.life
    }
}

async fn ask(credential: &kubeconfig::Remote, rules: Rules) -> Result<(Token, Life)> {
    let claims = credential.token().and_then(Claims::of);
    let claims = claims.context("ISM2501 the credential is no service account's token")?;
    let client = client::build_remote(credential.config(), rules)?;
    let Account { namespace, name } = claims.account();
    let life = claims.life().expires.duration_since(claims.life().issued).unwrap_or_default();
    let bound_object_ref = claims.kubernetes.secret.as_ref().map(|secret| BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Secret".into()),
        name: Some(secret.name.clone()),
        uid: Some(secret.uid.clone()),
    });
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            bound_object_ref,
            expiration_seconds: i64::try_from(life.max(LIFE_MIN).as_secs()).ok(),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client, &namespace);
    let params = PostParams::default();
    let answer = accounts.create_token_request(&name, &params, &request);
    let answer = tokio::time::timeout(ANSWER, answer)
        .await
        .with_context(|| format!("ISM2502 no answer within {ANSWER:?} from {}", credential.server()))?
        .with_context(|| {
            format!(
                "ISM2502 {} gives ServiceAccount {namespace}/{name} no new token for itself. Fix: let it \
                 create serviceaccounts/token {name}, as isthmus create-remote-secret does",
                credential.server()
            )
        })?;
    let token = answer.status.and_then(|status| status.token).unwrap_or_default();
    let Some(fresh) = Claims::of(&token).filter(|fresh| fresh.subject == claims.subject) else {
        bail!(
            "ISM2503 {} answered with a token that is not {}'s",
            credential.server(),
            claims.subject
        );
    };
    Ok((Token::new(token), fresh.life()))
}

/// Name of our Secret for a link.
pub fn secret_name(cluster: &str) -> String {
    format!("isthmus-credential-{cluster}")
}

/// Where our Secrets are: the root namespace of the own cluster.
#[derive(Clone)]
pub struct Shelf {
    api: Api<Secret>,
    namespace: String,
}

impl Shelf {
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), namespace: namespace.to_owned() }
    }

    /// Writes a new token beside the held credential. A Secret of that name that is not ours stays.
    pub async fn store(&self, cluster: &str, fresh: &Fresh, term: u64) -> Result<()> {
        let Self { api, namespace } = self;
        let name = secret_name(cluster);
        let write = async {
            let standing = api.get_opt(&name).await?;
            if standing.as_ref().is_some_and(|secret| !ours(secret)) {
                return Ok(false);
            }
            let version = standing.and_then(|secret| secret.metadata.resource_version);
            let mut object = json!({
                "apiVersion": "v1", "kind": "Secret", "type": "isthmus.dev/link-credential",
                "metadata": {
                    "name": name, "namespace": namespace,
                    "labels": {(label::MANAGED_BY): label::MANAGER, (label::CREDENTIAL): cluster},
                    "annotations": {(label::RENEWS): fresh.of, (label::TERM): term.to_string()},
                },
                "data": {TOKEN: STANDARD.encode(fresh.token.reveal())},
            });
            if let Some(version) = version {
                object["metadata"]["resourceVersion"] = version.into();
            }
            let params = PatchParams::apply(label::MANAGER).force();
            api.patch(&name, &params, &Patch::Apply(&object)).await.map(|_| true)
        };
        let written = tokio::time::timeout(REQUEST_TIMEOUT, write)
            .await
            .with_context(|| format!("ISM2504 Secret {namespace}/{name} was not written in time"))?
            .with_context(|| format!("ISM2504 Secret {namespace}/{name} cannot be written"))?;
        if !written {
            bail!(
                "ISM2505 Secret {namespace}/{name} is not this controller's, so the link's new token \
                 is not written over it. Fix: rename that Secret"
            );
        }
        Ok(())
    }

    /// Removes our Secret of a link that it renews nothing of any more.
    pub async fn remove(&self, cluster: &str) -> Result<()> {
        let Self { api, namespace } = self;
        let name = secret_name(cluster);
        let remove = async {
            let Some(standing) = api.get_opt(&name).await?.filter(ours) else { return Ok(()) };
            let same = Preconditions {
                uid: standing.metadata.uid,
                resource_version: standing.metadata.resource_version,
            };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            api.delete(&name, &params).await.map(|_| ())
        };
        tokio::time::timeout(REQUEST_TIMEOUT, remove)
            .await
            .with_context(|| format!("ISM2506 Secret {namespace}/{name} was not deleted in time"))?
            .with_context(|| format!("ISM2506 Secret {namespace}/{name} cannot be deleted"))
    }
}

fn ours(secret: &Secret) -> bool {
    let labels = secret.metadata.labels.as_ref();
    labels.and_then(|all| all.get(label::MANAGED_BY)).is_some_and(|by| by == label::MANAGER)
}

/// Key of the token in our Secret.
const TOKEN: &str = "token";

/// Of one of our Secrets, what matters: a token, for exactly one held kubeconfig. It can change no
/// server and no CA. Printing it shows no credential.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Renewed {
    pub(crate) cluster: String,
    of: String,
    token: String,
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Renewed({} of {})", self.cluster, self.of)
    }
}

pub(crate) fn trim(secret: Secret) -> Option<Renewed> {
    if !ours(&secret) {
        return None;
    }
    let meta = secret.metadata;
    let cluster = meta.labels?.remove(label::CREDENTIAL)?;
    if meta.name? != secret_name(&cluster) {
        return None;
    }
    let of = meta.annotations?.remove(label::RENEWS)?;
    let token = String::from_utf8(secret.data?.remove(TOKEN)?.0).ok()?;
    Some(Renewed { cluster, of, token })
}

impl Renewed {
    /// Whether it renews this held credential; when people replace theirs, ours is void.
    pub(crate) fn renews(&self, held: &kubeconfig::Remote) -> bool {
        self.of == held.fingerprint()
    }

    /// `held` with this token, if it lives longer than the one that is in it.
    pub(crate) fn newest(&self, held: &kubeconfig::Remote) -> Option<kubeconfig::Remote> {
        let before = Claims::of(held.token()?)?;
        let after = Claims::of(&self.token)?;
        let better = after.subject == before.subject && after.expires > before.expires;
        (better && self.renews(held)).then(|| held.with_token(self.token.clone()))
    }
}

/// When the token of `credential` ends, where it says so.
pub(crate) fn expires(credential: &kubeconfig::Remote) -> Option<SystemTime> {
    Some(Claims::of(credential.token()?)?.life().expires)
}

/// What a service account's token says of itself. Nothing is believed for it: the server that
/// issued it judges it, we only look when it ends.
#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "sub")]
    subject: String,
    #[serde(rename = "iat")]
    issued: u64,
    #[serde(rename = "exp")]
    expires: u64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bond,
}

#[derive(Deserialize)]
struct Bond {
    secret: Option<Bound>,
    /// Tokens of pods end with them; they are not ours to renew.
    pod: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Bound {
    name: String,
    uid: String,
}

struct Account {
    namespace: String,
    name: String,
}

impl Claims {
    fn of(token: &str) -> Option<Self> {
        let mut parts = token.split('.');
        let payload = parts.nth(1).filter(|_| parts.next().is_some())?;
        let claims: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let account = claims.subject.strip_prefix("system:serviceaccount:")?.contains(':');
        // Dates of a stranger's: beyond the year 9999 nobody is.
        let dates = claims.issued < claims.expires && claims.expires < 253_402_300_800;
        (account && dates && claims.kubernetes.pod.is_none()).then_some(claims)
    }

    fn life(&self) -> Life {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        Life { issued: at(self.issued), expires: at(self.expires) }
    }

    fn account(&self) -> Account {
        let mut parts = self.subject.split(':').skip(2).map(str::to_owned);
        let mut next = || parts.next().expect("the subject of an account was checked");
        Account { namespace: next(), name: next() }
    }
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;

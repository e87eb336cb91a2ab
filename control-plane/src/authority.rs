//! The cluster's certificate authority: who asks is found out from a token or a certificate, the
//! names are built from that and never from the request, and nobody asks too often.

use crate::limit::{Limit, Rate};
use crate::numbers::Numbers;
use crate::serve::Served;
use cluster::secret::Cacerts;
use cluster::token::Reviewed;
use futures::future::BoxFuture;
use mesh::name::Identity;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use trust::bundle::Bundle;
use trust::issue::{IssueError, Issuer, new_key_and_csr};
use trust::svid::Svid;
use xds::issue::{Issue, Refused, Request, TurnedAway};

/// The audience a token must be for (Istio's).
pub(crate) const AUDIENCE: &str = "istio-ca";
/// The control plane's own service account, in the root namespace; proxies expect exactly it.
pub(crate) const ACCOUNT: &str = "isthmus-control-plane";

/// Per pod: a restart in a crash loop may ask at once, for a while.
const PER_CALLER: Rate = Rate { burst: 20, every: Duration::from_secs(6) };
/// Over all: a cluster of thousands starts within minutes, and the API server reviews every token.
const OVERALL: Rate = Rate { burst: 500, every: Duration::from_millis(10) };
/// The code of `cluster::token::review` for an API server that cannot say.
const UNREVIEWED: &str = "ISM2311";
/// How long the API server has to review a token.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// How often Secret `cacerts` is read again.
pub(crate) const RELOAD: Duration = Duration::from_secs(30);

/// Asks the API server whose token this is. Every call asks anew: a deleted pod's token ends with it.
pub(crate) type Review =
    Box<dyn Fn(String) -> BoxFuture<'static, anyhow::Result<Reviewed>> + Send + Sync>;

/// Signs for this cluster's workloads.
pub(crate) struct Authority {
    issuer: watch::Receiver<Arc<Issuer>>,
    served: Arc<Served>,
    review: Review,
    overall: Mutex<Limit<()>>,
    callers: Mutex<Limit<Caller>>,
    numbers: Numbers,
}

/// Who asks: a pod where the token is bound to one, else an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Caller {
    namespace: String,
    account: String,
    pod: Option<String>,
}

impl Authority {
    pub(crate) fn new(
        issuer: watch::Receiver<Arc<Issuer>>,
        served: Arc<Served>,
        review: Review,
        numbers: Numbers,
    ) -> Self {
        let (overall, callers) = (Limit::new(OVERALL), Limit::new(PER_CALLER));
        let (overall, callers) = (Mutex::new(overall), Mutex::new(callers));
        Self { issuer, served, review, overall, callers, numbers }
    }

    async fn sign(&self, request: Request) -> Result<Vec<String>, Denial> {
        let wait = self.overall.lock().expect("no holder panics").take((), Instant::now());
        wait.map_err(|wait| busy("rate", "this control plane", wait))?;
        let caller = self.caller(&request).await?;
        let wait = {
            let mut callers = self.callers.lock().expect("no holder panics");
            callers.take(caller.clone(), Instant::now())
        };
        let who = format!("{}/{}", caller.namespace, caller.account);
        wait.map_err(|wait| busy("rate_per_caller", &who, wait))?;
        let issuer = self.issuer.borrow().clone();
        let identity =
            identity(&issuer, &caller.namespace, &caller.account).map_err(Refused::Denied)?;
        let signed = issuer.sign(&request.csr_pem, &identity, request.ttl, SystemTime::now());
        let chain = signed.map_err(|e| match e {
            IssueError::Request(_) => Refused::Invalid(e.to_string()),
            IssueError::Domain { .. } => Refused::Denied(e.to_string()),
            IssueError::Expired
            | IssueError::Cacerts { .. }
            | IssueError::Refused(_)
            | IssueError::Signing(_) => Refused::Unavailable(e.to_string()),
        })?;
        let pod = caller.pod.as_deref().unwrap_or_default();
        tracing::info!(%identity, pod, "certificate issued");
        Ok(chain)
    }

    async fn caller(&self, request: &Request) -> Result<Caller, Refused> {
        if let Some(token) = &request.token {
            let review = tokio::time::timeout(REVIEW_TIMEOUT, (self.review)(token.clone())).await;
            let reviewed = review.map_err(|_| {
                Refused::Unavailable(format!(
                    "ISM4011 the API server did not review the token within {} s. \
                     Fix: none needed, ask again",
                    REVIEW_TIMEOUT.as_secs()
                ))
            })?;
            let Reviewed { namespace, account, pod } = reviewed.map_err(unreviewed)?;
            return Ok(Caller { namespace, account, pod });
        }
        let Some(peer) = &request.peer else {
            return Err(Refused::Unauthenticated(format!(
                "ISM4012 a certificate is asked for with neither a token nor a certificate. \
                 Fix: send `authorization: Bearer TOKEN`, a service account token for audience {AUDIENCE}"
            )));
        };
        // A certificate outlives its pod: who renews with it must still have one.
        let world = self.served.world().ok_or_else(|| {
            Refused::Unavailable(
                "ISM4013 the pods of this cluster are not known yet. Fix: none needed, ask again"
                    .into(),
            )
        })?;
        let own = &world.own;
        let lives = own.workloads.values().any(|workload| {
            workload.name.namespace == peer.namespace && workload.account == peer.account
        });
        if peer.domain != own.mesh.trust_domain || !lives {
            return Err(Refused::Denied(format!(
                "ISM4014 no running Pod of this cluster has the identity {peer}. \
                 Fix: ask with the pod's own token"
            )));
        }
        let (namespace, account) = (peer.namespace.clone(), peer.account.clone());
        Ok(Caller { namespace, account, pod: None })
    }
}

impl Issue for Authority {
    fn issue(&self, request: Request) -> BoxFuture<'_, Result<Vec<String>, Refused>> {
        Box::pin(async move {
            self.numbers.requested.inc();
            let signed = self.sign(request).await;
            match &signed {
                Ok(_) => {
                    self.numbers.issued.inc();
                }
                Err(Denial { reason, refused }) => {
                    tracing::warn!(%refused, "certificate refused");
                    self.numbers.issue_refused(reason);
                }
            }
            signed.map_err(|denial| denial.refused)
        })
    }

    fn turned_away(&self, why: TurnedAway) {
        self.numbers.requested.inc();
        tracing::warn!(?why, "certificate request refused unread");
        self.numbers.issue_refused(match why {
            TurnedAway::Anonymous => UNAUTHENTICATED,
            TurnedAway::Validity => INVALID,
            TurnedAway::TokenBytes => "token_bytes",
            TurnedAway::CsrBytes => "csr_bytes",
            TurnedAway::MessageBytes => "message_bytes",
        });
    }
}

/// Reasons in metrics that more than one place gives.
const UNAUTHENTICATED: &str = "unauthenticated";
const INVALID: &str = "invalid";

/// A refusal, and what it is counted as.
#[derive(Debug)]
struct Denial {
    reason: &'static str,
    refused: Refused,
}

impl From<Refused> for Denial {
    fn from(refused: Refused) -> Self {
        let reason = match refused {
            Refused::Unauthenticated(_) => UNAUTHENTICATED,
            Refused::Denied(_) => "denied",
            Refused::Invalid(_) => INVALID,
            Refused::Busy(_) => "busy",
            Refused::Unavailable(_) => "unavailable",
        };
        Self { reason, refused }
    }
}

/// The control plane's own certificate, by its own authority: for proxies its identity counts, for
/// the API server, which calls the webhook, one of `names`.
pub(crate) fn own_svid(
    issuer: &Issuer,
    root_namespace: &str,
    names: &[String],
) -> anyhow::Result<Svid> {
    let identity = identity(issuer, root_namespace, ACCOUNT).map_err(anyhow::Error::msg)?;
    let (key, csr) = new_key_and_csr(&identity);
    let chain = issuer.sign_server(&csr, &identity, names, Duration::ZERO, SystemTime::now())?;
    Ok(Svid::from_pem(&chain.concat(), key.reveal())?)
}

/// The issuer that a Secret makes.
pub(crate) fn issuer(cacerts: &Cacerts) -> Result<Issuer, IssueError> {
    let Cacerts { ca_cert, ca_key, root_cert, cert_chain } = cacerts;
    Issuer::from_cacerts(ca_cert, cert_chain, ca_key, root_cert)
}

/// Reads the Secret again after every `pause`; a changed one that is good replaces the authority, its roots,
/// and (by `hurry`) the control plane's own certificate. One that is bad or gone changes nothing.
pub(crate) async fn reload(
    read: impl AsyncFn() -> anyhow::Result<Cacerts>,
    mut current: Cacerts,
    issuers: &watch::Sender<Arc<Issuer>>,
    bundles: &watch::Sender<Arc<Bundle>>,
    hurry: &watch::Sender<u64>,
    pause: Duration,
    failed: impl Fn(),
) {
    loop {
        tokio::time::sleep(pause).await;
        let found = match read().await {
            Ok(found) if found == current => continue,
            Ok(found) => found,
            Err(error) => {
                failed();
                tracing::warn!(error = format!("{error:#}"), "Secret cacerts cannot be read now");
                continue;
            }
        };
        match issuer(&found) {
            Ok(issuer) => {
                tracing::info!(root = issuer.bundle().fingerprint(), "authority replaced");
                bundles.send_replace(Arc::new(issuer.bundle().clone()));
                issuers.send_replace(Arc::new(issuer));
                hurry.send_modify(|count| *count += 1);
                current = found;
            }
            Err(error) => {
                failed();
                tracing::warn!(%error, "the new Secret cacerts is not used");
            }
        }
    }
}

fn identity(issuer: &Issuer, namespace: &str, account: &str) -> Result<Identity, String> {
    let text = format!("spiffe://{}/ns/{namespace}/sa/{account}", issuer.trust_domain());
    text.parse()
        .map_err(|e: mesh::name::NotAnIdentity| format!("ISM4015 {e}. Fix: rename the account"))
}

/// `limit` is its name in metrics.
fn busy(limit: &'static str, who: &str, wait: Duration) -> Denial {
    let refused = Refused::Busy(format!(
        "ISM4010 {who} has been asked for too many certificates, one more in {} ms. \
         Fix: none needed, ask again later",
        wait.as_millis()
    ));
    Denial { reason: limit, refused }
}

fn unreviewed(error: anyhow::Error) -> Refused {
    // The one reason that lies with the API server and not with the token.
    if error.to_string().starts_with(UNREVIEWED) {
        return Refused::Unavailable(format!("{error:#}. Fix: none needed, ask again"));
    }
    Refused::Unauthenticated(format!(
        "ISM4016 the token was not accepted: {error:#}. \
         Fix: send an unexpired service account token of this cluster for audience {AUDIENCE}"
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::place::tests::{ROOT, inventory};
    use std::sync::atomic::{AtomicU32, Ordering};
    use trust::root;

    const PASSPHRASE: &str = "correct horse battery";

    /// What Secret `cacerts` of a cluster holds, of a root of its own.
    pub(crate) fn cacerts(domain: &str) -> Cacerts {
        let root = root::create("Example", PASSPHRASE).unwrap();
        let made = root::issue_intermediate(
            &root.certificate_pem,
            &root.encrypted_key_pem,
            PASSPHRASE,
            &domain.parse().unwrap(),
            root::INTERMEDIATE_VALIDITY,
        )
        .unwrap();
        Cacerts {
            ca_cert: made.ca_cert,
            ca_key: made.ca_key.reveal().into(),
            root_cert: made.root_cert,
            cert_chain: made.cert_chain,
        }
    }

    fn reviewed(namespace: &str, account: &str, pod: Option<&str>) -> Reviewed {
        let (namespace, account) = (namespace.into(), account.into());
        Reviewed { namespace, account, pod: pod.map(Into::into) }
    }

    /// An authority of east whose API server knows one token a pod.
    fn authority() -> Authority {
        let issuer = issuer(&cacerts("east.mesh")).unwrap();
        let (_, issuer) = watch::channel(Arc::new(issuer));
        let served = Arc::new(Served::new(ROOT));
        served.publish(Arc::new(inventory()));
        let review: Review = Box::new(|token| {
            Box::pin(async move {
                match token.as_str() {
                    "hello" => Ok(reviewed("shop", "hello", Some("hello-0"))),
                    "other" => Ok(reviewed("shop", "hello", Some("hello-1"))),
                    "down" => Err(anyhow::anyhow!("refused").context(UNREVIEWED)),
                    "odd" => Ok(reviewed("shop", "Odd", None)),
                    _ => Err(anyhow::anyhow!("the token has expired")),
                }
            })
        });
        Authority::new(issuer, served, review, Numbers::default())
    }

    /// A request by a token or a certificate, whose CSR claims to be somebody greater.
    fn request(token: Option<&str>, peer: Option<&str>) -> (String, Request) {
        let (key, csr_pem) =
            new_key_and_csr(&"spiffe://east.mesh/ns/shop/sa/admin".parse().unwrap());
        let request = Request {
            csr_pem,
            ttl: Duration::from_secs(3600),
            token: token.map(Into::into),
            cluster: None,
            peer: peer.map(|peer| peer.parse().unwrap()),
        };
        (key.reveal().to_owned(), request)
    }

    #[tokio::test]
    async fn the_certificate_is_the_callers_not_the_requests() {
        let authority = authority();
        let hello = "spiffe://east.mesh/ns/shop/sa/hello";
        let gate = "spiffe://east.mesh/ns/shop/sa/gate";
        // The token decides, also where a certificate is shown beside it.
        for (token, peer, is) in [
            (Some("hello"), None, hello),
            (None, Some(gate), gate),
            (Some("hello"), Some(gate), hello),
        ] {
            let (key, request) = request(token, peer);
            let chain = authority.issue(request).await.unwrap();
            let svid = Svid::from_pem(&chain.concat(), &key).unwrap();
            assert_eq!(svid.identity.to_string(), is);
        }
        assert_eq!(authority.numbers.issued.get(), 3);
    }

    #[tokio::test]
    async fn who_gets_no_certificate() {
        let authority = authority();
        let refused = async |token, peer| {
            let (_, request) = request(token, peer);
            authority.issue(request).await.unwrap_err()
        };
        let why = refused(None, None).await;
        assert!(matches!(&why, Refused::Unauthenticated(text) if text.contains("ISM4012")));
        let why = refused(Some("stolen"), None).await;
        assert!(matches!(&why, Refused::Unauthenticated(text) if text.contains("has expired")));
        let why = refused(Some("down"), None).await;
        assert!(matches!(&why, Refused::Unavailable(text) if text.contains("refused")), "{why:?}");
        let why = refused(Some("odd"), None).await;
        assert!(matches!(&why, Refused::Denied(text) if text.contains("ISM4015")), "{why:?}");
        for gone in ["spiffe://east.mesh/ns/shop/sa/gone", "spiffe://west.mesh/ns/shop/sa/hello"] {
            let why = refused(None, Some(gone)).await;
            assert!(matches!(&why, Refused::Denied(text) if text.contains("ISM4014")), "{why:?}");
        }
        let (_, mut bad) = request(Some("hello"), None);
        bad.csr_pem = "nonsense".into();
        assert!(matches!(authority.issue(bad).await, Err(Refused::Invalid(_))));
        assert_eq!(authority.numbers.issued.get(), 0);
    }

    #[tokio::test]
    async fn a_pod_that_asks_too_often_waits_alone() {
        let authority = authority();
        let mut busy = 0;
        for _ in 0..PER_CALLER.burst + 5 {
            match authority.issue(request(Some("hello"), None).1).await {
                Ok(_) => {}
                Err(Refused::Busy(why)) => {
                    assert!(why.contains("shop/hello"), "{why}");
                    busy += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(busy >= 4, "{busy}");
        assert_eq!(authority.numbers.issues_refused("rate_per_caller"), busy);
        authority.issue(request(Some("other"), None).1).await.unwrap();
    }

    #[tokio::test]
    async fn a_new_secret_replaces_the_authority_and_a_bad_one_does_not() {
        let first = cacerts("east.mesh");
        let start = Arc::new(issuer(&first).unwrap());
        let (bundles, bundle) = watch::channel(Arc::new(start.bundle().clone()));
        let (issuers, _issuer) = watch::channel(start);
        let (hurry, mut hurried) = watch::channel(0);
        let bad = Cacerts { ca_key: cacerts("east.mesh").ca_key, ..first.clone() };
        let good = cacerts("east.mesh");
        let expected = issuer(&good).unwrap().bundle().clone();
        // Unchanged, gone, bad, good; from then on the good one.
        let (pause, failed) = (Duration::from_millis(1), AtomicU32::new(0));
        let answers = Mutex::new(vec![Ok(bad), Err(anyhow::anyhow!("gone")), Ok(first.clone())]);
        let read = async || answers.lock().unwrap().pop().unwrap_or_else(|| Ok(good.clone()));
        tokio::select! {
            () = reload(read, first, &issuers, &bundles, &hurry, pause, || {
                failed.fetch_add(1, Ordering::Relaxed);
            }) => {}
            changed = hurried.changed() => changed.unwrap(),
        }
        assert_eq!(failed.load(Ordering::Relaxed), 2, "gone and bad are counted");
        assert!(answers.lock().unwrap().is_empty(), "the bad ones came first and changed nothing");
        assert_eq!(**bundle.borrow(), expected);
        assert_eq!(*issuers.borrow().bundle(), expected);
    }
}

//! The workload's certificate: asked for with its token, kept fresh, found again after a restart.

use crate::state::State;
use anyhow::Context as _;
use mesh::name::Identity;
use prometheus_client::metrics::counter::Counter;
use runtime::readiness::Readiness;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trust::rotation::{Action, Input, Rotation};
use trust::svid::Svid;
use xds::subscribe::Connector;

/// Asked-for life of a certificate; it is renewed at half of it.
const TTL: Duration = Duration::from_secs(24 * 3_600);

/// Pauses between the first certificate's attempts.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How a certificate is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Issue {
    pub(crate) identity: Identity,
    pub(crate) token: PathBuf,
    pub(crate) connector: Connector,
    pub(crate) state: Option<State>,
    /// Attempts to renew that failed.
    pub(crate) failed: Counter,
}

impl Issue {
    /// The one kept from before a restart while it is good, else a new one.
    pub(crate) async fn first(&self, readiness: &Readiness) -> Svid {
        if let Some(svid) = self.state.as_ref().and_then(State::svid)
            && svid.identity == self.identity
            && svid.not_after > SystemTime::now()
        {
            return svid;
        }
        readiness.wait_for("identity", "the control plane has not signed its certificate yet");
        let mut pause = RETRY_MIN;
        let svid = loop {
            match self.ask().await {
                Ok(svid) => break svid,
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::warn!(error = why, "no workload certificate yet, asking again");
                    readiness.wait_for("identity", &why);
                }
            }
            // A proxy without an identity serves nobody: it asks often, but not in step with others.
            tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * rand::random::<f64>())).await;
            pause = (pause * 2).min(RETRY_MAX);
        };
        readiness.done("identity");
        svid
    }

    /// Renews `svid` until `end`.
    pub(crate) fn keep(
        self,
        svid: Svid,
        hurried: watch::Receiver<u64>,
        end: CancellationToken,
    ) -> watch::Receiver<Arc<Svid>> {
        let svids = watch::Sender::new(Arc::new(svid));
        let receiver = svids.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = end.cancelled() => {}
                () = self.renew(svids, hurried) => {}
            }
        });
        receiver
    }

    /// Drives the rotation machine; the old certificate stays until a new one is there.
    async fn renew(&self, svids: watch::Sender<Arc<Svid>>, mut hurried: watch::Receiver<u64>) {
        let renewed = |svid: &Svid| Input::Renewed {
            not_before: svid.not_before,
            not_after: svid.not_after,
            chance: rand::random(),
        };
        let mut rotation = Rotation::new();
        let mut input = renewed(&svids.borrow());
        loop {
            input = match rotation.step(SystemTime::now(), input) {
                Action::Wait(wait) => {
                    let hurry = async {
                        // Without a sender nobody can hurry.
                        if hurried.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                    };
                    tokio::select! {
                        () = tokio::time::sleep(wait) => Input::Tick,
                        () = hurry => Input::Hurry,
                    }
                }
                Action::Renew => match self.ask().await {
                    Ok(svid) => {
                        tracing::info!(identity = %svid.identity, "workload certificate renewed");
                        let input = renewed(&svid);
                        svids.send_replace(Arc::new(svid));
                        input
                    }
                    Err(error) => {
                        self.failed.inc();
                        let left = svids.borrow().not_after.duration_since(SystemTime::now());
                        tracing::warn!(
                            error = format!("{error:#}"),
                            left_seconds = left.unwrap_or_default().as_secs(),
                            "renewing the workload certificate failed, asking again",
                        );
                        Input::Failed { chance: rand::random() }
                    }
                },
            };
        }
    }

    async fn ask(&self) -> anyhow::Result<Svid> {
        let token = tokio::fs::read_to_string(&self.token).await.with_context(|| {
            format!(
                "ISM1013 cannot read the token {}. Fix: mount the service account's token with \
                 audience istio-ca there",
                self.token.display()
            )
        })?;
        let (key, csr) = trust::issue::new_key_and_csr(&self.identity);
        let chain = xds::issue::request(&self.connector, token.trim(), &csr, TTL).await?;
        let svid = Svid::from_pem(&chain.concat(), key.reveal())?;
        anyhow::ensure!(
            svid.identity == self.identity,
            "ISM1014 the control plane signed {} instead of {}. Fix: see that account and namespace \
             in the configuration are those of the token",
            svid.identity,
            self.identity
        );
        if let Some(state) = &self.state
            && let Err(error) = state.save_svid(&svid)
        {
            tracing::warn!(error = format!("{error:#}"), "the identity is not kept over restarts");
        }
        Ok(svid)
    }
}

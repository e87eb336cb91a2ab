//! The workload's certificate over SDS, anew whenever it is renewed.
//!
//! Names are Istio's: `default` is certificate and key, `ROOTCA` the roots.

use super::Heard;
use crate::codec;
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret::Type,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use envoy_types::pb::google::protobuf::Any;
use mesh::program::{ResourceKind, ResourceName};
use prost::Message;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// Names one stream may ask for: there are two.
const NAMES_MAX: usize = 16;

/// What a workload shows and whom it trusts, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Leaf first, without the root.
    pub chain: String,
    pub key: String,
    pub roots: String,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair")
    }
}

impl KeyPair {
    /// Of what is shown to anybody anyway: the chain and the roots.
    fn version(&self) -> String {
        let digest = Sha256::new().chain_update(&self.chain).chain_update(&self.roots).finalize();
        hex::encode(&digest[..8])
    }

    fn secret(&self, name: &str) -> Option<Any> {
        let inline = |text: &str| {
            Some(DataSource {
                specifier: Some(Specifier::InlineString(text.to_owned())),
                ..Default::default()
            })
        };
        let secret = if name == codec::OWN_CERTIFICATE {
            Type::TlsCertificate(TlsCertificate {
                certificate_chain: inline(&self.chain),
                private_key: inline(&self.key),
                ..Default::default()
            })
        } else if name == ResourceName::root_ca().name {
            Type::ValidationContext(CertificateValidationContext {
                trusted_ca: inline(&self.roots),
                ..Default::default()
            })
        } else {
            return None;
        };
        let secret = Secret { name: name.to_owned(), r#type: Some(secret) };
        let type_url = codec::type_url(ResourceKind::Secret).to_owned();
        Some(Any { type_url, value: secret.encode_to_vec() })
    }
}

pub(super) struct Secrets {
    certificate: watch::Receiver<Arc<KeyPair>>,
    heard: Arc<watch::Sender<Heard>>,
    end: CancellationToken,
}

impl Secrets {
    pub(super) fn new(
        certificate: watch::Receiver<Arc<KeyPair>>,
        heard: Arc<watch::Sender<Heard>>,
        end: CancellationToken,
    ) -> Self {
        Self { certificate, heard, end }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (responses, stream) = mpsc::channel(1);
        let (certificate, end) = (self.certificate.clone(), self.end.clone());
        let heard = Arc::clone(&self.heard);
        tokio::spawn(async move {
            let over = tokio::select! {
                over = exchange(request.into_inner(), certificate, &heard, &responses) => over,
                () = end.cancelled() => Status::unavailable("the agent ends"),
            };
            // A proxy that is gone does not hear it.
            let _ = responses.try_send(Err(over));
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(only_streams())
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(only_streams())
    }
}

fn only_streams() -> Status {
    Status::unimplemented(
        "ISM6037 the agent serves secrets as streams of the state of the world. \
         Fix: set `api_type: GRPC` in the SDS configuration",
    )
}

async fn exchange(
    mut requests: Streaming<DiscoveryRequest>,
    mut certificate: watch::Receiver<Arc<KeyPair>>,
    heard: &watch::Sender<Heard>,
    responses: &mpsc::Sender<Result<DiscoveryResponse, Status>>,
) -> Status {
    let (mut names, mut sent) = (BTreeSet::new(), 0_u64);
    loop {
        let due = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => {
                    if let Some(refusal) = &request.error_detail {
                        let reason: String = refusal.message.chars().take(512).collect();
                        tracing::warn!(reason, "the proxy refused its certificate");
                    }
                    if request.resource_names.len() > NAMES_MAX {
                        heard.send_modify(|heard| heard.limited.secrets += 1);
                        return Status::resource_exhausted(format!(
                            "ISM6038 one stream asks for {} secrets, the limit is {NAMES_MAX}. \
                             Fix: ask for `default` and `ROOTCA` only",
                            request.resource_names.len()
                        ));
                    }
                    let asked: BTreeSet<String> = request.resource_names.into_iter().collect();
                    let news = asked != names;
                    names = asked;
                    news
                }
                Ok(None) => return Status::cancelled("the proxy closed it"),
                Err(status) => {
                    super::unreadable(&status, heard);
                    return status;
                }
            },
            changed = certificate.changed() => match changed {
                Ok(()) => true,
                Err(_) => return Status::unavailable("the agent ends"),
            },
        };
        if !due || names.is_empty() {
            continue;
        }
        let now = certificate.borrow_and_update().clone();
        sent += 1;
        let response = DiscoveryResponse {
            version_info: now.version(),
            resources: names.iter().filter_map(|name| now.secret(name)).collect(),
            type_url: codec::type_url(ResourceKind::Secret).to_owned(),
            nonce: sent.to_string(),
            ..Default::default()
        };
        if responses.send(Ok(response)).await.is_err() {
            return Status::cancelled("the proxy is gone");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KeyPair;

    #[test]
    fn a_key_is_not_printed_and_only_known_names_have_secrets() {
        let pair = KeyPair { chain: "chain".into(), key: "private".into(), roots: "roots".into() };
        assert!(!format!("{pair:?}").contains("private"));
        assert!(pair.secret("default").is_some() && pair.secret("ROOTCA").is_some());
        assert_eq!(pair.secret("other"), None);
        let renewed = KeyPair { chain: "next".into(), ..pair.clone() };
        assert_ne!(pair.version(), renewed.version());
    }
}

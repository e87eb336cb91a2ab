//! The messages and the gRPC glue of `istio.v1.auth`, by hand: two messages need no build script.

use super::{CSR_MAX, Issue, Refused, Request, RequestFailed, TOKEN_MAX, TurnedAway};
use crate::length;
use crate::serve::Peer;
use crate::subscribe::{Connector, channel};
use envoy_types::pb::google::protobuf::Struct;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

const PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IstioCertificateRequest {
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct IstioCertificateResponse {
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

pub(crate) async fn request(
    connector: &Connector,
    token: &str,
    csr_pem: &str,
    ttl: Duration,
) -> Result<Vec<String>, RequestFailed> {
    let unreachable = |error: &dyn std::error::Error| RequestFailed::Unreachable(chain(error));
    let channel = channel(connector).await.map_err(|e| unreachable(&e))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| unreachable(&e))?;
    let mut request = tonic::Request::new(IstioCertificateRequest {
        csr: csr_pem.to_owned(),
        validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    });
    let bearer = format!("Bearer {}", token.trim()).parse().map_err(|_| {
        RequestFailed::Refused(Refused::Invalid("the token is not printable ASCII".into()))
    })?;
    request.metadata_mut().insert("authorization", bearer);
    let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
    let path = http::uri::PathAndQuery::from_static(PATH);
    match client.unary(request, path, codec).await {
        Ok(response) => Ok(response.into_inner().cert_chain),
        Err(status) => Err(refusal(&status)),
    }
}

/// An error with its causes: the outermost of tonic's says only "transport error".
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

fn refusal(status: &Status) -> RequestFailed {
    let said: String = status.message().chars().take(512).collect();
    match status.code() {
        Code::Unauthenticated => RequestFailed::Refused(Refused::Unauthenticated(said)),
        Code::PermissionDenied => RequestFailed::Refused(Refused::Denied(said)),
        Code::InvalidArgument | Code::Unimplemented => {
            RequestFailed::Refused(Refused::Invalid(said))
        }
        Code::ResourceExhausted => RequestFailed::Refused(Refused::Busy(said)),
        _ if std::error::Error::source(status).is_some() => {
            RequestFailed::Unreachable(chain(status))
        }
        _ => RequestFailed::Refused(Refused::Unavailable(said)),
    }
}

/// The service as tonic routes it.
#[derive(Clone)]
pub(crate) struct CertificateService(pub Arc<dyn Issue>);

impl NamedService for CertificateService {
    const NAME: &'static str = "istio.v1.auth.IstioCertificateService";
}

impl Service<http::Request<Body>> for CertificateService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let issuer = Arc::clone(&self.0);
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("CreateCertificate is all there is").into_http());
            }
            let codec = ProstCodec::<IstioCertificateResponse, IstioCertificateRequest>::default();
            let mut grpc = Grpc::new(codec).max_decoding_message_size(CSR_MAX + 4096);
            let response = grpc.unary(Create(Arc::clone(&issuer)), request).await;
            // Refused before `Create` sees it, in a response of headers only.
            if Status::from_header_map(response.headers()).is_some_and(|s| length::exceeded(&s)) {
                issuer.turned_away(TurnedAway::MessageBytes);
            }
            Ok(response)
        })
    }
}

struct Create(Arc<dyn Issue>);

impl UnaryService<IstioCertificateRequest> for Create {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<tonic::Response<IstioCertificateResponse>, Status>;

    fn call(&mut self, request: tonic::Request<IstioCertificateRequest>) -> Self::Future {
        let issuer = Arc::clone(&self.0);
        Box::pin(async move {
            let request = read(request).map_err(|(why, status)| {
                issuer.turned_away(why);
                status
            })?;
            let cert_chain = issuer.issue(request).await.map_err(status)?;
            Ok(tonic::Response::new(IstioCertificateResponse { cert_chain }))
        })
    }
}

fn read(request: tonic::Request<IstioCertificateRequest>) -> Result<Request, (TurnedAway, Status)> {
    let invalid = |why, text: &str| (why, Status::invalid_argument(text));
    let said = |key: &str| Some(request.metadata().get(key)?.to_str().ok()?.to_owned());
    let token = said("authorization")
        .and_then(|value| value.strip_prefix("Bearer ").map(|token| token.trim().to_owned()));
    let cluster = said("clusterid");
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
    if token.is_none() && peer.is_none() {
        return Err((
            TurnedAway::Anonymous,
            Status::unauthenticated(
                "ISM6013 a certificate request carries neither `authorization: Bearer TOKEN` (audience istio-ca) nor a client certificate",
            ),
        ));
    }
    let message = request.into_inner();
    if token.as_ref().is_some_and(|token| token.len() > TOKEN_MAX) {
        return Err(invalid(TurnedAway::TokenBytes, "ISM6014 the token is longer than 16 KiB"));
    }
    if message.csr.len() > CSR_MAX {
        return Err(invalid(TurnedAway::CsrBytes, "ISM6014 the CSR is longer than 16 KiB"));
    }
    let seconds = u64::try_from(message.validity_duration)
        .map_err(|_| invalid(TurnedAway::Validity, "ISM6014 validity_duration is negative"))?;
    Ok(Request { csr_pem: message.csr, ttl: Duration::from_secs(seconds), token, cluster, peer })
}

fn status(refused: Refused) -> Status {
    let text = refused.to_string();
    match refused {
        Refused::Unauthenticated(_) => Status::unauthenticated(text),
        Refused::Denied(_) => Status::permission_denied(text),
        Refused::Invalid(_) => Status::invalid_argument(text),
        Refused::Busy(_) => Status::resource_exhausted(text),
        Refused::Unavailable(_) => Status::unavailable(text),
    }
}

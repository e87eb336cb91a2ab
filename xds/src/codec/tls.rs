//! TLS contexts in Envoy's dialect: TLS 1.3 only, the workload's key from the agent beside it.

use super::wire::ads;
use envoy_types::pb::envoy::config::core::v3::{
    self as core, ApiConfigSource, ApiVersion, ConfigSource, GrpcService, TransportSocket,
    api_config_source::ApiType, config_source::ConfigSourceSpecifier, grpc_service,
    transport_socket::ConfigType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig,
    SubjectAltNameMatcher, TlsParameters, UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
    downstream_tls_context::SessionTicketKeysType,
    subject_alt_name_matcher::SanType,
    tls_parameters::TlsProtocol,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::BoolValue;
use mesh::name::{Identity, TrustDomain};
use mesh::program::ResourceName;
use prost::Name;

/// The static cluster in a foreign Envoy's bootstrap behind which `isthmus agent` serves the
/// workload's key over a Unix socket (decision 16).
pub(crate) const AGENT_CLUSTER: &str = "sds-grpc";
/// The name under which it does; Istio's.
pub(crate) const OWN_CERTIFICATE: &str = "default";
/// An identity nobody has: no URI SAN of ours has another scheme.
const NOBODY: &str = "isthmus:nobody";

/// A client's side: exactly these identities may answer. None means nobody may.
pub(super) fn upstream<'a>(
    sni: &str,
    alpn: &str,
    identities: impl Iterator<Item = &'a Identity>,
) -> TransportSocket {
    let mut sans: Vec<_> =
        identities.map(|identity| uri(MatchPattern::Exact(identity.to_string()))).collect();
    if sans.is_empty() {
        // An empty list would mean "anybody whom the root vouches for".
        sans.push(uri(MatchPattern::Exact(NOBODY.to_owned())));
    }
    socket(
        "envoy.transport_sockets.tls",
        &UpstreamTlsContext {
            common_tls_context: Some(common(&[alpn], sans)),
            sni: sni.to_owned(),
            max_session_keys: super::wire::uint(0),
            ..Default::default()
        },
    )
}

/// A server's side: a client certificate of one of these domains is required.
pub(super) fn downstream<'a>(
    alpn: &[&str],
    trust_domains: impl Iterator<Item = &'a TrustDomain>,
) -> TransportSocket {
    let mut sans: Vec<_> = trust_domains
        .map(|domain| uri(MatchPattern::Prefix(format!("spiffe://{domain}/"))))
        .collect();
    if sans.is_empty() {
        sans.push(uri(MatchPattern::Exact(NOBODY.to_owned())));
    }
    socket(
        "envoy.transport_sockets.tls",
        &DownstreamTlsContext {
            common_tls_context: Some(common(alpn, sans)),
            require_client_certificate: Some(BoolValue { value: true }),
            // What is resumed is not verified again: a certificate would outlive its end.
            disable_stateful_session_resumption: true,
            session_ticket_keys_type: Some(
                SessionTicketKeysType::DisableStatelessSessionResumption(true),
            ),
            ..Default::default()
        },
    )
}

/// A server that shows its certificate to anybody and asks for none: a gateway's probe.
pub(super) fn server_only(alpn: &[&str]) -> TransportSocket {
    let common = CommonTlsContext { validation_context_type: None, ..common(alpn, Vec::new()) };
    socket(
        "envoy.transport_sockets.tls",
        &DownstreamTlsContext { common_tls_context: Some(common), ..Default::default() },
    )
}

pub(super) fn plaintext() -> TransportSocket {
    socket("envoy.transport_sockets.raw_buffer", &RawBuffer {})
}

fn common(alpn: &[&str], sans: Vec<SubjectAltNameMatcher>) -> CommonTlsContext {
    let v13 = TlsProtocol::TlSv13 as i32;
    CommonTlsContext {
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: v13,
            tls_maximum_protocol_version: v13,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
            name: OWN_CERTIFICATE.to_owned(),
            sds_config: agent(),
        }],
        alpn_protocols: alpn.iter().map(|&name| name.to_owned()).collect(),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(
            CombinedCertificateValidationContext {
                default_validation_context: Some(CertificateValidationContext {
                    match_typed_subject_alt_names: sans,
                    ..Default::default()
                }),
                validation_context_sds_secret_config: Some(SdsSecretConfig {
                    name: ResourceName::root_ca().name,
                    sds_config: ads(),
                }),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn agent() -> Option<ConfigSource> {
    let service = GrpcService {
        target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(grpc_service::EnvoyGrpc {
            cluster_name: AGENT_CLUSTER.to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource {
            api_type: ApiType::Grpc as i32,
            transport_api_version: ApiVersion::V3 as i32,
            set_node_on_first_message_only: true,
            grpc_services: vec![service],
            ..Default::default()
        })),
        ..Default::default()
    })
}

fn uri(pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
        ..Default::default()
    }
}

fn socket<M: prost::Message + Name>(name: &str, context: &M) -> TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(super::wire::pack(context))),
    }
}

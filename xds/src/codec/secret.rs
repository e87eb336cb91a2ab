//! Secrets: root certificates as a validation context. A key never travels (decision 16).

use super::wire::{self, Wrong, wrong};
use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, secret::Type,
};
use mesh::program::ValidationContext;

pub(super) fn encode(context: &ValidationContext) -> wire::Secret {
    wire::Secret {
        name: context.name.clone(),
        r#type: Some(Type::ValidationContext(CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineString(context.root_certificates.clone())),
                ..Default::default()
            }),
            ..Default::default()
        })),
    }
}

pub(super) fn decode(secret: &wire::Secret) -> Result<ValidationContext, Wrong> {
    let Some(Type::ValidationContext(context)) = &secret.r#type else {
        return Err(wrong("validation_context", "is missing: a secret here is root certificates"));
    };
    let Some(Specifier::InlineString(roots)) =
        context.trusted_ca.as_ref().and_then(|source| source.specifier.as_ref())
    else {
        return Err(wrong("validation_context.trusted_ca.inline_string", "is missing"));
    };
    Ok(ValidationContext { name: secret.name.clone(), root_certificates: roots.clone() })
}

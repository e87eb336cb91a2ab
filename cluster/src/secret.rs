//! Secret `cacerts`: the intermediate a control plane signs with.

use crate::refusal;
use anyhow::{Result, anyhow, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use std::fmt;

/// Where Secret `cacerts` lives: beside the root namespace, so that whoever may read link
/// credentials there cannot read the signing key (docs/adr/0008).
pub const NAMESPACE: &str = "isthmus-ca";

/// Reads Secret `cacerts` of a namespace. Errors name the key, never what it holds.
pub async fn read_cacerts(client: &Client, namespace: &str) -> Result<Cacerts> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets.get_opt(NAME).await.map_err(|error| {
        let fix = match refusal::status(&error) {
            Some(401 | 403) => {
                "apply deploy/base/roles.yaml, which lets the control plane alone read it"
            }
            Some(_) | None => "see why the API server does not answer",
        };
        anyhow!(refusal::told(&error))
            .context(format!("ISM2301 Secret {namespace}/{NAME} cannot be read. Fix: {fix}"))
    })?;
    let Some(secret) = secret else {
        bail!(
            "ISM2302 Secret {namespace}/{NAME} does not exist, so no certificate can be issued. \
             Fix: isthmus trust issue CLUSTER --apply writes it; one in another namespace is not read"
        );
    };
    parse(namespace, secret)
}

/// The four files of Secret `cacerts`, PEM (Istio's plug-in CA names).
#[derive(Clone, PartialEq, Eq)]
pub struct Cacerts {
    pub ca_cert: String,
    pub ca_key: String,
    pub root_cert: String,
    pub cert_chain: String,
}

impl fmt::Debug for Cacerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cacerts")
            .field("ca_cert", &self.ca_cert)
            .field("ca_key", &"redacted")
            .field("root_cert", &self.root_cert)
            .field("cert_chain", &self.cert_chain)
            .finish()
    }
}

const NAME: &str = "cacerts";

fn parse(namespace: &str, secret: Secret) -> Result<Cacerts> {
    let mut data = secret.data.unwrap_or_default();
    let mut part = |key: &str| -> Result<String> {
        let Some(bytes) = data.remove(key) else {
            bail!(
                "ISM2303 Secret {namespace}/{NAME} has no key {key}. \
                 Fix: isthmus trust issue CLUSTER writes it whole"
            );
        };
        // The error of a wrong encoding would show the bytes, which may be a key's.
        let Ok(text) = String::from_utf8(bytes.0) else {
            bail!(
                "ISM2304 Secret {namespace}/{NAME} key {key} is no PEM text. Fix: write it again"
            );
        };
        if !text.contains("-----BEGIN ") {
            bail!(
                "ISM2304 Secret {namespace}/{NAME} key {key} is no PEM text. Fix: write it again"
            );
        }
        Ok(text)
    };
    Ok(Cacerts {
        ca_cert: part("ca-cert.pem")?,
        ca_key: part("ca-key.pem")?,
        root_cert: part("root-cert.pem")?,
        cert_chain: part("cert-chain.pem")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(parts: &[(&str, &str)]) -> Secret {
        let data = parts
            .iter()
            .map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    const WHOLE: [(&str, &str); 4] = [
        ("ca-cert.pem", "-----BEGIN CERTIFICATE-----\nA"),
        ("ca-key.pem", "-----BEGIN PRIVATE KEY-----\nhidden"),
        ("root-cert.pem", "-----BEGIN CERTIFICATE-----\nR"),
        ("cert-chain.pem", "-----BEGIN CERTIFICATE-----\nC"),
    ];

    #[test]
    fn four_files_and_an_unprintable_key() {
        let cacerts = parse("isthmus-system", secret(&WHOLE)).unwrap();
        assert!(cacerts.ca_key.contains("hidden"));
        let shown = format!("{cacerts:?}");
        assert!(!shown.contains("hidden") && shown.contains("redacted"), "{shown}");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_without_its_content() {
        for (index, (key, _)) in WHOLE.iter().enumerate() {
            let mut parts = WHOLE.to_vec();
            parts.remove(index);
            let error = parse("isthmus-system", secret(&parts)).unwrap_err().to_string();
            assert!(error.contains("ISM2303") && error.contains(key), "{error}");
            let mut parts = WHOLE.to_vec();
            parts[index].1 = "hidden";
            let error = parse("isthmus-system", secret(&parts)).unwrap_err().to_string();
            assert!(error.contains("ISM2304") && error.contains(key), "{error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}

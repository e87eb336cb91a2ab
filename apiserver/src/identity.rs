//! Who asks: the administrator's token, or a service account's.

use crate::object;
use crate::store::Store;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Issuer of all tokens, and the audience of those that name none.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Longest token that is looked at.
const TOKEN_MAX: usize = 16 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) groups: Vec<String>,
    pub(crate) extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub(crate) fn anonymous() -> Self {
        let groups = vec!["system:unauthenticated".into()];
        Self { name: "system:anonymous".into(), groups, ..Self::default() }
    }

    fn admin() -> Self {
        let groups = vec!["system:masters".into(), "system:authenticated".into()];
        Self { name: "admin".into(), groups, ..Self::default() }
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut user = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            user["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            user["extra"] = json!(self.extra);
        }
        user
    }
}

/// An object a token stands and falls with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) uid: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub(crate) namespace: String,
    pub(crate) serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Reference>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) bound: Bound,
    pub(crate) nbf: i64,
    pub(crate) sub: String,
}

/// The keys tokens are made and known with.
pub(crate) struct Keys {
    admin: String,
    encode: EncodingKey,
    decode: DecodingKey,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// `private` and `public` are PEM of one P-256 key.
    pub(crate) fn new(admin: String, private: &str, public: &str) -> anyhow::Result<Self> {
        Ok(Self {
            admin,
            encode: EncodingKey::from_ec_pem(private.as_bytes())?,
            decode: DecodingKey::from_ec_pem(public.as_bytes())?,
        })
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, String> {
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &self.encode)
            .map_err(|error| error.to_string())
    }

    /// Whose token this is, and for which of the audiences; or why it is nobody's.
    pub(crate) fn review(
        &self,
        token: &str,
        audiences: &[String],
        store: &Store,
    ) -> Result<(User, Vec<String>), String> {
        if token.len() > TOKEN_MAX {
            return Err("token is too long".into());
        }
        if same(token, &self.admin) {
            return Ok((User::admin(), audiences.to_vec()));
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(audiences);
        validation.validate_nbf = true;
        validation.leeway = 1;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decode, &validation)
            .map_err(|error| format!("invalid bearer token: {error}"))?
            .claims;
        let granted = claims.aud.iter().filter(|aud| audiences.contains(aud)).cloned().collect();
        let bound = &claims.bound;
        let namespace = &bound.namespace;
        let lives = |resource: &str, namespace: &str, reference: &Reference| {
            let found = store.get(resource, &(namespace.to_owned(), reference.name.clone()));
            found.is_some_and(|entry| object::uid(&entry.value) == reference.uid)
        };
        if !lives("/serviceaccounts", namespace, &bound.serviceaccount) {
            return Err("service account token has been invalidated: its account is gone".into());
        }
        let mut extra = BTreeMap::new();
        let mut note = |field: &str, value: &str| {
            extra.insert(format!("authentication.kubernetes.io/{field}"), vec![value.to_owned()]);
        };
        note("credential-id", &format!("JTI={}", claims.jti));
        for (field, resource, namespace, reference) in [
            ("pod", "/pods", &**namespace, &bound.pod),
            ("secret", "/secrets", namespace, &bound.secret),
            ("node", "/nodes", "", &bound.node),
        ] {
            let Some(reference) = reference else { continue };
            // Beside a pod, the node only tells where it ran.
            let told = field == "node" && bound.pod.is_some();
            if !told && !lives(resource, namespace, reference) {
                return Err(format!(
                    "service account token has been invalidated: its {field} is gone"
                ));
            }
            if field != "secret" {
                note(&format!("{field}-name"), &reference.name);
                note(&format!("{field}-uid"), &reference.uid);
            }
        }
        let user = User {
            name: format!("system:serviceaccount:{namespace}:{}", bound.serviceaccount.name),
            uid: bound.serviceaccount.uid.clone(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".into(),
            ],
            extra,
        };
        Ok((user, granted))
    }
}

/// In a time that does not tell where they differ.
fn same(left: &str, right: &str) -> bool {
    left.len() == right.len()
        && left.bytes().zip(right.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

//! Which token a link uses: the held one, or a newer one of ours.

use super::*;
use k8s_openapi::ByteString;
use std::collections::BTreeMap;

fn token(claims: serde_json::Value) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn of_account(issued: u64, expires: u64) -> String {
    token(
        json!({"sub": "system:serviceaccount:isthmus-system:isthmus-reader-east", "iat": issued, "exp": expires,
        "kubernetes.io": {"namespace": "isthmus-system", "secret": {"name": "s", "uid": "u"}}}),
    )
}

fn held(token: &str) -> kubeconfig::Remote {
    let pem = "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n";
    let ca = base64::engine::general_purpose::STANDARD.encode(pem);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: w\nclusters: [{{name: w, cluster: {{server: 'https://10.0.0.2:6443', certificate-authority-data: {ca}}}}}]\n\
         users: [{{name: w, user: {{token: {token}}}}}]\ncontexts: [{{name: w, context: {{cluster: w, user: w}}}}]\n"
    );
    kubeconfig::parse(text.as_bytes(), Rules::default()).unwrap()
}

fn secret(of: &kubeconfig::Remote, token: &str) -> Secret {
    let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    };
    let mut secret = Secret::default();
    secret.metadata.name = Some(secret_name("west"));
    secret.metadata.labels =
        Some(text(&[(label::MANAGED_BY, label::MANAGER), (label::CREDENTIAL, "west")]));
    secret.metadata.annotations = Some(text(&[(label::RENEWS, of.fingerprint())]));
    secret.data = Some(BTreeMap::from([(TOKEN.into(), ByteString(token.into()))]));
    secret
}

#[test]
fn the_longer_life_wins_and_only_for_its_own_credential() {
    let git = held(&of_account(100, 200));
    let newer = trim(secret(&git, &of_account(150, 250))).unwrap();
    let merged = newer.newest(&git).unwrap();
    assert_eq!(merged.token(), Some(of_account(150, 250).as_str()));
    assert_eq!(merged.server(), git.server());
    assert_ne!(merged.fingerprint(), git.fingerprint());
    let older = trim(secret(&git, &of_account(50, 150))).unwrap();
    assert!(older.newest(&git).is_none());
    // People have replaced theirs: ours renews what is gone.
    let replaced = held(&of_account(120, 220));
    assert!(!newer.renews(&replaced) && newer.newest(&replaced).is_none());
    let other = token(
        json!({"sub": "system:serviceaccount:isthmus-system:admin", "iat": 150, "exp": 900, "kubernetes.io": {}}),
    );
    assert!(trim(secret(&git, &other)).unwrap().newest(&git).is_none(), "another account's");
}

#[test]
fn a_secret_that_is_not_ours_says_nothing() {
    let git = held(&of_account(100, 200));
    let mut foreign = secret(&git, &of_account(150, 250));
    foreign.metadata.labels.as_mut().unwrap().remove(label::MANAGED_BY);
    assert_eq!(trim(foreign), None);
    let mut misnamed = secret(&git, &of_account(150, 250));
    misnamed.metadata.name = Some("isthmus-credential-north".into());
    assert_eq!(trim(misnamed), None);
    let renewed = trim(secret(&git, &of_account(150, 250))).unwrap();
    assert!(!format!("{renewed:?}").contains("e30"), "{renewed:?}");
}

#[test]
fn only_an_accounts_token_with_an_end_is_renewed() {
    let renewable = |token: &str| Credential::of(held(token), held(token)).is_some();
    assert!(renewable(&of_account(100, 200)));
    assert!(!renewable("opaque"));
    let sub = "system:serviceaccount:a:b";
    for claims in [
        json!({"sub": sub, "iat": 100, "kubernetes.io": {}}),
        json!({"sub": "admin", "iat": 100, "exp": 200, "kubernetes.io": {}}),
        json!({"sub": sub, "iat": 200, "exp": 100, "kubernetes.io": {}}),
        json!({"sub": sub, "iat": 100, "exp": u64::MAX, "kubernetes.io": {}}),
        json!({"sub": sub, "iat": 100, "exp": 200, "kubernetes.io": {"pod": {"name": "p", "uid": "u"}}}),
    ] {
        assert!(!renewable(&token(claims.clone())), "{claims}");
    }
    let life =
        Credential::of(held(&of_account(100, 200)), held(&of_account(150, 250))).unwrap().life();
    assert_eq!(life.expires.duration_since(life.issued).unwrap(), Duration::from_secs(100));
    assert_eq!(life.expires, UNIX_EPOCH + Duration::from_secs(250), "of the one in use");
}

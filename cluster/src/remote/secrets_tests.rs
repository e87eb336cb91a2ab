//! Remote secrets as people make them.

use super::*;
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

fn kubeconfig(server: &str) -> String {
    use base64::Engine as _;
    let pem = "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n";
    let ca = base64::engine::general_purpose::STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: w\nclusters: [{{name: w, cluster: {{server: '{server}', certificate-authority-data: {ca}}}}}]\n\
         users: [{{name: w, user: {{token: t}}}}]\ncontexts: [{{name: w, context: {{cluster: w, user: w}}}}]\n"
    )
}

fn secret(name: &str, created: i64, data: &[(&str, String)]) -> SecretData {
    let mut secret = Secret::default();
    secret.metadata.namespace = Some("isthmus-system".into());
    secret.metadata.name = Some(name.into());
    secret.metadata.creation_timestamp =
        Some(Time(k8s_openapi::jiff::Timestamp::from_second(created).unwrap()));
    let cluster = name.trim_start_matches("istio-remote-secret-");
    secret.metadata.annotations =
        Some(BTreeMap::from([(label::REMOTE_CLUSTER.into(), cluster.into())]));
    secret.data = Some(
        data.iter()
            .map(|(key, text)| ((*key).to_owned(), ByteString(text.clone().into())))
            .collect(),
    );
    trim(secret).unwrap()
}

fn read(secrets: &[SecretData], owner: Option<&str>) -> Read {
    let secrets = secrets.iter().map(|one| (one.object.clone(), one.clone())).collect();
    let owner =
        owner.map(|name| ("west".to_owned(), ObjectRef::new("Secret", "isthmus-system", name)));
    sources(&secrets, &owner.into_iter().collect(), Rules::default())
}

const WEST: &str = "https://10.0.0.2:6443";

#[test]
fn each_key_is_a_cluster() {
    let read = read(
        &[secret("both", 1, &[("west", kubeconfig(WEST)), ("north", kubeconfig(WEST))])],
        None,
    );
    assert_eq!(read.sources.keys().collect::<Vec<_>>(), ["north", "west"]);
    assert!(read.sources.values().all(|source| source.kubeconfig.is_ok()));
    assert!(read.findings.is_empty());
}

#[test]
fn a_secret_without_data_is_named_at_its_link() {
    let read = read(&[secret("istio-remote-secret-west", 1, &[])], None);
    let problem = read.sources["west"].kubeconfig.as_ref().unwrap_err();
    assert_eq!(problem.reason, "SecretWithoutData");
    assert!(
        problem.message.contains("istio-remote-secret-west") && problem.message.contains("Fix: ")
    );
    assert_eq!(read.findings[0].field, "data");
}

#[test]
fn a_secret_without_data_does_not_hide_a_good_one() {
    let read = read(
        &[
            secret("istio-remote-secret-west", 1, &[]),
            secret("b", 2, &[("west", kubeconfig(WEST))]),
        ],
        None,
    );
    assert!(read.sources["west"].kubeconfig.is_ok());
    assert_eq!(read.findings.len(), 1);
}

#[test]
fn two_secrets_with_one_id_are_both_named_and_the_first_keeps_it() {
    let two = [
        secret("b", 1, &[("west", kubeconfig(WEST))]),
        secret("a", 2, &[("west", kubeconfig("https://10.0.0.9"))]),
    ];
    let older = read(&two, None);
    assert_eq!(older.sources["west"].secret.name, "b");
    let text = older.findings[0].to_string();
    assert!(text.contains("isthmus-system/a") && text.contains("isthmus-system/b"), "{text}");
    let registered = read(&two, Some("a"));
    assert_eq!(registered.sources["west"].secret.name, "a");
}

#[test]
fn a_key_that_is_no_id_costs_itself_only() {
    let read =
        read(&[secret("a", 1, &[("West_1", kubeconfig(WEST)), ("north", kubeconfig(WEST))])], None);
    assert_eq!(read.sources.keys().collect::<Vec<_>>(), ["north"]);
    assert_eq!(read.findings[0].field, "data[West_1]");
}

#[test]
fn a_self_pointing_server_is_named_with_its_secret() {
    let read = read(&[secret("a", 1, &[("west", kubeconfig("https://127.0.0.1:6443"))])], None);
    let problem = read.sources["west"].kubeconfig.as_ref().unwrap_err();
    assert_eq!(problem.reason, "SelfPointingServer");
    assert!(
        problem.message.contains("self-pointing server 127.0.0.1")
            && problem.message.contains("isthmus-system/a data[west]")
    );
}

#[test]
fn nothing_secret_is_printed() {
    let secret = secret("a", 1, &[("west", "SENTINEL".into())]);
    assert!(!format!("{secret:?}").contains("SENTINEL"));
    assert!(!format!("{:?}", Change::Applied(Some(secret))).contains("SENTINEL"));
}

/// A kubeconfig with an account's token that ends then.
fn ending(expires: u64) -> String {
    use base64::Engine as _;
    let claims = serde_json::json!({"sub": "system:serviceaccount:a:b", "iat": 1, "exp": expires, "kubernetes.io": {}});
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    kubeconfig(WEST).replace("token: t", &format!("token: e30.{claims}.c2ln"))
}

/// Our Secret for west, with the token of `newer`, renewing `held`.
fn ours(held: &str, newer: &str) -> BTreeMap<String, Renewed> {
    let parse = |text: &str| kubeconfig::parse(text.as_bytes(), Rules::default()).unwrap();
    let mut secret = Secret::default();
    secret.metadata.name = Some("isthmus-credential-west".into());
    secret.metadata.labels = Some(BTreeMap::from([
        (label::MANAGED_BY.into(), label::MANAGER.into()),
        (label::CREDENTIAL.into(), "west".into()),
    ]));
    secret.metadata.annotations =
        Some(BTreeMap::from([(label::RENEWS.into(), parse(held).fingerprint().into())]));
    let token = parse(newer).token().unwrap().as_bytes().to_vec();
    secret.data = Some(BTreeMap::from([("token".into(), ByteString(token))]));
    let one = crate::renewal::trim(secret).unwrap();
    BTreeMap::from([(one.cluster.clone(), one)])
}

#[test]
fn a_renewed_token_wins_until_people_replace_theirs() {
    let fingerprint =
        |read: &Read| read.sources["west"].kubeconfig.as_ref().unwrap().fingerprint().to_owned();
    let held =
        |text: String| read(&[secret("istio-remote-secret-west", 1, &[("west", text)])], None);
    let renewed = ours(&ending(1_000), &ending(2_000));

    let mut all = held(ending(1_000));
    let before = fingerprint(&all);
    let credentials = all.renew(&renewed);
    assert_ne!(fingerprint(&all), before, "the longer life wins");
    assert_eq!(credentials["west"].fingerprint(), fingerprint(&all));
    assert!(all.renewed.contains("west"));

    let mut all = held(ending(1_500));
    let before = fingerprint(&all);
    all.renew(&renewed);
    assert_eq!(fingerprint(&all), before, "what people wrote last wins");
    assert!(!all.renewed.contains("west"), "ours is void");
}

#[test]
fn a_renewed_token_outlives_a_broken_secret_but_not_its_end() {
    let renewed = ours(&ending(1_000), &ending(2_000));
    let broken = [("west", "kind: Nonsense".to_owned())];
    let mut all = read(&[secret("istio-remote-secret-west", 1, &broken)], None);
    assert!(all.renew(&renewed).is_empty() && all.renewed.contains("west"));
    assert!(all.sources["west"].kubeconfig.is_err(), "it is named at its link");
    let mut all = read(&[], None);
    assert!(all.renew(&renewed).is_empty() && all.renewed.is_empty());
}

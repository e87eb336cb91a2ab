//! Service account tokens: who stands behind one (TokenReview), and asking for one (TokenRequest).

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::authentication::v1::{
    BoundObjectReference, TokenRequest, TokenRequestSpec, TokenReview, TokenReviewSpec,
    TokenReviewStatus,
};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use std::time::Duration;

/// Whom the API server says a token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    pub namespace: String,
    pub account: String,
    /// The pod it is bound to; the API server has checked that it still lives.
    pub pod: Option<String>,
}

/// Longest token we hand on; a stranger's megabyte stays with him. Service account tokens have
/// about 1 KiB.
const TOKEN_MAX: usize = 16 * 1024;

/// Asks the API server whose token this is, for one audience. The token is in no error.
pub async fn review(client: &Client, token: &str, audience: &str) -> Result<Reviewed> {
    if token.is_empty() || token.len() > TOKEN_MAX {
        bail!("ISM2310 the token has {} bytes; 1 to {TOKEN_MAX} are read", token.len());
    }
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: token.to_owned(),
            audiences: Some(vec![audience.to_owned()]),
        },
        ..TokenReview::default()
    };
    let answer = Api::<TokenReview>::all(client.clone())
        .create(&PostParams::default(), &review)
        .await
        .context("ISM2311 the API server cannot review a token")?;
    judge(answer.status.unwrap_or_default(), audience)
}

fn judge(status: TokenReviewStatus, audience: &str) -> Result<Reviewed> {
    if status.authenticated != Some(true) {
        let why =
            status.error.unwrap_or_else(|| "it is expired, forged or for another audience".into());
        bail!("ISM2312 the API server does not accept the token: {why}");
    }
    // A server that does not know audiences leaves them out, and accepts every token (the API's own
    // warning): that one is not for us.
    if !status.audiences.unwrap_or_default().iter().any(|given| given == audience) {
        bail!("ISM2313 the token is not for audience {audience}");
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        bail!("ISM2314 the token belongs to {name:?}, which is no service account");
    };
    let extra = user.extra.unwrap_or_default();
    let pod = extra.get("authentication.kubernetes.io/pod-name").and_then(|names| names.first());
    Ok(Reviewed { namespace: namespace.into(), account: account.into(), pod: pod.cloned() })
}

/// Asks for a token of a service account, bound to a pod where one is named. Servers give at least
/// ten minutes.
pub async fn request(
    client: &Client,
    namespace: &str,
    account: &str,
    audience: &str,
    pod: Option<&str>,
    ttl: Duration,
) -> Result<String> {
    let bound_object_ref = match pod {
        None => None,
        Some(name) => {
            let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
            let pod = pods.get(name).await.with_context(|| {
                format!("ISM2315 Pod {namespace}/{name} cannot be read, to bind a token to it")
            })?;
            Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(name.into()),
                uid: pod.metadata.uid,
            })
        }
    };
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            bound_object_ref,
            expiration_seconds: Some(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
        .with_context(|| {
            format!("ISM2316 no token can be had for ServiceAccount {namespace}/{account}")
        })?;
    answer
        .status
        .and_then(|status| status.token)
        .with_context(|| format!("ISM2316 the API server gave no token for {namespace}/{account}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: serde_json::Value, expected: Result<Reviewed, &str>) {
        let result = judge(serde_json::from_value(status).unwrap(), "istio-ca");
        match (result, expected) {
            (Ok(reviewed), Ok(expected)) => assert_eq!(reviewed, expected),
            (Err(error), Err(code)) => assert!(error.to_string().contains(code), "{error}"),
            (result, expected) => panic!("{result:?} is not {expected:?}"),
        }
    }

    #[test]
    fn a_pods_token() {
        check(
            serde_json::json!({"authenticated": true, "audiences": ["istio-ca"], "user": {
                "username": "system:serviceaccount:shop:hello",
                "extra": {"authentication.kubernetes.io/pod-name": ["hello-1"]}}}),
            Ok(Reviewed {
                namespace: "shop".into(),
                account: "hello".into(),
                pod: Some("hello-1".into()),
            }),
        );
    }

    #[test]
    fn everybody_else_is_refused() {
        let user = serde_json::json!({"username": "system:serviceaccount:shop:hello"});
        check(serde_json::json!({"authenticated": false, "error": "expired"}), Err("ISM2312"));
        check(serde_json::json!({}), Err("ISM2312"));
        check(serde_json::json!({"authenticated": true, "user": user}), Err("ISM2313"));
        check(
            serde_json::json!({"authenticated": true, "audiences": ["other"], "user": user}),
            Err("ISM2313"),
        );
        check(
            serde_json::json!({"authenticated": true, "audiences": ["istio-ca"], "user": {"username": "admin"}}),
            Err("ISM2314"),
        );
    }
}

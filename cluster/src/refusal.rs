//! What an API server refused, or why it did not answer, in one sentence: kube's own words hold the
//! whole answer in Rust's debug form, repeat themselves, and show what a plug-in printed.

use crate::plain::plain;
use crate::yaml;
use kube::client::AuthError;
use std::error::Error;
use std::io::ErrorKind;
use std::iter::successors;

/// Longest sentence of somebody else, characters.
const SAID_MAX: usize = 512;

/// `error` and what lies below it, if it is one of a Kubernetes client.
pub fn cause(error: &(dyn Error + 'static)) -> Option<String> {
    (error.is::<kube::Error>() || error.is::<AuthError>()).then(|| told(error))
}

/// An API server's own message; else what lies deepest.
pub(crate) fn told(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    for part in parts(error) {
        if let Some(kube::Error::Api(status)) = part.downcast_ref() {
            let said = match status.message.as_str() {
                "" => format!("the API server answered {} {}", status.code, status.reason),
                message => message.to_owned(),
            };
            return plain(said.trim(), SAID_MAX);
        }
        if let Some(error) = part.downcast_ref::<AuthError>() {
            return plain(&of_credential(error), SAID_MAX);
        }
        deepest = part;
        let carried = matches!(
            part.downcast_ref(),
            Some(
                kube::Error::HyperError(_)
                    | kube::Error::Service(_)
                    | kube::Error::ReadEvents(_)
                    | kube::Error::Auth(_)
            )
        );
        if part.is::<kube::Error>() && !carried {
            break; // Its own text says what it was about, and has its source's.
        }
    }
    match deepest.downcast_ref::<std::io::Error>() {
        Some(error) if error.kind() == ErrorKind::TimedOut => "it did not answer in time".into(),
        Some(_) | None => plain(&deepest.to_string(), SAID_MAX),
    }
}

/// An error and what lies below it.
fn parts<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |part: &&'a (dyn Error + 'static)| (*part).source())
}

/// The status of the API server's refusal; `None` where it is none.
pub(crate) fn status(error: &(dyn Error + 'static)) -> Option<u16> {
    parts(error).find_map(|part| match part.downcast_ref() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    })
}

/// What to do about it, as the user of a kubeconfig's context.
pub(crate) fn fix(error: &kube::Error, context: &str) -> String {
    match status(error) {
        Some(401) => format!(
            "renew the credential of context {context}: it has expired, or the cluster does not \
             know it"
        ),
        Some(403) => "ask for the right that the cause names, or name a context that has it".into(),
        Some(404) => format!(
            "check name and namespace; `kubectl --context {context} get ns` lists the namespaces"
        ),
        Some(_) | None => format!("check that `kubectl --context {context} get ns` works"),
    }
}

/// A plug-in's standard output holds a token: it is never shown.
fn of_credential(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecRun { out, .. } => {
            let words = String::from_utf8_lossy(&out.stderr);
            let first = words.lines().map(str::trim).find(|line| !line.is_empty());
            let first = first.map(|line| format!(": {line}")).unwrap_or_default();
            format!("the exec plug-in of the kubeconfig failed with {}{first}", out.status)
        }
        AuthError::AuthExecParse(error) => {
            format!("what the exec plug-in printed is no credential: {}", yaml::told(error))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;
    use kube::core::Status;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{ExitStatus, Output};

    fn api(code: u16, message: &str) -> kube::Error {
        let status = Status::failure(message, "Reason").with_code(code);
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn a_refusal_is_the_servers_sentence() {
        let error = api(404, "namespaces \"nope\" not found");
        assert_eq!(told(&error), "namespaces \"nope\" not found");
        assert_eq!(told(&api(503, "")), "the API server answered 503 Reason");
        let whole = anyhow::Error::new(error).context("reading it");
        let causes: Vec<_> = whole.chain().filter_map(cause).collect();
        assert_eq!(causes, ["namespaces \"nope\" not found"]);
        let fixes = [401, 403, 404, 500].map(|code| fix(&api(code, "no"), "west"));
        let words = ["renew the credential", "ask for the right", "name and namespace", "get ns"];
        for (fix, word) in fixes.iter().zip(words) {
            assert!(fix.contains(word), "{fix}");
        }
    }

    #[test]
    fn of_what_did_not_answer_the_deepest_cause_is_told_once() {
        let below = std::io::Error::from_raw_os_error(111);
        let layers = anyhow::Error::new(below).context("client error (Connect)");
        let error = kube::Error::Service(layers.into());
        assert_eq!(told(&error), "Connection refused (os error 111)");
        let late = std::io::Error::new(ErrorKind::TimedOut, "deadline has elapsed");
        assert_eq!(told(&kube::Error::Service(late.into())), "it did not answer in time");
    }

    #[test]
    fn a_plug_ins_output_is_never_shown() {
        let out = Output {
            status: ExitStatus::from_raw(3 << 8),
            stdout: b"token: eyJSECRET".to_vec(),
            stderr: b"\nlog in first\neyJSECRET\n".to_vec(),
        };
        let error = AuthError::AuthExecRun { cmd: "\"aws\" \"SECRET\"".into(), out: Box::new(out) };
        let error = kube::Error::Auth(error);
        assert_eq!(
            told(&error),
            "the exec plug-in of the kubeconfig failed with exit status: 3: log in first"
        );
        let parse = serde_saphyr::from_str::<u16>("eyJSECRET").unwrap_err();
        let said = told(&AuthError::AuthExecParse(Box::new(parse)));
        assert!(said.contains("no credential") && !said.contains("SECRET"), "{said}");
        let whole = Err::<(), _>(error).context("ISM2003").unwrap_err();
        assert!(whole.chain().filter_map(cause).count() > 0);
    }
}

//! What went wrong with a link: one word for machines, one sentence with the fix for people.

use crate::heard::chain;
use k8s_openapi::jiff::Timestamp;
use std::time::SystemTime;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// One CamelCase word.
    pub reason: String,
    pub message: String,
}

impl Problem {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        // A stranger's server may have written parts of it.
        let message: String = message.into();
        let message = message.chars().filter(|c| !c.is_control()).take(1_024).collect();
        Self { reason: reason.into(), message }
    }
}

/// What a failed request says about a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing answered: it may be well and we may not know.
    Silent(Problem),
    /// It answered, and will not serve us until somebody changes something.
    Refused(Problem),
}

/// Judges a failed request to `server`.
pub(crate) fn judge(server: &str, error: &kube::Error) -> Verdict {
    if let kube::Error::Api(status) = error {
        let said = &status.message;
        return match status.code {
            401 => Verdict::Refused(Problem::new(
                "Unauthorized",
                format!(
                    "{server} does not accept the credential (401): it expired or was revoked. Fix: isthmus link renews it"
                ),
            )),
            403 => Verdict::Refused(Problem::new(
                "Forbidden",
                format!(
                    "{server} forbids what a link reads (403: {said}). Fix: isthmus create-remote-secret there prints the roles it needs"
                ),
            )),
            404 => Verdict::Refused(Problem::new(
                "NotInstalled",
                format!(
                    "{server} does not know what a link reads (404: {said}). Fix: install Isthmus in that cluster"
                ),
            )),
            code => Verdict::Silent(Problem::new(
                "ServerError",
                format!(
                    "{server} answers {code}: {said}. Fix: look at that API server; what it told before is kept"
                ),
            )),
        };
    }
    judge_text(server, &chain(error))
}

/// Says of a credential that is not accepted that it has ended, where that is known.
pub(super) fn dated(verdict: Verdict, server: &str, expires: Option<SystemTime>) -> Verdict {
    let unauthorized =
        matches!(&verdict, Verdict::Refused(problem) if problem.reason == "Unauthorized");
    let Some(expires) = expires.filter(|at| unauthorized && *at <= SystemTime::now()) else {
        return verdict;
    };
    let ended = Timestamp::try_from(expires).map(|at| at.to_string()).unwrap_or_default();
    Verdict::Refused(Problem::new(
        "CredentialExpired",
        format!(
            "the credential for {server} ended at {ended}, before it could be renewed; what that cluster told is kept. Fix: isthmus link THIS-CONTEXT THAT-CONTEXT mints a new one, or isthmus create-remote-secret --context THAT-CONTEXT | kubectl --context THIS-CONTEXT apply -f -"
        ),
    ))
}

/// Judges by the words of an error: rustls' own error is buried in IO errors that hide its type.
pub(super) fn judge_text(server: &str, text: &str) -> Verdict {
    let certificate = |reason, what: &str, fix: &str| {
        Verdict::Refused(Problem::new(reason, format!("{what} ({text}). Fix: {fix}")))
    };
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        return certificate(
            "WrongCertificateAuthority",
            &format!("the certificate of {server} is not signed by the CA in the kubeconfig"),
            "put that API server's CA into certificate-authority-data; isthmus create-remote-secret does",
        );
    }
    if text.contains("NotValidForName") || text.contains("not valid for name") {
        return certificate(
            "WrongServerName",
            &format!("the certificate of {server} is for another name"),
            "use an address the certificate names, or set tls-server-name",
        );
    }
    if text.contains("invalid peer certificate") {
        return certificate(
            "BadServerCertificate",
            &format!("the certificate of {server} is not valid"),
            "renew that API server's certificate, and compare the clocks",
        );
    }
    let (reason, what) = if text.contains("onnection refused") {
        ("ConnectionRefused", "refuses connections")
    } else if text.contains("dns error") || text.contains("failed to lookup") {
        ("NameNotFound", "has a name that does not resolve here")
    } else {
        ("NoAnswer", "does not answer")
    };
    Verdict::Silent(Problem::new(
        reason,
        format!(
            "{server} {what} ({text}). What it told before is kept. Fix: start it, or open the way there"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_from_refusal() {
        let reason = |text: &str| match judge_text("https://w:6443", text) {
            Verdict::Silent(problem) => format!("silent {}", problem.reason),
            Verdict::Refused(problem) => format!("refused {}", problem.reason),
        };
        assert_eq!(
            reason("tcp connect error: Connection refused (os error 111)"),
            "silent ConnectionRefused"
        );
        assert_eq!(reason("deadline has elapsed"), "silent NoAnswer");
        assert_eq!(
            reason("client error: invalid peer certificate: UnknownIssuer"),
            "refused WrongCertificateAuthority"
        );
        assert_eq!(reason("invalid peer certificate: Expired"), "refused BadServerCertificate");
        assert_eq!(reason("dns error: failed to lookup address"), "silent NameNotFound");
    }

    #[test]
    fn an_ended_credential_is_told_from_a_revoked_one() {
        let refused = |reason| Verdict::Refused(Problem::new(reason, "m"));
        let reason = |verdict, expires| match dated(verdict, "https://w:6443", expires) {
            Verdict::Refused(problem) | Verdict::Silent(problem) => problem.reason,
        };
        let now = SystemTime::now();
        let (past, future) = (SystemTime::UNIX_EPOCH, now + std::time::Duration::from_secs(600));
        assert_eq!(reason(refused("Unauthorized"), Some(past)), "CredentialExpired");
        assert_eq!(reason(refused("Unauthorized"), Some(future)), "Unauthorized");
        assert_eq!(reason(refused("Unauthorized"), None), "Unauthorized");
        assert_eq!(reason(refused("Forbidden"), Some(past)), "Forbidden");
        let Verdict::Refused(ended) = dated(refused("Unauthorized"), "https://w:6443", Some(past))
        else {
            unreachable!("it was refused")
        };
        assert!(
            ended.message.contains("1970-01-01T00:00:00Z")
                && ended.message.contains("Fix: isthmus link")
        );
    }

    #[test]
    fn a_stranger_s_words_are_cut() {
        let problem = Problem::new("A", "x\u{1b}[31m\n".repeat(1_000));
        assert!(problem.message.chars().count() <= 1_024 && !problem.message.contains('\u{1b}'));
    }
}

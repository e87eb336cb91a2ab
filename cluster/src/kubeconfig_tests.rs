//! A table of kubeconfigs that somebody hostile, or hurried, puts into a Secret.

use super::*;

const PEM: &str = "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----\n";

/// The kubeconfig of Istio's own test (`remote_secret_test.go`), with lines to add or replace.
fn kubeconfig(change: impl FnOnce(&mut Parts)) -> String {
    let mut parts = Parts {
        top: String::new(),
        cluster: format!("    certificate-authority-data: {}\n", STANDARD.encode(PEM)),
        server: "https://203.0.113.7:6443".into(),
        user: "    token: SENTINEL-TOKEN\n".into(),
        current: "c2".into(),
        context_cluster: "c2".into(),
        context_user: "c2".into(),
        tail: String::new(),
    };
    change(&mut parts);
    format!(
        "apiVersion: v1\n{top}clusters:\n- cluster:\n    server: {server}\n{cluster}  name: c2\n\
         contexts:\n- context:\n    cluster: {cc}\n    user: {cu}\n  name: c2\n\
         current-context: {current}\nkind: Config\nusers:\n- name: c2\n  user:\n{user}{tail}",
        top = parts.top,
        server = parts.server,
        cluster = parts.cluster,
        cc = parts.context_cluster,
        cu = parts.context_user,
        current = parts.current,
        user = parts.user,
        tail = parts.tail,
    )
}

struct Parts {
    top: String,
    cluster: String,
    server: String,
    user: String,
    current: String,
    context_cluster: String,
    context_user: String,
    tail: String,
}

#[track_caller]
fn check(what: &str, text: &str, reason: &str) {
    let Err(refused) = parse(text.as_bytes(), Rules::default()) else { panic!("{what}: accepted") };
    let sentence = refused.to_string();
    assert_eq!(refused.reason(), reason, "{what}: {sentence}");
    assert!(sentence.contains("Fix: "), "{what} has no fix: {sentence}");
    assert!(!sentence.contains("SENTINEL"), "{what} prints the token: {sentence}");
    assert!(sentence.len() < 500, "{what} echoes too much: {sentence}");
    assert!(!sentence.contains(['\n', '\u{1b}']), "{what} prints control characters");
}

#[test]
fn istio_s_own_shape_is_accepted() {
    let remote = parse(kubeconfig(|_| {}).as_bytes(), Rules::default()).unwrap();
    assert_eq!(remote.server(), "https://203.0.113.7:6443");
    let config = remote.config();
    assert_eq!(config.root_cert.as_ref().map(Vec::len), Some(1));
    assert!(config.proxy_url.is_none() && !config.accept_invalid_certs);
    assert!(config.auth_info.exec.is_none() && config.auth_info.token_file.is_none());
    assert!(!format!("{remote:?}").contains("SENTINEL"), "{remote:?}");
}

#[test]
fn what_tools_add_and_what_cannot_hurt_is_accepted() {
    let accepted = |change: fn(&mut Parts)| {
        let text = kubeconfig(change);
        parse(text.as_bytes(), Rules::default()).unwrap_or_else(|e| panic!("{e}\n{text}"))
    };
    accepted(|p| p.top = "preferences: {}\n".into());
    accepted(|p| {
        p.cluster +=
            "    extensions:\n    - {name: minikube.sigs.k8s.io, extension: {provider: x}}\n"
    });
    accepted(|p| p.cluster += "    insecure-skip-tls-verify: false\n");
    accepted(|p| p.cluster += "    disable-compression: true\n");
    accepted(|p| p.server = "https://api.west.example.com".into());
    accepted(|p| p.server = "https://[2001:db8::7]:6443".into());
    accepted(|p| p.server = "https://10.0.0.2:6443/clusters/west".into());
    let named = accepted(|p| p.cluster += "    tls-server-name: kubernetes.default.svc\n");
    assert_eq!(named.config().tls_server_name.as_deref(), Some("kubernetes.default.svc"));
    let certificate = accepted(|p| {
        p.user = format!(
            "    client-certificate-data: {}\n    client-key-data: {}\n",
            STANDARD.encode(PEM),
            STANDARD.encode(KEY)
        );
    });
    assert!(certificate.config().auth_info.token.is_none());
    assert!(certificate.config().auth_info.client_key_data.is_some());
    let local = kubeconfig(|p| p.server = "https://127.0.0.1:6443".into());
    assert!(parse(local.as_bytes(), Rules { allow_loopback: true }).is_ok());
}

#[test]
fn one_change_is_another_fingerprint() {
    let one = parse(kubeconfig(|_| {}).as_bytes(), Rules::default()).unwrap();
    let same = parse(kubeconfig(|_| {}).as_bytes(), Rules::default()).unwrap();
    let other = kubeconfig(|p| p.user = "    token: OTHER\n".into());
    let other = parse(other.as_bytes(), Rules::default()).unwrap();
    assert_eq!(one.fingerprint(), same.fingerprint());
    assert_ne!(one.fingerprint(), other.fingerprint());
}

#[test]
fn users_that_act_on_the_controller_are_refused() {
    let user = |what: &str, line: &str, reason: &str| {
        check(what, &kubeconfig(|p| p.user += line), reason);
        let alone = kubeconfig(|p| p.user = line.into());
        check(&format!("{what}, alone"), &alone, reason);
    };
    user(
        "exec",
        "    exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, args: [-c, id]}\n",
        "ExecNotAllowed",
    );
    user("empty exec", "    exec: {}\n", "ExecNotAllowed");
    user("null exec", "    exec: null\n", "ExecNotAllowed");
    user("quoted exec", "    \"exec\": {command: id}\n", "ExecNotAllowed");
    user("escaped exec", "    \"e\\x78ec\": {command: id}\n", "ExecNotAllowed");
    user(
        "auth-provider gcp",
        "    auth-provider: {name: gcp, config: {cmd-path: /bin/id}}\n",
        "AuthProviderNotAllowed",
    );
    user(
        "auth-provider oidc",
        "    auth-provider: {name: oidc, config: {idp-issuer-url: https://evil}}\n",
        "AuthProviderNotAllowed",
    );
    user(
        "tokenFile",
        "    tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token\n",
        "FilePathNotAllowed",
    );
    user(
        "client-certificate",
        "    client-certificate: /etc/kubernetes/pki/a.crt\n",
        "FilePathNotAllowed",
    );
    user("client-key", "    client-key: /etc/kubernetes/pki/ca.key\n", "FilePathNotAllowed");
    user("as", "    as: system:admin\n", "ImpersonationNotAllowed");
    user("as-uid", "    as-uid: '0'\n", "ImpersonationNotAllowed");
    user("as-groups", "    as-groups: [system:masters]\n", "ImpersonationNotAllowed");
    user("as-user-extra", "    as-user-extra: {a: [b]}\n", "ImpersonationNotAllowed");
    user("username", "    username: admin\n", "BasicAuthNotAllowed");
    user("password", "    password: SENTINEL\n", "BasicAuthNotAllowed");
    user("an unknown field", "    run: /bin/sh\n", "UnknownField");
}

#[test]
fn credentials_are_one_and_whole() {
    let cert = format!("    client-certificate-data: {}\n", STANDARD.encode(PEM));
    let key = format!("    client-key-data: {}\n", STANDARD.encode(KEY));
    check("no credential", &kubeconfig(|p| p.user = "    {}\n".into()), "NoCredential");
    check("empty token", &kubeconfig(|p| p.user = "    token: ''\n".into()), "NoCredential");
    check("null token", &kubeconfig(|p| p.user = "    token: null\n".into()), "NoCredential");
    check(
        "two credentials",
        &kubeconfig(|p| p.user += &format!("{cert}{key}")),
        "AmbiguousCredential",
    );
    check("certificate without key", &kubeconfig(|p| p.user = cert.clone()), "AmbiguousCredential");
    check("key without certificate", &kubeconfig(|p| p.user = key.clone()), "AmbiguousCredential");
    check(
        "a header in the token",
        &kubeconfig(|p| p.user = "    token: \"SENTINEL\\r\\nHost: evil\"\n".into()),
        "BadToken",
    );
    check(
        "a token of spaces",
        &kubeconfig(|p| p.user = "    token: SENTINEL b c\n".into()),
        "BadToken",
    );
    check(
        "a long token",
        &kubeconfig(|p| p.user = format!("    token: {}\n", "A".repeat(20_000))),
        "BadToken",
    );
    let not_base64 = "    client-certificate-data: '***'\n    client-key-data: '***'\n";
    check("no base64", &kubeconfig(|p| p.user = not_base64.into()), "BadCertificateData");
    let swapped = format!(
        "    client-certificate-data: {}\n    client-key-data: {}\n",
        STANDARD.encode(KEY),
        STANDARD.encode(PEM)
    );
    check("key for a certificate", &kubeconfig(|p| p.user = swapped), "BadCertificateData");
}

#[test]
fn servers_that_are_not_another_cluster_are_refused() {
    let server = |text: &str, reason: &str| {
        check(text, &kubeconfig(|p| p.server = format!("'{text}'")), reason);
    };
    server("http://203.0.113.7:6443", "BadServer");
    server("203.0.113.7:6443", "BadServer");
    server("unix:///var/run/docker.sock", "BadServer");
    server("file:///etc/passwd", "BadServer");
    server("https://", "BadServer");
    server("https://user:pass@203.0.113.7:6443", "BadServer");
    server("https://203.0.113.7:6443/?a=b", "BadServer");
    server("https://203.0.113.7:99999", "BadServer");
    server("https://a_b.example.com", "BadServer");
    server("https://127.0.0.1:6443", "SelfPointingServer");
    server("https://127.8.9.10:6443", "SelfPointingServer");
    server("https://localhost:6443", "SelfPointingServer");
    server("https://LOCALHOST:6443", "SelfPointingServer");
    server("https://evil.localhost:6443", "SelfPointingServer");
    server("https://[::1]:6443", "SelfPointingServer");
    server("https://[::ffff:127.0.0.1]:6443", "SelfPointingServer");
    server("https://kubernetes.default.svc", "SelfPointingServer");
    server("https://0.0.0.0:6443", "ForbiddenServer");
    server("https://0.1.2.3:6443", "ForbiddenServer");
    server("https://[::]:6443", "ForbiddenServer");
    server("https://169.254.169.254", "ForbiddenServer");
    server("https://[::ffff:169.254.169.254]", "ForbiddenServer");
    server("https://[fe80::1]:6443", "ForbiddenServer");
    server("https://[fd00:ec2::254]", "ForbiddenServer");
    server("https://100.100.100.200", "ForbiddenServer");
    server("https://metadata.google.internal", "ForbiddenServer");
    server("https://224.0.0.1:6443", "ForbiddenServer");
    server("https://255.255.255.255:6443", "ForbiddenServer");
    server("https://2130706433:6443", "BadServer");
    server("https://0x7f000001:6443", "BadServer");
    server("https://127.1:6443", "BadServer");
    server("https://0177.0.0.1:6443", "BadServer");
}

#[test]
fn clusters_that_trust_anybody_are_refused() {
    let cluster = |what: &str, line: &str, reason: &str| {
        check(what, &kubeconfig(|p| p.cluster += line), reason);
    };
    cluster("proxy-url", "    proxy-url: http://evil:3128\n", "ProxyNotAllowed");
    cluster("skip verify", "    insecure-skip-tls-verify: true\n", "InsecureTlsNotAllowed");
    cluster("CA file", "    certificate-authority: /etc/ssl/ca.pem\n", "FilePathNotAllowed");
    cluster("unknown", "    trust-everything: true\n", "UnknownField");
    cluster("TLS name", "    tls-server-name: 'a b'\n", "BadTlsServerName");
    check("no CA", &kubeconfig(|p| p.cluster = String::new()), "NoCertificateAuthority");
    check(
        "empty CA",
        &kubeconfig(|p| p.cluster = "    certificate-authority-data: ''\n".into()),
        "NoCertificateAuthority",
    );
    check(
        "CA of garbage",
        &kubeconfig(|p| p.cluster = "    certificate-authority-data: '%%%'\n".into()),
        "BadCertificateData",
    );
    check(
        "CA in PEM instead of base64 of it",
        &kubeconfig(|p| p.cluster = format!("    certificate-authority-data: {PEM:?}\n")),
        "BadCertificateData",
    );
    check(
        "CA without a certificate",
        &kubeconfig(|p| {
            p.cluster = format!("    certificate-authority-data: {}\n", STANDARD.encode(KEY))
        }),
        "BadCertificateData",
    );
    check(
        "a thousand CAs",
        &kubeconfig(|p| {
            p.cluster =
                format!("    certificate-authority-data: {}\n", STANDARD.encode(PEM.repeat(300)))
        }),
        "BadCertificateData",
    );
}

#[test]
fn contexts_are_one_and_agree() {
    check(
        "current-context of another",
        &kubeconfig(|p| p.current = "c3".into()),
        "ContextMismatch",
    );
    check(
        "context of another cluster",
        &kubeconfig(|p| p.context_cluster = "c3".into()),
        "ContextMismatch",
    );
    check(
        "context of another user",
        &kubeconfig(|p| p.context_user = "c3".into()),
        "ContextMismatch",
    );
    check(
        "a second user",
        &kubeconfig(|p| p.tail = "- name: c3\n  user: {exec: {command: id}}\n".into()),
        "ContextMismatch",
    );
    check("no contexts", "apiVersion: v1\nkind: Config\n", "ContextMismatch");
}

#[test]
fn what_is_no_kubeconfig_is_refused() {
    check("nothing", "", "KubeconfigEmpty");
    check("blanks", " \n \n", "KubeconfigEmpty");
    check("a number", "42", "KubeconfigUnreadable");
    check("a list", "- a\n- b\n", "KubeconfigUnreadable");
    check("a Pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "KubeconfigUnreadable");
    check("another version", "apiVersion: v9\nkind: Config\n", "KubeconfigUnreadable");
    check("unknown top", &kubeconfig(|p| p.top = "include: /etc/passwd\n".into()), "UnknownField");
    check(
        "token as a list",
        &kubeconfig(|p| p.user = "    token: [SENTINEL]\n".into()),
        "KubeconfigUnreadable",
    );
    check(
        "a key twice",
        &kubeconfig(|p| p.user += "    token: SENTINEL-2\n"),
        "KubeconfigUnreadable",
    );
    check(
        "broken YAML near the token",
        &kubeconfig(|p| p.user = "    token: \"SENTINEL\n".into()),
        "KubeconfigUnreadable",
    );
    check(
        "two documents",
        &format!("{}---\n{}", kubeconfig(|_| {}), kubeconfig(|_| {})),
        "KubeconfigUnreadable",
    );
    check("large", &" ".repeat(KUBECONFIG_MAX + 1), "KubeconfigTooLarge");
    let base64 = STANDARD.encode(kubeconfig(|_| {}));
    check("base64 twice", &base64, "KubeconfigUnreadable");
    let not_text = parse(&[0xff, 0xfe, 0], Rules::default()).unwrap_err();
    assert_eq!(not_text, Refused::NotUtf8);
}

#[test]
fn bombs_are_refused_before_they_are_values() {
    let deep = format!("a: {}{}", "[".repeat(5_000), "]".repeat(5_000));
    check("deep", &deep, "KubeconfigUnreadable");
    let mut laughs = String::from("a0: &a0 [lol]\n");
    for n in 1..20 {
        laughs +=
            &format!("a{n}: &a{n} [*a{0},*a{0},*a{0},*a{0},*a{0},*a{0},*a{0},*a{0}]\n", n - 1);
    }
    check("billion laughs", &laughs, "KubeconfigUnreadable");
    check(
        "merge key",
        &format!("x: &x {{a: b}}\n<<: *x\n{}", kubeconfig(|_| {})),
        "KubeconfigUnreadable",
    );
    check("anchor on itself", "a: &a [*a]\n", "KubeconfigUnreadable");
    let many: String = (0..5_000).map(|n| format!("k{n}: 1\n")).collect();
    check("five thousand keys", &many, "KubeconfigUnreadable");
}

#[test]
fn what_a_name_resolves_to_is_judged_alike() {
    let strict = Rules::default();
    assert_eq!(forbidden("127.0.0.1".parse().unwrap(), strict), Some("loopback"));
    assert!(forbidden("169.254.169.254".parse().unwrap(), strict).is_some());
    assert!(forbidden("::ffff:169.254.169.254".parse().unwrap(), strict).is_some());
    assert_eq!(forbidden("10.0.0.1".parse().unwrap(), strict), None);
    assert_eq!(forbidden("127.0.0.1".parse().unwrap(), Rules { allow_loopback: true }), None);
}

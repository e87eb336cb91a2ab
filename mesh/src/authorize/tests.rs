//! Precedence and matching as tables: policies, a caller, and what decides.

use super::*;
use crate::fixture::{clusters, linked, world};
use crate::inventory::WorkloadName;
use crate::name::Identity;
use proptest::prelude::*;

const SHOP: &str = "
    east cluster net-east gateway=203.0.113.1:15443
    west cluster net-west gateway=203.0.113.2:15443
    east service shop/hello 10.96.0.1 80/http 9000/tcp
    east pod shop/hello h 10.244.0.1 eu/a app=hello
    east pod shop/hello g 10.244.0.2 eu/a app=other";

/// What is decided on `PRINCIPAL|plain [ip=A] [port=P] [sni=N]` in front of pod `h` of east.
#[track_caller]
fn verdict(policies: &str, caller: &str) -> Verdict {
    let text = format!("{SHOP}\n{}", policies.replace("policy", "\neast policy"));
    let own = linked(&clusters(&text), "east");
    let pod = WorkloadName { namespace: "shop".into(), name: "h".into() };
    decide(&Authorization::of(&own, &own.workloads[&pod]), &who(caller))
}

#[track_caller]
fn who(text: &str) -> Caller {
    let mut words = text.split_whitespace();
    let identity = words.next().filter(|word| *word != "plain");
    let mut caller = Caller {
        identity: identity.map(|it| format!("spiffe://{it}").parse::<Identity>().unwrap()),
        source: "10.244.0.9".parse().unwrap(),
        destination: "10.244.0.1:8080".parse().unwrap(),
        server_name: None,
    };
    for word in words {
        match word.split_once('=').unwrap() {
            ("ip", ip) => caller.source = ip.parse().unwrap(),
            ("port", port) => caller.destination.set_port(port.parse().unwrap()),
            ("sni", name) => caller.server_name = Some(name.into()),
            other => panic!("{other:?}"),
        }
    }
    caller
}

fn short(verdict: &Verdict) -> String {
    match verdict {
        Verdict::NoAllowPolicy => "in".into(),
        Verdict::Allowed { policy, rule } => format!("in by {}[{rule}]", policy.name),
        Verdict::Denied { policy, rule } => format!("out by {}[{rule}]", policy.name),
        Verdict::NoneAllows { policies } => {
            let names: Vec<&str> = policies.iter().map(|it| it.name.as_str()).collect();
            format!("out, none of {}", names.join(" "))
        }
        Verdict::Plaintext => "out, plaintext".into(),
        Verdict::Foreign { domain } => format!("out, of {domain}"),
    }
}

#[track_caller]
fn check(rows: &[(&str, &str, &str)]) {
    for (policies, caller, expected) in rows {
        assert_eq!(short(&verdict(policies, caller)), *expected, "{policies} | {caller}");
    }
}

const WEB: &str = "east.mesh/ns/shop/sa/web";
const WEST: &str = "west.mesh/ns/shop/sa/web";

#[test]
fn deny_comes_first_then_allow_then_everybody() {
    let web = "rule principal=east.mesh/ns/shop/sa/web";
    check(&[
        ("", "plain", "in"),
        // No ALLOW policy selects the pod: a DENY that does not match lets in.
        (&format!("policy shop/d DENY {web}"), WEB, "out by d[0]"),
        (&format!("policy shop/d DENY {web}"), WEST, "in"),
        (&format!("policy shop/a ALLOW {web}"), WEB, "in by a[0]"),
        (&format!("policy shop/a ALLOW {web}"), WEST, "out, none of a"),
        (&format!("policy shop/a ALLOW {web}"), "plain", "out, none of a"),
        (&format!("policy shop/a ALLOW {web} policy shop/d DENY {web}"), WEB, "out by d[0]"),
        // One of several ALLOW policies and rules is enough.
        (
            &format!("policy shop/a ALLOW rule port=1 policy shop/b ALLOW rule port=2 {web}"),
            WEB,
            "in by b[1]",
        ),
        // Nobody and everybody.
        ("policy shop/a ALLOW", WEB, "out, none of a"),
        ("policy shop/a ALLOW rule", "plain", "in by a[0]"),
        ("policy shop/d DENY", WEB, "in"),
        ("policy shop/d DENY rule", WEB, "out by d[0]"),
        ("policy shop/d DENY rule policy shop/a ALLOW rule", WEB, "out by d[0]"),
        // Nobody asks a provider: what CUSTOM's rules match is denied.
        (&format!("policy shop/c CUSTOM {web} policy shop/a ALLOW rule"), WEB, "out by c[0]"),
        (&format!("policy shop/c CUSTOM {web} policy shop/a ALLOW rule"), WEST, "in by a[0]"),
    ]);
}

#[test]
fn a_policy_holds_for_what_it_selects() {
    check(&[
        ("policy shop/d DENY app=hello rule", WEB, "out by d[0]"),
        ("policy shop/d DENY app=other rule", WEB, "in"),
        ("policy pay/d DENY rule", WEB, "in"),
        // The root namespace's hold everywhere, and are asked first.
        ("policy isthmus-system/z DENY rule policy shop/d DENY rule", WEB, "out by z[0]"),
        ("policy isthmus-system/z DENY app=hello rule", WEB, "out by z[0]"),
        ("policy isthmus-system/z DENY app=none rule", WEB, "in"),
        // An ALLOW policy of the mesh and one of the namespace: either may let in.
        ("policy isthmus-system/z ALLOW policy shop/a ALLOW rule", WEB, "in by a[0]"),
        ("policy isthmus-system/z ALLOW rule policy shop/a ALLOW", WEB, "in by z[0]"),
    ]);
}

#[test]
fn sources_are_proven_names_and_addresses() {
    let allow = |rule: &str| format!("policy shop/a ALLOW rule {rule}");
    let (by, out) = ("in by a[0]", "out, none of a");
    for (rule, caller, expected) in [
        ("principal=*", WEB, by),
        ("principal=*", "plain", out),
        ("principal=west.mesh/*", WEST, by),
        ("principal=west.mesh/*", WEB, out),
        ("principal=*/ns/shop/sa/web", WEST, by),
        ("principal=*/ns/pay/sa/web", WEST, out),
        // Not the beginning of another's name.
        ("principal=west.mesh/ns/shop/sa/web", "west.mesh/ns/shop/sa/website", out),
        // `cluster.local` is the own trust domain, whatever its name is, and no other.
        ("principal=cluster.local/ns/shop/sa/web", WEB, by),
        ("principal=cluster.local/ns/shop/*", WEB, by),
        ("principal=cluster.local/ns/shop/sa/web", WEST, out),
        ("domain=cluster.local", WEB, by),
        ("domain=cluster.local", WEST, out),
        ("domain=west.mesh", WEST, by),
        ("domain=*.mesh", WEST, by),
        // Namespaces and accounts are of any trust domain, as Istio has them.
        ("namespace=shop", WEST, by),
        ("namespace=shop", "west.mesh/ns/shopping/sa/web", out),
        ("namespace=sh*", "west.mesh/ns/shopping/sa/web", by),
        ("namespace=shop", "plain", out),
        ("namespace=shop domain=east.mesh", WEST, out),
        ("account=shop/web", WEST, by),
        ("account=shop/web", "east.mesh/ns/pay/sa/web", out),
        ("ip=10.244.0.0/16", "plain ip=10.244.3.4", by),
        ("ip=10.244.0.0/16", "plain ip=10.245.3.4", out),
        ("ip=10.244.0.0/16", "plain ip=::ffff:10.244.3.4", by),
        ("ip=fd00::/8", "plain ip=fd00::1", by),
        // Who not: a caller without a name is none of them.
        ("!principal=east.mesh/ns/shop/sa/web", WEB, out),
        ("!principal=east.mesh/ns/shop/sa/web", WEST, by),
        ("!principal=east.mesh/ns/shop/sa/web", "plain", by),
        ("principal=* !principal=east.mesh/ns/shop/sa/web", "plain", out),
        ("!namespace=shop", WEB, out),
        ("!ip=10.0.0.0/8", "plain ip=10.0.0.1", out),
        // A value and its twin, and fields beside each other: all must hold.
        ("namespace=shop !principal=*/sa/web", WEB, out),
        ("namespace=shop port=8080", WEB, by),
        ("namespace=shop port=8081", WEB, out),
        ("port=8081 port=8080", WEB, by),
        ("!port=8080", "plain", out),
        ("!port=8080", "plain port=9000", by),
        ("to-ip=10.244.0.1", "plain", by),
        ("to-ip=10.244.0.2", "plain", out),
        ("sni=outbound_.80_*", &format!("{WEB} sni=outbound_.80_._.hello.shop.global"), by),
        ("sni=*.global", WEB, out),
    ] {
        check(&[(&allow(rule), caller, expected)]);
    }
}

#[test]
fn what_is_not_judged_whole_lets_nobody_in() {
    check(&[
        ("policy shop/a ALLOW rule partial", WEB, "out, none of a"),
        ("policy shop/a ALLOW rule partial rule namespace=shop", WEB, "in by a[1]"),
        ("policy shop/d DENY rule partial", WEB, "out by d[0]"),
        ("policy shop/d DENY rule partial port=8080", WEB, "out by d[0]"),
        ("policy shop/d DENY rule partial port=8081", WEB, "in"),
    ]);
}

#[test]
fn conditions_hold_beside_every_source_and_operation() {
    fn clause<T>(any_of: Vec<T>) -> Clause<T> {
        Clause { any_of, none_of: vec![] }
    }
    let source = |text: &str| clause(vec![Source::Namespace(text.parse().unwrap())]);
    let rule = Rule {
        from: vec![vec![source("shop")], vec![source("pay")]],
        to: vec![vec![clause(vec![Operation::Port(8080)])], vec![clause(vec![Operation::Port(1)])]],
        when_from: vec![clause(vec![Source::TrustDomain("east.mesh".parse().unwrap())])],
        when_to: vec![clause(vec![Operation::ServerName("*.global".parse().unwrap())])],
        partial: false,
    };
    let object = Arc::new(ObjectRef::new(KIND, "shop", "a"));
    let policy = Policy { object, rules: vec![rule] };
    let authorization = Authorization { deny: vec![], allow: vec![policy] };
    for (caller, lets_in) in [
        ("east.mesh/ns/shop/sa/a sni=x.global", true),
        ("east.mesh/ns/pay/sa/a port=1 sni=x.global", true),
        ("east.mesh/ns/bank/sa/a sni=x.global", false),
        ("west.mesh/ns/shop/sa/a sni=x.global", false),
        ("east.mesh/ns/shop/sa/a port=2 sni=x.global", false),
        ("east.mesh/ns/shop/sa/a sni=x.local", false),
        ("east.mesh/ns/shop/sa/a", false),
    ] {
        assert_eq!(decide(&authorization, &who(caller)).allows(), lets_in, "{caller}");
    }
}

#[test]
fn a_denial_reads_as_istio_and_envoy_write_it() {
    let denied = verdict("policy shop/no DENY rule port=1 rule", WEB);
    let name = "rbac_access_denied_matched_policy[ns[shop]-policy[no]-rule[1]]";
    assert_eq!(denied.denial().as_deref(), Some(name));
    let none = verdict("policy shop/a ALLOW", WEB);
    assert_eq!(none.denial().as_deref(), Some("rbac_access_denied_matched_policy[none]"));
    assert_eq!(verdict("policy shop/a ALLOW rule", WEB).denial(), None);
    assert_eq!(denied.to_string(), "denies the caller by rules[1] of AuthorizationPolicy shop/no");
    assert_eq!(
        none.to_string(),
        "denies the caller: no rule matches of AuthorizationPolicy shop/a"
    );
}

#[track_caller]
fn found(policies: &str) -> Vec<String> {
    let text = format!("{SHOP}\n{}", policies.replace("policy", "\neast policy"));
    let all = findings(&linked(&clusters(&text), "east"));
    all.iter().map(|it| format!("{} {} {}", it.code, it.field, it.problem)).collect()
}

#[test]
fn principals_of_nobody_are_told() {
    let told = found(
        "policy shop/a ALLOW rule principal=moon.mesh/ns/shop/sa/web principal=west.mesh/ns/x/sa/y \
         principal=cluster.local/ns/x/sa/y principal=*/ns/x/sa/y rule domain=moon* rule principal=we*",
    );
    assert_eq!(told.len(), 2, "{told:?}");
    let words = ["3421 spec.rules[0]", "moon.mesh", "There are: east.mesh, west.mesh."];
    assert!(words.iter().all(|word| told[0].contains(word)), "{told:?}");
    assert!(told[1].starts_with("3421 spec.rules[1] \"moon*\""), "{told:?}");
    // And they match nobody that can connect.
    let moon = "policy shop/d DENY rule principal=moon.mesh/ns/shop/sa/web";
    check(&[(moon, WEB, "in"), (moon, WEST, "in"), (moon, "plain", "in")]);
}

#[test]
fn addresses_beside_gateways_and_names_of_two_domains_are_told() {
    let told = found("policy shop/a ALLOW rule ip=10.0.0.0/8");
    assert!(told.len() == 1 && told[0].starts_with("3422 spec.rules[0] 10.0.0.0/8"), "{told:?}");
    let text = "east cluster net-east
        east policy shop/a ALLOW rule ip=10.0.0.0/8 rule principal=cluster.local/ns/a/sa/b";
    assert_eq!(findings(&clusters(text)["east"]), [], "no other network, no gateway");
    let text = "east cluster net-east gateway=203.0.113.1:15443
        west cluster net-west gateway=203.0.113.2:15443 domain=cluster.local
        east policy shop/a ALLOW rule principal=cluster.local/ns/a/sa/b";
    let told = findings(&linked(&clusters(text), "east"));
    assert!(told.len() == 1 && told[0].code == 3423, "{told:?}");
    let told = found("policy isthmus-system/a DENY istio=eastwestgateway rule");
    assert!(told.len() == 1 && told[0].starts_with("3424 spec.selector"), "{told:?}");
}

#[test]
fn who_may_call_is_counted_from_what_is_known() {
    let text = format!(
        "{SHOP}
        east service shop/web 10.96.0.2 80/http
        east pod shop/web w1 10.244.0.3 eu/a account=web
        east pod shop/web w2 10.244.0.4 eu/a account=web
        east pod shop/web w3 10.244.0.5 eu/a account=web unmeshed
        east peerauth isthmus-system/mesh STRICT
        east export shop/hello"
    );
    let callers = |policies: &str| {
        let text = format!("{text}\n{}", policies.replace("policy", "\neast policy"));
        let world = world(linked(&clusters(&text), "east"));
        let audience = audience(&world, &crate::fixture::service("shop/hello"), &[]).unwrap();
        assert_eq!(audience.copies, 2);
        (audience.ports[&80].to_string(), audience.any_domain(&world).len())
    };
    for (policies, expected, any_domain) in [
        ("", "4 of 5 workloads here; every workload of west (west.mesh)", 0),
        ("policy shop/a ALLOW", "0 of 5 workloads here; nobody of west (west.mesh)", 0),
        (
            "policy shop/a ALLOW rule principal=cluster.local/ns/shop/sa/web",
            "2 of 5 workloads here; nobody of west (west.mesh)",
            0,
        ),
        (
            "policy shop/a ALLOW rule namespace=shop",
            "4 of 5 workloads here; of west (west.mesh) only namespace shop",
            1,
        ),
        (
            "policy shop/a ALLOW rule principal=west.mesh/ns/shop/sa/client",
            "0 of 5 workloads here; of west (west.mesh) only west.mesh/ns/shop/sa/client",
            0,
        ),
        (
            "policy shop/d DENY rule principal=*/ns/shop/sa/web",
            "2 of 5 workloads here; every workload of west (west.mesh) but west.mesh/ns/shop/sa/web",
            0,
        ),
    ] {
        assert_eq!(callers(policies), (expected.to_owned(), any_domain), "{policies}");
    }
}

#[test]
fn workloads_of_clusters_that_were_seen_are_counted() {
    let text = format!(
        "{SHOP}
        west service shop/web 10.96.0.2 80/http
        west pod shop/web w1 10.244.0.3 us/a account=web
        west pod shop/web w2 10.244.0.4 us/a account=client
        west pod shop/web w3 10.244.0.5 us/a account=client unmeshed
        east export shop/hello"
    );
    let callers = |policies: &str, peers: &[&str]| {
        let text = format!("{text}\n{}", policies.replace("policy", "\neast policy"));
        let all = clusters(&text);
        let world = world(linked(&all, "east"));
        let peers: Vec<_> = peers.iter().map(|peer| Arc::new(linked(&all, peer))).collect();
        let audience = audience(&world, &crate::fixture::service("shop/hello"), &peers).unwrap();
        audience.ports[&80].clone()
    };
    let text = |policies: &str, peers: &[&str]| callers(policies, peers).to_string();
    let west = "every workload of west (west.mesh)";
    assert_eq!(text("", &[]), format!("2 of 2 workloads here; {west}"));
    assert_eq!(
        text("", &["west"]),
        format!("2 of 2 workloads here, 2 of 3 in west: 4 in 2 of 2 clusters; {west}"),
        "one in west has no sidecar"
    );
    let client = "policy shop/a ALLOW rule principal=west.mesh/ns/shop/sa/client";
    assert_eq!(
        text(client, &["west"]),
        "0 of 2 workloads here, 1 of 3 in west: 1 in 1 of 2 clusters; of west (west.mesh) only \
         west.mesh/ns/shop/sa/client"
    );
    assert_eq!(callers("", &[]).uncounted().len(), 1);
    assert!(callers("", &["west"]).uncounted().is_empty());
}

#[test]
fn patterns_are_read_and_written_alike() {
    for text in ["*", "a", "a*", "*a", "west.mesh/ns/shop/sa/web"] {
        let pattern: Pattern = text.parse().unwrap();
        assert_eq!(pattern.to_string(), text);
    }
    for text in ["", "a*b", "**", "*a*", "a b", "a\n", "ü"] {
        assert!(text.parse::<Pattern>().is_err(), "{text:?}");
    }
    assert!(!Pattern::Any.fits(""));
}

fn word() -> impl Strategy<Value = String> {
    let principal = ["principal=*", "principal=east.mesh/ns/shop/sa/web", "!principal=*/sa/web"];
    let more = ["namespace=shop", "!namespace=shop", "ip=10.0.0.0/8", "port=8080", "!port=8080"];
    let last = ["domain=west.mesh", "partial", "rule", "rule"];
    prop::sample::select([&principal[..], &more, &last].concat()).prop_map(str::to_owned)
}

fn policies() -> impl Strategy<Value = String> {
    let policy = (0..2usize, 0..3usize, prop::collection::vec(word(), 0..6));
    prop::collection::vec(policy, 0..5).prop_map(|all| {
        let all = all.into_iter().enumerate().map(|(number, (namespace, action, words))| {
            let namespace = ["shop", "isthmus-system"][namespace];
            let action = ["ALLOW", "DENY", "CUSTOM"][action];
            format!("policy {namespace}/p{number} {action} rule {} ", words.join(" "))
        });
        all.collect()
    })
}

fn anybody() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![WEB, WEST, "plain", "west.mesh/ns/pay/sa/x port=1 ip=192.0.2.1"])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever else there is: a DENY rule that matches denies, and no policy that is added to it
    /// lets the caller in again.
    #[test]
    fn deny_always_wins(some in policies(), more in policies(), caller in anybody()) {
        let named = more.replace("/p", "/q");
        let first = verdict(&some, caller);
        let both = verdict(&format!("{some}{named}"), caller);
        if matches!(first, Verdict::Denied { .. }) {
            let both_deny = matches!(both, Verdict::Denied { .. });
            prop_assert!(both_deny, "{some} | {named} | {caller}: {both:?}");
        }
        let alone = verdict(&format!("{some}{named}policy shop/zz DENY rule "), caller);
        prop_assert!(!alone.allows());
        // ALLOW policies only ever take away from everybody.
        if both.allows() {
            let policies = format!("{some}{named}policy shop/zz ALLOW");
            let verdict = verdict(&policies, caller);
            let allowed = matches!(both, Verdict::Allowed { .. });
            prop_assert_eq!(verdict.allows(), allowed, "{} | {}", policies, caller);
        }
    }
}

#[test]
fn who_is_in_stays_as_long_as_its_handshake_would_be_taken() {
    use crate::name::Protocol;
    use crate::program::InboundPort;
    let listener = |mtls, port, domains: &[&str]| InboundListener {
        mtls,
        ports: [(
            8080,
            InboundPort { mtls: port, protocol: Protocol::Tcp, service: String::new() },
        )]
        .into(),
        trust_domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
        authorization: Authorization::default(),
        ipv6: false,
    };
    use MtlsMode::{Disable, Permissive, Strict};
    let both = ["east.mesh", "west.mesh"];
    let web = "west.mesh/ns/shop/sa/web";
    for (listener, caller, expected) in [
        (listener(Permissive, Permissive, &both), "plain", "in"),
        (listener(Permissive, Strict, &both), "plain", "out, plaintext"),
        (listener(Permissive, Strict, &both), "plain port=9000", "in"),
        (listener(Strict, Permissive, &both), "plain port=9000", "out, plaintext"),
        (listener(Strict, Permissive, &both), "plain", "in"),
        (listener(Disable, Disable, &both), "plain", "in"),
        (listener(Strict, Strict, &both), web, "in"),
        (listener(Strict, Strict, &["east.mesh"]), web, "out, of west.mesh"),
        (listener(Permissive, Permissive, &["east.mesh"]), web, "out, of west.mesh"),
        (listener(Permissive, Permissive, &["east.mesh"]), "plain", "in"),
    ] {
        let verdict = admit(&listener, &who(caller));
        assert_eq!(short(&verdict), expected, "{listener:?}: {caller}");
        assert_eq!(verdict.denial().is_none(), verdict.allows());
    }
}

#[test]
fn an_end_of_a_principal_may_reach_into_its_scheme() {
    let web = "west.mesh/ns/shop/sa/web";
    check(&[
        ("policy shop/no DENY rule principal=*/west.mesh/ns/shop/sa/web", web, "out by no[0]"),
        ("policy shop/no DENY rule principal=*/ns/shop/sa/web", web, "out by no[0]"),
        ("policy shop/no DENY rule principal=*x/west.mesh/ns/shop/sa/web", web, "in"),
    ]);
}

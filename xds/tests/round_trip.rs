//! What is written in our dialect reads back equal: on the wire, and as JSON.

mod support;

use mesh::authorize::{
    self, AccountName, Authorization, Clause, Operation, Pattern, Policy, Rule, Source,
};
use mesh::finding::ObjectRef;
use mesh::inventory::MtlsMode;
use mesh::name::*;
use mesh::program::*;
use mesh::sni::Sni;
use mesh::world::Dialect;
use mesh::zone::Zone;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use xds::codec;

/// `google.protobuf.Duration` ends after 10,000 years.
const LONGEST_MS: u64 = 315_576_000_000_000;

fn label() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9-]{0,8}[a-z0-9])?"
}

fn host() -> impl Strategy<Value = Hostname> {
    vec(label(), 1..4).prop_map(|labels| labels.join(".").parse().unwrap())
}

fn named<T: std::str::FromStr<Err: std::fmt::Debug> + std::fmt::Debug>() -> impl Strategy<Value = T>
{
    label().prop_map(|text| text.parse().unwrap())
}

fn identity() -> impl Strategy<Value = Identity> {
    (named(), label(), label()).prop_map(|(domain, namespace, account)| Identity {
        domain,
        namespace,
        account,
    })
}

fn ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (ip(), any::<u16>()).prop_map(SocketAddr::from)
}

fn sni() -> impl Strategy<Value = Sni> {
    (1..=u16::MAX, prop_oneof![Just(String::new()), label()], host())
        .prop_map(|(port, subset, host)| Sni { port, subset, host })
}

fn cluster_name() -> impl Strategy<Value = ClusterName> {
    prop_oneof![
        any::<u16>().prop_map(ClusterName::inbound),
        (any::<u16>(), "[a-zA-Z0-9.-]{0,6}", host())
            .prop_map(|(port, subset, host)| ClusterName::outbound(port, &subset, &host)),
        sni().prop_map(|sni| ClusterName::sni(&sni)),
    ]
}

fn ms() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..100_000u64, 0..=LONGEST_MS]
}

fn mtls() -> impl Strategy<Value = MtlsMode> {
    prop_oneof![Just(MtlsMode::Strict), Just(MtlsMode::Permissive), Just(MtlsMode::Disable)]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    use Protocol::{Auto, Grpc, Http, Http2, Tcp};
    prop_oneof![Just(Http), Just(Http2), Just(Grpc), Just(Tcp), Just(Auto)]
}

fn pattern() -> impl Strategy<Value = Pattern> {
    ("[!-)+-~]{1,9}", 0..4).prop_map(|(text, form)| match form {
        0 => Pattern::Any,
        1 => Pattern::Prefix(text),
        2 => Pattern::Suffix(text),
        _ => Pattern::Exact(text),
    })
}

fn block() -> impl Strategy<Value = String> {
    (ip(), 0..=32u8).prop_map(|(ip, length)| format!("{ip}/{length}"))
}

fn clause<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Clause<T>> {
    (vec(value.clone(), 0..3), vec(value, 0..3))
        .prop_map(|(any_of, none_of)| Clause { any_of, none_of })
}

fn authorization() -> impl Strategy<Value = Authorization> {
    let source = prop_oneof![
        pattern().prop_map(Source::Principal),
        pattern().prop_map(Source::Namespace),
        pattern().prop_map(Source::TrustDomain),
        (label(), label()).prop_map(|(namespace, name)| {
            Source::ServiceAccount(AccountName { namespace, name })
        }),
        block().prop_map(|text| Source::Ip(authorize::block(&text).unwrap())),
    ]
    .boxed();
    let operation = prop_oneof![
        any::<u16>().prop_map(Operation::Port),
        block().prop_map(|text| Operation::Ip(authorize::block(&text).unwrap())),
        pattern().prop_map(Operation::ServerName),
    ]
    .boxed();
    let parts = (
        vec(vec(clause(source.clone()), 0..3), 0..3),
        vec(vec(clause(operation.clone()), 0..3), 0..3),
    );
    let when = (vec(clause(source), 0..2), vec(clause(operation), 0..2), any::<bool>());
    let rule = (parts, when).prop_map(|((from, to), (when_from, when_to, partial))| Rule {
        from,
        to,
        when_from,
        when_to,
        partial,
    });
    let object = (label(), label());
    let policy = (object, vec(rule, 0..3)).prop_map(|((namespace, name), rules)| Policy {
        object: Arc::new(ObjectRef::new("AuthorizationPolicy", &namespace, &name)),
        rules,
    });
    let policy = policy.boxed();
    (vec(policy.clone(), 0..2), vec(policy, 0..2))
        .prop_map(|(deny, allow)| Authorization { deny, allow })
}

fn listener() -> impl Strategy<Value = (String, Listener)> {
    let either = (".{0,12}", cluster_name());
    let target = prop_oneof![
        either.prop_map(|(route, cluster)| OutboundTarget::Auto { route, cluster }),
        ".{0,12}".prop_map(|route| OutboundTarget::Http { route }),
        cluster_name().prop_map(|cluster| OutboundTarget::Tcp { cluster }),
    ];
    let outbound = (address(), host(), target).prop_map(|(address, host, target)| {
        let name = ResourceName::outbound(address.ip(), address.port()).name;
        (name, Listener::Outbound(OutboundListener { address, host, target }))
    });
    let port = (mtls(), protocol(), ".{0,12}").prop_map(|(mtls, protocol, service)| InboundPort {
        mtls,
        protocol,
        service,
    });
    let ports = btree_map(any::<u16>(), port, 0..4);
    let inbound = (mtls(), ports, btree_set(named(), 0..3), authorization()).prop_map(
        |(mtls, ports, trust_domains, authorization)| {
            let inbound =
                InboundListener { mtls, ports, trust_domains, authorization, ipv6: false };
            ("inbound".to_owned(), Listener::Inbound(inbound))
        },
    );
    let route = (sni(), prop_oneof![Just(None), cluster_name().prop_map(Some)]).prop_map(
        |(sni, cluster)| {
            let cluster = cluster.unwrap_or_else(|| ClusterName::sni(&sni));
            (sni, cluster)
        },
    );
    let gateway = (vec(route, 0..5), host()).prop_map(|(routes, probe)| {
        let gateway = GatewayListener { routes: routes.into_iter().collect(), probe };
        ("gateway".to_owned(), Listener::Gateway(gateway))
    });
    prop_oneof![outbound, inbound, gateway]
}

fn route() -> impl Strategy<Value = Route> {
    let retry = (any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
        |(attempts, hedge_ms, body_max, budget_percent, budget_per_second)| Retry {
            attempts,
            hedge_ms,
            body_max,
            budget_percent,
            budget_per_second,
        },
    );
    (".{1,12}", cluster_name(), ms(), retry).prop_map(|(name, cluster, timeout_ms, retry)| Route {
        name,
        cluster,
        timeout_ms,
        retry,
    })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let policy = prop_oneof![
        Just(LoadBalancing::LeastRequest),
        Just(LoadBalancing::RoundRobin),
        Just(LoadBalancing::Random)
    ];
    let outlier = (any::<u32>(), any::<u32>(), ms(), ms(), any::<u32>()).prop_map(
        |(consecutive_5xx, consecutive_local, interval_ms, base_ejection_ms, percent)| {
            OutlierDetection {
                consecutive_5xx,
                consecutive_local,
                interval_ms,
                base_ejection_ms,
                max_ejection_percent: percent,
            }
        },
    );
    let pool = (any::<u32>(), any::<u32>(), any::<u32>(), ms()).prop_map(
        |(max_connections, max_pending_requests, max_requests_per_connection, idle_timeout_ms)| {
            ConnectionPool {
                max_connections,
                max_pending_requests,
                max_requests_per_connection,
                idle_timeout_ms,
            }
        },
    );
    let identities = btree_map(named(), btree_set(identity(), 0..3), 0..3);
    (cluster_name(), ".{0,20}", protocol(), policy, ms(), outlier, pool, identities).prop_map(
        |(
            name,
            sni,
            protocol,
            load_balancing,
            connect_timeout_ms,
            outlier,
            pool,
            server_identities,
        )| {
            Cluster {
                name,
                sni,
                protocol,
                load_balancing,
                connect_timeout_ms,
                outlier,
                pool,
                server_identities,
            }
        },
    )
}

fn endpoints() -> impl Strategy<Value = Endpoints> {
    let member =
        (address(), named(), named(), any::<u32>(), any::<bool>(), any::<bool>(), ".{0,8}")
            .prop_map(|(address, cluster, network, weight, tls, gateway, workload)| LbEndpoint {
                address,
                cluster,
                network,
                weight,
                tls,
                gateway,
                workload,
            });
    let locality = (".{0,5}", ".{0,5}", ".{0,5}").prop_map(|(region, zone, subzone)| Locality {
        region,
        zone,
        subzone,
    });
    let group = (any::<u32>(), locality, any::<u32>(), vec(member, 0..4)).prop_map(
        |(priority, locality, weight, endpoints)| LocalityGroup {
            priority,
            locality,
            weight,
            endpoints,
        },
    );
    (cluster_name(), vec(group, 0..3)).prop_map(|(cluster, groups)| Endpoints { cluster, groups })
}

fn zone() -> impl Strategy<Value = Zone> {
    (btree_map(host(), vec(ip(), 0..3), 0..5), btree_set(label(), 0..3), any::<bool>())
        .prop_map(|(names, namespaces, complete)| Zone { names, namespaces, complete })
}

fn resource() -> impl Strategy<Value = (ResourceName, Resource)> {
    use ResourceKind as Kind;
    let secret = ("[A-Z]{1,8}", ".{0,40}").prop_map(|(name, root_certificates)| {
        let context = ValidationContext { name: name.clone(), root_certificates };
        (ResourceName::new(Kind::Secret, name), Resource::Secret(context))
    });
    prop_oneof![
        listener().prop_map(|(name, value)| {
            (ResourceName::new(Kind::Listener, name), Resource::Listener(value))
        }),
        route().prop_map(|value| {
            (ResourceName::new(Kind::Route, value.name.clone()), Resource::Route(value))
        }),
        cluster().prop_map(|value| {
            (ResourceName::new(Kind::Cluster, value.name.to_string()), Resource::Cluster(value))
        }),
        endpoints().prop_map(|value| {
            let name = ResourceName::new(Kind::Endpoints, value.cluster.to_string());
            (name, Resource::Endpoints(value))
        }),
        secret,
        zone().prop_map(|value| (ResourceName::zone(), Resource::Zone(value))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_resource_survives_the_wire((name, resource) in resource()) {
        let any = codec::encode(&name, &resource, Dialect::Isthmus);
        prop_assert_eq!(codec::decode(name.kind, &any), Ok((name, resource)));
    }

    #[test]
    fn a_program_survives_json(resources in vec(resource(), 0..6)) {
        let program: Program =
            resources.into_iter().map(|(name, value)| (name, Arc::new(value))).collect();
        let text = codec::to_json(&program).to_string();
        prop_assert_eq!(codec::from_json(&text), Ok(program));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(kind in 0..6usize, value in vec(any::<u8>(), 0..256)) {
        let kind = xds::session::server::SEND_ORDER[kind];
        let type_url = codec::type_url(kind).to_owned();
        let any = envoy_types::pb::google::protobuf::Any { type_url, value };
        let _ = codec::decode(kind, &any);
    }
}

#[test]
fn the_representative_program_survives_both() {
    let program = support::program();
    for (name, resource) in &program {
        let any = codec::encode(name, resource, Dialect::Isthmus);
        let read = codec::decode(name.kind, &any).unwrap();
        assert_eq!((&read.0, &read.1), (name, &**resource));
    }
    let text = serde_json::to_string_pretty(&codec::to_json(&program)).unwrap();
    assert_eq!(codec::from_json(&text), Ok(program));
}

#[track_caller]
fn refused(edit: impl FnOnce(&mut serde_json::Value), wants: &[&str]) {
    let name = ResourceName::outbound("240.240.7.3".parse().unwrap(), 5432);
    let program = support::program();
    let one = Program::from([(name.clone(), program[&name].clone())]);
    let mut json = codec::to_json(&one);
    edit(&mut json[0]);
    let error = codec::from_json(&json.to_string()).unwrap_err().to_string();
    for want in wants {
        assert!(error.contains(want), "{want:?} is not in: {error}");
    }
}

#[test]
fn a_bad_file_is_refused_by_resource_and_field() {
    let listener = "Listener/240.240.7.3_5432";
    refused(|json| json["adress"] = "here".into(), &[listener, "adress"]);
    refused(|json| json["bind_to_port"] = true.into(), &[listener, "bind_to_port", "remove it"]);
    refused(
        |json| json["metadata"]["filter_metadata"]["isthmus"]["hots"] = 1.into(),
        &[listener, "isthmus", "hots"],
    );
    refused(
        |json| json["address"]["socket_address"]["address"] = "nowhere".into(),
        &[listener, "address.socket_address.address", "nowhere"],
    );
    refused(|json| json["filter_chains"] = serde_json::json!([]), &[listener, "filter_chains"]);
    refused(
        |json| json["filter_chains"][0]["filters"][0]["typed_config"]["cluster"] = "x".into(),
        &[listener, "filter_chains[0].filters[0].typed_config.cluster", "\"x\""],
    );
    refused(|json| json["@type"] = "type.googleapis.com/envoy.x".into(), &["@type", "envoy.x"]);
    refused(|json| json["name"] = 7.into(), &["element 0"]);
}

#[test]
fn a_name_given_twice_is_refused() {
    let json = codec::to_json(&support::program());
    let first = json[0].clone();
    let twice = serde_json::json!([first.clone(), first]).to_string();
    let error = codec::from_json(&twice).unwrap_err().to_string();
    assert!(error.contains("second resource of that name"), "{error}");
    assert!(codec::from_json("{}").unwrap_err().to_string().contains("no JSON list"));
}

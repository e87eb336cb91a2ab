//! A representative program, written by hand.
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod plane;
pub(crate) mod world;

use mesh::authorize::Authorization;
use mesh::inventory::MtlsMode;
use mesh::name::{Hostname, Locality, Protocol};
use mesh::program::*;
use mesh::sni::{Sni, probe_host};
use mesh::zone::Zone;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

pub(crate) fn host(text: &str) -> Hostname {
    text.parse().unwrap()
}

pub(crate) fn outbound(port: u16, host_name: &str) -> ClusterName {
    ClusterName::outbound(port, "", &host(host_name))
}

pub(crate) fn cluster(name: ClusterName, protocol: Protocol) -> Cluster {
    let identity = |domain: &str| format!("spiffe://{domain}/ns/shop/sa/hello").parse().unwrap();
    let sni = format!("outbound_.{}_.{}_.{}", name.port, name.subset, name.host);
    Cluster {
        name,
        sni,
        protocol,
        load_balancing: LoadBalancing::LeastRequest,
        connect_timeout_ms: 1_000,
        outlier: OutlierDetection::default(),
        pool: ConnectionPool::default(),
        server_identities: BTreeMap::from([
            ("north".parse().unwrap(), BTreeSet::from([identity("north.mesh")])),
            ("west".parse().unwrap(), BTreeSet::from([identity("west.mesh")])),
        ]),
    }
}

pub(crate) fn endpoint(address: &str, cluster: &str, tls: bool) -> LbEndpoint {
    LbEndpoint {
        address: address.parse().unwrap(),
        cluster: cluster.parse().unwrap(),
        network: format!("net-{cluster}").parse().unwrap(),
        weight: 2,
        tls,
        gateway: address.ends_with(":15443"),
        workload: "hello-0".into(),
    }
}

pub(crate) fn endpoints(cluster: ClusterName) -> Endpoints {
    let group = |priority, locality: &str, endpoints: Vec<LbEndpoint>| LocalityGroup {
        priority,
        locality: Locality::from(locality.to_owned()),
        weight: endpoints.iter().map(|endpoint| endpoint.weight).sum(),
        endpoints,
    };
    Endpoints {
        cluster,
        groups: vec![
            group(
                0,
                "r1/z1",
                vec![
                    endpoint("10.244.0.7:8080", "east", false),
                    endpoint("[2001:db8::7]:8080", "west", true),
                ],
            ),
            group(1, "r2/z1", vec![endpoint("203.0.113.7:15443", "west", true)]),
            group(2, "r3", vec![endpoint("203.0.113.9:15443", "north", true)]),
        ],
    }
}

fn listener(address: &str, target: OutboundTarget) -> (ResourceName, Resource) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = OutboundListener { address, host: host("hello.shop.global"), target };
    let name = ResourceName::outbound(address.ip(), address.port());
    (name, Resource::Listener(Listener::Outbound(listener)))
}

/// Every kind of value in every kind of place.
pub(crate) fn authorization() -> Authorization {
    let policy = |name: &str, rules: serde_json::Value| {
        let object = format!("AuthorizationPolicy shop/{name}");
        serde_json::from_value(serde_json::json!({"object": object, "rules": rules})).unwrap()
    };
    let every = serde_json::json!([
        {"from": [[
            {"anyOf": [
                {"principal": "west.mesh/ns/shop/sa/client"}, {"principal": "*/sa/client"},
                {"principal": "west.mesh/*"}, {"principal": "*"}, {"namespace": "shop"},
                {"namespace": "sh*"}, {"namespace": "*op"}, {"namespace": "*"},
                {"serviceAccount": "shop/client.web"}, {"trustDomain": "west.mesh"},
                {"trustDomain": "*.mesh"}],
             "noneOf": [{"ip": "10.0.0.0/8"}]},
            {"anyOf": [{"ip": "fd00::/8"}, {"ip": "10.1.2.3/32"}]}]],
         "to": [[{"anyOf": [{"port": 8080}]}], [{"noneOf": [{"port": 5432}]}]],
         "whenFrom": [{"anyOf": [{"namespace": "shop"}]}],
         "whenTo": [{"anyOf": [{"serverName": "outbound_.80_*"}, {"serverName": "*"}]},
                    {"noneOf": [{"ip": "10.244.0.0/16"}]}]},
        {"partial": true},
        {},
    ]);
    Authorization {
        deny: vec![policy("deny", every.clone()), policy("nobody", serde_json::json!([]))],
        allow: vec![policy("allow", every)],
    }
}

/// A CA that signed nothing but itself; Envoy wants to be able to parse it.
pub(crate) const ROOT: &str = include_str!("root.pem");

/// A sidecar's and a gateway's program in one.
pub(crate) fn program() -> Program {
    let http = outbound(80, "hello.shop.global");
    let tcp = outbound(5432, "db.shop.global");
    let sni: Sni = "outbound_.80_._.hello.shop.svc.cluster.local".parse().unwrap();
    let alias: Sni = "outbound_.80_.v1_.hello.shop.global".parse().unwrap();
    let behind = ClusterName::sni(&sni);
    let inbound_port =
        |mtls, protocol| InboundPort { mtls, protocol, service: "hello.shop".into() };
    let inbound = InboundListener {
        mtls: MtlsMode::Permissive,
        ports: BTreeMap::from([
            (8080, inbound_port(MtlsMode::Strict, Protocol::Http)),
            (8081, inbound_port(MtlsMode::Permissive, Protocol::Auto)),
            (5432, inbound_port(MtlsMode::Permissive, Protocol::Tcp)),
            (9090, inbound_port(MtlsMode::Disable, Protocol::Grpc)),
        ]),
        trust_domains: ["east.mesh", "west.mesh"].map(|d| d.parse().unwrap()).into(),
        authorization: authorization(),
        ipv6: false,
    };
    let gateway = GatewayListener {
        routes: BTreeMap::from([(sni, behind.clone()), (alias, behind.clone())]),
        probe: probe_host(&"east".parse().unwrap()),
    };
    let route = Route {
        name: http.to_string(),
        cluster: http.clone(),
        timeout_ms: 15_000,
        retry: Retry::default(),
    };
    let roots = ValidationContext { name: "ROOTCA".into(), root_certificates: ROOT.into() };
    let zone = Zone {
        names: BTreeMap::from([
            (
                host("hello.shop.global"),
                vec!["240.240.7.2".parse().unwrap(), "2001:2::7".parse().unwrap()],
            ),
            (host("quiet.shop.global"), vec![]),
        ]),
        namespaces: BTreeSet::from(["shop".to_owned()]),
        complete: true,
    };
    let mut all = vec![
        listener("240.240.7.2:80", OutboundTarget::Http { route: http.to_string() }),
        listener("[2001:2::7]:80", OutboundTarget::Http { route: http.to_string() }),
        listener("240.240.7.3:5432", OutboundTarget::Tcp { cluster: tcp.clone() }),
        (ResourceName::inbound(), Resource::Listener(Listener::Inbound(inbound))),
        (ResourceName::gateway(), Resource::Listener(Listener::Gateway(gateway))),
        (ResourceName::new(ResourceKind::Route, http.to_string()), Resource::Route(route)),
        (ResourceName::root_ca(), Resource::Secret(roots)),
        (ResourceName::zone(), Resource::Zone(zone)),
    ];
    let clusters = [(http, Protocol::Http), (tcp, Protocol::Tcp), (behind, Protocol::Tcp)];
    for (name, protocol) in clusters {
        let text = name.to_string();
        let members = Resource::Endpoints(endpoints(name.clone()));
        all.push((ResourceName::new(ResourceKind::Endpoints, text.clone()), members));
        let value = Resource::Cluster(cluster(name, protocol));
        all.push((ResourceName::new(ResourceKind::Cluster, text), value));
    }
    {
        let name = ClusterName::inbound(0);
        let value =
            Cluster { server_identities: BTreeMap::new(), ..cluster(name.clone(), Protocol::Http) };
        let name = ResourceName::new(ResourceKind::Cluster, name.to_string());
        all.push((name, Resource::Cluster(value)));
    }
    all.into_iter().map(|(name, value)| (name, Arc::new(value))).collect()
}

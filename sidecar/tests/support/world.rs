//! A small mesh in a file: identities, the resources of two pods, and what applications say.

use mesh::inventory::MtlsMode;
use mesh::name::{ClusterId, Hostname, Identity, Protocol, TrustDomain};
use mesh::program::{
    Cluster, ClusterName, ConnectionPool, Endpoints, InboundListener, InboundPort, LbEndpoint,
    Listener, LoadBalancing, LocalityGroup, OutboundListener, OutboundTarget, OutlierDetection,
    Program, Resource, ResourceKind, ResourceName, Retry, Route,
};
use mesh::zone::Zone;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use trust::issue::Issuer;

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn identity(account: &str) -> Identity {
    format!("spiffe://test.mesh/ns/shop/sa/{account}").parse().unwrap()
}

pub(crate) fn issuer() -> Issuer {
    let root = trust::root::create("test", "passphrase").unwrap();
    let domain = "test.mesh".parse().unwrap();
    let hour = Duration::from_secs(3_600);
    let cacerts = trust::root::issue_intermediate(
        &root.certificate_pem,
        &root.encrypted_key_pem,
        "passphrase",
        &domain,
        hour,
    )
    .unwrap();
    let key = cacerts.ca_key.reveal();
    Issuer::from_cacerts(&cacerts.ca_cert, &cacerts.cert_chain, key, &cacerts.root_cert).unwrap()
}

/// A plain HTTP request, and all that comes back until the end.
pub(crate) fn request(to: &str, path: &str) -> std::io::Result<String> {
    let text =
        format!("GET {path} HTTP/1.1\r\nhost: hello.shop.global\r\nconnection: close\r\n\r\n");
    converse(to, text.as_bytes())
}

/// Says `text`, and returns all that comes back until the end.
pub(crate) fn converse(to: &str, text: &[u8]) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A server that speaks first and echoes after that.
pub(crate) fn banner(to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut hello = [0; 6];
    stream.read_exact(&mut hello)?;
    stream.write_all(b"ping")?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo)?;
    Ok(format!("{}{}", String::from_utf8_lossy(&hello), String::from_utf8_lossy(&echo)))
}

/// Serves for ever: HTTP answers with the request's head and the peer, TCP greets and echoes.
pub(crate) fn serve(listener: TcpListener, http: bool) {
    for stream in listener.incoming() {
        std::thread::spawn(move || {
            let mut stream = stream?;
            let peer = stream.peer_addr()?;
            if !http {
                stream.write_all(b"hello ")?;
                let mut buffer = [0; 1024];
                loop {
                    let length = stream.read(&mut buffer)?;
                    if length == 0 {
                        return Ok(());
                    }
                    stream.write_all(&buffer[..length])?;
                }
            }
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") {
                if stream.read(&mut byte)? == 0 {
                    return Ok(());
                }
                head.push(byte[0]);
            }
            let text = format!("from {} {}", peer.ip(), String::from_utf8_lossy(&head));
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
            stream.write_all(answer.as_bytes())?;
            std::io::Result::Ok(())
        });
    }
}

/// Asks whoever is at `server` for the A record of `name`; the last answer's address.
pub(crate) fn resolve(server: &str, name: &str, tcp: bool) -> std::io::Result<IpAddr> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let mut answer = vec![0; 512];
    let length = if tcp {
        let mut stream = TcpStream::connect_timeout(&server.parse().unwrap(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = question.len() as u16;
        stream.write_all(&[&length.to_be_bytes()[..], &question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        stream.read_exact(&mut answer[..length])?;
        length
    } else {
        let local = if server.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(server)?;
        socket.send(&question)?;
        socket.recv(&mut answer)?
    };
    assert_eq!(answer[3] & 0x0f, 0, "NOERROR");
    let last: [u8; 4] = answer[length - 4..length].try_into().unwrap();
    Ok(last.into())
}

pub(crate) const HELLO: &str = "hello.shop.global";

/// `(virtual address, port, HTTP, where it leads, whose identity)`.
pub(crate) type Destination = (&'static str, u16, bool, &'static str, &'static str);

pub(crate) fn program(destinations: &[Destination], ports: &[(u16, MtlsMode, bool)]) -> Program {
    let mut program = Program::new();
    let mut add = |kind, name: String, resource| {
        program.insert(ResourceName::new(kind, name), Arc::new(resource));
    };
    let domain: TrustDomain = "test.mesh".parse().unwrap();
    let ports = ports.iter().map(|(port, mtls, http)| {
        (
            *port,
            InboundPort {
                mtls: *mtls,
                protocol: if *http { Protocol::Http } else { Protocol::Tcp },
                service: "hello.shop.svc.cluster.local".into(),
            },
        )
    });
    let inbound = InboundListener {
        mtls: MtlsMode::Permissive,
        ports: ports.collect(),
        trust_domains: [domain].into(),
        authorization: Default::default(),
        ipv6: false,
    };
    let listener = Resource::Listener(Listener::Inbound(inbound));
    add(ResourceKind::Listener, ResourceName::inbound().name, listener);
    let hello: Hostname = HELLO.parse().unwrap();
    let ip: IpAddr = "240.240.7.2".parse().unwrap();
    let zone = Zone {
        names: BTreeMap::from([(hello, vec![ip])]),
        namespaces: ["shop".to_owned()].into(),
        complete: true,
    };
    add(ResourceKind::Zone, ResourceName::zone().name, Resource::Zone(zone));
    for (vip, port, http, leads, account) in destinations {
        let address: SocketAddr = (vip.parse::<IpAddr>().unwrap(), *port).into();
        let host = format!("p{}.shop.global", vip.replace(['.', ':'], "-"));
        let host = host.parse().unwrap();
        let cluster = ClusterName::outbound(*port, "", &host);
        let text = cluster.to_string();
        let target = match http {
            true => OutboundTarget::Http { route: text.clone() },
            false => OutboundTarget::Tcp { cluster: cluster.clone() },
        };
        let listener = OutboundListener { address, host, target };
        add(
            ResourceKind::Listener,
            ResourceName::outbound(address.ip(), *port).name,
            Resource::Listener(Listener::Outbound(listener)),
        );
        let route = Route {
            name: text.clone(),
            cluster: cluster.clone(),
            timeout_ms: 0,
            retry: Retry::default(),
        };
        add(ResourceKind::Route, text.clone(), Resource::Route(route));
        let east: ClusterId = "east".parse().unwrap();
        let identities = BTreeMap::from([(east, [identity(account)].into())]);
        let settings = Cluster {
            name: cluster.clone(),
            sni: format!("outbound_.{port}_._.hello.shop.global"),
            protocol: if *http { Protocol::Http } else { Protocol::Tcp },
            load_balancing: LoadBalancing::RoundRobin,
            connect_timeout_ms: 1_000,
            outlier: OutlierDetection::default(),
            pool: ConnectionPool::default(),
            server_identities: identities,
        };
        add(ResourceKind::Cluster, text.clone(), Resource::Cluster(settings));
        let endpoint = LbEndpoint {
            address: leads.parse().unwrap(),
            cluster: "east".parse().unwrap(),
            network: "east".parse().unwrap(),
            weight: 1,
            tls: true,
            gateway: false,
            workload: "server-0".into(),
        };
        let group = LocalityGroup {
            priority: 0,
            locality: Default::default(),
            weight: 1,
            endpoints: vec![endpoint],
        };
        add(
            ResourceKind::Endpoints,
            text,
            Resource::Endpoints(Endpoints { cluster, groups: vec![group] }),
        );
    }
    program
}

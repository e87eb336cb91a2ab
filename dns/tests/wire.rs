//! The DNS server as a client on the network sees it: real sockets, real upstreams.

use dns::{Options, Server};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use mesh::zone::Zone;
use runtime::metrics::Metrics;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(5);

struct World {
    server: SocketAddr,
    zone: watch::Sender<Arc<Zone>>,
    metrics: Metrics,
    end: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

fn zone(names: &[(&str, &[&str])], complete: bool) -> Arc<Zone> {
    let names = names
        .iter()
        .map(|(name, ips)| {
            (name.parse().unwrap(), ips.iter().map(|ip| ip.parse().unwrap()).collect())
        })
        .collect();
    Arc::new(Zone { names, namespaces: ["shop".to_owned()].into(), complete })
}

async fn world_with(zone: Arc<Zone>, upstreams: Vec<SocketAddr>, allow: &[&str]) -> World {
    let metrics = Metrics::new();
    let (sender, receiver) = watch::channel(zone);
    let server = Server::bind(Options {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        upstreams,
        allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
        zone: receiver,
        metrics: metrics.clone(),
    })
    .unwrap();
    let address = server.addresses()[0];
    let end = CancellationToken::new();
    tokio::spawn(server.run(end.clone()));
    World { server: address, zone: sender, metrics, end }
}

async fn world(names: &[(&str, &[&str])], complete: bool) -> World {
    world_with(zone(names, complete), vec![], &[]).await
}

fn question(name: &str, record: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record));
    message
}

async fn udp_bytes(server: SocketAddr, packet: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(packet, server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let (length, _) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.ok()?.unwrap();
    Some(buffer[..length].to_vec())
}

async fn udp(server: SocketAddr, message: &Message) -> Message {
    let bytes = udp_bytes(server, &message.to_vec().unwrap()).await.expect("an answer");
    Message::from_vec(&bytes).unwrap()
}

async fn tcp_on(stream: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap();
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// Asks over UDP and over TCP, and shows code, addresses and TTL, SOA present.
async fn check(world: &World, name: &str, record: RecordType, expected: &str) {
    let asked = question(name, record);
    let mut stream = TcpStream::connect(world.server).await.unwrap();
    for answer in [udp(world.server, &asked).await, tcp_on(&mut stream, &asked).await] {
        assert_eq!(answer.metadata.id, asked.metadata.id);
        // The name is echoed in the case it was asked in: resolvers check that (0x20).
        assert_eq!(answer.queries[0].name.to_ascii(), name);
        let mut shown = format!("{:?}", answer.metadata.response_code);
        for record in &answer.answers {
            shown += &format!(" {} ttl {}", record.data, record.ttl);
        }
        if answer.authorities.iter().any(|record| record.record_type() == RecordType::SOA) {
            shown += " SOA";
        }
        assert_eq!(shown, expected, "{name} {record}");
    }
}

#[tokio::test]
async fn names_of_the_mesh_are_answered_from_memory() {
    let world = world(
        &[
            ("hello.shop.global", &["240.240.7.2", "2001:2::7"]),
            ("headless.shop.global", &[]),
            ("hello.shop.svc.clusterset.local", &["240.240.7.3"]),
        ],
        true,
    )
    .await;
    use RecordType::{A, AAAA, TXT};
    check(&world, "hello.shop.global.", A, "NoError 240.240.7.2 ttl 30").await;
    check(&world, "HeLLo.sHop.Global.", A, "NoError 240.240.7.2 ttl 30").await;
    check(&world, "hello.shop.global.", AAAA, "NoError 2001:2::7 ttl 30").await;
    check(&world, "hello.shop.global.", TXT, "NoError SOA").await;
    check(&world, "headless.shop.global.", A, "NoError SOA").await;
    check(&world, "hello.shop.svc.clusterset.local.", AAAA, "NoError SOA").await;
    check(&world, "absent.shop.global.", A, "NXDomain SOA").await;
    check(&world, "absent.shop.svc.clusterset.local.", A, "NXDomain SOA").await;
    // Nobody to ask: we are no resolver then.
    check(&world, "example.org.", A, "Refused").await;
}

#[tokio::test]
async fn a_pods_first_search_domain_is_seen_through() {
    let world = world(&[("hello.shop.global", &["240.240.7.2"])], true).await;
    use RecordType::{A, AAAA};
    let long = "HELLO.shop.global.web.svc.cluster.local.";
    check(&world, long, A, "NoError hello.shop.global. ttl 30 240.240.7.2 ttl 30").await;
    check(&world, long, AAAA, "NoError hello.shop.global. ttl 30 SOA").await;
    let gone = "gone.shop.global.web.svc.cluster.local.";
    check(&world, gone, A, "NXDomain gone.shop.global. ttl 30 SOA").await;
    // The second and the third go where all of `cluster.local` goes.
    check(&world, "hello.shop.global.svc.cluster.local.", A, "Refused").await;
    let answer = udp(world.server, &question(long, A)).await;
    let owners: Vec<String> = answer.answers.iter().map(|it| it.name.to_ascii()).collect();
    assert_eq!(owners, [long, "hello.shop.global."]);
}

#[tokio::test]
async fn an_absent_name_is_servfail_while_a_link_has_not_been_heard() {
    let world = world(&[("hello.shop.global", &["240.240.7.2"])], false).await;
    check(&world, "absent.shop.global.", RecordType::A, "ServFail").await;
    check(&world, "hello.shop.global.", RecordType::A, "NoError 240.240.7.2 ttl 30").await;
}

#[tokio::test]
async fn a_change_of_the_zone_is_in_the_next_answer() {
    let world = world(&[], true).await;
    check(&world, "hello.shop.global.", RecordType::A, "NXDomain SOA").await;
    for last in 1..20 {
        let ip = format!("240.240.7.{last}");
        world.zone.send_replace(zone(&[("hello.shop.global", &[&ip])], true));
        check(&world, "hello.shop.global.", RecordType::A, &format!("NoError {ip} ttl 30")).await;
    }
}

#[tokio::test]
async fn an_answer_too_large_for_udp_comes_over_tcp() {
    let ips: Vec<String> = (0..200).map(|n| format!("240.240.7.{n}")).collect();
    let ips: Vec<&str> = ips.iter().map(String::as_str).collect();
    let world = world(&[("big.shop.global", &ips), ("mid.shop.global", &ips[..40])], true).await;

    let asked = question("big.shop.global.", RecordType::A);
    let short = udp(world.server, &asked).await;
    assert!(short.metadata.truncation && short.answers.is_empty());
    let mut stream = TcpStream::connect(world.server).await.unwrap();
    assert_eq!(addresses(&tcp_on(&mut stream, &asked).await).len(), 200);

    // 40 addresses are more than 512 bytes: only a client that says it takes more gets them.
    let mut asked = question("mid.shop.global.", RecordType::A);
    assert!(udp(world.server, &asked).await.metadata.truncation);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asked.set_edns(edns.clone());
    let bytes = udp_bytes(world.server, &asked.to_vec().unwrap()).await.unwrap();
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(bytes.len() <= 1232 && addresses(&answer).len() == 40 && answer.edns.is_some());

    // However much a client says it takes, no packet is longer than 1232 bytes.
    let mut asked = question("big.shop.global.", RecordType::A);
    asked.set_edns(edns);
    let bytes = udp_bytes(world.server, &asked.to_vec().unwrap()).await.unwrap();
    assert!(bytes.len() <= 1232 && Message::from_vec(&bytes).unwrap().metadata.truncation);
}

/// What an upstream of the tests does with a question.
#[derive(Clone, Copy)]
enum Upstream {
    Answer(&'static str),
    Fail(ResponseCode),
    Silent,
    /// Over UDP only TC=1, over TCP the answer.
    Truncate(&'static str),
    /// A forger first: wrong ids, other questions; then the answer.
    Forged(&'static str),
}

async fn upstream(behaviour: Upstream) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let answer_with = |query: &Message, ip: &str| {
        let mut answer = query.clone().into_response();
        let name = query.queries[0].name.clone();
        answer.add_answer(Record::from_rdata(name, 5, RData::A(A(ip.parse().unwrap()))));
        answer
    };
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let answers = match behaviour {
                Upstream::Answer(ip) => vec![answer_with(&query, ip)],
                Upstream::Fail(code) => {
                    let mut answer = query.clone().into_response();
                    answer.metadata.response_code = code;
                    vec![answer]
                }
                Upstream::Silent => vec![],
                Upstream::Truncate(_) => vec![query.clone().into_response().truncate()],
                Upstream::Forged(ip) => {
                    let mut other_id = answer_with(&query, "6.6.6.6");
                    other_id.metadata.id = query.metadata.id.wrapping_add(1);
                    let mut other_name = question("evil.example.", RecordType::A).into_response();
                    other_name.metadata.id = query.metadata.id;
                    vec![other_id, other_name, answer_with(&query, ip)]
                }
            };
            for answer in answers {
                udp.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let Upstream::Truncate(ip) = behaviour else { continue };
            let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut bytes).await.unwrap();
            let query = Message::from_vec(&bytes).unwrap();
            let answer = answer_with(&query, ip).to_vec().unwrap();
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn what_is_not_ours_is_forwarded() {
    let nobody = {
        // A port that was free a moment ago and is bound by nobody now: refused at once.
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let cases: [(Vec<SocketAddr>, &str); 7] = [
        (vec![upstream(Upstream::Answer("9.9.9.9")).await], "NoError 9.9.9.9 ttl 5"),
        (
            vec![upstream(Upstream::Silent).await, upstream(Upstream::Answer("9.9.9.9")).await],
            "NoError 9.9.9.9 ttl 5",
        ),
        (
            vec![
                upstream(Upstream::Fail(ResponseCode::ServFail)).await,
                nobody,
                upstream(Upstream::Answer("9.9.9.9")).await,
            ],
            "NoError 9.9.9.9 ttl 5",
        ),
        (vec![upstream(Upstream::Fail(ResponseCode::NXDomain)).await], "NXDomain"),
        (vec![upstream(Upstream::Truncate("9.9.9.8")).await], "NoError 9.9.9.8 ttl 5"),
        (vec![upstream(Upstream::Forged("9.9.9.7")).await], "NoError 9.9.9.7 ttl 5"),
        (vec![nobody], "ServFail"),
    ];
    for (upstreams, expected) in cases {
        let world = world_with(zone(&[], true), upstreams, &[]).await;
        check(&world, "Www.Example.ORG.", RecordType::A, expected).await;
        // Ours never leaves, whatever upstream would say.
        check(&world, "absent.shop.global.", RecordType::A, "NXDomain SOA").await;
    }
}

#[tokio::test]
async fn silent_upstreams_are_servfail_after_two_seconds() {
    let silent = [upstream(Upstream::Silent).await, upstream(Upstream::Silent).await];
    let world = world_with(zone(&[], true), silent.to_vec(), &[]).await;
    let begun = std::time::Instant::now();
    let answer = udp(world.server, &question("example.org.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn hostile_packets_cost_themselves_only() {
    let world = world(&[("hello.shop.global", &["240.240.7.2"])], true).await;
    let asked = question("hello.shop.global.", RecordType::A);
    let fine = asked.to_vec().unwrap();

    // No answer: short packets, and responses (answering those makes two servers talk for ever).
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut response = fine.clone();
    response[2] |= 0x80;
    for packet in [&fine[..0], &fine[..5], &response[..]] {
        socket.send_to(packet, world.server).await.unwrap();
    }
    // Answered with an error and no more.
    let mut broken = fine.clone();
    broken.truncate(20);
    let mut loops = fine[..12].to_vec();
    loops.extend([0xc0, 0x0c, 0, 1, 0, 1]);
    let mut update = fine.clone();
    update[2] = 5 << 3;
    let mut two = asked.clone();
    two.add_query(two.queries[0].clone());
    let two = two.to_vec().unwrap();
    let transfer = question("shop.global.", RecordType::AXFR).to_vec().unwrap();
    let mut chaos = fine.clone();
    let last = chaos.len() - 1;
    chaos[last] = 3;
    for (packet, code) in [
        (&broken, ResponseCode::FormErr),
        (&loops, ResponseCode::FormErr),
        (&update, ResponseCode::NotImp),
        (&two, ResponseCode::FormErr),
        (&transfer, ResponseCode::Refused),
        (&chaos, ResponseCode::Refused),
    ] {
        let bytes = udp_bytes(world.server, packet).await.expect("an answer");
        assert_eq!(bytes[3] & 0x0f, code.low(), "{packet:?}");
        assert!(bytes.len() <= packet.len().max(12), "an error is no longer than its cause");
    }
    // A thousand packets of noise, then a question.
    for seed in 0..1000_usize {
        let noise: Vec<u8> = (0..seed % 300).map(|_| rand::random()).collect();
        socket.send_to(&noise, world.server).await.unwrap();
    }
    check(&world, "hello.shop.global.", RecordType::A, "NoError 240.240.7.2 ttl 30").await;
    let text = world.metrics.encode();
    assert!(text.contains("isthmus_dns_dropped_total{reason=\"response\"}"), "{text}");
    assert!(
        text.contains("isthmus_dns_answers_total{rcode=\"NOERROR\",source=\"mesh\"} 2"),
        "{text}"
    );
}

#[tokio::test]
async fn strangers_are_refused() {
    let world = world_with(
        zone(&[("hello.shop.global", &["240.240.7.2"])], true),
        vec![],
        &["10.244.0.0/16"],
    )
    .await;
    let answer = udp(world.server, &question("hello.shop.global.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    assert!(answer.answers.is_empty());
    let mut stream = TcpStream::connect(world.server).await.unwrap();
    let _ = stream.write_all(&[0, 1, 2]).await;
    assert!(stream.read_u8().await.is_err(), "closed without a word");
}

#[tokio::test]
async fn one_source_holds_eight_connections() {
    let world = world(&[("hello.shop.global", &["240.240.7.2"])], true).await;
    let asked = question("hello.shop.global.", RecordType::A);
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(world.server).await.unwrap();
        // Several questions on one connection.
        for _ in 0..3 {
            assert_eq!(
                addresses(&tcp_on(&mut stream, &asked).await),
                [Ipv4Addr::new(240, 240, 7, 2)]
            );
        }
        held.push(stream);
    }
    let mut ninth = TcpStream::connect(world.server).await.unwrap();
    assert!(timeout(PATIENCE, ninth.read_u8()).await.expect("closed at once").is_err());
    // Idle for 5 s: closed, and its place is free again.
    for stream in &mut held {
        let read =
            timeout(Duration::from_secs(8), stream.read_u8()).await.expect("closed when idle");
        assert!(read.is_err());
    }
    let mut again = TcpStream::connect(world.server).await.unwrap();
    assert_eq!(addresses(&tcp_on(&mut again, &asked).await).len(), 1);
}

#[tokio::test]
async fn a_port_in_use_is_said() {
    let held = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = held.local_addr().unwrap();
    let (_sender, receiver) = watch::channel(zone(&[], true));
    let options = Options {
        listen: vec![address],
        upstreams: vec![],
        allow: vec![],
        zone: receiver,
        metrics: Metrics::new(),
    };
    let problem = Server::bind(options.clone()).unwrap_err();
    assert!(format!("{problem:#}").contains(&format!("ISM1041 cannot listen on {address}")));
    let itself = Options { upstreams: vec![address], ..options };
    let problem = Server::bind(itself).unwrap_err();
    assert!(format!("{problem:#}").contains("ISM1040"));
}

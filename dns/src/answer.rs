//! One question in, what to do about it out: no socket, no clock.

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mesh::zone::{self, Answer, TTL, Zone};

/// Largest answer over UDP, bytes: fits an IPv6 packet on any path (DNS Flag Day 2020).
pub(crate) const UDP_ANSWER_MAX: usize = 1232;
/// Smallest limit a client without EDNS has, bytes (RFC 1035 section 2.3.4).
const UDP_ANSWER_MIN: usize = 512;
/// Seconds that "does not exist" may be kept: short, since a service may be exported any moment.
const NEGATIVE_TTL: u32 = 1;

/// What becomes of one packet.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Not worth an answer, and why.
    Drop(&'static str),
    Reply(Message),
    /// Not ours: this question goes upstream.
    Forward(Box<Message>),
}

/// Decides about `packet`. `forwards`: there is an upstream to ask.
pub(crate) fn decide(zone: &Zone, packet: &[u8], forwards: bool) -> Decision {
    // A header has 12 bytes; the third's first bit says response. Answering those makes loops.
    if packet.len() < 12 {
        return Decision::Drop("short");
    }
    if packet[2] & 0x80 != 0 {
        return Decision::Drop("response");
    }
    let Ok(query) = Message::from_vec(packet) else {
        let id = u16::from_be_bytes([packet[0], packet[1]]);
        return Decision::Reply(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr));
    };
    if query.metadata.op_code != OpCode::Query {
        return Decision::Reply(failure(&query, ResponseCode::NotImp));
    }
    let [question] = &query.queries[..] else {
        return Decision::Reply(failure(&query, ResponseCode::FormErr));
    };
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Decision::Reply(failure(&query, ResponseCode::BADVERS));
    }
    let transfer = matches!(question.query_type, RecordType::AXFR | RecordType::IXFR);
    if question.query_class != DNSClass::IN || transfer {
        return Decision::Reply(failure(&query, ResponseCode::Refused));
    }
    let name = question.name.to_ascii().to_ascii_lowercase();
    let name = name.trim_end_matches('.');
    let record = match question.query_type {
        RecordType::A => zone::RecordType::A,
        RecordType::AAAA => zone::RecordType::Aaaa,
        // The rest of the world's types (hickory's enum, not ours): a known name has none of them.
        _ => zone::RecordType::Other,
    };
    // A search domain behind a name of ours: what follows is about the name itself, and an alias says so.
    let whole = zone::searched(zone, name).and_then(|whole| Some((whole, fully(whole)?)));
    let (name, owner) = match &whole {
        Some((whole, owner)) => (*whole, owner.clone()),
        None => (name, question.name.clone()),
    };
    let alias = whole.as_ref().map(|(_, owner)| {
        Record::from_rdata(question.name.clone(), TTL, RData::CNAME(CNAME(owner.clone())))
    });
    let records: Vec<RData> = match zone::answer(zone, name, record) {
        Answer::Forward if forwards => return Decision::Forward(Box::new(query)),
        Answer::Forward => return Decision::Reply(failure(&query, ResponseCode::Refused)),
        Answer::ServFail => return Decision::Reply(failure(&query, ResponseCode::ServFail)),
        Answer::NoData => {
            return Decision::Reply(negative(&query, name, alias, ResponseCode::NoError));
        }
        // Behind an alias the code is about what it leads to (RFC 6604).
        Answer::NxDomain => {
            return Decision::Reply(negative(&query, name, alias, ResponseCode::NXDomain));
        }
        Answer::V4(addresses) => addresses.into_iter().map(|ip| RData::A(A(ip))).collect(),
        Answer::V6(addresses) => addresses.into_iter().map(|ip| RData::AAAA(AAAA(ip))).collect(),
    };
    let mut reply = reply_to(&query);
    reply.metadata.authoritative = true;
    reply.add_answers(alias);
    reply.add_answers(records.into_iter().map(|data| Record::from_rdata(owner.clone(), TTL, data)));
    Decision::Reply(reply)
}

/// A name without search domains to come.
fn fully(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

/// The largest answer this client takes over UDP, bytes.
pub(crate) fn udp_limit(query: &Message) -> usize {
    usize::from(query.max_payload()).clamp(UDP_ANSWER_MIN, UDP_ANSWER_MAX)
}

/// `query` answered with a code and nothing else.
pub(crate) fn failure(query: &Message, code: ResponseCode) -> Message {
    let mut reply = reply_to(query);
    // A code above 15 has its upper bits in the OPT record (RFC 6891 section 6.1.3).
    if let Some(edns) = reply.edns.as_mut() {
        edns.set_rcode_high(code.high());
    }
    reply.metadata.response_code = code;
    reply
}

/// The same answer without records and with TC=1: the client comes again over TCP.
pub(crate) fn truncated(query: &Message, code: ResponseCode) -> Message {
    let mut reply = reply_to(query);
    reply.metadata.response_code = code;
    reply.metadata.truncation = true;
    reply
}

fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_ANSWER_MAX as u16);
        reply.set_edns(edns);
    }
    reply
}

/// NODATA and NXDOMAIN carry the zone's SOA, whose TTL bounds how long they are kept (RFC 2308).
fn negative(query: &Message, name: &str, alias: Option<Record>, code: ResponseCode) -> Message {
    let mut reply = reply_to(query);
    reply.add_answers(alias);
    reply.metadata.authoritative = true;
    reply.metadata.response_code = code;
    let apex = ["clusterset.local", "cluster.local", "global"]
        .into_iter()
        .find(|apex| {
            name == *apex || name.strip_suffix(apex).is_some_and(|rest| rest.ends_with('.'))
        })
        .unwrap_or(name);
    // The apex is a literal or the parsed question itself; a name that hickory prints it parses.
    if let (Some(apex), Ok(server), Ok(person)) = (
        fully(apex),
        Name::from_ascii("ns.dns.isthmus.internal."),
        Name::from_ascii("hostmaster.isthmus.internal."),
    ) {
        let soa = SOA::new(server, person, 1, 3600, 600, 86_400, NEGATIVE_TTL);
        reply.add_authority(Record::from_rdata(apex, NEGATIVE_TTL, RData::SOA(soa)));
    }
    reply
}

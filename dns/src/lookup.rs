//! The addresses of one name of the outside world, and how long they may be kept.

use crate::forward;
use anyhow::{Context as _, bail, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mesh::name::Hostname;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Of both families, at least one.
    pub addresses: BTreeSet<IpAddr>,
    /// The shortest of all records on the way, aliases included.
    pub ttl: Duration,
}

/// Asks `upstreams` (recursive resolvers) for A and AAAA. A name without any address is an error, and
/// so is half an answer without one: whoever asks keeps what was good.
pub async fn lookup(upstreams: &[SocketAddr], name: &Hostname) -> anyhow::Result<Found> {
    let (v4, v6) =
        tokio::join!(one(upstreams, name, RecordType::A), one(upstreams, name, RecordType::AAAA),);
    let (mut addresses, mut ttl, mut failed) = (BTreeSet::new(), u32::MAX, None);
    for answer in [v4, v6] {
        match answer {
            Ok((found, least)) => {
                addresses.extend(found);
                ttl = ttl.min(least);
            }
            Err(error) => failed = Some(error),
        }
    }
    match (addresses.is_empty(), failed) {
        (false, _) => Ok(Found { addresses, ttl: Duration::from_secs(ttl.into()) }),
        (true, Some(error)) => Err(error),
        (true, None) => bail!("{name} has no address"),
    }
}

/// Asks one server as its clients do; any answer will do, also that there is no such name.
///
/// # Errors
/// Where nothing comes back in time.
pub async fn answers(server: SocketAddr) -> anyhow::Result<()> {
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii("dns.isthmus.internal.").context("a literal name")?;
    query.add_query(Query::query(name, RecordType::A));
    forward::ask(&[server], &query).await.map(|_| ())
}

async fn one(
    upstreams: &[SocketAddr],
    name: &Hostname,
    record: RecordType,
) -> anyhow::Result<(BTreeSet<IpAddr>, u32)> {
    let mut query = Message::new(0, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    let asked = Name::from_ascii(format!("{name}.")).context("a name that DNS cannot carry")?;
    query.add_query(Query::query(asked, record));
    let answer = forward::ask(upstreams, &query).await?;
    let answer = Message::from_vec(&answer).context("an answer that cannot be read")?;
    let code = answer.metadata.response_code;
    ensure!(code == ResponseCode::NoError, "{name} {record}: the resolver answers {code}");
    let addresses: BTreeSet<IpAddr> =
        answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect();
    let ttl = answer.answers.iter().map(|record| record.ttl).min().unwrap_or(u32::MAX);
    // Nothing was found: then nothing limits how long what the other family says may be kept.
    Ok((addresses, ttl))
}

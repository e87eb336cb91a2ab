//! Questions that are not ours, asked of two upstreams at once; never kept.

use crate::answer::UDP_ANSWER_MAX;
use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

/// A question is given up after this, for all its upstreams together.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer that is read from a datagram, bytes: what we ask for is shorter ([`UDP_ANSWER_MAX`]), and
/// thousands of questions may wait at once.
const UDP_ANSWER_READ: usize = 4_096;
/// Upstreams asked at the same time.
const PARALLEL: usize = 2;

/// Asks `upstreams` what `query` asks, pair by pair; the first usable answer wins.
/// Returns its bytes, with the client's id, whatever its size.
pub(crate) async fn ask(upstreams: &[SocketAddr], query: &Message) -> anyhow::Result<Vec<u8>> {
    let rounds = upstreams.chunks(PARALLEL);
    let share = TIMEOUT / u32::try_from(rounds.len().max(1)).unwrap_or(u32::MAX);
    let mut last = anyhow::anyhow!("no upstream is configured");
    // What an upstream says when it cannot help; another may know more.
    let mut unhelpful = None;
    for pair in rounds {
        let deadline = Instant::now() + share;
        let mut answers: FuturesUnordered<_> =
            pair.iter().map(|upstream| ask_one(*upstream, query, deadline)).collect();
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(bytes) => {
                    let code = ResponseCode::from(0, bytes[3] & 0x0f);
                    if !matches!(code, ResponseCode::ServFail | ResponseCode::Refused) {
                        return Ok(with_id(bytes, query.metadata.id));
                    }
                    unhelpful = Some(bytes);
                }
                Err(problem) => last = problem,
            }
        }
    }
    unhelpful.map(|bytes| with_id(bytes, query.metadata.id)).ok_or(last)
}

fn with_id(mut bytes: Vec<u8>, id: u16) -> Vec<u8> {
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    bytes
}

/// The same question with an id of its own, so that guessing a client's id helps nobody. EDNS
/// options are left out: they speak about the client to its resolver, which is us.
fn question_to(query: &Message) -> anyhow::Result<(u16, Vec<u8>)> {
    let id = rand::random();
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = query.metadata.recursion_desired;
    question.metadata.checking_disabled = query.metadata.checking_disabled;
    question.metadata.authentic_data = query.metadata.authentic_data;
    question.add_queries(query.queries.iter().cloned());
    if let Some(theirs) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_ANSWER_MAX as u16);
        edns.set_dnssec_ok(theirs.flags().dnssec_ok);
        question.set_edns(edns);
    }
    Ok((id, question.to_vec().context("the question cannot be written again")?))
}

async fn ask_one(
    upstream: SocketAddr,
    query: &Message,
    deadline: Instant,
) -> anyhow::Result<Vec<u8>> {
    let (id, question) = question_to(query)?;
    let late = || format!("{upstream} did not answer in time");
    let bytes = timeout_at(deadline, over_udp(upstream, id, &question, query))
        .await
        .with_context(late)?
        .with_context(|| format!("asking {upstream} over UDP"))?;
    let truncated = bytes[2] & 0x02 != 0;
    if !truncated {
        return Ok(bytes);
    }
    timeout_at(deadline, over_tcp(upstream, id, &question, query))
        .await
        .with_context(late)?
        .with_context(|| format!("asking {upstream} over TCP"))
}

async fn over_udp(
    upstream: SocketAddr,
    id: u16,
    question: &[u8],
    query: &Message,
) -> anyhow::Result<Vec<u8>> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A new socket for each question: the kernel picks a random port, and connecting it makes the
    // kernel drop what others send.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; UDP_ANSWER_READ];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(&buffer[..length], id, query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
        // Somebody guesses, or an answer to nobody: the right one may still come.
    }
}

async fn over_tcp(
    upstream: SocketAddr,
    id: u16,
    question: &[u8],
    query: &Message,
) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length =
        u16::try_from(question.len()).context("the question is longer than 65535 bytes")?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    ensure!(answers(&answer, id, query), "it answered another question");
    Ok(answer)
}

/// Is this the answer to our question: same id, a response, the same question (any case)?
fn answers(bytes: &[u8], id: u16, query: &Message) -> bool {
    bytes.len() >= 12
        && bytes[..2] == id.to_be_bytes()
        && bytes[2] & 0x80 != 0
        && Message::from_vec(bytes).is_ok_and(|answer| answer.queries == query.queries)
}

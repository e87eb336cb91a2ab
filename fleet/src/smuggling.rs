//! Sends the table of ambiguous requests to one place, octet by octet, and says what was answered;
//! what arrived is for the backends to say ([`backends`]).
//!
//! Others call the same place meanwhile: who gets an answer that is another's has been smuggled
//! past too.

pub mod backends;
mod naive;
pub mod payloads;

use crate::load::dial;
use anyhow::{Context, Result};
use futures::StreamExt;
use payloads::{Meant, Names, Payload, Wire};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// After so long without an octet nothing more is expected of an answer.
const SILENCE: Duration = Duration::from_millis(1_500);
/// Longest wait for any answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Payloads under way at once.
const AT_ONCE: usize = 12;
/// Calls of others after each lot of payloads.
const OTHERS: usize = 4;

/// Where to send the table.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The host that requests name.
    #[arg(long)]
    pub host: String,
    /// `HOST:PORT` to connect to.
    #[arg(long)]
    pub to: String,
    /// Makes the paths of this run unlike those of all others.
    #[arg(long)]
    pub tag: String,
    /// Puts a proxy in between that believes what it is told.
    #[arg(long)]
    pub naive: bool,
}

/// All that was seen from the client's side.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// One for each payload, in the table's order.
    pub tried: Vec<Tried>,
    /// Calls of others, and what was wrong with each that was.
    pub others: usize,
    pub wronged: Vec<String>,
    /// Targets of the requests that the naive proxy believes it has forwarded.
    pub believed: Vec<String>,
}

/// What became of one payload.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tried {
    pub name: String,
    pub id: String,
    /// Statuses that came back.
    pub answers: Vec<u16>,
    /// How it ended: `closed`, `reset`, `silence`, or an HTTP/2 error.
    pub end: String,
}

/// The id of a payload in a run.
pub fn id(tag: &str, index: usize) -> String {
    format!("{tag}-{index}")
}

/// Sends the whole table.
pub async fn run(options: &Options) -> Result<Told> {
    let naive = match options.naive {
        true => Some(naive::Naive::start(options.to.clone()).await?),
        false => None,
    };
    let to = naive.as_ref().map_or_else(|| options.to.clone(), |naive| naive.address.to_string());
    let all: Vec<(usize, &Payload)> = payloads::all().enumerate().collect();
    let (mut tried, mut wronged, mut others) = (Vec::new(), Vec::new(), 0);
    for lot in all.chunks(AT_ONCE) {
        let attempts = lot.iter().map(|(index, payload)| attempt(options, &to, *index, payload));
        let calls = (others..others + OTHERS).map(|number| call(options, &to, number));
        let (done, ends) = tokio::join!(
            futures::future::join_all(attempts),
            futures::stream::iter(calls).buffered(1).collect::<Vec<_>>(),
        );
        for attempt in done {
            tried.push(attempt?);
        }
        others += OTHERS;
        wronged.extend(ends.into_iter().filter_map(Result::err).map(|e| format!("{e:#}")));
    }
    let believed = naive.map(|naive| naive.believed()).unwrap_or_default();
    Ok(Told { tried, others, wronged, believed })
}

async fn attempt(options: &Options, to: &str, index: usize, payload: &Payload) -> Result<Tried> {
    let names = Names { host: options.host.clone(), id: id(&options.tag, index) };
    let mut stream = dial(to, None).await?;
    // Who has heard enough may close while we still speak; what it said counts.
    let _ = stream.write_all(&payload.bytes(&names)).await;
    let (bytes, mut end) = hear(&mut stream, payload.meant).await;
    let answers = match payload.wire {
        Wire::One => statuses(&bytes),
        Wire::Two => {
            let (answers, error) = frames(&bytes);
            end = error.unwrap_or(end);
            answers
        }
    };
    Ok(Tried { name: payload.name.to_owned(), id: names.id, answers, end })
}

/// Reads until nothing more comes.
async fn hear(stream: &mut TcpStream, meant: Meant) -> (Vec<u8>, String) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let patience = if meant == Meant::Pair { SILENCE * 2 } else { SILENCE };
    let end = loop {
        match timeout(patience, stream.read(&mut buffer)).await {
            Err(_) => break "silence",
            Ok(Ok(0)) => break "closed",
            Ok(Err(_)) => break "reset",
            Ok(Ok(length)) => bytes.extend(&buffer[..length]),
        }
    };
    (bytes, end.to_owned())
}

/// Final statuses of what is a row of HTTP/1.1 responses; no body here has these letters.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes);
    let codes = text.split("HTTP/1.").skip(1).filter_map(|part| part.get(2..5)?.parse().ok());
    codes.filter(|code| *code >= 200).collect()
}

/// Statuses and the first error among HTTP/2 frames.
fn frames(mut bytes: &[u8]) -> (Vec<u16>, Option<String>) {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;
    let (mut answers, mut error) = (Vec::new(), None);
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some((payload, after)) = rest.split_at_checked(length) else { break };
        let code = |at: usize| {
            let bytes = payload.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes))
        };
        match *kind {
            HEADERS => answers.extend(status(payload)),
            RST_STREAM => error = code(0).map(|code| format!("reset {code}")).or(error),
            GOAWAY => error = error.or_else(|| code(4).map(|code| format!("goaway {code}"))),
            _ => {}
        }
        bytes = after;
    }
    (answers, error)
}

/// `:status` where it comes first, as it must: indexed, or a literal of three digits (RFC 7541). `None`
/// for trailers.
fn status(block: &[u8]) -> Option<u16> {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // A change of the table's size may precede.
    let block = block.strip_prefix(&[0x20]).unwrap_or(block);
    let (first, rest) = block.split_first()?;
    if let 0x88..=0x8e = first {
        return Some(INDEXED[usize::from(first - 0x88)]);
    }
    // A literal whose name is one of the entries 8 to 14, which are all `:status`.
    if !matches!(first, 0x48..=0x4e | 0x08..=0x0e | 0x18..=0x1e) {
        return None;
    }
    let (length, text) = rest.split_first()?;
    let text = text.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    // Huffman's code (appendix B): 0 to 2 have five bits, the other digits six.
    let bits = text.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
    let (mut left, mut number) = (u32::try_from(text.len()).ok()? * 8, 0);
    for _ in 0..3 {
        let five = bits >> left.checked_sub(5)? & 0x1f;
        let digit = if five <= 2 {
            left -= 5;
            five
        } else {
            left = left.checked_sub(6)?;
            (bits >> left & 0x3f).checked_sub(0x19)? + 3
        };
        number = number * 10 + digit;
    }
    u16::try_from(number).ok()
}

/// One call of somebody else, whose answer has to be its own.
async fn call(options: &Options, to: &str, number: usize) -> Result<()> {
    let (host, path) = (&options.host, format!("/v/{}-{number}", options.tag));
    let mut stream = dial(to, None).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = timeout(ANSWER_MAX, stream.read_to_end(&mut answer)).await;
    read.with_context(|| format!("{path} had no answer"))??;
    let answer = String::from_utf8_lossy(&answer);
    let own = answer.starts_with("HTTP/1.1 200") && statuses(answer.as_bytes()) == [200];
    let seen = format!("x-seen: GET {path}\r\n");
    anyhow::ensure!(
        own && answer.to_ascii_lowercase().contains(&seen.to_ascii_lowercase()),
        "{path} was answered with {answer:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_as_they_are_written() {
        assert_eq!(
            statuses(
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nseenHTTP/1.0 400 Bad\r\n"
            ),
            [200, 400]
        );
        assert_eq!(status(&[0x88]), Some(200));
        assert_eq!(status(&[0x8c, 0x40]), Some(400));
        assert_eq!(status(b"\x48\x03503"), Some(503));
        // 5: 011011, 0: 00000, 3: 011001.
        assert_eq!(status(&[0x48, 0x83, 0b0110_1100, 0b0000_1100, 0b1111_1111]), Some(503));
        // 4: 011010, 3: 011001, 1: 00001.
        assert_eq!(status(&[0x48, 0x83, 0b0110_1001, 0b1001_0000, 0b1111_1111]), Some(431));
        assert_eq!(status(b"\x00\x01a\x01b"), None);
    }

    #[test]
    fn every_payload_has_a_name_and_octets_of_its_own() {
        let names = |id: &str| Names { host: "hello.shop.global".into(), id: id.into() };
        let mut seen = std::collections::BTreeSet::new();
        for payload in payloads::all() {
            let wire = format!("{:?}", payload.wire);
            assert!(seen.insert((wire.clone(), payload.name)), "{wire} {} is twice", payload.name);
            assert!(seen.len() < 400 && !payload.bytes(&names("a")).is_empty());
        }
        let sent: Vec<_> = payloads::all().map(|payload| payload.bytes(&names("a"))).collect();
        let unlike: std::collections::BTreeSet<_> = sent.iter().collect();
        assert_eq!(unlike.len(), sent.len(), "two payloads are the same");
    }
}

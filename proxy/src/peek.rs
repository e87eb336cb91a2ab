//! Whom a TLS client asks for, read from its first bytes without answering: SNI and ALPN.
//!
//! Sans-IO, linear in the bytes however they are cut, and strict about names: there is one proper
//! DNS name, or none, or a reason to refuse. Ciphers and key shares are the backend's to judge.

use std::net::IpAddr;

/// Most bytes a ClientHello may take on the wire, its record headers included.
pub const HELLO_MAX: usize = 64 * 1024;
/// Most bytes of plaintext in one TLS record (RFC 8446 section 5.1).
const RECORD_MAX: usize = 1 << 14;

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    /// A proper beginning; more bytes are needed.
    More,
    Hello(Hello),
    Refused(Refusal),
}

/// What the client wants. Of an encrypted ClientHello this is the outer, public one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lower case; `None` where the client named nobody.
    pub sni: Option<String>,
    pub alpn: Vec<Vec<u8>>,
}

/// Why these bytes are no ClientHello we route by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The first bytes are no TLS handshake record.
    NotTls,
    /// A handshake message, but not a ClientHello.
    NotHello,
    /// More than [`HELLO_MAX`] bytes.
    TooLong,
    /// Lengths that contradict each other, an extension twice, or bytes left over.
    Malformed,
    /// A server_name extension without exactly one host_name.
    NotOneName,
    /// The name is no DNS name: too long, a trailing dot, NUL or another character.
    NotAName,
    /// The name is an IP address (RFC 6066 section 3 forbids it).
    IpLiteral,
}

impl Refusal {
    /// The value of label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::NotHello => "not_client_hello",
            Self::TooLong => "too_long",
            Self::Malformed => "malformed",
            Self::NotOneName => "not_one_name",
            Self::NotAName => "not_a_name",
            Self::IpLiteral => "ip_literal",
        }
    }
}

/// Reads all bytes of a connection received so far, from the first one on.
pub fn peek(bytes: &[u8]) -> Peek {
    Reader::new().push(bytes)
}

/// The same over pieces: keeps the bytes, so that they can be sent on unchanged.
#[derive(Debug, Default)]
pub struct Reader {
    /// All bytes received.
    wire: Vec<u8>,
    /// How much of `wire` has been looked at; always at most [`HELLO_MAX`].
    at: usize,
    /// Bytes of the current record's body still to come.
    record_left: usize,
    /// The handshake message without record headers.
    message: Vec<u8>,
    answer: Option<Peek>,
}

impl Reader {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes. Once the answer is not [`Peek::More`] it stays.
    pub fn push(&mut self, bytes: &[u8]) -> Peek {
        self.wire.extend_from_slice(bytes);
        if let Some(answer) = &self.answer {
            return answer.clone();
        }
        let answer = self.advance();
        if answer != Peek::More {
            self.answer = Some(answer.clone());
            self.message = Vec::new();
        }
        answer
    }

    /// All bytes taken, for the one who is asked for.
    pub fn into_bytes(self) -> Vec<u8> {
        self.wire
    }

    fn advance(&mut self) -> Peek {
        let end = self.wire.len().min(HELLO_MAX);
        loop {
            if self.record_left == 0 {
                let header = &self.wire[self.at..end.min(self.at + 5)];
                // Decide on each byte as it comes, so that garbage is refused at once and every
                // way of cutting the same bytes gives the same answer.
                if header.first().is_some_and(|kind| *kind != 22)
                    || header.get(1).is_some_and(|major| *major != 3)
                    || header.get(2).is_some_and(|minor| *minor > 4)
                {
                    let first = self.message.is_empty();
                    return Peek::Refused(if first { Refusal::NotTls } else { Refusal::Malformed });
                }
                let [_, _, _, high, low] = *header else { break };
                let length = usize::from(u16::from_be_bytes([high, low]));
                if length == 0 || length > RECORD_MAX {
                    return Peek::Refused(Refusal::Malformed);
                }
                self.at += 5;
                self.record_left = length;
            }
            if self.at == end {
                break;
            }
            let take = self.record_left.min(end - self.at).min(self.wanted());
            self.message.extend_from_slice(&self.wire[self.at..self.at + take]);
            self.at += take;
            self.record_left -= take;
            if self.message[0] != 1 {
                return Peek::Refused(Refusal::NotHello);
            }
            if let Some(length) = self.length() {
                if length + 4 > HELLO_MAX {
                    return Peek::Refused(Refusal::TooLong);
                }
                if self.message.len() == length + 4 {
                    // A second message in the same record before the server spoke is an attempt
                    // to confuse: no client does it.
                    if self.record_left > 0 {
                        return Peek::Refused(Refusal::Malformed);
                    }
                    return match client_hello(&self.message[4..]) {
                        Ok(hello) => Peek::Hello(hello),
                        Err(refusal) => Peek::Refused(refusal),
                    };
                }
            }
        }
        if end == HELLO_MAX { Peek::Refused(Refusal::TooLong) } else { Peek::More }
    }

    /// Length of the handshake message's body, once its header is here.
    fn length(&self) -> Option<usize> {
        let header = self.message.get(1..4)?;
        Some(header.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)))
    }

    /// How many bytes may be taken before something must be looked at again.
    fn wanted(&self) -> usize {
        match self.length() {
            None if self.message.is_empty() => 1,
            None => 4 - self.message.len(),
            Some(length) => length + 4 - self.message.len(),
        }
    }
}

/// A cursor over bytes with lengths in front of them.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Refusal::Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    /// A vector whose length is in front of it in `width` bytes.
    fn vector(&mut self, width: usize) -> Result<Self, Refusal> {
        let length = self.take(width)?.iter().fold(0, |length, b| length << 8 | usize::from(*b));
        Ok(Bytes(self.take(length)?))
    }

    fn number(&mut self) -> Result<u16, Refusal> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn client_hello(body: &[u8]) -> Result<Hello, Refusal> {
    let mut body = Bytes(body);
    body.take(2 + 32)?; // legacy_version, random
    let session = body.vector(1)?;
    let suites = body.vector(2)?;
    let compressions = body.vector(1)?;
    if session.0.len() > 32
        || suites.is_empty()
        || suites.0.len() % 2 != 0
        || compressions.is_empty()
    {
        return Err(Refusal::Malformed);
    }
    let mut hello = Hello { sni: None, alpn: Vec::new() };
    if body.is_empty() {
        return Ok(hello);
    }
    let mut extensions = body.vector(2)?;
    if !body.is_empty() {
        return Err(Refusal::Malformed);
    }
    let mut seen = std::collections::BTreeSet::new();
    while !extensions.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector(2)?;
        if !seen.insert(kind) {
            return Err(Refusal::Malformed);
        }
        match kind {
            0 => hello.sni = Some(server_name(content)?),
            16 => hello.alpn = protocols(content)?,
            _ => {}
        }
    }
    Ok(hello)
}

fn server_name(mut content: Bytes<'_>) -> Result<String, Refusal> {
    let mut list = content.vector(2)?;
    if !content.is_empty() {
        return Err(Refusal::Malformed);
    }
    if list.is_empty() {
        return Err(Refusal::NotOneName);
    }
    let kind = list.take(1)?[0];
    let name = list.vector(2)?;
    if kind != 0 || !list.is_empty() {
        return Err(Refusal::NotOneName);
    }
    let name = std::str::from_utf8(name.0).map_err(|_| Refusal::NotAName)?;
    if name.parse::<IpAddr>().is_ok() {
        return Err(Refusal::IpLiteral);
    }
    let name = name.to_ascii_lowercase();
    // `Hostname` has no empty label, so no trailing dot, and no NUL.
    let name: mesh::name::Hostname = name.parse().map_err(|_| Refusal::NotAName)?;
    let last = name.as_str().rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|b| b.is_ascii_digit()) {
        // `127.1` and `0x7f.1` are addresses to some; no name ends in a number (RFC 3696).
        return Err(Refusal::NotAName);
    }
    Ok(name.into())
}

fn protocols(mut content: Bytes<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut list = content.vector(2)?;
    if !content.is_empty() || list.is_empty() {
        return Err(Refusal::Malformed);
    }
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vector(1)?;
        if protocol.is_empty() {
            return Err(Refusal::Malformed);
        }
        protocols.push(protocol.0.to_vec());
    }
    Ok(protocols)
}

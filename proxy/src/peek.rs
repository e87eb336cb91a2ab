//! Whom a TLS client asks for, read from its first bytes without answering: SNI and ALPN.

/// What the bytes so far say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    /// A proper beginning; more bytes are needed.
    More,
    Hello(Hello),
    Refused(Refusal),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Lower case; `None` where the client named nobody.
    pub sni: Option<String>,
    pub alpn: Vec<Vec<u8>>,
}

/// Why these bytes are no ClientHello we route by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    NotTls,
    TooLong,
    Malformed,
    BadServerName,
}

/// Reads all bytes received so far (from the first one on).
pub fn peek(bytes: &[u8]) -> Peek {
    let _ = bytes;
    todo!("engine")
}

//! ClientHellos octet by octet, as no TLS library would send them.

use anyhow::Result;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What the server name extension says.
#[derive(Debug, Clone, Copy)]
pub enum Name<'a> {
    /// No extension.
    None,
    Host(&'a str),
    Bytes(&'a [u8]),
    /// Two entries of type host_name, which RFC 6066 forbids.
    Two(&'a str, &'a str),
}

/// A TLS 1.3 ClientHello in one record: X25519, ECDSA and RSA, one ALPN protocol.
pub fn client_hello(name: Name<'_>, alpn: &str) -> Vec<u8> {
    let mut extensions = vec![];
    let names: Vec<&[u8]> = match name {
        Name::None => vec![],
        Name::Host(host) => vec![host.as_bytes()],
        Name::Bytes(bytes) => vec![bytes],
        Name::Two(first, second) => vec![first.as_bytes(), second.as_bytes()],
    };
    if !names.is_empty() {
        let mut list = vec![];
        for name in names {
            list.push(0);
            list.extend(with_length_2(name));
        }
        extension(&mut extensions, 0, &with_length_2(&list));
    }
    // supported_groups: x25519, secp256r1.
    extension(&mut extensions, 10, &with_length_2(&[0, 0x1d, 0, 0x17]));
    // signature_algorithms: ecdsa_secp256r1_sha256, rsa_pss_rsae_sha256, ed25519.
    extension(&mut extensions, 13, &with_length_2(&[4, 3, 8, 4, 8, 7]));
    let mut protocol = vec![u8::try_from(alpn.len()).expect("a short protocol")];
    protocol.extend(alpn.as_bytes());
    extension(&mut extensions, 16, &with_length_2(&protocol));
    // supported_versions: TLS 1.3.
    extension(&mut extensions, 43, &[2, 3, 4]);
    // key_share: x25519 and the base point's u coordinate, a valid public key.
    let mut share = vec![0, 0x1d];
    let mut key = [0; 32];
    key[0] = 9;
    share.extend(with_length_2(&key));
    extension(&mut extensions, 51, &with_length_2(&share));

    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    // TLS_AES_128_GCM_SHA256, TLS_AES_256_GCM_SHA384; no compression.
    body.extend(with_length_2(&[0x13, 1, 0x13, 2]));
    body.extend([1, 0]);
    body.extend(with_length_2(&extensions));

    let mut handshake = vec![1, 0];
    handshake.extend(with_length_2(&body));
    let mut record = vec![0x16, 3, 1];
    record.extend(with_length_2(&handshake));
    record
}

/// What came back for a first flight.
#[derive(Debug, PartialEq, Eq)]
pub enum Back {
    /// The first octet of an answer.
    Octet(u8),
    /// Closed or reset without one octet.
    Closed,
    /// Neither within the limit.
    Silence,
}

/// Sends `flight` from the WAN in pieces of `piece` octets; what comes back, and when.
pub fn probe(
    to: SocketAddr,
    flight: &[u8],
    piece: usize,
    limit: Duration,
) -> Result<(Back, Duration)> {
    let mut stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    let start = Instant::now();
    for part in flight.chunks(piece) {
        // A reset while we still write is an answer too; the read below sees it.
        if stream.write_all(part).is_err() {
            break;
        }
    }
    let mut octet = [0];
    let back = match stream.read(&mut octet) {
        Ok(0) => Back::Closed,
        Ok(_) => Back::Octet(octet[0]),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Back::Silence,
        Err(_) => Back::Closed,
    };
    Ok((back, start.elapsed()))
}

fn extension(to: &mut Vec<u8>, kind: u16, body: &[u8]) {
    to.extend(kind.to_be_bytes());
    to.extend(with_length_2(body));
}

fn with_length_2(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a ClientHello of ours is short");
    [&length.to_be_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our octets are what a TLS server takes for a ClientHello with this name.
    #[test]
    fn rustls_reads_it() {
        let mut acceptor = rustls::server::Acceptor::default();
        let flight = client_hello(Name::Host("outbound_.80_._.hello.shop.global"), "istio");
        acceptor.read_tls(&mut &flight[..]).unwrap();
        let accepted = acceptor.accept().unwrap().expect("a whole ClientHello");
        let hello = accepted.client_hello();
        assert_eq!(hello.server_name(), Some("outbound_.80_._.hello.shop.global"));
        assert_eq!(hello.alpn().unwrap().collect::<Vec<_>>(), [b"istio"]);
    }
}

//! The ClientHello reader against hellos that rustls makes, cut and bent in every way.

use proptest::prelude::*;
use proxy::peek::{HELLO_MAX, Hello, Peek, Reader, Refusal, peek};
use rustls::crypto::aws_lc_rs;
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use std::io::Cursor;
use std::sync::Arc;

const NAME: &str = "outbound_.80_._.hello.shop.global";

/// A hello as rustls writes it; `fragment` cuts it into several records.
fn hello(name: &str, alpn: &[&[u8]], post_quantum: bool, fragment: Option<usize>) -> Vec<u8> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = if post_quantum {
        vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519]
    } else {
        vec![aws_lc_rs::kx_group::X25519]
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.max_fragment_size = fragment;
    let name = name.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn expected(alpn: &[&[u8]]) -> Peek {
    let alpn = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Peek::Hello(Hello { sni: Some(NAME.into()), alpn })
}

/// A hello by hand, with these extensions.
fn handmade(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 2, 0x13, 0x01]);
    body.extend([1, 0]);
    let mut all = Vec::new();
    for (kind, content) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend((content.len() as u16).to_be_bytes());
        all.extend(content);
    }
    body.extend((all.len() as u16).to_be_bytes());
    body.extend(all);
    let mut message = vec![1];
    message.extend(&(body.len() as u32).to_be_bytes()[1..]);
    message.extend(body);
    let mut wire = Vec::new();
    for record in message.chunks(16_384) {
        wire.extend([22, 3, 1]);
        wire.extend((record.len() as u16).to_be_bytes());
        wire.extend(record);
    }
    wire
}

fn names(names: &[(u8, &[u8])]) -> (u16, Vec<u8>) {
    let mut list = Vec::new();
    for (kind, name) in names {
        list.push(*kind);
        list.extend((name.len() as u16).to_be_bytes());
        list.extend(*name);
    }
    let mut content = (list.len() as u16).to_be_bytes().to_vec();
    content.extend(list);
    (0, content)
}

fn named(name: &[u8]) -> Peek {
    peek(&handmade(&[names(&[(0, name)])]))
}

#[test]
fn reads_what_rustls_writes() {
    let alpn: &[&[u8]] = &[b"istio-http/1.1", b"istio"];
    assert_eq!(peek(&hello(NAME, alpn, false, None)), expected(alpn));
    let large = hello(NAME, alpn, true, None);
    assert!(large.len() > 1_460, "X25519MLKEM768 is more than a segment: {}", large.len());
    assert_eq!(peek(&large), expected(alpn));
    assert_eq!(peek(&hello(NAME, alpn, true, Some(64))), expected(alpn), "many records");
    assert_eq!(peek(&hello(NAME, &[], false, None)), expected(&[]));
}

#[test]
fn every_byte_alone_gives_the_same_answer_and_the_bytes_are_kept() {
    let alpn: &[&[u8]] = &[b"istio"];
    for fragment in [None, Some(40)] {
        let bytes = hello(NAME, alpn, true, fragment);
        let mut reader = Reader::new();
        for (at, byte) in bytes.iter().enumerate() {
            let answer = reader.push(&[*byte]);
            let last = at + 1 == bytes.len();
            assert_eq!(answer, if last { expected(alpn) } else { Peek::More });
        }
        assert_eq!(reader.into_bytes(), bytes);
    }
}

#[test]
fn names_are_strict() {
    let refused =
        |name: &[u8], refusal| assert_eq!(named(name), Peek::Refused(refusal), "{name:?}");
    assert_eq!(
        named(b"OUTBOUND_.80_._.Hello.Shop.Global"),
        Peek::Hello(Hello { sni: Some(NAME.into()), alpn: vec![] }),
        "any case"
    );
    refused(b"", Refusal::NotAName);
    refused(b"hello.shop.global.", Refusal::NotAName);
    refused(b"hello\0.shop.global", Refusal::NotAName);
    refused(b"*.shop.global", Refusal::NotAName);
    refused("h\u{e9}llo.shop.global".as_bytes(), Refusal::NotAName);
    refused(b"\xff\xfe", Refusal::NotAName);
    refused(b"127.0.0.1", Refusal::IpLiteral);
    refused(b"::1", Refusal::IpLiteral);
    refused(b"127.1", Refusal::NotAName);
    refused(&[b'a'; 64], Refusal::NotAName);
    let long = vec!["abcdefghi"; 26].join(".");
    assert_eq!(long.len(), 259);
    refused(long.as_bytes(), Refusal::NotAName);
    let most = format!("{}.{}", vec!["abcdefghi"; 25].join("."), "abc");
    assert_eq!(most.len(), 253);
    assert_eq!(
        named(most.as_bytes()),
        Peek::Hello(Hello { sni: Some(most.clone()), alpn: vec![] })
    );
    let two = handmade(&[names(&[(0, b"a.b"), (0, b"c.d")])]);
    assert_eq!(peek(&two), Peek::Refused(Refusal::NotOneName));
    let other = handmade(&[names(&[(1, b"a.b")])]);
    assert_eq!(peek(&other), Peek::Refused(Refusal::NotOneName));
    let twice = handmade(&[names(&[(0, b"a.b")]), names(&[(0, b"c.d")])]);
    assert_eq!(peek(&twice), Peek::Refused(Refusal::Malformed));
    let none = handmade(&[]);
    assert_eq!(peek(&none), Peek::Hello(Hello { sni: None, alpn: vec![] }));
}

#[test]
fn an_encrypted_hello_is_known_by_its_outer_name() {
    let ech = (0xfe0d, vec![0; 200]);
    let bytes = handmade(&[ech, names(&[(0, b"public.example")])]);
    assert_eq!(
        peek(&bytes),
        Peek::Hello(Hello { sni: Some("public.example".into()), alpn: vec![] })
    );
}

#[test]
fn garbage_is_refused_by_its_first_wrong_byte() {
    assert_eq!(peek(b""), Peek::More);
    assert_eq!(peek(b"G"), Peek::Refused(Refusal::NotTls));
    assert_eq!(peek(b"GET / HTTP/1.1\r\n"), Peek::Refused(Refusal::NotTls));
    assert_eq!(peek(&[22, 2]), Peek::Refused(Refusal::NotTls));
    assert_eq!(peek(&[22, 3, 1, 0, 0]), Peek::Refused(Refusal::Malformed), "an empty record");
    assert_eq!(peek(&[22, 3, 1, 0x40, 1]), Peek::Refused(Refusal::Malformed), "2^14 and one");
    assert_eq!(peek(&[22, 3, 1, 0, 4, 2]), Peek::Refused(Refusal::NotHello));
    let mut joined = handmade(&[names(&[(0, b"a.b")])]);
    let length = joined.len();
    let record = (length - 5 + 1) as u16;
    joined[3..5].copy_from_slice(&record.to_be_bytes());
    joined.push(1);
    assert_eq!(peek(&joined), Peek::Refused(Refusal::Malformed), "a second message behind it");
}

#[test]
fn sixty_four_kibibytes_are_the_limit() {
    let padded = |size: usize| handmade(&[names(&[(0, b"a.b")]), (21, vec![0; size])]);
    let most = padded(60_000);
    assert!(most.len() < HELLO_MAX);
    assert_eq!(peek(&most), Peek::Hello(Hello { sni: Some("a.b".into()), alpn: vec![] }));
    // Said in the header already: refused before the bytes come.
    let mut promise = vec![22, 3, 1, 0, 4, 1];
    promise.extend([1, 0, 0]);
    assert_eq!(peek(&promise), Peek::Refused(Refusal::TooLong));
    // One byte of the message in each record: six on the wire.
    let message = &most[5..5 + 16_384];
    let mut drip = Vec::new();
    for byte in message {
        drip.extend([22, 3, 1, 0, 1, *byte]);
    }
    assert_eq!(peek(&drip[..HELLO_MAX - 1]), Peek::More);
    assert_eq!(peek(&drip), Peek::Refused(Refusal::TooLong));
}

/// What rustls makes of the same bytes: its name and protocols, or an error.
fn acceptor(bytes: &[u8]) -> Result<Option<Hello>, String> {
    let mut acceptor = Acceptor::default();
    let mut wire = Cursor::new(bytes);
    loop {
        let read = acceptor.read_tls(&mut wire).map_err(|e| e.to_string())?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Ok(Some(Hello {
                    sni: hello.server_name().map(str::to_ascii_lowercase),
                    alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                }));
            }
            Ok(None) if read == 0 => return Ok(None),
            Ok(None) => {}
            Err((error, _)) => return Err(error.to_string()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_way_of_cutting_gives_the_same_answer(
        post_quantum: bool,
        fragment in proptest::option::of(32usize..600),
        mut cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        bend in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = hello(NAME, &[b"istio"], post_quantum, fragment);
        if let Some((at, byte)) = bend {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let whole = peek(&bytes);
        let mut ends: Vec<usize> = cuts.drain(..).map(|cut| cut.index(bytes.len())).collect();
        ends.push(bytes.len());
        ends.sort_unstable();
        let (mut reader, mut answer, mut from) = (Reader::new(), Peek::More, 0);
        for end in ends {
            let next = reader.push(&bytes[from..end]);
            if answer != Peek::More {
                prop_assert_eq!(&next, &answer, "an answer stays");
            }
            (answer, from) = (next, end);
        }
        prop_assert_eq!(answer, whole);
    }

    #[test]
    fn agrees_with_rustls_on_bent_hellos(
        post_quantum: bool,
        bends in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = hello(NAME, &[b"istio", b"h2"], post_quantum, None);
        for (at, byte) in bends {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        match (peek(&bytes), acceptor(&bytes)) {
            (Peek::Hello(ours), Ok(Some(theirs))) => prop_assert_eq!(ours, theirs),
            // We read no key shares or ciphers: a backend refuses those.
            (Peek::Hello(_), Err(_)) => {}
            (Peek::Hello(ours), Ok(None)) => prop_assert!(false, "read too early: {ours:?}"),
            (Peek::More, Ok(Some(theirs))) => prop_assert!(false, "missed {theirs:?}"),
            (Peek::More, Ok(None) | Err(_)) => {}
            // Stricter about names only: rustls reads an address as no name.
            (Peek::Refused(refusal), Ok(Some(theirs))) => {
                let name = matches!(
                    refusal,
                    Refusal::NotAName | Refusal::IpLiteral | Refusal::NotOneName
                );
                let framing = refusal == Refusal::NotTls || refusal == Refusal::Malformed;
                prop_assert!(name || framing, "{refusal:?} where rustls reads {theirs:?}");
            }
            (Peek::Refused(_), Ok(None) | Err(_)) => {}
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let mut framed = vec![22, 3, 1];
        framed.extend((bytes.len() as u16).to_be_bytes());
        framed.extend(&bytes);
        let _ = (peek(&bytes), peek(&framed));
    }
}

//! What other rooms' tests build on: a held port refuses, can be listened on, and is nobody else's.

#[path = "support/port.rs"]
mod port;

use port::Port;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};

fn refused(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn it_refuses_until_somebody_listens_and_again_after() {
    let port = Port::held();
    assert!(refused(port.address));
    for _ in 0..3 {
        let listener = TcpListener::bind(port.address).unwrap();
        let _client = TcpStream::connect(port.address).unwrap();
        let (_stream, _) = listener.accept().unwrap();
        assert!(TcpListener::bind(port.address).is_err(), "one listens at a time");
        drop(listener);
        assert!(refused(port.address));
    }
}

/// Of some 28,000 ports 200 are held: among 3,000 that are given out, 20 would be held ones by chance.
#[test]
fn it_is_given_to_nobody_else() {
    let ports: Vec<Port> = std::iter::repeat_with(Port::held).take(200).collect();
    let held: BTreeSet<u16> = ports.iter().map(|port| port.address.port()).collect();
    assert_eq!(held.len(), ports.len());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    for _ in 0..3_000 {
        let given = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(!held.contains(&given), "{given} was given to a listener");
    }
    for _ in 0..3_000 {
        let given = TcpStream::connect(to).unwrap().local_addr().unwrap().port();
        assert!(!held.contains(&given), "{given} was given to a client");
        drop(listener.accept().unwrap());
    }
}

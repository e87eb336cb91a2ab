//! Callers who break off: their application must not take what came until then for all of it.

use crate::start;
use crate::world::{PATIENCE, issuer, program};
use mesh::inventory::MtlsMode::{Permissive, Strict};
use socket2::SockRef;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PART: &[u8] = b"the first half of an upload";

/// Connects, says a part, and returns both ends once the application has it.
fn upload(through: &str, application: &TcpListener) -> (TcpStream, TcpStream) {
    let through: SocketAddr = through.parse().unwrap();
    let mut caller = TcpStream::connect_timeout(&through, PATIENCE).unwrap();
    caller.write_all(PART).unwrap();
    let until = Instant::now() + PATIENCE;
    let mut server = loop {
        match application.accept() {
            Ok((server, _)) => break server,
            Err(problem) if problem.kind() == ErrorKind::WouldBlock => {
                assert!(Instant::now() < until, "nobody came through {through}");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(problem) => panic!("{problem}"),
        }
    };
    server.set_nonblocking(false).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = [0; PART.len()];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(heard, PART);
    (caller, server)
}

/// How the upload ends for the application.
fn end(mut server: TcpStream) -> Result<usize, ErrorKind> {
    server.read(&mut [0]).map_err(|problem| problem.kind())
}

fn reset(caller: TcpStream) {
    SockRef::from(&caller).set_linger(Some(Duration::ZERO)).unwrap();
    drop(caller);
}

#[test]
fn an_application_is_reset_where_its_caller_broke_off() {
    let net = u8::try_from(50 + std::process::id() % 50).unwrap();
    let (mine, theirs) = (format!("127.{net}.5"), format!("127.{net}.6"));
    let folder = tempfile::tempdir().unwrap();
    let issuer = issuer();
    let listen = |port: u16| {
        let listener = TcpListener::bind(format!("{theirs}.2:{port}")).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let (secure, plain) = (listen(6379), listen(7001));
    let ports = [(6379, Strict, false), (7001, Permissive, false)];
    let _server = start(net, 6, "server", folder.path(), &issuer, &program(&[], &ports));
    let leads = format!("{theirs}.1:6379");
    let destinations = [("240.240.7.2", 6379, false, leads.leak() as &str, "server")];
    let client = start(net, 5, "client", folder.path(), &issuer, &program(&destinations, &[]));
    let through = format!("{mine}.3:6379");
    let direct = format!("{theirs}.1:7001");

    // Who has said all is no one who breaks off.
    for (through, application) in [(&through, &secure), (&direct, &plain)] {
        let (caller, server) = upload(through, application);
        caller.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(end(server), Ok(0), "through {through}");
    }
    // In plaintext, and from behind a sidecar.
    for (through, application) in [(&through, &secure), (&direct, &plain)] {
        let (caller, server) = upload(through, application);
        reset(caller);
        assert_eq!(end(server), Err(ErrorKind::ConnectionReset), "through {through}");
    }
    // A caller's sidecar that is gone says nothing in TLS, as somebody on the way might make it seem.
    let (caller, server) = upload(&through, &secure);
    drop(client);
    assert_eq!(end(server), Err(ErrorKind::ConnectionReset), "its caller's sidecar was killed");
    drop(caller);
}

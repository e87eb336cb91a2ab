//! Liars: a TLS server that shows whatever certificate it was given and answers every request, and a
//! client that believes whatever it is shown.

use crate::authority::Authority;
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(long)]
    pub listen: SocketAddr,
    /// PEM, leaf first.
    #[arg(long)]
    pub chain: PathBuf,
    #[arg(long)]
    pub key: PathBuf,
}

/// Serves until the process ends; answers as `hello` would, from pod `forger`.
pub fn run(options: Options) -> BoxFuture<'static, Result<()>> {
    Box::pin(work(options))
}

async fn work(options: Options) -> Result<()> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(&options.chain)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&options.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let protocols = ["istio-http/1.1", "istio", "http/1.1"];
    config.alpn_protocols = protocols.map(|p| p.as_bytes().to_vec()).to_vec();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("the forger cannot listen on {}", options.listen))?;
    loop {
        let (stream, peer) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let stream = match acceptor.accept(stream).await {
                Ok(stream) => stream,
                Err(error) => return eprintln!("{peer}: {error}"),
            };
            let service = service_fn(|_: Request<Incoming>| async {
                let answer = r#"{"cluster":"west","pod":"forger","path":"/","peer":"","headers":{},"received":0}"#;
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(answer.as_bytes()))))
            });
            let http = hyper::server::conn::http1::Builder::new();
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

/// One GET over mutual TLS as `identity`, whose certificate `authority` makes whether or not it may;
/// the server is believed whatever it shows. All that comes back.
pub fn get_as(
    to: SocketAddr,
    identity: &str,
    authority: &Authority,
    host: &str,
    limit: Duration,
) -> Result<String> {
    let pair = authority.workload(identity)?;
    let chain = format!("{}{}", pair.certificate, authority.certificate);
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"istio-http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_owned())?;
    let mut session = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut socket = std::net::TcpStream::connect_timeout(&to, limit)?;
    socket.set_read_timeout(Some(limit))?;
    let mut stream = rustls::Stream::new(&mut session, &mut socket);
    write!(stream, "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")?;
    let (mut answer, mut part) = (vec![], [0; 4096]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&part[..length]),
            // What came before a careless end counts.
            Err(_) if !answer.is_empty() => break,
            Err(error) => return Err(error).context("no answer"),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What an attacker's client does, and nobody else's may.
#[derive(Debug)]
struct Credulous(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

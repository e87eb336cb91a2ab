//! A TLS server that shows whatever certificate it was given, and answers every request.

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

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
pub async fn run(options: Options) -> Result<()> {
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

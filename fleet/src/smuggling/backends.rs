//! Four servers that are not ours, and what each of them says it was asked: nginx, HAProxy, Envoy, and
//! hyper, each on a port that speaks HTTP/1.1 and one that speaks HTTP/2.
//!
//! All answer every request with `x-seen: METHOD PATH`, after they have read its body to the end.

use crate::Home;
use crate::launcher::{APP_USER, Pod};
use crate::parts;
use crate::process::Process;
use anyhow::{Context, Result};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;

/// First word of a line that says what was asked: `SEEN|METHOD|TARGET|HOST|STATUS|REQUEST-ID`.
const SEEN: &str = "SEEN|";

/// One kind of server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    Haproxy,
    Envoy,
    Hyper,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Nginx, Self::Haproxy, Self::Envoy, Self::Hyper];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Hyper => "hyper",
        }
    }

    /// Where it speaks HTTP/1.1.
    pub fn port(self) -> u16 {
        match self {
            Self::Nginx => 8191,
            Self::Haproxy => 8192,
            Self::Envoy => 8193,
            Self::Hyper => 8194,
        }
    }

    /// Where it speaks HTTP/2 with prior knowledge.
    pub fn port_http2(self) -> u16 {
        self.port() + 100
    }
}

/// One request, as a backend saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub path: String,
    pub host: String,
    /// 0 where it was not answered.
    pub status: u16,
    /// `x-request-id`, the same for all attempts at one request; empty for none.
    pub request: String,
}

/// Installs or fetches those that are missing.
pub fn prepare() -> Result<()> {
    parts::program_or_install("nginx", "nginx")?;
    parts::program_or_install("haproxy", "haproxy")?;
    parts::envoy().map(|_| ())
}

/// The servers of one pod; they end with this.
pub struct Backends {
    _processes: Vec<Process>,
    logs: BTreeMap<&'static str, PathBuf>,
}

impl Backends {
    /// Starts all four in a pod; they have been prepared.
    pub fn start(pod: &Pod, home: &Home) -> Result<Self> {
        let dir = pod.dir.join("smuggling");
        std::fs::create_dir_all(&dir)?;
        chown(&dir, Some(APP_USER), Some(APP_USER))?;
        let (mut processes, mut logs) = (Vec::new(), BTreeMap::new());
        for kind in Kind::ALL {
            let name = kind.name();
            let seen = dir.join(format!("{name}-seen.log"));
            let file = dir.join(format!("{name}.conf"));
            let path = |path: &Path| path.display().to_string();
            let start = |program: &Path, args: Vec<String>| {
                pod.job(&format!("smuggling-{name}"), program, &home.logs)
                    .user(APP_USER)
                    .args(args)
                    .start()
            };
            let process = match kind {
                Kind::Nginx => {
                    let program = parts::program_or_install("nginx", "nginx")?;
                    std::fs::write(&file, nginx(kind, &dir, &seen))?;

                    start(&program, vec!["-e".into(), "stderr".into(), "-c".into(), path(&file)])?
                }
                Kind::Haproxy => {
                    let program = parts::program_or_install("haproxy", "haproxy")?;
                    std::fs::write(&file, haproxy(kind))?;
                    start(&program, vec!["-db".into(), "-f".into(), path(&file)])?
                }
                Kind::Envoy => {
                    // The pod's user must be able to run it, wherever the cache is.
                    let program = home.run.join("bin/envoy");
                    if !program.exists() {
                        std::fs::copy(parts::envoy()?, &program)?;
                    }
                    std::fs::write(&file, envoy(kind, &seen).to_string())?;
                    let file = path(&file);
                    let options = ["--disable-hot-restart", "--concurrency", "1", "--log-level"];
                    let flush = ["warning", "--file-flush-interval-msec", "50", "--config-path"];
                    let mut args = options.map(str::to_owned).to_vec();
                    args.extend(flush.map(str::to_owned));
                    args.push(file);
                    start(&program, args)?
                }
                Kind::Hyper => {
                    let own = &home.parts.own;
                    let mut args: Vec<String> = own.verb.iter().map(|v| (*v).to_owned()).collect();
                    let listen = format!("0.0.0.0:{},0.0.0.0:{}", kind.port(), kind.port_http2());
                    args.extend(["seen".to_owned(), "--listen".into(), listen]);
                    start(&own.program, args)?
                }
            };
            let to_itself = matches!(kind, Kind::Nginx | Kind::Envoy);
            logs.insert(name, if to_itself { seen } else { process.log().to_owned() });
            processes.push(process);
        }
        Ok(Self { _processes: processes, logs })
    }

    /// All that one of them was asked so far.
    pub fn seen(&self, kind: Kind) -> Result<Vec<Seen>> {
        let path = &self.logs[kind.name()];
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(String::from_utf8_lossy(&text).lines().filter_map(seen_in).collect())
    }
}

/// One line of a log. HAProxy writes the target of HTTP/2 in absolute form.
fn seen_in(line: &str) -> Option<Seen> {
    let (_, rest) = line.split_once(SEEN)?;
    let mut words = rest.split('|').skip(1);
    let (target, host, status) = (words.next()?, words.next()?, words.next()?);
    let path = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    Some(Seen {
        path: path.to_owned(),
        host: host.to_owned(),
        status: status.trim().parse().unwrap_or(0),
        request: words.next().unwrap_or_default().trim_matches('-').trim().to_owned(),
    })
}

fn nginx(kind: Kind, dir: &Path, seen: &Path) -> String {
    let (dir, seen) = (dir.display(), seen.display());
    let server = |listen: String| {
        format!(
            "server {{ listen {listen}; location / {{ \
             add_header x-seen \"$request_method $request_uri\" always; return 200 \"seen\\n\"; }} }}\n"
        )
    };
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths: String = paths.iter().map(|p| format!("{p}_temp_path {dir}/{p};\n")).collect();
    format!(
        "daemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr warn;\nevents {{}}\n\
         http {{\n{paths}log_format seen '{SEEN}$request_method|$request_uri|$http_host|$status|$http_x_request_id';\n\
         access_log {seen} seen;\n{}{}}}\n",
        server(kind.port().to_string()),
        server(format!("{} http2", kind.port_http2())),
    )
}

fn haproxy(kind: Kind) -> String {
    format!(
        "global
    log stdout format raw local0
defaults
    mode http
    timeout client 10s
    timeout server 10s
    timeout connect 10s
    timeout http-request 10s
frontend seen
    bind :{}
    bind :{} proto h2
    log global
    # Reads the body first.
    option http-buffer-request
    http-request capture req.hdr(host) len 128
    http-request capture req.hdr(x-request-id) len 64
    log-format \"{SEEN}%HM|%HU|%[capture.req.hdr(0)]|%ST|%[capture.req.hdr(1)]\"
    http-request return status 200 content-type text/plain hdr x-seen \"%[method] %[pathq]\" string seen
",
        kind.port(),
        kind.port_http2()
    )
}

fn envoy(kind: Kind, seen: &Path) -> serde_json::Value {
    use serde_json::json;
    const V3: &str = "type.googleapis.com/envoy.extensions";
    let listener = |port: u16, codec: &str| {
        let route = json!({
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": "seen\n"}},
            "response_headers_to_add": [{"header": {
                "key": "x-seen", "value": "%REQ(:METHOD)% %REQ(:PATH)%",
            }}],
        });
        let log = json!({
            "name": "file", "typed_config": {
                "@type": format!("{V3}.access_loggers.file.v3.FileAccessLog"),
                "path": seen,
                "log_format": {"text_format_source": {"inline_string": format!(
                    "{SEEN}%REQ(:METHOD)%|%REQ(:PATH)%|%REQ(:AUTHORITY)%|%RESPONSE_CODE%|%REQ(X-REQUEST-ID)%\n"
                )}},
            },
        });
        let manager = json!({
            "@type": format!(
                "{V3}.filters.network.http_connection_manager.v3.HttpConnectionManager"
            ),
            // Else it would give each request another id.
            "generate_request_id": false, "preserve_external_request_id": true,
            "stat_prefix": codec, "codec_type": codec, "access_log": [log],
            "route_config": {"virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [route]},
            ]},
            "http_filters": [
                // Reads the body first.
                {"name": "buffer", "typed_config": {
                    "@type": format!("{V3}.filters.http.buffer.v3.Buffer"),
                    "max_request_bytes": 65_536,
                }},
                {"name": "router", "typed_config": {
                    "@type": format!("{V3}.filters.http.router.v3.Router"),
                }},
            ],
        });
        json!({
            "name": codec,
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        })
    };
    json!({"static_resources": {"listeners": [
        listener(kind.port(), "HTTP1"), listener(kind.port_http2(), "HTTP2"),
    ]}})
}

/// `isthmus-e2e seen`: hyper, as it comes.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(long, value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
}

/// Serves until the process ends; a line on standard output for each request.
pub async fn run(options: Options) -> Result<()> {
    let all = options.listen.into_iter().map(|address| async move {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                // A peer that goes away is the peer's affair.
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await;
            });
        }
        #[expect(unreachable_code, reason = "says what the loop's errors are")]
        anyhow::Ok(())
    });
    futures::future::try_join_all(all).await.map(|_| ())
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let target = parts.uri.path_and_query().map_or("*", |path| path.as_str());
    let named = parts.headers.get("host").map(|host| String::from_utf8_lossy(host.as_bytes()));
    let host = match (parts.uri.authority(), &named) {
        (Some(authority), _) => authority.as_str(),
        (None, named) => named.as_deref().unwrap_or_default(),
    };
    let whole = body.collect().await.is_ok();
    let status = if whole { 200 } else { 0 };
    let id = parts.headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    println!("{SEEN}{}|{target}|{host}|{status}|{id}", parts.method);
    let seen = format!("{} {target}", parts.method);
    // hyper would send the body of an answer to HEAD over HTTP/2.
    let said = if parts.method == Method::HEAD { "" } else { "seen\n" };
    let response = Response::builder().header("x-seen", seen).body(Full::from(said));
    Ok(response.expect("a method and a path make a header"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_server_are_read() {
        let seen = |path: &str, host: &str, status, request: &str| {
            let (path, host, request) = (path.into(), host.into(), request.into());
            Some(Seen { path, host, status, request })
        };
        assert_eq!(seen_in("SEEN|GET|/p/a-1|h|200|i"), seen("/p/a-1", "h", 200, "i"));
        assert_eq!(
            seen_in("SEEN|GET|http://h:80/p/a-1|h:80|200|-"),
            seen("/p/a-1", "h:80", 200, "")
        );
        assert_eq!(seen_in("x SEEN|POST|/p/a|h|-1"), seen("/p/a", "h", 0, ""));
        assert_eq!(seen_in("[warning] something else"), None);
    }
}

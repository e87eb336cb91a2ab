//! The proxies that are compared: each as a process of its own, pinned, with equal routes.

use crate::block;
use anyhow::{Context as _, Result, bail, ensure};
use mesh::program::{
    Cluster, ClusterName, ConnectionPool, Endpoints, GatewayListener, LbEndpoint, Listener,
    LoadBalancing, LocalityGroup, OutlierDetection, Program, Resource, ResourceKind, ResourceName,
};
use mesh::sni::{self, Sni};
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A proxy must answer within this after its start.
const START_MAX: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Rival {
    pub(crate) version: String,
    pub(crate) address: SocketAddr,
    /// What a client sends first, for the last of the routes.
    pub(crate) hello: Vec<u8>,
    process: Child,
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn route(number: u32) -> Sni {
    format!("outbound_.80_._.service-{number}.bench.svc.cluster.local")
        .parse()
        .expect("a fixed form")
}

/// A free port: bound and released; the proxy binds it next.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn pinned(program: &str) -> Command {
    let two = std::thread::available_parallelism().is_ok_and(|n| n.get() > 1);
    if two {
        let mut command = Command::new("taskset");
        command.args(["-c", "1", program]);
        command
    } else {
        Command::new(program)
    }
}

impl Rival {
    /// Our gateway from a file of xDS resources.
    pub(crate) fn gateway(
        program_path: &Path,
        folder: &Path,
        backend: SocketAddr,
        routes: u32,
    ) -> Result<Self> {
        let file = folder.join("resources.json");
        std::fs::write(
            &file,
            serde_json::to_vec(&xds::codec::to_json(&program(backend, routes)))?,
        )?;
        let (listen, admin, metrics, health) =
            (free_port()?, free_port()?, free_port()?, free_port()?);
        let Certificate { root, chain, key } = certificate(folder)?;
        let config = folder.join("gateway.yaml");
        let text = serde_json::json!({
            "cluster": "bench", "namespace": "isthmus-system", "pod": "gateway-0", "account": "isthmus-gateway",
            "trustDomain": "bench.mesh", "rootCertificates": root, "resources": file,
            "svid": {"chain": chain, "key": key}, "accessLog": false,
            "listen": format!("127.0.0.1:{listen}"), "admin": format!("127.0.0.1:{admin}"),
            "metrics": format!("127.0.0.1:{metrics}"), "health": format!("127.0.0.1:{health}"),
        });
        std::fs::write(&config, serde_json::to_vec(&text)?)?;
        let path = program_path.to_str().context("the gateway's path is not UTF-8")?;
        let version =
            Command::new(path).arg("--version").output().context("running the gateway")?;
        let mut command = pinned(path);
        command.arg("--config").arg(&config);
        Self::start(
            command,
            listen,
            routes,
            String::from_utf8_lossy(&version.stdout).trim().to_owned(),
            folder,
        )
    }

    pub(crate) fn haproxy(
        haproxy: &str,
        folder: &Path,
        backend: SocketAddr,
        routes: u32,
    ) -> Result<Self> {
        let version = Command::new(haproxy).arg("-v").output().context(
            "haproxy does not start. Fix: install it (`apt-get install haproxy`) or pass --haproxy PATH",
        )?;
        let version =
            String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
        let map = folder.join("sni.map");
        let lines: String = (0..routes).map(|n| format!("{} pods\n", route(n))).collect();
        std::fs::write(&map, lines)?;
        let listen = free_port()?;
        let config = folder.join("haproxy.cfg");
        std::fs::write(
            &config,
            format!(
                "global\n  nbthread 1\n  maxconn 5000\n\
                 defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
                 option splice-auto\n\
                 frontend edge\n  bind 127.0.0.1:{listen}\n  tcp-request inspect-delay 5s\n  \
                 tcp-request content reject unless {{ req.ssl_alpn istio }} || {{ req.ssl_hello_type 0 }}\n  \
                 tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  \
                 use_backend %[req.ssl_sni,lower,map({})]\n\
                 backend pods\n  server pod {backend}\n",
                map.display()
            ),
        )?;
        let mut command = pinned(haproxy);
        command.arg("-db").arg("-f").arg(&config);
        Self::start(command, listen, routes, version, folder)
    }

    fn start(
        mut command: Command,
        port: u16,
        routes: u32,
        version: String,
        folder: &Path,
    ) -> Result<Self> {
        ensure!(routes > 0, "--routes 0: there is nothing to route to");
        let log = folder.join(format!("{port}.log"));
        let out = std::fs::File::create(&log)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let hello = block::hello(&route(routes - 1).to_string())?;
        let mut rival = Self { version, address, hello, process };
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect(address).is_err() {
            let ended = rival.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                bail!(
                    "it does not listen on {address}: {}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        block::run(&rival, &block::Work::Connections { count: 1 }).with_context(|| {
            format!(
                "nothing came through; its log: {}",
                std::fs::read_to_string(&log).unwrap_or_default()
            )
        })?;
        Ok(rival)
    }

    /// CPU time of all its threads, from the scheduler's own count (nanoseconds).
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let spent = text.split(' ').next().unwrap_or_default();
            total += spent.parse::<u64>().context("schedstat begins with nanoseconds on a CPU")?;
        }
        Ok(Duration::from_nanos(total))
    }
}

/// Files of a certificate: the gateway needs one for its probe name, which is not measured here.
struct Certificate {
    root: PathBuf,
    chain: PathBuf,
    key: PathBuf,
}

fn certificate(folder: &Path) -> Result<Certificate> {
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_key = rcgen::KeyPair::generate()?;
    let root_made = root.self_signed(&root_key)?;
    let mut leaf = rcgen::CertificateParams::default();
    let uri = "spiffe://bench.mesh/ns/isthmus-system/sa/isthmus-gateway";
    leaf.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into()?)];
    let key = rcgen::KeyPair::generate()?;
    let made = leaf.signed_by(&key, &rcgen::Issuer::new(root, root_key))?;
    let file = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).map(|()| path)
    };
    Ok(Certificate {
        root: file("root.pem", root_made.pem())?,
        chain: file("chain.pem", made.pem())?,
        key: file("key.pem", key.serialize_pem())?,
    })
}

fn program(backend: SocketAddr, routes: u32) -> Program {
    let own: mesh::name::ClusterId = "bench".parse().expect("a label");
    let mut program = Program::new();
    let mut table = BTreeMap::new();
    for number in 0..routes {
        let sni = route(number);
        let name = ClusterName::sni(&sni);
        let cluster = Cluster {
            name: name.clone(),
            sni: sni.to_string(),
            protocol: mesh::name::Protocol::Tcp,
            load_balancing: LoadBalancing::LeastRequest,
            connect_timeout_ms: 1_000,
            outlier: OutlierDetection::default(),
            pool: ConnectionPool::default(),
            server_identities: BTreeMap::new(),
        };
        let endpoint = LbEndpoint {
            address: backend,
            cluster: own.clone(),
            network: "bench".parse().expect("a label"),
            weight: 1,
            tls: true,
            gateway: false,
            workload: "pod-0".into(),
        };
        let group = LocalityGroup {
            priority: 0,
            locality: Default::default(),
            weight: 1,
            endpoints: vec![endpoint],
        };
        let endpoints = Endpoints { cluster: name.clone(), groups: vec![group] };
        let text = name.to_string();
        program.insert(
            ResourceName::new(ResourceKind::Cluster, &text),
            Arc::new(Resource::Cluster(cluster)),
        );
        program.insert(
            ResourceName::new(ResourceKind::Endpoints, &text),
            Arc::new(Resource::Endpoints(endpoints)),
        );
        table.insert(sni, name);
    }
    let listener = GatewayListener { routes: table, probe: sni::probe_host(&own) };
    program
        .insert(ResourceName::gateway(), Arc::new(Resource::Listener(Listener::Gateway(listener))));
    program
}

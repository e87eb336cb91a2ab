//! The programs of a cluster: their configuration files, and starting them in order.

use crate::cluster::{Cluster, SYSTEM, trust_domain};
use crate::home::Home;
use crate::launcher::{APP_USER, HEALTH_PORT, PROXY_USER, Pod};
use crate::place::Place;
use crate::process::{Job, Process};
use crate::spot::{Spot, http_get};
use crate::verdict::Pillar;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// The names a client on loopback may call, and their ports.
const NAMES: [&str; 3] = ["hello.shop.global", "hello.shop.west.global", "hello.shop.north.global"];

impl Cluster {
    /// Control plane and federation controller, then gateways, then applications with sidecars.
    pub(crate) async fn start_programs(&self, home: &Home) -> Result<()> {
        self.start_controllers(home).await?;
        for pod in &self.pods {
            self.start_pod(home, pod)?;
        }
        for pod in &self.pods {
            self.launcher.ready(pod, Duration::from_secs(60)).await?;
        }
        Ok(())
    }

    async fn start_controllers(&self, home: &Home) -> Result<()> {
        let node = self.place.node(self.plan.number);
        let at = |port: u16| SocketAddr::from((self.place.bound(node), port));
        let control_plane = json!({
            "kubeconfig": self.dir.join("control-plane.kubeconfig"),
            "listen": at(15012), "admin": self.pages(15014), "metrics": at(15015),
        });
        let process = self.program(home, "control-plane", &control_plane)?.start()?;
        self.await_page(&process, 15014).await?;
        self.control_plane.set(process).ok();
        let state = self.dir.join("federation-state");
        std::fs::create_dir_all(&state)?;
        let mut federation = json!({
            "kubeconfig": self.dir.join("federation-controller.kubeconfig"),
            "admin": self.pages(15024), "metrics": at(15025),
            "dns": {
                "listen": [at(self.place.dns_port())], "upstreams": [],
                "allow": ["10.244.0.0/16", "127.0.0.0/8"],
            },
            "holder": format!("{}-1", self.plan.name),
            "state": state,
        });
        if self.place == Place::Loopback {
            federation["allowLoopback"] = json!(true);
        }
        let process = self.program(home, "federation-controller", &federation)?.start()?;
        self.await_page(&process, 15024).await?;
        self.federation.set(process).ok();
        Ok(())
    }

    /// A program on the node, with its configuration file.
    fn program(&self, home: &Home, verb: &str, config: &Value) -> Result<Job> {
        let file = self.dir.join(format!("{verb}.yaml"));
        std::fs::write(&file, serde_saphyr::to_string(config)?)?;
        let name = format!("{}/{verb}", self.plan.name);
        let job = Job::new(name, &self.spot, &home.parts.isthmus, &home.logs);
        Ok(job.args([verb, "--config", &file.display().to_string()]).env("RUST_LOG", "info"))
    }

    /// Waits for `/readyz` on a port of the node's pages.
    pub(crate) async fn await_page(&self, process: &Process, port: u16) -> Result<()> {
        let address = self.pages(port);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let page = http_get(&self.spot, address, "/readyz", Duration::from_secs(2));
            if matches!(page, Ok((200, _))) {
                return Ok(());
            }
            if let Some(status) = process.ended() {
                bail!("{} ended with {status}:\n{}", process.name(), process.last_words());
            }
            if tokio::time::Instant::now() > deadline {
                let words = process.last_words();
                bail!("{} is not ready after 60 s: {page:?}\n{words}", process.name());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The proxy of a pod and its application.
    fn start_pod(&self, home: &Home, pod: &Pod) -> Result<()> {
        let verb = if pod.namespace == SYSTEM { "gateway" } else { "sidecar" };
        let config = self.proxy_config(pod, verb);
        let file = pod.dir.join(format!("{verb}.yaml"));
        std::fs::write(&file, serde_saphyr::to_string(&config)?)?;
        if let (Spot::Netns(netns), "sidecar") = (&pod.spot, verb) {
            let out = netns
                .command(&home.parts.isthmus.display().to_string())
                .args(["sidecar-redirect", "--uid", &PROXY_USER.to_string()])
                .output()?;
            if !out.status.success() {
                let said = String::from_utf8_lossy(&out.stderr);
                bail!("isthmus sidecar-redirect in {}: {said}", netns.name());
            }
        }
        let mut job = pod
            .job(verb, &home.parts.isthmus, &home.logs)
            .user(PROXY_USER)
            .args([verb, "--config", &file.display().to_string()])
            .env("RUST_LOG", "info");
        if let (Some(Pillar::Retries | Pillar::Failover), "client") = (home.sabotage, &*pod.account)
        {
            let word = if home.sabotage == Some(Pillar::Retries) { "retries" } else { "failover" };
            job = job.env("ISTHMUS_SABOTAGE", word);
        }
        pod.proxy.set(job.start()?).ok();
        if pod.account == "hello" {
            pod.app.set(self.hello(home, pod).start()?).ok();
        }
        Ok(())
    }

    /// The application `hello` in a pod.
    pub(crate) fn hello(&self, home: &Home, pod: &Pod) -> Job {
        let application = match self.place {
            Place::Namespaces => Ipv4Addr::UNSPECIFIED,
            Place::Loopback => application(pod.address),
        };
        // Ports that only scenarios in namespaces call, each a protocol of its own.
        let also = match self.place {
            Place::Namespaces => vec!["--also".to_owned(), "0.0.0.0:8082,0.0.0.0:8083".into()],
            Place::Loopback => Vec::new(),
        };
        pod.job("hello", &home.parts.own.program, &home.logs)
            .user(APP_USER)
            .own_etc()
            .args(home.parts.own.verb)
            .args(["hello", "--cluster", self.plan.name, "--pod", &pod.name])
            .args(["--http", &format!("{application}:8080")])
            .args(["--tcp", &format!("{application}:9000")])
            .args(also)
    }

    fn proxy_config(&self, pod: &Pod, verb: &str) -> Value {
        let at = |port: u16| SocketAddr::from((self.place.bound(pod.address), port));
        let page = |port: u16| SocketAddr::from((pod.pages, port));
        let dns = SocketAddr::from((self.place.node(self.plan.number), self.place.dns_port()));
        let mut config = match (verb, self.place) {
            ("gateway", _) => json!({"listen": at(15443)}),
            (_, Place::Namespaces) => json!({
                "outbound": "127.0.0.1:15001", "inbound": "0.0.0.0:15006",
                "dns": {"listen": "127.0.0.1:15053", "upstreams": [dns]},
                "podAddresses": [pod.address], "network": self.plan.name,
            }),
            (_, Place::Loopback) => {
                let names = NAMES.map(|host| json!({"host": host, "ports": [8080, 9000]}));
                let serves = pod.account == "hello";
                json!({
                    "loopback": {
                        "slots": {"range": slots(pod.address), "names": names},
                        "application": application(pod.address),
                        "inbound": if serves { vec![8080, 9000] } else { vec![] },
                    },
                    "dns": {"listen": page(self.place.dns_port()), "upstreams": [dns]},
                    "podAddresses": [pod.address], "network": self.plan.name,
                })
            }
        };
        let common = json!({
            "cluster": self.plan.name, "namespace": pod.namespace, "pod": pod.name,
            "account": pod.account,
            "controlPlane": SocketAddr::from((self.place.node(self.plan.number), 15012)),
            "trustDomain": trust_domain(self.plan.name),
            "rootCertificates": pod.dir.join("root.pem"), "token": pod.dir.join("token"),
            "admin": page(15000), "metrics": at(15090), "health": at(HEALTH_PORT),
            "state": pod.dir.join("state"),
        });
        for (key, value) in common.as_object().expect("an object was written") {
            config[key] = value.clone();
        }
        config
    }
}

/// Where the application of a pod on loopback listens.
fn application(pod: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = pod.octets();
    Ipv4Addr::new(a, b, c, 2)
}

/// The addresses its sidecar gives to names.
fn slots(pod: Ipv4Addr) -> String {
    let [a, b, c, _] = pod.octets();
    format!("{a}.{b}.{c}.16/28")
}

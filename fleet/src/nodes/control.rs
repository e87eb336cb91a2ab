//! A cluster's control plane: etcd, API server, controllers and scheduler, in a namespace of its own.

use super::site::{PODS, SERVICES, Site};
use crate::apiserver::{ApiServer, More, Token};
use crate::authority::{Authority, Pair};
use crate::home::Home;
use crate::netns::Netns;
use crate::parts::{NodeParts, Server};
use crate::process::{Job, Process};
use crate::spot::Spot;
use anyhow::{Result, bail};
use std::net::IpAddr;
use std::path::PathBuf;
use tokio::sync::OnceCell;

/// The control plane of one cluster.
pub struct Control {
    /// Controllers and scheduler, once the API server answers: they give it 20 s and end then, and here
    /// no kubelet starts them anew.
    beside: OnceCell<[Process; 2]>,
    jobs: [Job; 2],
    pub api: ApiServer,
    /// Dropped after the processes in it.
    pub spot: Spot,
    /// Signs what kubelets serve, and the API server's certificate as their client.
    kubelets: Authority,
    pub dir: PathBuf,
}

impl Control {
    pub(super) fn start(site: Site, home: &Home, parts: &NodeParts, wan: &Netns) -> Result<Self> {
        let netns = Netns::create(&format!("{}-{}", home.prefix, site.name))?;
        let address = site.control();
        netns.plug("eth0", &format!("{address}/16"), wan, "wan", site.name)?;
        netns.ip(&["route", "add", "default", "via", "198.18.0.1"])?;
        for number in 1..=site.nodes {
            let node = site.node(number).to_string();
            // Webhooks are pods; the API server asks them at their own addresses.
            netns.ip(&["route", "add", &Site::pods(number), "via", &node])?;
        }
        netns.ip(&["route", "add", SERVICES, "via", &site.node(1).to_string()])?;
        let spot = Spot::Netns(netns);
        let dir = home.run.join(site.name);
        let kubelets = Authority::new(&format!("{} kubelets", site.name))?;
        let client = kubelets.client("kube-apiserver-kubelet-client", "system:masters")?;
        let pki = dir.join("pki");
        let file = |name: &str| pki.join(name).display().to_string();
        for (name, text) in [
            ("kubelets.crt", &kubelets.certificate),
            ("kubelet-client.crt", &client.certificate),
            ("kubelet-client.key", &client.key),
        ] {
            super::write(&pki.join(name), text)?;
        }
        let mut tokens = vec![
            Token::new("system:kube-controller-manager", ""),
            Token::new("system:kube-scheduler", ""),
            Token::new("system:kube-proxy", ""),
        ];
        for number in 1..=site.nodes {
            let user = format!("system:node:{}", site.node_name(number));
            tokens.push(Token::new(&user, "system:nodes"));
        }
        let more = More {
            tokens,
            nodes: true,
            args: vec![
                "--allow-privileged=true".into(),
                "--enable-admission-plugins=NodeRestriction".into(),
                "--enable-aggregator-routing=true".into(),
                "--kubelet-preferred-address-types=InternalIP".into(),
                format!("--kubelet-certificate-authority={}", file("kubelets.crt")),
                format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
                format!("--kubelet-client-key={}", file("kubelet-client.key")),
            ],
        };
        let Server::Kube { kube_apiserver, etcd } = &home.parts.server else {
            bail!("nodes need the real API server");
        };
        let programs = (kube_apiserver.as_path(), etcd.as_path());
        let (name, logs) = (site.name, &home.logs);
        let api = ApiServer::kube(programs, name, &spot, address, &dir, logs, &more)?;
        let job = |what: &str, program: &std::path::Path, user: &str| -> Result<Job> {
            let config = dir.join(format!("{what}.kubeconfig"));
            let token = more.token(user)?;
            super::write(&config, api.kubeconfig_for(name, &api.inside, token))?;
            Ok(Job::new(format!("{name}/{what}"), &spot, program, logs).stays().args([
                format!("--kubeconfig={}", config.display()),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                "--profiling=false".to_owned(),
            ]))
        };
        let (program, user) = (&parts.kube_controller_manager, "system:kube-controller-manager");
        let controllers = job("kube-controller-manager", program, user)?.args([
            "--use-service-account-credentials=true".to_owned(),
            format!("--service-account-private-key-file={}", file("sa.key")),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--cluster-cidr={PODS}"),
            format!("--service-cluster-ip-range={SERVICES}"),
        ]);
        let scheduler = job("kube-scheduler", &parts.kube_scheduler, "system:kube-scheduler")?;
        for number in 1..=site.nodes {
            let node = site.node_name(number);
            let users = [
                ("kubelet", format!("system:node:{node}")),
                ("kube-proxy", "system:kube-proxy".into()),
            ];
            for (what, user) in users {
                let text = api.kubeconfig_for(name, &api.url, more.token(&user)?);
                super::write(&dir.join(&node).join(format!("{what}.kubeconfig")), text)?;
            }
        }
        super::write(&dir.join("admin.kubeconfig"), api.admin_kubeconfig(name))?;
        let jobs = [controllers, scheduler];
        Ok(Self { beside: OnceCell::new(), jobs, api, spot, kubelets, dir })
    }

    pub(super) async fn ready(&self) -> Result<()> {
        self.api.ready().await?;
        let [controllers, scheduler] = &self.jobs;
        let start = async || Ok([controllers.clone().start()?, scheduler.clone().start()?]);
        self.beside.get_or_try_init(start).await.map(|_| ())
    }

    /// All of them, API server first.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        let api = [&self.api.server].into_iter().chain(&self.api.etcd);
        api.chain(self.beside.get().into_iter().flatten())
    }

    /// An administrator's kubeconfig for programs beside the API server.
    pub(super) fn admin(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// A kubelet's serving certificate.
    pub(super) fn serving(&self, node: &str, address: IpAddr) -> Result<Pair> {
        self.kubelets.serving(&[node], &[address])
    }

    /// Of kubelets, PEM.
    pub(super) fn authority(&self) -> &str {
        &self.kubelets.certificate
    }
}

//! One node: its namespaces, its disk, what it is told, and what may be done to it.

use super::control::Control;
use super::init::{Init, Mount, Service};
use super::site::{DNS, PODS, Site};
use super::{remains, write};
use crate::home::Home;
use crate::netns::{Fault, Netns};
use crate::parts::NodeParts;
use crate::process::{Job, Process, last_lines};
use crate::spot::Spot;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What a kubelet writes into the kernel's settings and finds written: the node sees files of its
/// own in their place, so that the machine's stay as they are.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// So long a container runtime may take to listen.
const RUNTIME_MAX: Duration = Duration::from_secs(60);

/// A node. Its processes see a file system, a process table and a network of their own.
pub struct Machine {
    pub name: String,
    pub address: Ipv4Addr,
    /// Its first process: the end of it is the end of all.
    pub init: Process,
    /// Dropped after the processes in it.
    pub spot: Spot,
    disk: PathBuf,
    logs: PathBuf,
}

impl Machine {
    pub(super) fn start(
        site: Site,
        number: u8,
        control: &Control,
        home: &Home,
        parts: &NodeParts,
        wan: &Netns,
    ) -> Result<Self> {
        let name = site.node_name(number);
        let address = site.node(number);
        let netns = Netns::create(&format!("{}-{name}", home.prefix))?;
        netns.plug("eth0", &format!("{address}/16"), wan, "wan", &name)?;
        netns.ip(&["route", "add", "default", "via", "198.18.0.1"])?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        for other in (1..=site.nodes).filter(|other| *other != number) {
            let via = site.node(other).to_string();
            netns.ip(&["route", "add", &Site::pods(other), "via", &via])?;
        }
        netns.nft(&masquerade())?;
        let disk = remains::disk(&home.prefix).join(&name);
        let dir = control.dir.join(&name);
        let config = dir.join("init.json");
        let init = describe(site, number, &disk, &dir, home, parts)?;
        configure(&name, number, address, &disk, &dir, control, home, parts)?;
        write(&config, serde_json::to_vec_pretty(&init)?)?;
        let spot = Spot::Netns(netns);
        let unshare =
            ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"];
        let init = Job::new(format!("{}/{name}", site.name), &spot, "unshare".as_ref(), &home.logs)
            .stays()
            .args(unshare)
            .args(["--".to_owned(), home.parts.own.program.display().to_string()])
            .args(home.parts.own.verb)
            .args(["node", "--config", &config.display().to_string()])
            .start()?;
        Ok(Self { name, address, init, spot, disk, logs: home.logs.clone() })
    }

    /// Lets the kubelet and the proxy start: there is an API server for them.
    pub(super) fn go(&self) -> Result<()> {
        write(&self.disk.join(GO), "")
    }

    /// Loads images into its runtime.
    pub(super) async fn import(&self, parts: &NodeParts, images: &[PathBuf]) -> Result<()> {
        let socket = socket(&self.disk);
        let deadline = tokio::time::Instant::now() + RUNTIME_MAX;
        while !socket.exists() {
            if self.init.ended().is_some() || tokio::time::Instant::now() > deadline {
                bail!("containerd of {} does not listen:\n{}", self.name, self.last_words());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for image in images {
            self.import_one(&parts.ctr, image).await?;
        }
        write(&self.disk.join(IMAGES), "")
    }

    /// Loads one image, a tar of an OCI layout.
    pub async fn import_one(&self, ctr: &Path, image: &Path) -> Result<()> {
        let out = tokio::process::Command::new(ctr)
            .arg("--address")
            .arg(socket(&self.disk))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(image)
            .kill_on_drop(true)
            .output()
            .await
            .context("starting ctr")?;
        let (image, said) = (image.display(), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "node {}: importing {image}: {}", self.name, said.trim());
        Ok(())
    }

    /// All packets to and from it vanish, its pods' too.
    pub fn black_hole(&self) -> Result<()> {
        self.spot.fault("eth0", Fault::Drop)
    }

    /// What it and its pods send to this address and TCP port vanishes.
    pub fn shut_to(&self, to: SocketAddr) -> Result<()> {
        self.spot.fault("eth0", Fault::DropTo(to))
    }

    /// Takes away what keeps packets from it.
    pub fn heal(&self) -> Result<()> {
        self.spot.heal()
    }

    /// Its power fails: every process of it ends at once.
    pub fn kill(&self) {
        self.init.kill();
    }

    /// Boots it again after [`Self::kill`], with the disk it had.
    pub fn boot(&self) -> Result<()> {
        self.init.revive()
    }

    /// What its programs logged last.
    pub fn last_words(&self) -> String {
        let all = ["containerd", "kubelet", "kube-proxy"].map(|what| {
            let log = log(&self.logs, &self.name, what);
            format!("--- {}\n{}\n", log.display(), last_lines(&log, 8))
        });
        format!("{}{}", self.init.last_words(), all.concat())
    }
}

/// The file whose presence lets the kubelet start, on a node's disk.
const GO: &str = "go";
/// The same for its images.
const IMAGES: &str = "images-loaded";

fn socket(disk: &Path) -> PathBuf {
    disk.join("containerd.sock")
}

fn log(logs: &Path, node: &str, what: &str) -> PathBuf {
    logs.join(format!("{node}_{what}.log"))
}

/// `1 node`, `2 nodes`.
pub(super) fn count(nodes: usize) -> String {
    if nodes == 1 { "1 node".into() } else { format!("{nodes} nodes") }
}

/// Pods leave their cluster under their node's address.
fn masquerade() -> String {
    format!(
        "table ip pods {{
  chain leave {{
    type nat hook postrouting priority srcnat;
    oifname \"eth0\" ip saddr {PODS} ip daddr != {PODS} masquerade
  }}
}}
"
    )
}

/// What the node's first process is told: its file system, and what it starts.
fn describe(
    site: Site,
    number: u8,
    disk: &Path,
    dir: &Path,
    home: &Home,
    parts: &NodeParts,
) -> Result<Init> {
    let (name, address) = (&site.node_name(number), site.node(number));
    let labels = format!(
        "topology.kubernetes.io/region={},topology.kubernetes.io/zone={}",
        site.region, site.zone
    );
    let mut mounts = vec![
        Mount::fresh("/run"),
        Mount::bound(disk.join("lib"), "/var/lib"),
        Mount::bound(disk.join("log"), "/var/log"),
    ];
    for (key, value) in TUNABLES {
        let file = disk.join("tunables").join(key);
        write(&file, format!("{value}\n"))?;
        mounts.push(Mount::bound(file, Path::new("/proc/sys").join(key)));
    }
    for folder in ["lib", "log"] {
        std::fs::create_dir_all(disk.join(folder))?;
    }
    let programs = [&parts.containerd, &parts.kubelet, &parts.kube_proxy, &home.parts.own.program];
    for path in programs.map(PathBuf::as_path).into_iter().chain([disk, dir, &home.logs]) {
        let hidden = ["/run", "/var/lib", "/var/log"].iter().find(|at| path.starts_with(at));
        if let Some(at) = hidden {
            let path = path.display();
            bail!(
                "a node has a {at} of its own and would not see {path}. Fix: keep the build folder \
                 and the cache (ISTHMUS_CACHE) elsewhere"
            );
        }
    }
    let path = |path: &Path| path.display().to_string();
    let service = |what: &str, program: &Path, args: Vec<String>, after: Vec<PathBuf>| Service {
        name: what.to_owned(),
        program: program.to_owned(),
        args,
        env: vec![],
        after,
        log: log(&home.logs, name, what),
    };
    let shims = parts.shim.parent().context("a program lies in a folder")?;
    let mut containerd = service(
        "containerd",
        &parts.containerd,
        vec!["--config".into(), path(&dir.join("containerd.toml"))],
        vec![],
    );
    let paths = std::env::var("PATH").unwrap_or_default();
    containerd.env.push(("PATH".into(), format!("{}:{paths}:/usr/sbin:/sbin", shims.display())));
    let kubelet = service(
        "kubelet",
        &parts.kubelet,
        vec![
            format!("--config={}", path(&dir.join("kubelet.json"))),
            format!("--kubeconfig={}", path(&dir.join("kubelet.kubeconfig"))),
            format!("--hostname-override={name}"),
            // Else it asks a resolver that nobody answers for its own name.
            format!("--node-ip={address}"),
            format!("--node-labels={labels}"),
        ],
        // The sandbox's image is among them.
        vec![socket(disk), disk.join(IMAGES), disk.join(GO)],
    );
    let proxy = service(
        "kube-proxy",
        &parts.kube_proxy,
        vec![format!("--config={}", path(&dir.join("kube-proxy.json")))],
        vec![disk.join(GO)],
    );
    Ok(Init { hostname: name.clone(), mounts, services: vec![containerd, kubelet, proxy] })
}

/// Writes the configurations of its programs.
#[expect(clippy::too_many_arguments, reason = "each is a different thing a node is made of")]
fn configure(
    name: &str,
    number: u8,
    address: Ipv4Addr,
    disk: &Path,
    dir: &Path,
    control: &Control,
    home: &Home,
    parts: &NodeParts,
) -> Result<()> {
    let serving = control.serving(name, address.into())?;
    write(&dir.join("kubelet.crt"), serving.certificate)?;
    write(&dir.join("kubelet.key"), serving.key)?;
    write(&dir.join("kubelets.crt"), control.authority())?;
    // The fleet's world has no names outside it.
    write(&dir.join("resolv.conf"), "nameserver 127.0.0.1\n")?;
    write(&dir.join("containerd.toml"), containerd(disk, &dir.join("cni"), parts))?;
    let cni = serde_json::to_vec_pretty(&cni(number))?;
    write(&dir.join("cni/10-pods.conflist"), cni)?;
    let cgroup = remains::cgroup(&home.prefix, name);
    let kubelet = kubelet(address, disk, dir, &cgroup);
    write(&dir.join("kubelet.json"), serde_json::to_vec_pretty(&kubelet)?)?;
    let proxy = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": PODS,
        "hostnameOverride": name,
        "clientConnection": {"kubeconfig": dir.join("kube-proxy.kubeconfig")},
        // Limits of the whole machine are not a node's to set.
        "conntrack": {"maxPerCore": 0, "min": 0},
    });
    write(&dir.join("kube-proxy.json"), serde_json::to_vec_pretty(&proxy)?)
}

/// KubeletConfiguration, `kubelet.config.k8s.io/v1beta1`; why which: `real-clusters.md`.
fn kubelet(address: Ipv4Addr, disk: &Path, dir: &Path, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "containerRuntimeEndpoint": format!("unix://{}", socket(disk).display()),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": dir.join("kubelets.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": dir.join("kubelet.crt"),
        "tlsPrivateKeyFile": dir.join("kubelet.key"),
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS],
        "resolvConf": dir.join("resolv.conf"),
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "makeIPTablesUtilChains": false,
        // A full disk of the machine is not the pods' fault.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "registerWithTaints": [],
        "maxPods": 200,
    })
}

/// CNI configuration: a bridge, addresses out of the node's own range, host ports.
fn cni(number: u8) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": Site::pods(number)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    // Gone with a reboot, as the pods are.
                    "dataDir": "/run/cni",
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ],
    })
}

/// containerd's configuration, version 3.
fn containerd(disk: &Path, cni: &Path, parts: &NodeParts) -> String {
    let snapshotter = snapshotter(disk);
    let (disk, cni, plugins, runc) =
        (disk.display(), cni.display(), parts.cni.display(), parts.runc.display());
    let pause = super::images::PAUSE;
    format!(
        "version = 3
root = '/var/lib/containerd'
state = '/run/containerd'
# What makes folders outside the node's disk, or speaks to who is not there.
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt',
  'io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing',
  'io.containerd.monitor.container.v1.restart']

[grpc]
  address = '{disk}/containerd.sock'

[plugins.'io.containerd.cri.v1.images']
  snapshotter = '{snapshotter}'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{pause}'

[plugins.'io.containerd.cri.v1.runtime']
  # Where a process may not lower its own score, runc could not either.
  restrict_oom_score_adj = true
  enable_cdi = false
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '{runc}'
      SystemdCgroup = false
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{plugins}']
    conf_dir = '{cni}'
    use_internal_loopback = true
"
    )
}

/// Overlays do not lie on overlays: where the machine is a container itself, layers are copied.
fn snapshotter(disk: &Path) -> &'static str {
    let said = Command::new("stat").args(["-f", "-c", "%T"]).arg(disk).output();
    match said {
        Ok(out) if out.stdout.starts_with(b"overlay") => "native",
        Ok(_) | Err(_) => "overlayfs",
    }
}

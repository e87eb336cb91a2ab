//! What a node and its control plane are made of beside the API server.

use super::go::{go, tidy};
use super::kubernetes::{self, Program};
use super::{WorkloadParts, cache, module, program_or_install};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

const CONTAINERD: &str = "v2.1.4";
const CONTAINERD_MODULE: &str = "github.com/containerd/containerd/v2";
const COREDNS: &str = "v1.15.0";
/// Where Debian's containernetworking-plugins puts them.
const CNI: &str = "/usr/lib/cni";

/// The programs of clusters with real nodes.
#[derive(Debug, Clone)]
pub struct NodeParts {
    pub kube_controller_manager: PathBuf,
    pub kube_scheduler: PathBuf,
    pub kubelet: PathBuf,
    pub kube_proxy: PathBuf,
    pub kubectl: PathBuf,
    pub containerd: PathBuf,
    /// Its shim, which it looks for on its PATH.
    pub shim: PathBuf,
    pub ctr: PathBuf,
    pub runc: PathBuf,
    /// Folder of the CNI plug-ins `bridge`, `host-local` and `portmap`.
    pub cni: PathBuf,
    /// Static: it goes into an image alone.
    pub coredns: PathBuf,
    pub workloads: WorkloadParts,
}

impl NodeParts {
    /// Finds every part; builds or installs what is missing, the API server too, which is built
    /// with them. Slow the first time (about 12 minutes on 2 cores).
    pub fn ready() -> Result<Self> {
        let runc = program_or_install("runc", "runc")?;
        let workloads = WorkloadParts::ready()?;
        program_or_install("iptables", "iptables").context("the plug-in portmap needs it")?;
        for plugin in ["bridge", "host-local", "portmap"] {
            super::file_or_install(&Path::new(CNI).join(plugin), "containernetworking-plugins")?;
        }
        let [_, kube_controller_manager, kube_scheduler, kubelet, kube_proxy, kubectl] =
            kubernetes::programs([
                Program::ApiServer,
                Program::ControllerManager,
                Program::Scheduler,
                Program::Kubelet,
                Program::Proxy,
                Program::Kubectl,
            ])?;
        let containers = containerd()?;
        Ok(Self {
            kube_controller_manager,
            kube_scheduler,
            kubelet,
            kube_proxy,
            kubectl,
            containerd: containers.join("containerd"),
            shim: containers.join("containerd-shim-runc-v2"),
            ctr: containers.join("ctr"),
            runc,
            cni: CNI.into(),
            coredns: coredns()?,
            workloads,
        })
    }
}

/// The folder with containerd, its shim and ctr.
fn containerd() -> Result<PathBuf> {
    const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
    let dir = cache()?.join(format!("build/containerd-{CONTAINERD}"));
    if PROGRAMS.iter().all(|name| dir.join(name).is_file()) {
        return Ok(dir);
    }
    eprintln!("building containerd {CONTAINERD} from Go modules, about 3 minutes on 2 cores");
    std::fs::create_dir_all(&dir)?;
    let plan = std::fs::read_to_string(module(CONTAINERD_MODULE, CONTAINERD)?.go_mod)?;
    // A module with `exclude` lines cannot be installed by its version; ours repeats them.
    let start = plan.find("\nexclude (").context("go.mod of containerd excludes nothing")?;
    let length = plan[start..].find("\n)").context("go.mod of containerd is cut short")?;
    let exclude = &plan[start..start + length + 2];
    let go_version = plan.lines().find_map(|line| line.strip_prefix("go "));
    let go_version = go_version.context("go.mod of containerd has no line `go`")?;
    let wrapper = format!(
        "module isthmus/containerd\n\ngo {go_version}\n\n\
         require {CONTAINERD_MODULE} {CONTAINERD}\n{exclude}\n"
    );
    std::fs::write(dir.join("go.mod"), wrapper)?;
    let packages = PROGRAMS.map(|name| format!("{CONTAINERD_MODULE}/cmd/{name}"));
    let imports = packages.each_ref().map(|package| format!("\t_ \"{package}\"\n")).concat();
    std::fs::write(
        dir.join("tools.go"),
        format!("//go:build tools\n\npackage tools\n\nimport (\n{imports})\n"),
    )?;
    tidy(&dir)?;
    let stamp = format!("-s -w -X {CONTAINERD_MODULE}/version.Version={CONTAINERD}");
    let fresh = dir.join("new");
    std::fs::create_dir_all(&fresh)?;
    go(|command| {
        // Snapshotters that need headers of their own.
        let tags = ["-tags", "no_btrfs,no_devmapper,no_zfs"];
        command.arg("build").args(tags).args(["-ldflags", &stamp, "-o"]).arg(&fresh);
        command.args(&packages).env("CGO_ENABLED", "0").current_dir(&dir);
    })?;
    for name in PROGRAMS {
        std::fs::rename(fresh.join(name), dir.join(name))?;
    }
    Ok(dir)
}

fn coredns() -> Result<PathBuf> {
    let dir = cache()?.join(format!("build/coredns-{COREDNS}"));
    let program = dir.join("coredns");
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("building CoreDNS {COREDNS} from Go modules, about 4 minutes on 2 cores");
    let fresh = dir.join("new");
    std::fs::create_dir_all(&fresh)?;
    go(|command| {
        let package = format!("github.com/coredns/coredns@{COREDNS}");
        command.args(["install", "-ldflags", "-s -w", &package]).env("GOBIN", &fresh);
        // Its image holds no libc.
        command.env("CGO_ENABLED", "0").current_dir(&dir);
    })?;
    let built = fresh.join("coredns");
    ensure!(built.is_file(), "go install made no program at {}", built.display());
    std::fs::rename(built, &program)?;
    Ok(program)
}

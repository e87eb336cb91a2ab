//! Kubernetes' own programs: given, cached, or built from its Go modules, all that miss at once.

use super::go::{go, tidy};
use super::{KUBERNETES, asset, cache, module};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Staging modules (`k8s.io/api` and the like) of that release.
const STAGING: &str = "v0.36.3";

/// A program of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
    Proxy,
    Kubectl,
}

impl Program {
    const ALL: [Self; 6] = [
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::Proxy,
        Self::Kubectl,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::Kubectl => "kubectl",
        }
    }

    /// Whether the program at `path` is there and of the wanted release.
    fn fits(self, path: &Path) -> bool {
        let (asked, first): (&[&str], _) = match self {
            Self::Kubectl => (&["version", "--client"], format!("Client Version: {KUBERNETES}")),
            _ => (&["--version"], format!("Kubernetes {KUBERNETES}")),
        };
        let said = Command::new(path).args(asked).output();
        said.is_ok_and(|out| {
            String::from_utf8_lossy(&out.stdout).lines().next().map(str::trim) == Some(&first)
        })
    }
}

/// One program, as [`programs`].
pub(super) fn program(program: Program) -> Result<PathBuf> {
    let [path] = programs([program])?;
    Ok(path)
}

/// Programs under `KUBEBUILDER_ASSETS`, else in the cache; what misses is built by one `go build`,
/// which compiles what they share once.
pub(super) fn programs<const N: usize>(wanted: [Program; N]) -> Result<[PathBuf; N]> {
    let dir = cache()?.join("build/k8s");
    let place =
        |program: Program| asset(program.name()).unwrap_or_else(|| dir.join(program.name()));
    let missing: Vec<Program> = wanted
        .into_iter()
        .filter(|program| asset(program.name()).is_none() && !program.fits(&place(*program)))
        .collect();
    if !missing.is_empty() {
        build(&dir, &missing)?;
    }
    Ok(wanted.map(place))
}

fn build(dir: &Path, missing: &[Program]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|program| program.name()).collect();
    eprintln!(
        "building {} {KUBERNETES} from Go modules: the first takes about 6 minutes on 2 cores, \
         each other one less",
        names.join(", ")
    );
    std::fs::create_dir_all(dir)?;
    wrap(dir)?;
    let stamp = format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}");
    let fresh = dir.join("new");
    std::fs::create_dir_all(&fresh)?;
    go(|command| {
        command.args(["build", "-ldflags", &stamp, "-o"]).arg(&fresh);
        command.args(names.iter().map(|name| format!("k8s.io/kubernetes/cmd/{name}")));
        command.current_dir(dir);
    })?;
    // Renamed when whole, so that a killed build leaves nothing that looks finished.
    for name in names {
        std::fs::rename(fresh.join(name), dir.join(name))?;
    }
    Ok(())
}

/// Writes a Go module of our own that holds Kubernetes' programs.
fn wrap(dir: &Path) -> Result<()> {
    let kubernetes = module("k8s.io/kubernetes", KUBERNETES)?;
    let plan = std::fs::read_to_string(&kubernetes.go_mod)?;
    // Kubernetes replaces its staging modules by folders of its repository, which a foreign main
    // module cannot: each is replaced by its published release instead.
    let mut staged: Vec<&str> = plan
        .lines()
        .filter_map(|line| line.trim().split_once(" => ./staging/"))
        .map(|(name, _)| name.trim_start_matches("replace ").trim())
        .collect();
    staged.sort_unstable();
    staged.dedup();
    ensure!(!staged.is_empty(), "go.mod of Kubernetes {KUBERNETES} replaces no staging module");
    let go_version = plan
        .lines()
        .find_map(|line| line.strip_prefix("go "))
        .context("go.mod of Kubernetes has no line `go`")?;
    let mut text = format!(
        "module isthmus/kubernetes\n\ngo {go_version}\n\nrequire k8s.io/kubernetes {KUBERNETES}\n"
    );
    for name in staged {
        text.push_str(&format!("replace {name} => {name} {STAGING}\n"));
    }
    std::fs::write(dir.join("go.mod"), text)?;
    let imports = Program::ALL.map(|p| format!("\t_ \"k8s.io/kubernetes/cmd/{}\"\n", p.name()));
    let imports = imports.concat();
    std::fs::write(
        dir.join("tools.go"),
        format!("//go:build tools\n\npackage tools\n\nimport (\n{imports})\n"),
    )?;
    tidy(dir)
}

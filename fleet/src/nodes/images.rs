//! Images of every node: the sandbox's, the cluster DNS's, two workloads', one with a shell, and the mesh's.

use crate::image::programs::{self, strip};
use crate::image::{File, Image, libraries, write_oci};
use crate::parts::{NodeParts, WorkloadParts};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The sandbox of every pod.
pub(super) const PAUSE: &str = "docker.io/library/pause:fleet";
pub(super) const COREDNS: &str = "docker.io/library/coredns:fleet";
/// [`crate::hello`], as `isthmus-e2e hello`.
pub const HELLO: &str = "docker.io/library/hello:fleet";
/// A shell, busybox's programs and curl.
pub const TOOLS: &str = "docker.io/library/tools:fleet";

/// gRPC's interop server, and its client as `/usr/bin/interop-client`.
pub const INTEROP: &str = "docker.io/library/interop:fleet";

/// Writes them all to `dir`; their paths. `own` is the program that plays the workload.
pub(super) fn write(parts: &NodeParts, own: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let mut pause = Image::of_program(PAUSE, &parts.workloads.busybox, "/bin/busybox")?;
    pause.entrypoint.extend(["sleep".into(), "infinity".into()]);
    let coredns = Image::of_program(COREDNS, &parts.coredns, "/coredns")?;
    let mut paths = tars(&[pause, coredns], dir)?;
    paths.extend(workloads(&parts.workloads, own, dir)?);
    Ok(paths)
}

/// Writes those that scenarios on pods run, and the mesh's, for whoever's nodes.
pub(crate) fn workloads(parts: &WorkloadParts, own: &Path, dir: &Path) -> Result<Vec<PathBuf>> {
    let WorkloadParts { busybox, curl, interop: peers } = parts;
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let stripped = dir.join("hello");
    strip(own, &stripped)?;
    let mut hello = Image::of_program(HELLO, &stripped, "/usr/bin/isthmus-e2e")?;
    hello.entrypoint.push("hello".into());
    let mut tools = Image::of_program(TOOLS, busybox, "/bin/busybox")?;
    tools.files.extend(applets(busybox)?);
    tools.files.push(program(curl, "/usr/bin/curl")?);
    tools.files.extend(libraries(curl)?);
    tools.entrypoint = vec!["/bin/sh".into()];
    tools.env.push(("PATH".into(), "/usr/bin:/bin".into()));
    let mut interop = Image::of_program(INTEROP, &peers.server, "/usr/bin/interop-server")?;
    interop.files.push(program(&peers.client, "/usr/bin/interop-client")?);
    interop.files.extend(libraries(&peers.client)?);
    let built = std::env::current_exe().context("the path of this program")?;
    let built = built.parent().context("a program lies in a folder")?;
    let mesh = programs::of_mesh(built, env!("CARGO_PKG_VERSION"), dir)?;
    tars(&[&[tools, hello, interop][..], &mesh].concat(), dir)
}

/// Writes each as a tar.
fn tars(images: &[Image], dir: &Path) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let written = images.iter().map(|image| {
        let path = programs::tar(dir, image);
        write_oci(image, &path)?;
        Ok(path)
    });
    written.collect()
}

fn program(from: &Path, at: &str) -> Result<File> {
    let bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    Ok(File::new(at, 0o755, bytes))
}

/// A link for each program that busybox plays.
fn applets(busybox: &Path) -> Result<Vec<File>> {
    let out = Command::new(busybox).arg("--list").output().context("starting busybox")?;
    let names = String::from_utf8(out.stdout)?;
    let other = |name: &&str| *name != "busybox" && !name.is_empty();
    let links = names.lines().filter(other);
    let links: Vec<File> =
        links.map(|name| File::link(format!("/bin/{name}"), "busybox")).collect();
    ensure!(links.iter().any(|file| file.path.ends_with("sh")), "busybox lists no shell");
    Ok(links)
}

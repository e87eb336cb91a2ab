//! The images of the mesh's own programs, as `deploy/base` names them.

use super::{File, Image, libraries};
use crate::parts::program_or_install;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a container runtime looks for `isthmus/NAME`.
const REPOSITORY: &str = "docker.io/isthmus";

/// Image and program; the last one is every verb, and what injected pods run.
const PROGRAMS: [(&str, &str); 4] = [
    ("control-plane", "isthmus-control-plane"),
    ("federation-controller", "isthmus-federation-controller"),
    ("gateway", "isthmus-gateway"),
    ("isthmus", "isthmus"),
];

/// All of them with this tag, from the programs in `folder`; `scratch` holds stripped copies.
pub fn of_mesh(folder: &Path, tag: &str, scratch: &Path) -> Result<Vec<Image>> {
    std::fs::create_dir_all(scratch).with_context(|| format!("making {}", scratch.display()))?;
    PROGRAMS
        .iter()
        .map(|(name, program)| {
            let stripped = scratch.join(program);
            strip(&folder.join(program), &stripped)?;
            let at = format!("/usr/local/bin/{program}");
            let mut image =
                Image::of_program(&format!("{REPOSITORY}/{name}:{tag}"), &stripped, &at)?;
            if *program == "isthmus" {
                image.files.extend(nft()?);
            }
            let path = "/usr/local/bin:/usr/sbin:/usr/bin".to_owned();
            image.env.push(("PATH".into(), path));
            image.labels = labels(program);
            Ok(image)
        })
        .collect()
}

/// What registries and scanners show of an image (image-spec v1.1, `annotations.md`).
fn labels(program: &str) -> BTreeMap<String, String> {
    let labels = [
        ("title", program.to_owned()),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
    ];
    labels.map(|(key, value)| (format!("org.opencontainers.image.{key}"), value)).into()
}

/// What `isthmus sidecar-redirect` starts, with its libraries.
fn nft() -> Result<Vec<File>> {
    let program = program_or_install("nft", "nftables")?;
    let bytes =
        std::fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let mut files = libraries(&program)?;
    files.push(File::new("/usr/sbin/nft", 0o755, bytes));
    Ok(files)
}

/// A file for an image's tar: `docker.io/isthmus/gateway:0.1.0` is `gateway-0.1.0.tar`.
pub fn tar(folder: &Path, image: &Image) -> PathBuf {
    let short = image.name.rsplit('/').next().unwrap_or(&image.name);
    folder.join(format!("{}.tar", short.replace(':', "-")))
}

/// A copy without what only a debugger reads, where `strip` is there.
pub fn strip(program: &Path, to: &Path) -> Result<()> {
    let done = Command::new("strip").arg("-o").arg(to).arg(program).status();
    if !done.is_ok_and(|status| status.success()) {
        std::fs::copy(program, to).with_context(|| format!("copying {}", program.display()))?;
    }
    Ok(())
}

//! Images without Docker: an OCI image layout of given files as one tar, the same bytes each time.

pub mod compare;
pub mod programs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Where a container runtime looks for a name without a registry: what is not pulled from
/// elsewhere is named below it.
pub const REGISTRY: &str = "docker.io/library";

/// One image of one layer, for this machine's architecture.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Whole reference: `docker.io/library/isthmus-gateway:0.1.0`.
    pub name: String,
    pub files: Vec<File>,
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub command: Vec<String>,
    /// `65532:65532`; empty is root.
    pub user: String,
    pub env: Vec<(String, String)>,
    pub labels: BTreeMap<String, String>,
}

/// One file of an image. Folders on the way to it need not be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Absolute, without `.` and `..`.
    pub path: PathBuf,
    pub content: Content,
}

/// What a path holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Octets, and the permission bits (`0o755`).
    Bytes { mode: u32, bytes: Vec<u8> },
    /// A folder, where its permission bits matter (`0o1777`).
    Folder { mode: u32 },
    /// A symbolic link, and where it points.
    Link(PathBuf),
}

impl File {
    pub fn new(path: impl Into<PathBuf>, mode: u32, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: Content::Bytes { mode, bytes: bytes.into() } }
    }

    pub fn folder(path: impl Into<PathBuf>, mode: u32) -> Self {
        Self { path: path.into(), content: Content::Folder { mode } }
    }

    pub fn link(path: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), content: Content::Link(to.into()) }
    }
}

/// User and group of images whose programs need no rights, as in the distroless images.
pub const NONROOT: u32 = 65532;

impl Image {
    /// A distroless image: `program` with the libraries it is linked to, at `at`, as its entrypoint,
    /// under [`NONROOT`], with what libc reads and a folder for temporary files.
    pub fn of_program(name: &str, program: &Path, at: &str) -> Result<Self> {
        let mut files = vec![
            File::new(
                "/etc/passwd",
                0o644,
                format!(
                    "root:x:0:0:root:/root:/sbin/nologin\n\
                     nonroot:x:{NONROOT}:{NONROOT}:nonroot:/tmp:/sbin/nologin\n"
                ),
            ),
            File::new("/etc/group", 0o644, format!("root:x:0:\nnonroot:x:{NONROOT}:\n")),
            File::new("/etc/nsswitch.conf", 0o644, "hosts: files dns\n"),
            File::folder("/tmp", 0o1777),
        ];
        let bytes = std::fs::read(program)
            .with_context(|| format!("reading the program {}", program.display()))?;
        files.push(File::new(at, 0o755, bytes));
        files.extend(libraries(program)?);
        Ok(Self {
            name: name.to_owned(),
            files,
            entrypoint: vec![at.to_owned()],
            user: format!("{NONROOT}:{NONROOT}"),
            ..Self::default()
        })
    }
}

/// The shared libraries a program is linked to, the dynamic loader included, each at the path where
/// the loader looks for it; none for a static program.
///
/// `ldd` says which: the program is run by its loader up to `main`, so it must be one of ours.
pub fn libraries(program: &Path) -> Result<Vec<File>> {
    let out = Command::new("ldd").arg(program).output().context("ldd is needed (libc-bin)")?;
    let (said, complaint) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let mut files = vec![];
    for path in linked(&said, &complaint)
        .with_context(|| format!("the libraries of {}", program.display()))?
    {
        let bytes = std::fs::read(&path)
            .with_context(|| format!("reading the library {}", path.display()))?;
        files.push(File::new(path, 0o755, bytes));
    }
    Ok(files)
}

/// Paths of libraries in what `ldd` says.
fn linked(said: &str, complaint: &str) -> Result<Vec<PathBuf>> {
    if said.contains("statically linked") || complaint.contains("not a dynamic executable") {
        return Ok(vec![]);
    }
    let mut paths = vec![];
    for line in said.lines().map(str::trim) {
        // `NAME => PATH (0x…)`, `PATH (0x…)` for the loader, `NAME (0x…)` for the kernel's page.
        let (name, place) = line.split_once(" => ").unwrap_or((line, line));
        let place = place.split(" (0x").next().unwrap_or_default();
        if place == "not found" {
            bail!("{name} is linked to and not installed");
        }
        if place.starts_with('/') {
            paths.push(PathBuf::from(place));
        }
    }
    ensure!(!paths.is_empty(), "ldd names no library: {said}{complaint}");
    Ok(paths)
}

/// Writes an image as a tar of its OCI layout, for `ctr image import`, `docker load` and `skopeo`;
/// the digest of its manifest (`sha256:…`). The same image gives the same octets.
///
/// Image-spec v1.1: `image-layout.md`, `manifest.md`, `config.md`, `layer.md`.
pub fn write_oci(image: &Image, to: &Path) -> Result<String> {
    ensure!(!image.name.is_empty(), "an image needs a name");
    let layer = layer(&image.files).with_context(|| format!("the layer of {}", image.name))?;
    let layer = Blob::new(layer);
    let env = image.env.iter().map(|(key, value)| format!("{key}={value}"));
    let config = Blob::json(&json!({
        "architecture": architecture()?,
        "os": "linux",
        "config": {
            "User": image.user,
            "Env": env.collect::<Vec<_>>(),
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "WorkingDir": "/",
            "Labels": image.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }));
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.described("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.described("application/vnd.oci.image.layer.v1.tar")],
    }));
    let mut named = manifest.described(MANIFEST);
    named["annotations"] = json!({
        // What containerd reads, and what the specification names.
        "io.containerd.image.name": image.name,
        "org.opencontainers.image.ref.name": image.name.rsplit(':').next(),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    });
    let mut blobs = [&config, &layer, &manifest];
    blobs.sort_by_key(|blob| &blob.digest);
    let mut files = vec![
        File::new("/index.json", 0o644, text(&index)),
        File::new("/oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#),
    ];
    files.extend(blobs.map(|blob| {
        File::new(format!("/blobs/{}", blob.digest.replace(':', "/")), 0o644, blob.bytes.clone())
    }));
    // Renamed when whole, so that nobody reads half of it.
    let fresh = to.with_extension("new");
    std::fs::write(&fresh, tar(&files)?)
        .with_context(|| format!("writing the image {}", fresh.display()))?;
    std::fs::rename(&fresh, to)
        .with_context(|| format!("renaming {} to {}", fresh.display(), to.display()))?;
    Ok(manifest.digest)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: format!("sha256:{}", hex::encode(Sha256::digest(&bytes))), bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(text(value))
    }

    /// Its descriptor.
    fn described(&self, media: &str) -> Value {
        json!({"mediaType": media, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// JSON with its keys in order.
fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a value is JSON")
}

/// This machine's, by the names of Go.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made for the architecture {other}"),
    }
}

/// The layer of an image: its files, each once.
fn layer(files: &[File]) -> Result<Vec<u8>> {
    let mut seen = BTreeMap::new();
    for file in files {
        let path = &file.path;
        if let Some(other) = seen.insert(path, file) {
            // Two programs may bring the same library.
            ensure!(other == file, "{} is there twice and differs", path.display());
        }
    }
    tar(&seen.into_values().cloned().collect::<Vec<_>>())
}

/// A tar of files in the order of their paths, with the folders above them, of no time and of root.
fn tar(files: &[File]) -> Result<Vec<u8>> {
    let mut all: BTreeMap<&Path, Option<&Content>> = BTreeMap::new();
    for File { path, content } in files {
        let plain = path.is_absolute()
            && path != Path::new("/")
            && path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        ensure!(plain, "{} is no absolute path of a file without `.` and `..`", path.display());
        for above in path.ancestors().skip(1).filter(|above| *above != Path::new("/")) {
            all.entry(above).or_default();
        }
        all.insert(path, Some(content));
    }
    let mut tar = tar::Builder::new(vec![]);
    for (path, content) in all {
        let path = path.strip_prefix("/").expect("every path is absolute");
        let mut header = tar::Header::new_gnu();
        // Of 1970 and of root, whoever builds it and when.
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        let folder = Content::Folder { mode: 0o755 };
        match content.unwrap_or(&folder) {
            Content::Bytes { mode, bytes } => {
                header.set_entry_type(tar::EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(u64::try_from(bytes.len()).expect("a length fits"));
                tar.append_data(&mut header, path, bytes.as_slice())?;
            }
            Content::Folder { mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                tar.append_data(&mut header, path, std::io::empty())?;
            }
            Content::Link(to) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                tar.append_link(&mut header, path, to)?;
            }
        }
    }
    Ok(tar.into_inner()?)
}

#[cfg(test)]
mod tests;

//! Others' own readers of files that nothing on this machine can run: kind's for its configurations,
//! BuildKit's for Dockerfiles, a registry client's for images. Built from their Go modules the first time,
//! and kept in the cache.

use crate::peers::Own;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// The release whose reader judges `e2e/kind`.
const KIND: &str = "v0.33.0";

/// The release whose reader judges `deploy/image/Dockerfile`.
const BUILDKIT: &str = "v0.34.2";

/// The release of go-containerregistry whose reader judges OCI layouts.
const REGISTRY_CLIENT: &str = "v0.22.1";

/// What kind makes of a configuration, its defaults filled in.
#[derive(Debug, Deserialize)]
pub struct KindConfig {
    /// `podSubnet`.
    pub pods: String,
    /// `serviceSubnet`.
    pub services: String,
    pub nodes: Vec<KindNode>,
}

/// A node of it.
#[derive(Debug, Deserialize)]
pub struct KindNode {
    pub role: String,
    pub labels: BTreeMap<String, String>,
}

/// Reads a configuration (`kind.x-k8s.io/v1alpha4`) as kind does, strictly; its complaint where it would
/// refuse it.
pub fn kind_config(path: &Path) -> Result<KindConfig> {
    let reader = Own {
        name: "kind-config",
        about: "kind's reader of configurations",
        source: include_str!("../go/kind_config.go"),
        // Only what lies within kind's module may import it.
        module: "sigs.k8s.io/kind/pkg/isthmus",
        requires: ("sigs.k8s.io/kind", KIND),
    };
    read(&reader, path)
}

/// A stage of a Dockerfile, as BuildKit understands it.
#[derive(Debug, Deserialize)]
pub struct Stage {
    pub name: String,
    /// What it is `FROM`.
    pub base: String,
    pub env: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// `WORKDIR`.
    pub folder: String,
    pub user: String,
    pub entrypoint: Option<Vec<String>>,
    pub copies: Vec<Copied>,
    pub runs: Option<Vec<String>>,
}

/// A `COPY` of it.
#[derive(Debug, Deserialize)]
pub struct Copied {
    /// A stage; empty is the build's context.
    pub from: String,
    pub sources: Vec<String>,
    pub to: String,
}

/// Reads a Dockerfile as BuildKit does; its complaint, or its warnings, where it has any.
pub fn dockerfile(path: &Path) -> Result<Vec<Stage>> {
    let reader = Own {
        name: "dockerfile",
        about: "BuildKit's reader of Dockerfiles",
        source: include_str!("../go/dockerfile.go"),
        module: "isthmus/dockerfile",
        requires: ("github.com/moby/buildkit", BUILDKIT),
    };
    read(&reader, path)
}

/// An image, as a container runtime would be told of it.
#[derive(Debug, Deserialize)]
pub struct OciLayout {
    pub digest: String,
    /// `linux/amd64`.
    pub platform: String,
    pub user: String,
    pub entrypoint: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// In the order of its layers.
    pub files: Vec<Packed>,
}

/// A file of it.
#[derive(Debug, Deserialize)]
pub struct Packed {
    /// Without a slash before it.
    pub path: String,
    pub mode: u32,
    pub user: u32,
    /// Seconds since 1970.
    pub time: i64,
}

/// Reads an unpacked OCI layout as go-containerregistry does, every digest and size; its complaint where it
/// would refuse it.
pub fn oci_layout(folder: &Path) -> Result<OciLayout> {
    let reader = Own {
        name: "oci-layout",
        about: "go-containerregistry's reader of layouts",
        source: include_str!("../go/oci_layout.go"),
        module: "isthmus/oci-layout",
        requires: ("github.com/google/go-containerregistry", REGISTRY_CLIENT),
    };
    read(&reader, folder)
}

fn read<T: for<'a> Deserialize<'a>>(reader: &Own, path: &Path) -> Result<T> {
    let out = Command::new(reader.built()?).arg(path).output().context("starting the reader")?;
    let complaint = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{}", complaint.trim());
    serde_json::from_slice(&out.stdout).context("what the reader prints")
}

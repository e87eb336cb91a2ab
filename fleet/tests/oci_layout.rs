//! The layouts of `cargo xtask image`, as a registry client reads them.

mod support;

use fleet::image::programs::of_mesh;
use fleet::image::write_oci;
use fleet::lint::oci_layout;
use std::path::Path;
use support::ready;

/// The layout of an image whose program is a small one, unpacked to `to/PROGRAM`; its digest.
fn layouts(to: &Path) -> Vec<(String, String)> {
    let programs =
        ["isthmus", "isthmus-control-plane", "isthmus-federation-controller", "isthmus-gateway"];
    for name in programs {
        std::fs::copy("/bin/true", to.join(name)).unwrap();
    }
    let images = of_mesh(to, "1", &to.join("stripped")).unwrap();
    let unpack = |image: &fleet::image::Image| {
        let tar = to.join("image.tar");
        let digest = write_oci(image, &tar).unwrap();
        let program = image.entrypoint[0].rsplit('/').next().unwrap().to_owned();
        let folder = to.join("layouts").join(&program);
        tar::Archive::new(std::fs::File::open(tar).unwrap()).unpack(&folder).unwrap();
        (program, digest)
    };
    images.iter().map(unpack).collect()
}

#[test]
fn a_registry_client_reads_what_is_promised() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let written = layouts(dir.path());
    assert_eq!(written.len(), 4);
    for (program, digest) in written {
        let read = oci_layout(&dir.path().join("layouts").join(&program)).unwrap();
        assert_eq!(read.digest, digest);
        let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        assert_eq!(read.platform, format!("linux/{architecture}"));
        assert_eq!(read.user, "65532:65532", "numbers: Kubernetes sees that it is not root");
        let at = format!("/usr/local/bin/{program}");
        assert_eq!(read.entrypoint, [at.as_str()]);
        let label = |key: &str| read.labels[&format!("org.opencontainers.image.{key}")].as_str();
        assert_eq!(label("title"), program);
        assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(label("licenses"), "Apache-2.0");
        let paths: Vec<&str> = read.files.iter().map(|file| file.path.as_str()).collect();
        assert!(paths.is_sorted(), "{paths:?}");
        let shells = ["sh", "bash", "dash", "busybox"];
        let shell =
            paths.iter().find(|path| shells.iter().any(|it| path.ends_with(&format!("/{it}"))));
        assert_eq!(shell, None);
        for file in &read.files {
            assert_eq!((file.user, file.time), (0, 0), "{}", file.path);
            let wanted = match file.path.as_str() {
                "tmp" => 0o1777,
                path if path.starts_with("etc/") => 0o644,
                _ => 0o755,
            };
            assert_eq!(file.mode, wanted, "{}", file.path);
        }
    }
}

#[test]
fn it_refuses_a_layout_whose_blob_is_another() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (program, _) = layouts(dir.path()).remove(0);
    let folder = dir.path().join("layouts").join(program);
    let blobs = std::fs::read_dir(folder.join("blobs/sha256")).unwrap();
    let sized =
        blobs.map(|blob| blob.unwrap().path()).map(|path| (path.metadata().unwrap().len(), path));
    // The layer: config and manifest are small.
    let (_, layer) = sized.max().unwrap();
    let mut bytes = std::fs::read(&layer).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&layer, bytes).unwrap();
    let error = oci_layout(&folder).unwrap_err().to_string();
    assert!(error.contains("a layer is sha256:"), "{error}");
}

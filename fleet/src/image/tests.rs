//! Layouts down to their layer, the same each time; and a program that runs from its image alone.

use super::*;
use std::io::Read;

/// Path, mode, link and content of every entry of a tar.
fn entries(tar: &[u8]) -> Vec<(String, u32, Option<String>, Vec<u8>)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
            let mode = header.mode().unwrap();
            let path = entry.path().unwrap().display().to_string();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            let mut bytes = vec![];
            entry.read_to_end(&mut bytes).unwrap();
            (path, mode, link, bytes)
        })
        .collect()
}

fn image() -> Image {
    Image {
        name: "docker.io/library/hello:1".into(),
        files: vec![
            File::new("/usr/bin/hello", 0o755, *b"program"),
            File::link("/bin", "usr/bin"),
            File::folder("/tmp", 0o1777),
        ],
        entrypoint: vec!["/usr/bin/hello".into()],
        command: vec!["--all".into()],
        user: "65532:65532".into(),
        env: vec![("A".into(), "b".into())],
        labels: BTreeMap::new(),
    }
}

#[test]
fn a_layout_names_its_blobs_by_their_digests_down_to_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hello.tar");
    let digest = write_oci(&image(), &path).unwrap();
    let files: BTreeMap<String, Vec<u8>> = entries(&std::fs::read(&path).unwrap())
        .into_iter()
        .map(|(path, _, _, bytes)| (path, bytes))
        .collect();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(digest, format!("sha256:{}", hex::encode(Sha256::digest(bytes))));
        assert_eq!(descriptor["size"], bytes.len());
        bytes.clone()
    };
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let named = &index["manifests"][0];
    assert_eq!(named["digest"], digest.as_str());
    assert_eq!(named["annotations"]["io.containerd.image.name"], "docker.io/library/hello:1");
    assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1");
    let manifest: Value = serde_json::from_slice(&blob(named)).unwrap();
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/hello"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Env"], json!(["A=b"]));
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    let layer = entries(&blob(&manifest["layers"][0]));
    let wanted = [
        ("bin", 0o777, Some("usr/bin"), &b""[..]),
        ("tmp", 0o1777, None, b""),
        ("usr", 0o755, None, b""),
        ("usr/bin", 0o755, None, b""),
        ("usr/bin/hello", 0o755, None, b"program"),
    ];
    let wanted = wanted.map(|(path, mode, link, bytes)| {
        (path.to_owned(), mode, link.map(str::to_owned), bytes.to_vec())
    });
    let plain = |(path, mode, link, bytes): (String, u32, _, _)| {
        (path.trim_end_matches('/').to_owned(), mode, link, bytes)
    };
    assert_eq!(layer.into_iter().map(plain).collect::<Vec<_>>(), wanted);
}

#[test]
fn the_same_files_in_any_order_are_the_same_octets() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one.tar"), dir.path().join("two.tar"));
    let mut other = image();
    other.files.reverse();
    assert_eq!(write_oci(&image(), &one).unwrap(), write_oci(&other, &two).unwrap());
    assert_eq!(std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    other.files[2] = File::new("/usr/bin/hello", 0o755, *b"programs");
    let three = dir.path().join("three.tar");
    assert_ne!(
        write_oci(&image(), &three).unwrap(),
        write_oci(&other, &dir.path().join("four.tar")).unwrap()
    );
}

#[test]
fn paths_that_leave_the_image_and_files_that_differ_are_refused() {
    for path in ["etc/passwd", "/../etc/passwd", "/a/../b", "/"] {
        let error = layer(&[File::new(path, 0o644, *b"")]).unwrap_err().to_string();
        assert!(error.contains("no absolute path"), "{path}: {error}");
    }
    let twice =
        |other: &[u8]| layer(&[File::new("/a", 0o644, *b"a"), File::new("/a", 0o644, other)]);
    assert!(twice(b"a").is_ok());
    assert_eq!(twice(b"b").unwrap_err().to_string(), "/a is there twice and differs");
}

#[test]
fn ldd_is_read_as_it_speaks() {
    let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                \tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f1)\n\
                \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2)\n\
                \t/lib64/ld-linux-x86-64.so.2 (0x00007f3)\n";
    let wanted = [
        "/lib/x86_64-linux-gnu/libgcc_s.so.1",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
    ];
    assert_eq!(linked(said, "").unwrap(), wanted.map(PathBuf::from));
    assert!(linked("\tstatically linked\n", "").unwrap().is_empty());
    assert!(linked("", "\tnot a dynamic executable\n").unwrap().is_empty());
    let missing = linked("\tlibz.so.1 => not found\n", "").unwrap_err().to_string();
    assert_eq!(missing, "libz.so.1 is linked to and not installed");
    assert!(linked("", "ldd: cannot open").is_err());
}

#[test]
fn a_program_runs_from_its_image_alone() {
    let me = std::env::current_exe().unwrap();
    let image = Image::of_program("docker.io/library/me:1", &me, "/me").unwrap();
    let dir = tempfile::tempdir().unwrap();
    tar::Archive::new(layer(&image.files).unwrap().as_slice()).unpack(dir.path()).unwrap();
    // Through the image's own loader, with the image's libraries only.
    let inside = |path: &Path| dir.path().join(path.strip_prefix("/").unwrap());
    let loader = image.files.iter().find(|file| {
        file.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux"))
    });
    let loader = inside(&loader.expect("tests are linked dynamically").path);
    let folders: std::collections::BTreeSet<_> = libraries(&me)
        .unwrap()
        .iter()
        .map(|file| inside(&file.path).parent().unwrap().display().to_string())
        .collect();
    let out = Command::new(loader)
        .args(["--inhibit-cache", "--library-path"])
        .arg(folders.into_iter().collect::<Vec<_>>().join(":"))
        .arg(dir.path().join("me"))
        .arg("--list")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("image::tests"), "{out:?}");
}

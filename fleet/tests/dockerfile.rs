//! `deploy/image/Dockerfile` as BuildKit itself reads it, held to the images that this program writes.

mod support;

use fleet::image::programs::of_mesh;
use fleet::image::{Content, Image};
use fleet::lint::{Stage, dockerfile};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::ready;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn ours() -> PathBuf {
    root().join("deploy/image/Dockerfile")
}

/// The images of programs that are all this one: what is around a program is compared, not what it does.
fn images(folder: &Path) -> Vec<Image> {
    let programs = folder.join("programs");
    std::fs::create_dir_all(&programs).unwrap();
    for name in
        ["isthmus", "isthmus-control-plane", "isthmus-federation-controller", "isthmus-gateway"]
    {
        std::fs::copy("/bin/true", programs.join(name)).unwrap();
    }
    of_mesh(&programs, "1", &folder.join("stripped")).unwrap()
}

/// The last word of an image's name, without its tag.
fn short(image: &Image) -> &str {
    image.name.rsplit('/').next().unwrap().split(':').next().unwrap()
}

/// How a stage differs from the image of its name, in what Docker is told of it.
fn differs(stage: &Stage, image: &Image) -> Option<String> {
    let copies: Vec<_> =
        stage.copies.iter().map(|it| (&*it.from, &it.sources[..], &*it.to)).collect();
    let from = [format!("/out/{}", stage.name)];
    let env: BTreeMap<_, _> = image.env.iter().cloned().collect();
    let all = [
        ("base", stage.base == "scratch"),
        ("files", copies == [("build", &from[..], "/")]),
        ("user", stage.user == image.user),
        ("environment", stage.env == env),
        ("label", stage.labels == image.labels),
        ("entrypoint", stage.entrypoint.as_ref() == Some(&image.entrypoint)),
        ("arguments", image.command.is_empty()),
        ("folder", stage.folder == "/"),
        ("commands", stage.runs.is_none()),
    ];
    let other = all.into_iter().find(|(_, same)| !same);
    other.map(|(what, _)| format!("{}: another {what}: {stage:?}", stage.name))
}

#[test]
fn its_stages_are_the_images() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (images, stages) = (images(dir.path()), dockerfile(&ours()).unwrap());
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    let wanted: Vec<&str> = std::iter::once("build").chain(images.iter().map(short)).collect();
    assert_eq!(names, wanted);
    for (stage, image) in stages[1..].iter().zip(&images) {
        assert_eq!(differs(stage, image), None);
        assert_eq!(stage.user, "65532:65532", "nobody is root");
    }
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let oldest = manifest.split("rust-version = \"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(stages[0].base, format!("rust:{oldest}-bookworm"), "the oldest Rust that builds it");
}

/// Path, permissions and octets of every file below a folder.
fn files(folder: &Path, within: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
    for entry in std::fs::read_dir(within).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(folder, &path, found);
        } else {
            let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
            let at = Path::new("/").join(path.strip_prefix(folder).unwrap());
            found.insert(at, (mode, std::fs::read(&path).unwrap()));
        }
    }
}

#[test]
fn its_build_lays_out_the_files_of_the_images() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (images, stages) = (images(dir.path()), dockerfile(&ours()).unwrap());
    let (programs, out) = (dir.path().join("programs"), dir.path().join("out"));
    let runs = stages[0].runs.iter().flatten();
    let lays = runs.filter(|run| run.starts_with("deploy/image/files"));
    for run in lays {
        // The very command, with this test's folders in place of those in Docker.
        let here = run
            .replace("/out/", &format!("{}/", out.display()))
            .replace("target/image/dist", &programs.display().to_string());
        let done = Command::new("sh").args(["-c", &here]).current_dir(root()).output().unwrap();
        assert!(done.status.success(), "{run}: {}", String::from_utf8_lossy(&done.stderr));
    }
    for image in &images {
        let folder = out.join(short(image));
        let mut laid = BTreeMap::new();
        files(&folder, &folder, &mut laid);
        let mut wanted = BTreeMap::new();
        for file in &image.files {
            match &file.content {
                Content::Bytes { mode, bytes } => {
                    wanted.insert(file.path.clone(), (*mode, bytes.clone()));
                }
                Content::Folder { mode } => {
                    let at = folder.join(file.path.strip_prefix("/").unwrap());
                    let has = at.metadata().unwrap().permissions().mode() & 0o7777;
                    assert_eq!(has, *mode, "{}", file.path.display());
                }
                Content::Link(to) => panic!("{} links to {}", file.path.display(), to.display()),
            }
        }
        let paths = |of: &BTreeMap<PathBuf, _>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(paths(&laid), paths(&wanted), "{}", image.name);
        for (path, file) in &laid {
            assert!(*file == wanted[path], "{}: {} differs", image.name, path.display());
        }
    }
}

#[test]
fn what_buildkit_refuses_or_warns_of_and_what_differs_from_an_image_is_noticed() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(ours()).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let path = dir.path().join("Dockerfile");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        dockerfile(&path)
    };
    let error = changed("USER ", "USR ").unwrap_err().to_string();
    assert!(error.contains("unknown instruction: USR"), "{error}");
    let error = changed("AS gateway", "as gateway").unwrap_err().to_string();
    assert!(error.contains("FromAsCasing"), "{error}");
    let error =
        changed("ENTRYPOINT [\"/usr/local/bin/isthmus\"]", "ENTRYPOINT isthmus").unwrap_err();
    assert!(error.to_string().contains("needs a shell"), "{error}");
    let images = images(dir.path());
    let gateway = images.iter().find(|image| short(image) == "gateway").unwrap();
    let other = |from: &str, to: &str| {
        let stages = changed(from, to).unwrap();
        let stage = stages.iter().find(|stage| stage.name == "gateway").unwrap();
        differs(stage, gateway).unwrap_or_default()
    };
    assert!(other("USER 65532:65532", "USER 0:0").contains("another user"));
    assert!(other("/isthmus-gateway\"]", "/isthmus\"]").contains("another entrypoint"));
    assert!(other("version=0.1.0", "version=0.0.9").contains("another label"));
    assert!(other("/out/gateway /\n", "/out/isthmus /\n").contains("another files"));
}

//! `cargo xtask image`: the programs as they ship, the same octets in whatever folder they are built.

use crate::{built, cargo, root, run};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub(crate) struct Image {
    /// The build to take: `dist` ships, `dev` is quicker.
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Builds twice, here and from a clone of HEAD below TMPDIR with a CARGO_HOME of its own, and
    /// fails at the first file that is not the same, or that shows where it was built.
    #[arg(long, conflicts_with = "programs")]
    check: bool,
    /// Builds the programs as they are in the images, in target/image, and makes no layouts.
    #[arg(long)]
    programs: bool,
}

/// Rooms whose programs have an image.
const ROOMS: [&str; 4] = ["cli", "control-plane", "federation-controller", "gateway"];

pub(crate) fn image(options: &Image) -> Result<()> {
    let rust = Rust::asked()?;
    if options.check {
        return check(&options.profile, &rust);
    }
    if !options.programs {
        crate::build()?;
    }
    let programs = Place::here()?.build(&options.profile, &rust)?;
    if !options.programs {
        layouts(&programs, &built("")?.with_file_name("images"))?;
    }
    Ok(())
}

/// What the harness makes of the programs in a folder.
fn layouts(programs: &Path, out: &Path) -> Result<()> {
    let mut write = Command::new(built("isthmus-e2e")?);
    run(write.arg("image").arg("--from").arg(programs).arg("--out").arg(out))
}

/// Both layouts are written by this tree's harness, from programs that were built apart.
fn check(profile: &str, rust: &Rust) -> Result<()> {
    let changed = git(&["status", "--porcelain"])?;
    ensure!(changed.is_empty(), "HEAD is compared, and this is not in it:\n{changed}");
    crate::build()?;
    let here = Place::here()?;
    let mut scratch = Scratch::new()?;
    let (ours, theirs) = (scratch.path.join("ours"), scratch.path.join("theirs"));
    layouts(&here.build(profile, rust)?, &ours)?;
    let elsewhere = here.elsewhere(&scratch.path)?;
    layouts(&elsewhere.build(profile, rust)?, &theirs)?;
    let mut compare = Command::new(built("isthmus-e2e")?);
    compare.arg("image-compare").args([&ours, &theirs]);
    // What both builds have in common, a comparison does not find.
    compare.arg("--never").arg(&scratch.path).arg("--never").arg(&rust.library);
    scratch.keep = run(&mut compare).is_err();
    let kept = scratch.path.display();
    ensure!(!scratch.keep, "the images are not reproducible; both are kept in {kept}");
    println!("the images are the same, built in {} and below {kept}", root().display());
    Ok(())
}

fn git(args: &[&str]) -> Result<String> {
    let out = Command::new("git").args(args).current_dir(root()).output().context("git")?;
    ensure!(out.status.success(), "git: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// The compiler that is asked for.
struct Rust {
    /// Its commit, which names the standard library's files.
    commit: String,
    /// Where its libraries are; their sources too, where those are installed.
    library: PathBuf,
}

impl Rust {
    fn asked() -> Result<Self> {
        let say = |arg: &[&str]| {
            let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            let out = Command::new(rustc).args(arg).output().context("starting rustc")?;
            ensure!(out.status.success(), "rustc: {}", String::from_utf8_lossy(&out.stderr));
            anyhow::Ok(String::from_utf8(out.stdout)?)
        };
        let version = say(&["-vV"])?;
        let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
        let library = Path::new(say(&["--print", "sysroot"])?.trim()).join("lib/rustlib");
        Ok(Self { commit: commit.unwrap_or("unknown").to_owned(), library })
    }

    /// Where they are installed, rustc shows the standard library as them: called as it was built.
    fn sources(&self) -> Renamed {
        (self.library.join("src/rust"), format!("/rustc/{}", self.commit))
    }
}

/// A folder, and what it is called in what is built.
type Renamed = (PathBuf, String);

/// Where a build takes place, which must not show in what it makes.
struct Place {
    root: PathBuf,
    /// Its own: other settings than those of `cargo build` would each time undo what that built.
    target: PathBuf,
    cargo_home: PathBuf,
    /// What is not there is not fetched.
    offline: bool,
}

impl Place {
    fn here() -> Result<Self> {
        let home = || Some(std::env::home_dir()?.join(".cargo"));
        let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home);
        Ok(Self {
            root: root().to_owned(),
            target: built("")?.with_file_name("image"),
            cargo_home: cargo_home.context("neither CARGO_HOME nor HOME is set")?,
            offline: false,
        })
    }

    /// A clone of HEAD below `folder`, and a copy of the crates, so that none is fetched again.
    fn elsewhere(&self, folder: &Path) -> Result<Self> {
        let cargo_home = folder.join("home/of/cargo");
        std::fs::create_dir_all(&cargo_home)?;
        for part in ["registry", "git", "config.toml"] {
            let from = self.cargo_home.join(part);
            if from.exists() {
                // Links where it is one file system.
                let copy = |how: &[&str]| {
                    run(Command::new("cp").arg("--archive").args(how).arg(&from).arg(&cargo_home))
                };
                copy(&["--link"]).or_else(|_| copy(&["--force"]))?;
            }
        }
        let root = folder.join("source");
        let clone = ["clone", "--quiet", "--no-checkout"];
        run(Command::new("git").args(clone).arg(&self.root).arg(&root))?;
        let checkout = ["checkout", "--quiet", "--detach", &git(&["rev-parse", "HEAD"])?];
        run(Command::new("git").args(checkout).current_dir(&root))?;
        Ok(Self { root, target: folder.join("target"), cargo_home, offline: true })
    }

    /// Builds the programs; the folder where they are.
    fn build(&self, profile: &str, rust: &Rust) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.target)?;
        let packages = ROOMS.map(|room| format!("-pisthmus-{room}"));
        let mut build = cargo();
        build.args(["build", "--locked", "--profile", profile]).args(packages);
        build.arg("--target-dir").arg(&self.target).current_dir(&self.root);
        build.env("CARGO_HOME", &self.cargo_home);
        build.envs(settings(&self.names()?, &rust.sources(), |name| std::env::var(name).ok()));
        if self.offline {
            build.arg("--offline");
        }
        run(&mut build)?;
        Ok(self.target.join(if profile == "dev" { "debug" } else { profile }))
    }

    /// Its folders; of two that hold a file the later counts.
    fn names(&self) -> Result<Vec<Renamed>> {
        let mut names = vec![
            (self.root.clone(), "/isthmus".to_owned()),
            (self.target.clone(), "/isthmus/target".to_owned()),
            (self.cargo_home.clone(), "/cargo".to_owned()),
        ];
        // Its folders are named by where crates come from: a mirror has another.
        let registries = self.cargo_home.join("registry/src");
        if registries.is_dir() {
            for registry in std::fs::read_dir(registries)? {
                names.push((registry?.path(), "/cargo".to_owned()));
            }
        }
        // Build scripts may follow links.
        let plain = names.iter().filter_map(|(folder, name)| {
            let plain = folder.canonicalize().ok().filter(|plain| plain != folder)?;
            Some((plain, name.clone()))
        });
        let plain: Vec<_> = plain.collect();
        names.extend(plain);
        Ok(names)
    }
}

/// What cargo, rustc and C compilers are told by the environment, after what the user tells them.
fn settings(
    names: &[Renamed],
    sources: &Renamed,
    user: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, OsString)> {
    let separator = '\u{1f}';
    // In cargo's order. What its configuration files say gives way to either.
    let flags = user("CARGO_ENCODED_RUSTFLAGS").or_else(|| {
        let words = user("RUSTFLAGS")?;
        Some(words.split_whitespace().collect::<Vec<_>>().join(&separator.to_string()))
    });
    let flags = flags.filter(|flags| !flags.is_empty());
    if let Some(flags) = &flags {
        let flags = flags.replace(separator, " ");
        eprintln!("xtask: these flags of the environment shape the images too: {flags}");
    }
    let mut rustflags: Vec<OsString> = flags.map(OsString::from).into_iter().collect();
    let renamed = |option: &str, folder: &Path, name: &str| {
        let mut flag = OsString::from(option);
        flag.push(folder);
        flag.push(format!("={name}"));
        flag
    };
    let all = names.iter().chain([sources]);
    rustflags.extend(all.map(|(folder, name)| renamed("--remap-path-prefix=", folder, name)));
    let c_flags = |variable: &str| {
        let mut flags: Vec<OsString> = user(variable).map(OsString::from).into_iter().collect();
        // Read word by word: such a folder would be two.
        let words = names.iter().filter(|(folder, _)| !folder.to_string_lossy().contains(' '));
        flags.extend(words.map(|(folder, name)| renamed("-ffile-prefix-map=", folder, name)));
        flags.join(&OsString::from(" "))
    };
    vec![
        ("CARGO_ENCODED_RUSTFLAGS", rustflags.join(&OsString::from(separator.to_string()))),
        ("CFLAGS", c_flags("CFLAGS")),
        ("CXXFLAGS", c_flags("CXXFLAGS")),
        // How a crate is cut into units would depend on what was built before.
        ("CARGO_INCREMENTAL", "0".into()),
        // `__DATE__` of C, and whatever else asks for the time; layers are of 1970 as well.
        ("SOURCE_DATE_EPOCH", user("SOURCE_DATE_EPOCH").unwrap_or_else(|| "0".into()).into()),
    ]
}

/// How such a folder is called, before the number of its process.
const SCRATCH: &str = "isthmus-image-check-";
/// Its gigabytes; the layouts are the rest.
const LARGE: [&str; 3] = ["home", "source", "target"];

/// Clears away what runs that were interrupted left behind; layouts to compare stay.
fn sweep(folder: &Path, is_dead: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let process = name.to_str().and_then(|name| name.strip_prefix(SCRATCH));
        if !process.is_some_and(|pid| pid.parse::<u32>().is_ok() && is_dead(pid)) {
            continue;
        }
        let all: &[&str] = if path.join("theirs").exists() { &LARGE } else { &[""] };
        for part in all {
            // Another user's stays.
            let _ = std::fs::remove_dir_all(path.join(part));
        }
    }
}

/// A folder of this run alone, below TMPDIR, that goes with it.
struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    fn new() -> Result<Self> {
        let folder = std::env::temp_dir().canonicalize()?;
        sweep(&folder, |pid| {
            Path::new("/proc/self").exists() && !Path::new("/proc").join(pid).exists()
        });
        let path = folder.join(format!("{SCRATCH}{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path, keep: false })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let gone: &[&str] = if self.keep { &LARGE } else { &[""] };
        for part in gone {
            let _ = std::fs::remove_dir_all(self.path.join(part));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_checks_leave_their_layouts_at_most() {
        let folder = std::env::temp_dir().join(format!("isthmus-sweep-{}", std::process::id()));
        let make = |path: &str| std::fs::create_dir_all(folder.join(path)).unwrap();
        for path in ["7/source/x", "7/ours", "8/target", "8/theirs", "9/target", "old/target"] {
            make(&format!("{SCRATCH}{path}"));
        }
        make("other/target");
        sweep(&folder, |pid| pid != "9");
        let left = |path: &str| folder.join(path).exists();
        let ours = |path: &str| left(&format!("{SCRATCH}{path}"));
        assert!(!ours("7"), "it had nothing to compare");
        assert!(ours("8/theirs") && !ours("8/target"), "what differed is looked at");
        assert!(ours("9/target"), "it runs");
        assert!(ours("old/target") && left("other/target"), "none of ours");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    fn names() -> Vec<Renamed> {
        [("/srv/isthmus", "/isthmus"), ("/srv/a b/.cargo", "/cargo")]
            .map(|(folder, name)| (folder.into(), name.to_owned()))
            .into()
    }

    /// One of the settings, where the user's environment is this.
    fn told(what: &str, user: &[(&str, &str)]) -> String {
        let user = |name: &str| {
            let found = user.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let rust = Rust { commit: "abc".into(), library: "/opt/rustlib".into() };
        let settings = settings(&names(), &rust.sources(), user);
        let (_, value) = settings.into_iter().find(|(name, _)| *name == what).unwrap();
        value.into_string().unwrap().replace('\u{1f}', "|")
    }

    #[test]
    fn the_users_flags_stand_before_ours() {
        let ours = "--remap-path-prefix=/srv/isthmus=/isthmus\
                    |--remap-path-prefix=/srv/a b/.cargo=/cargo\
                    |--remap-path-prefix=/opt/rustlib/src/rust=/rustc/abc";
        let flags = |user: &[(&str, &str)]| told("CARGO_ENCODED_RUSTFLAGS", user);
        assert_eq!(flags(&[]), ours);
        assert_eq!(flags(&[("RUSTFLAGS", "")]), ours);
        let plain = ("RUSTFLAGS", " -C  target-cpu=native ");
        assert_eq!(flags(&[plain]), format!("-C|target-cpu=native|{ours}"));
        let encoded = ("CARGO_ENCODED_RUSTFLAGS", "-g");
        assert_eq!(flags(&[plain, encoded]), format!("-g|{ours}"), "as cargo itself decides");
    }

    #[test]
    fn c_is_told_of_folders_that_are_one_word() {
        let ours = "-ffile-prefix-map=/srv/isthmus=/isthmus";
        assert_eq!(told("CFLAGS", &[]), ours);
        assert_eq!(told("CXXFLAGS", &[("CFLAGS", "-g")]), ours);
        assert_eq!(told("CFLAGS", &[("CFLAGS", "-O3 -g")]), format!("-O3 -g {ours}"));
    }

    #[test]
    fn the_time_is_1970_or_the_users() {
        assert_eq!(told("SOURCE_DATE_EPOCH", &[]), "0");
        assert_eq!(told("SOURCE_DATE_EPOCH", &[("SOURCE_DATE_EPOCH", "7")]), "7");
    }

    #[test]
    fn what_lies_deeper_is_named_after_what_holds_it() {
        let folder = std::env::temp_dir().join(format!("isthmus-names-{}", std::process::id()));
        let registry = folder.join("home/registry/src/a-mirror-1");
        std::fs::create_dir_all(&registry).unwrap();
        let (root, target, cargo_home) =
            (folder.join("source"), folder.join("source/target/image"), folder.join("home"));
        let place = Place { root, target, cargo_home, offline: true };
        let names = place.names().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        // rustc's rule, and the one of C compilers.
        let called = |path: &Path| {
            let (folder, name) =
                names.iter().rev().find(|(folder, _)| path.starts_with(folder)).unwrap();
            format!("{name}/{}", path.strip_prefix(folder).unwrap().display())
        };
        let within = |path: &str| called(&folder.join(path));
        assert_eq!(within("source/mesh/src/lib.rs"), "/isthmus/mesh/src/lib.rs");
        assert_eq!(within("source/target/image/dist/o.rs"), "/isthmus/target/dist/o.rs");
        assert_eq!(within("home/registry/src/a-mirror-1/a-1/l.rs"), "/cargo/a-1/l.rs");
    }
}

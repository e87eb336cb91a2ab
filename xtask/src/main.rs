//! The project's chores, as CI runs them: `cargo xtask codegen|test|e2e|fleet|bench`.

mod image;
#[cfg(test)]
mod keeper;
mod witness;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[derive(Parser)]
#[command(about = "The chores of Isthmus")]
enum Chore {
    /// Writes what is generated: the CRDs in deploy/crds.
    Codegen {
        /// Fails where a file differs, and writes nothing.
        #[arg(long)]
        check: bool,
    },
    /// Writes the golden files of xds/tests/golden anew: what each kind of client is sent.
    Golden,
    /// Everything CI runs: format, lints, tests, licences and bans, then every promise.
    Test {
        /// Leaves out the promises on real clusters.
        #[arg(long)]
        no_e2e: bool,
    },
    /// The promises, each by its name: `cargo xtask e2e first-call`; `--list` names them.
    E2e(E2e),
    /// Three clusters with real nodes on this machine: `cargo xtask fleet up`, `shell`, `down`.
    Fleet(E2e),
    /// OCI layouts of the programs as they ship, in target/images: no Docker is needed.
    Image(image::Image),
    /// Ratios against peers on this machine.
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<String>,
    },
}

#[derive(Args)]
struct E2e {
    /// Handed to `isthmus-e2e`: scenario names and options (`--help` says which).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

fn main() -> std::process::ExitCode {
    let end = match Chore::parse() {
        Chore::Codegen { check } => codegen(check),
        Chore::Golden => golden(),
        Chore::Test { no_e2e } => test(no_e2e),
        Chore::E2e(options) => e2e(&options.rest),
        Chore::Fleet(options) => fleet(&options.rest),
        Chore::Image(options) => image::image(&options),
        Chore::Bench { rest } => bench(&rest),
    };
    match end {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// The workspace's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Nothing may be missing in CI; elsewhere what is missing is named loudly.
fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

fn cargo() -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(root());
    command
}

fn run_cargo(args: &[&str]) -> Result<()> {
    run(cargo().args(args))
}

/// Shows a command as one would type it.
fn shown(command: &Command) -> String {
    let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_owned();
    let line = format!("{} {}", program.display(), args.join(" "));
    eprintln!("\n$ {line}");
    line
}

fn run(command: &mut Command) -> Result<()> {
    let line = shown(command);
    let status = command.status().with_context(|| format!("starting {line}"))?;
    ensure!(status.success(), "`{line}` ended with {status}");
    Ok(())
}

/// The test that compares writes instead.
fn golden() -> Result<()> {
    let mut test = cargo();
    run(test.args(["test", "--workspace", "--test", "golden"]).env("UPDATE_EXPECT", "1"))
}

/// `isthmus crds` prints every CRD; each goes to deploy/crds/NAME.yaml.
fn codegen(check: bool) -> Result<()> {
    build()?;
    let out = Command::new(built("isthmus")?)
        .arg("crds")
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(out.status.success(), "`isthmus crds` ended with {}", out.status);
    let text = String::from_utf8(out.stdout)?;
    let folder = root().join("deploy/crds");
    std::fs::create_dir_all(&folder)?;
    let mut written = vec![];
    for document in text.split("\n---").map(|doc| doc.trim_start_matches("---").trim()) {
        if document.is_empty() {
            continue;
        }
        let name = document
            .lines()
            .filter_map(|line| line.strip_prefix("  name: "))
            .map(|name| name.trim_matches(['"', '\'']))
            .find(|name| name.ends_with(".isthmus.dev"))
            .context("a CRD of `isthmus crds` has no metadata.name")?;
        let path = folder.join(format!("{name}.yaml"));
        let fresh = format!("{document}\n");
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        if old != fresh {
            ensure!(
                !check,
                "{} is not what the code says: run cargo xtask codegen",
                path.display()
            );
            std::fs::write(&path, fresh)?;
            println!("wrote deploy/crds/{name}.yaml");
        }
        written.push(path);
    }
    ensure!(!written.is_empty(), "`isthmus crds` printed no CRD");
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        // Names them for kustomize; a test holds it to the files.
        let list = path.file_name().is_some_and(|name| name == "kustomization.yaml");
        if !list && !written.contains(&path) {
            ensure!(!check, "{} is of no CRD of ours: run cargo xtask codegen", path.display());
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Each pillar, and scenarios whose verdicts rest on it: without it they must turn red.
const SABOTAGE: [(&str, &[&str]); 3] = [
    ("retries", &["stop-gateway", "drop-gateway"]),
    ("failover", &["kill-west", "stop-west"]),
    ("verifier", &["forged-identity"]),
];

/// What was run, what was not, and what failed; printed whole at the end.
struct Closing {
    passed: Vec<String>,
    failed: Vec<String>,
    left_out: Vec<String>,
    /// When the suite that comes next began.
    since: Instant,
}

impl Default for Closing {
    fn default() -> Self {
        Self { passed: vec![], failed: vec![], left_out: vec![], since: Instant::now() }
    }
}

impl Closing {
    /// Notes the end of one suite; a failure does not keep the next from running.
    fn note(&mut self, suite: &str, end: Result<()>) {
        let seconds = self.since.elapsed().as_secs();
        self.since = Instant::now();
        let took = format!("{:>2} min {:02} s", seconds / 60, seconds % 60);
        match end {
            Ok(()) => self.passed.push(format!("{took}  {suite}")),
            Err(error) => {
                eprintln!("FAILED {suite}: {error:#}");
                self.failed.push(format!("{took}  {suite}: {error:#}"));
            }
        }
    }

    /// Notes a suite that could not run here.
    fn leave_out(&mut self, suite: &str, why: &str) {
        let line = format!("{suite}: {why}");
        if in_ci() { self.failed.push(line) } else { self.left_out.push(line) }
    }
}

fn test(no_e2e: bool) -> Result<()> {
    let mut closing = Closing::default();
    closing.note("format", run_cargo(&["fmt", "--all", "--check"]));
    // One build of everything first, so that suites do not fight over features.
    let lints = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    closing.note("lints", run_cargo(&lints));
    let build = build();
    let built = build.is_ok();
    closing.note("build", build);
    closing.note("generated files are fresh", codegen(true));
    let mut parts = vec![];
    for (verb, variable, suite) in [
        ("envoy", "ENVOY", "golden xDS in a real Envoy"),
        ("assets", "KUBEBUILDER_ASSETS", "controllers on real API servers"),
    ] {
        match part(verb) {
            Ok(path) => parts.push((variable, path)),
            Err(error) => closing.leave_out(suite, &format!("{error:#}")),
        }
    }
    let (suite, end) = tests(&parts);
    closing.note(&suite, end);
    if built {
        closing.note("the demo keeps its promises, without root", demo());
    }
    licences(&mut closing);
    if no_e2e {
        closing.left_out.push("promises on real clusters: --no-e2e was given".into());
    } else if !is_root() {
        closing.leave_out("promises on real clusters", "network namespaces need root");
    } else if !built {
        closing.leave_out("promises on real clusters", "the programs were not built");
    } else {
        closing.note("promises on real clusters", e2e(&["all".into(), "--again".into()]));
        let embedded = ["--driver", "embedded", "--again", "all"].map(str::to_owned);
        closing.note("promises on the embedded API server", e2e(&embedded));
        let nodes = ["--driver", "nodes", "--again"];
        let pods = ["plain-pods", "real-pods", "pod-traffic", "one-way", "uninstall"];
        let nodes: Vec<String> = nodes.iter().chain(&pods).map(|&arg| arg.to_owned()).collect();
        closing.note("promises on real nodes", e2e(&nodes));
        for (pillar, scenarios) in SABOTAGE {
            let sabotage = ["--sabotage", pillar];
            let args: Vec<String> =
                scenarios.iter().chain(&sabotage).map(|&arg| arg.to_owned()).collect();
            closing.note(&format!("verdicts notice the loss of {pillar}"), e2e(&args));
        }
    }
    println!("\n{:-<72}", "");
    for suite in &closing.passed {
        println!("passed   {suite}");
    }
    for suite in &closing.left_out {
        println!("NOT RUN  {suite}");
    }
    for suite in &closing.failed {
        println!("FAILED   {suite}");
    }
    let Closing { passed, failed, left_out, .. } = &closing;
    println!(
        "suites: {} passed, {} failed, {} not run",
        passed.len(),
        failed.len(),
        left_out.len()
    );
    if failed.is_empty() { Ok(()) } else { bail!("{} suites failed", failed.len()) }
}

/// Tests that may be played a second time; more of them is no accident.
const AGAIN_MAX: usize = 3;

/// All tests at once. Where only a few fail, those are played again without the others beside them:
/// some measure time, and a machine may be busy. The suite's name says which.
fn tests(parts: &[(&str, String)]) -> (String, Result<()>) {
    const SUITE: &str = "unit and integration tests";
    let all = || {
        let mut tests = cargo();
        tests.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
        tests.envs(parts.iter().map(|(variable, path)| (variable, path)));
        tests
    };
    let Err(failed) = witness::run(&mut all()) else { return (SUITE.into(), Ok(())) };
    let Some(names) = failed.tests().filter(|names| names.len() <= AGAIN_MAX) else {
        return (SUITE.into(), Err(failed.into()));
    };
    eprintln!("PLAYED AGAIN, ALONE: {}", names.join(", "));
    let again = witness::run_with(all().args(["--", "--exact"]).args(&names), &names);
    let suite = format!("{SUITE}; PLAYED AGAIN: {failed}");
    (suite, again.map_err(anyhow::Error::from))
}

/// cargo-deny's parts that need no database of advisories from elsewhere.
fn licences(closing: &mut Closing) {
    const SUITE: &str = "licences, bans and sources";
    let deny = || cargo().args(["deny", "--version"]).output();
    let has = |out: std::io::Result<std::process::Output>| out.is_ok_and(|o| o.status.success());
    if !has(deny()) && in_ci() {
        // Unoptimised: it is run once, and built in half the time.
        let install =
            ["install", "--debug", "--locked", "--quiet", "cargo-deny", "--version", "^0.20"];
        if let Err(error) = run_cargo(&install) {
            closing.leave_out(SUITE, &format!("{error:#}"));
            return;
        }
    }
    if !has(deny()) {
        closing.leave_out(SUITE, "cargo-deny is missing. Run: cargo install --locked cargo-deny");
        return;
    }
    let args = ["deny", "--workspace", "--locked", "check", "bans", "licenses", "sources"];
    closing.note(SUITE, run_cargo(&args));
}

fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output();
    out.is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

/// Where cargo puts what it builds.
fn built(program: &str) -> Result<PathBuf> {
    let out = cargo().args(["metadata", "--no-deps", "--format-version=1"]).output()?;
    let text = String::from_utf8(out.stdout)?;
    // One string field of a large JSON: not worth a parser in this program.
    let key = "\"target_directory\":\"";
    let start = text.find(key).context("cargo metadata names no target_directory")? + key.len();
    let end = text[start..].find('"').context("cargo metadata is cut short")?;
    Ok(Path::new(&text[start..start + end]).join("debug").join(program))
}

/// Builds every program. Always the whole workspace: cargo unites the features of what it builds
/// together, and a part alone would build most dependencies a second time.
fn build() -> Result<()> {
    run_cargo(&["build", "--workspace", "--locked"])
}

/// Where a real part is: `envoy` prints a program, `assets` the folder of kube-apiserver and etcd.
/// Fetches or builds it the first time.
fn part(verb: &str) -> Result<String> {
    let program = built("isthmus-e2e")?;
    let out = Command::new(program).arg(verb).stderr(std::process::Stdio::inherit()).output()?;
    ensure!(out.status.success(), "isthmus-e2e {verb} ended with {}", out.status);
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// Both programs as they ship, and the rival from PATH.
fn bench(rest: &[String]) -> Result<()> {
    let parts = ["-p", "isthmus-gateway", "-p", "isthmus-bench"];
    run_cargo(&[&["build", "--profile", "dist", "--locked"], &parts[..]].concat())?;
    let dist = built("")?.with_file_name("dist");
    let gateway = dist.join("isthmus-gateway");
    run(Command::new(dist.join("isthmus-bench")).arg("--gateway").arg(gateway).args(rest))
}

/// `isthmus demo --check` as one runs it after a build, then without failover, which must turn it
/// red. What they said stays in `demo.log` and `demo-sabotaged.log` beside the program.
fn demo() -> Result<()> {
    let program = built("isthmus")?;
    let play = |log: &str, sabotage: Option<&str>| {
        let log = program.with_file_name(log);
        let mut demo = Command::new(&program);
        demo.args(["demo", "--check", "--json"]).stdout(std::fs::File::create(&log)?);
        // The demo's sidecars inherit it.
        demo.envs(sabotage.map(|pillar| ("ISTHMUS_SABOTAGE", pillar)));
        let end = run(&mut demo);
        let said = std::fs::read_to_string(&log)?;
        println!("{said}");
        let figures = said.lines().last().unwrap_or_default().to_owned();
        ensure!(figures.starts_with('{'), "it ended without its figures, see {}", log.display());
        anyhow::Ok((end, figures))
    };
    play("demo.log", None)?.0?;
    let (end, figures) = play("demo-sabotaged.log", Some("failover"))?;
    let noticed = end.is_err() && figures.contains("\"ok\":false");
    ensure!(noticed, "the demo did not notice that its sidecars fail over to nobody");
    Ok(())
}

fn e2e(rest: &[String]) -> Result<()> {
    build()?;
    Ok(witness::run(Command::new(built("isthmus-e2e")?).arg("run").args(rest))?)
}

/// What is up is not waited for by a build.
fn fleet(rest: &[String]) -> Result<()> {
    let program = built("isthmus-e2e")?;
    if rest.first().is_some_and(|verb| verb == "up") || !program.is_file() {
        build()?;
    }
    run(Command::new(program).arg("fleet").args(rest))
}

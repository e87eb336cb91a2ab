//! Keepers of the house: tests that read the tree and compare it with what ARCHITECTURE.md says.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Foreign crates heavy enough to shape a room; ARCHITECTURE.md says who may import them.
const GIANTS: [&str; 18] = [
    "tokio",
    "hyper",
    "tonic",
    "prost",
    "envoy-types",
    "kube",
    "k8s-openapi",
    "schemars",
    "rustls",
    "rustls-webpki",
    "rcgen",
    "x509-parser",
    "hickory-server",
    "hickory-proto",
    "dashmap",
    "tracing",
    "clap",
    "wasmtime",
];

/// Rooms whose imports are their own affair.
const FREE: [&str; 3] = ["e2e", "bench", "xtask"];

/// Lines after which a file should be cut; a warning.
const LONG: usize = 800;

fn packages() -> Vec<serde_json::Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1"])
        .current_dir(super::root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Files of the tree that git knows.
fn tracked() -> Vec<PathBuf> {
    let output =
        Command::new("git").args(["ls-files", "-z"]).current_dir(super::root()).output().unwrap();
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\0').map(|name| super::root().join(name)).collect()
}

fn read(path: &Path) -> Option<String> {
    String::from_utf8(std::fs::read(path).ok()?).ok()
}

/// Why `room` may not import `import`, by the two tables of the plan; `None` where it may.
fn offence(plan: &str, room: &str, import: &str, rooms: &[String]) -> Option<String> {
    if FREE.contains(&room) {
        return None;
    }
    // The table of imports is the second with this room's row: its cells hold crates.
    let table = plan.split("## Who may import whom").nth(1).expect("the plan has the table");
    let table = table.split("\n## ").next().expect("a split has a first part");
    let Some(row) = table.lines().find(|line| line.starts_with(&format!("| `{room}` |"))) else {
        return Some(format!("room `{room}` is not in the import table of ARCHITECTURE.md"));
    };
    let guarded = GIANTS.contains(&import) || rooms.iter().any(|name| name == import);
    let allowed = row.split('|').skip(2).any(|cell| cell.contains(&format!("`{import}`")));
    (guarded && !allowed)
        .then(|| format!("`{room}` imports `{import}`: change the plan first, or don't"))
}

#[test]
fn rooms_import_what_the_plan_allows() {
    let plan = include_str!("../../ARCHITECTURE.md");
    let short =
        |name: &serde_json::Value| name.as_str().unwrap().trim_start_matches("isthmus-").to_owned();
    let packages = packages();
    let rooms: Vec<String> = packages.iter().map(|p| short(&p["name"])).collect();
    let mut offences = vec![];
    for package in &packages {
        for import in package["dependencies"].as_array().unwrap() {
            // Tests may use anything.
            if import["kind"].is_null() {
                offences.extend(offence(
                    plan,
                    &short(&package["name"]),
                    &short(&import["name"]),
                    &rooms,
                ));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_keeper_finds_offences() {
    let plan = include_str!("../../ARCHITECTURE.md");
    let rooms = ["mesh".to_owned(), "xds".to_owned(), "proxy".to_owned()];
    assert!(offence(plan, "proxy", "xds", &rooms).unwrap().contains("`proxy` imports `xds`"));
    assert!(offence(plan, "mesh", "tokio", &rooms).is_some());
    assert!(offence(plan, "attic", "serde", &rooms).unwrap().contains("not in the import table"));
    assert_eq!(offence(plan, "proxy", "tokio", &rooms), None);
    assert_eq!(offence(plan, "mesh", "serde", &rooms), None);
}

#[test]
fn every_room_and_file_says_what_it_is() {
    let silent: Vec<_> = tracked()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .filter(|path| read(path).is_some_and(|text| !text.starts_with("//!")))
        .collect();
    assert!(silent.is_empty(), "these files do not start with `//!`: {silent:#?}");
}

#[test]
fn the_tree_names_no_machine() {
    // Written in pieces, so that this file does not name them either.
    let words = [
        ["/ro", "ot/"].concat(),
        ["/ho", "me/"].concat(),
        ["/wo", "rk/"].concat(),
        ["/us", "ers/"].concat(),
        [".cargo/reg", "istry"].concat(),
    ];
    let mut found = vec![];
    for path in tracked() {
        let Some(text) = read(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_ascii_lowercase();
            if words.iter().any(|word| lower.contains(word)) {
                found.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "paths of one machine in the tree:\n{}", found.join("\n"));
}

#[test]
fn long_files_are_named() {
    for path in tracked() {
        let rust = path.extension().is_some_and(|ext| ext == "rs");
        let lines = read(&path).filter(|_| rust).map_or(0, |text| text.lines().count());
        if lines > LONG {
            eprintln!("warning: {} has {lines} lines, cut it below {LONG}", path.display());
        }
    }
}

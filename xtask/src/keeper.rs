//! Keepers of the house: tests that read the tree and compare it with what ARCHITECTURE.md says.

use std::collections::{BTreeMap, BTreeSet};
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

/// The four digits `text` begins with, and what comes after them.
fn digits(text: &str) -> Option<(&str, &str)> {
    let (code, rest) = text.split_at_checked(4)?;
    code.bytes().all(|byte| byte.is_ascii_digit()).then_some((code, rest))
}

/// Error codes that a source file gives out: `ISM` and four digits before a sentence, or the number
/// of a finding. A code without a sentence after it is only named, as tests do.
fn codes(text: &str) -> BTreeSet<&str> {
    let text = text.split("mod tests {").next().expect("a split has a first part");
    let finds = text.contains("Finding") || text.contains("notes.");
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        let said = line.split("ISM").skip(1).filter_map(digits);
        found.extend(said.filter(|(_, rest)| rest.starts_with(' ')).map(|(code, _)| code));
        // A finding's code is a field, or an argument: the first of its call or alone on its line.
        let places = ["code: ", "refuse(", "warn(", "Some(("].into_iter().filter(|_| finds);
        let after = places.flat_map(|place| line.split(place).skip(1));
        let alone = finds.then(|| line.strip_prefix('(').unwrap_or(line));
        let numbers = after.chain(alone).filter_map(digits);
        found.extend(numbers.filter(|(_, rest)| rest.starts_with(',')).map(|(code, _)| code));
    }
    found
}

/// Codes that more than one room gives out.
fn shared<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let mut rooms: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (room, text) in files {
        for code in codes(text) {
            rooms.entry(code).or_default().insert(room);
        }
    }
    let shared = rooms.into_iter().filter(|(_, rooms)| rooms.len() > 1);
    shared.map(|(code, rooms)| format!("ISM{code} is used by {rooms:?}")).collect()
}

/// What gives codes out: the room and text of every source file that is no test.
fn sources() -> Vec<(String, String)> {
    let source = |path: PathBuf| {
        let name = path.strip_prefix(super::root()).ok()?.to_str()?.to_owned();
        let room = name.split('/').next()?.to_owned();
        let test = name.contains("/tests/") || name.ends_with("tests.rs");
        let counts = name.ends_with(".rs") && !test && room != "xtask";
        read(&path).filter(|_| counts).map(|text| (room, text))
    };
    tracked().into_iter().filter_map(source).collect()
}

/// Codes that a file of `cli/codes` explains: each is a key of its own line.
fn explained(text: &str) -> BTreeSet<&str> {
    let key = |line| digits(str::trim_start(line)).filter(|(_, rest)| *rest == ":");
    text.lines().filter_map(key).map(|(code, _)| code).collect()
}

/// What differs between the codes a room gives out and those its file explains.
fn unexplained(room: &str, given: &BTreeSet<&str>, explained: &BTreeSet<&str>) -> Vec<String> {
    let silent = given.difference(explained).map(|code| {
        format!(
            "ISM{code} has no explanation: write it in cli/codes/{room}.yaml (from, means, mend)"
        )
    });
    let stale = explained.difference(given).map(|code| {
        format!("ISM{code} is explained in cli/codes/{room}.yaml, and {room} does not give it out")
    });
    silent.chain(stale).collect()
}

#[test]
fn every_code_is_explained() {
    let sources = sources();
    let mut given: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (room, text) in &sources {
        given.entry(room).or_default().extend(codes(text));
    }
    let folder = super::root().join("cli/codes");
    let text = |room: &str| read(&folder.join(format!("{room}.yaml"))).unwrap_or_default();
    let mut wrong: Vec<String> = vec![];
    for (room, given) in &given {
        // The harnesses only repeat codes of others.
        if !FREE.contains(room) {
            wrong.extend(unexplained(room, given, &explained(&text(room))));
        }
    }
    for file in tracked().iter().filter(|path| path.starts_with(&folder)) {
        let room = file.file_stem().unwrap().to_str().unwrap();
        if !given.contains_key(room) {
            wrong.push(format!("cli/codes/{room}.yaml is of no room"));
        }
    }
    assert!(
        wrong.is_empty(),
        "what `isthmus explain` says is not the code's:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_keeper_finds_what_is_not_explained() {
    let text = "- from: ISM9999\n  codes:\n    1001:\n      means: 1002 of them\n";
    assert_eq!(explained(text).into_iter().collect::<Vec<_>>(), ["1001"]);
    let given = BTreeSet::from(["1001", "1003"]);
    assert!(unexplained("mesh", &given, &explained(text))[0].starts_with("ISM1003 has no"));
    let stale = unexplained("mesh", &BTreeSet::new(), &explained(text));
    assert!(stale[0].starts_with("ISM1001 is explained"), "{stale:?}");
}

#[test]
fn an_error_code_belongs_to_one_room() {
    let sources = sources();
    let found: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| codes(text)).collect();
    assert!(found.len() > 100, "codes are written in another way now: {found:?}");
    let shared = shared(sources.iter().map(|(room, text)| (room.as_str(), text.as_str())));
    assert!(shared.is_empty(), "one code, one meaning, one room:\n{}", shared.join("\n"));
}

#[test]
fn the_keeper_finds_codes() {
    let found = |text| codes(text).into_iter().collect::<Vec<_>>();
    assert_eq!(found("bail!(\"ISM1001 it is wrong. Fix: mend it\")"), ["1001"]);
    assert_eq!(
        found("if text == \"ISM1001\" {}\n// ISM1002 is another\nmod tests { ISM1003 no }"),
        [""; 0]
    );
    assert_eq!(found("mod tests;\nbail!(\"ISM1004 it is wrong\")"), ["1004"]);
    assert_eq!(
        found("notes.warn(3001, a);\n    3002,\nFinding { code: 3003, }\n  (3004, why)"),
        ["3001", "3002", "3003", "3004"]
    );
    assert_eq!(found("let ports = [\n    8080,\n];"), [""; 0]);
    let files = [("a", "\"ISM1001 x\""), ("a", "\"ISM1001 y\""), ("b", "\"ISM1002 x\"")];
    assert_eq!(shared(files.into_iter()), [""; 0]);
    let files = [("a", "\"ISM1001 x\""), ("b", "Finding { code: 1001, }")];
    assert_eq!(shared(files.into_iter()).len(), 1);
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

/// What carries traffic is as fast where promises are measured as where the demo runs.
#[test]
fn dev_and_release_optimise_the_same() {
    let manifest = include_str!("../../Cargo.toml");
    let fast = |profile: &str| -> BTreeSet<&str> {
        let head = format!("[profile.{profile}.package.");
        let names = manifest.lines().filter_map(|line| line.strip_prefix(&head)?.strip_suffix(']'));
        names.filter(|name| !name.starts_with('"')).collect()
    };
    let (mut dev, release) = (fast("dev"), fast("release"));
    assert!(dev.remove("isthmus-fleet"), "the load of the promises is optimised");
    assert!(dev.len() > 20, "{dev:?}");
    assert_eq!(dev, release, "a package is in one list of Cargo.toml alone");
}

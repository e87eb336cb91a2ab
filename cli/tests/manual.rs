//! The shell's completion and the man pages, as their readers see them.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

fn isthmus(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_isthmus")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Verbs as `isthmus --help` lists them.
fn verbs() -> Vec<String> {
    let help = text(&isthmus(&["--help"]).stdout);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let verbs = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let verbs = verbs.map(|line| line.split_whitespace().next().unwrap().to_owned());
    let verbs: Vec<String> = verbs.filter(|verb| verb != "help").collect();
    assert!(verbs.len() > 15 && verbs.iter().any(|verb| verb == "explain"), "{help}");
    verbs
}

/// What bash offers after `words`, the last of which is being typed.
fn offered(script: &Path, words: &[&str]) -> Vec<String> {
    let play = format!(
        "source {}; COMP_WORDS=({}); COMP_CWORD={}; _isthmus isthmus '{}' '{}'; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2]
    );
    let out = Command::new("bash").args(["--norc", "-c", &play]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_and_options() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("isthmus.bash");
    let made = isthmus(&["completion", "bash"]);
    assert!(made.status.success());
    std::fs::write(&script, made.stdout).unwrap();
    let sound = Command::new("bash").arg("-n").arg(&script).output().unwrap();
    assert!(sound.status.success(), "{}", text(&sound.stderr));
    assert_eq!(offered(&script, &["isthmus", "expl"]), ["explain"]);
    let all = offered(&script, &["isthmus", "\"\""]);
    for verb in verbs() {
        assert!(all.contains(&verb), "{verb} is not offered: {all:?}");
    }
    let options = offered(&script, &["isthmus", "link", "--dry"]);
    assert_eq!(options, ["--dry-run"]);
    assert_eq!(offered(&script, &["isthmus", "explain", "-o", "js"]), ["json"]);
}

/// Without that shell this fails under CI, and says loudly elsewhere that nothing was shown.
fn is_there(shell: &str) -> bool {
    let there = Command::new(shell).args(["-c", "true"]).output().is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "no {shell}: install it");
        let said = format!("\n*** SKIPPED: no {shell}; what it completes was NOT judged ***\n\n");
        std::io::stderr().write_all(said.as_bytes()).unwrap();
    }
    there
}

#[test]
fn fish_completes_verbs_and_options() {
    if !is_there("fish") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("isthmus.fish");
    std::fs::write(&script, isthmus(&["completion", "fish"]).stdout).unwrap();
    let offered = |line: &str| -> Vec<String> {
        let play = format!("source {}; complete -C '{line}'", script.display());
        let out = Command::new("fish").args(["--no-config", "-c", &play]).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
        let word = |line: &str| line.split('\t').next().unwrap().to_owned();
        text(&out.stdout).lines().map(word).collect()
    };
    assert_eq!(offered("isthmus expl"), ["explain"]);
    let all = offered("isthmus ");
    for verb in verbs() {
        assert!(all.contains(&verb), "{verb} is not offered: {all:?}");
    }
    assert_eq!(offered("isthmus link --dry"), ["--dry-run"]);
    assert_eq!(offered("isthmus explain -o js"), ["json"]);
}

/// Types a line and a tab at a terminal, and reads until it is completed.
const ZSH: &str = "
    zmodload zsh/zpty; zpty z zsh -f -i
    zpty -w z \"PS1=; autoload -Uz compinit; compinit -u -D; source $1; print NOW'READY'\"
    zpty -r -m z said '*NOWREADY*'
    zpty -w -n z $2$'\\t'
    zpty -r -m z said \"*$3*\"";

#[test]
fn zsh_completes_verbs_and_options() {
    if !is_there("zsh") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("_isthmus");
    std::fs::write(&script, isthmus(&["completion", "zsh"]).stdout).unwrap();
    for (typed, whole) in [
        ("isthmus expl", "explain"),
        ("isthmus link --dry", "--dry-run"),
        ("isthmus explain -o js", "json"),
    ] {
        let out = Command::new("timeout")
            .args(["20", "zsh", "-f", "-c", ZSH, "zsh"])
            .args([script.to_str().unwrap(), typed, whole])
            .output()
            .unwrap();
        assert!(out.status.success(), "{typed:?} does not become {whole:?}: {out:?}");
    }
}

#[test]
fn every_verb_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man");
    let done = isthmus(&["man", "--out", out.to_str().unwrap()]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let page = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    assert!(page("isthmus.1").contains(".TH isthmus"));
    for verb in verbs() {
        let page = page(&format!("isthmus-{verb}.1"));
        for section in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"] {
            assert!(page.contains(section), "{verb}: no {section}");
        }
    }
    assert!(page("isthmus-trust-issue.1").contains("passphrase"));
    let first = isthmus(&["man"]);
    assert_eq!(text(&first.stdout), page("isthmus.1"));
    let nowhere = isthmus(&["man", "--out", "/proc/none"]);
    assert!(!nowhere.status.success() && text(&nowhere.stderr).contains("ISM2051"));
}

#[test]
fn a_code_is_explained() {
    let said = text(&isthmus(&["explain", "ism3106"]).stdout);
    for word in ["ISM3106", "protocols", "traffic", "mend", "appProtocol", "said by"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let all = text(&isthmus(&["explain"]).stdout);
    assert!(all.lines().filter(|line| line.starts_with("ISM")).count() > 200, "{all}");
    let json: serde_json::Value =
        serde_json::from_slice(&isthmus(&["explain", "3106", "-o", "json"]).stdout).unwrap();
    assert_eq!((&json["code"], &json["room"]), (&"ISM3106".into(), &"mesh".into()));
    let unknown = isthmus(&["explain", "ISM3107"]);
    let said = text(&unknown.stderr);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(said.contains("ISM2050") && said.contains("ISM3106"), "{said}");
    assert_eq!(isthmus(&["explain", "moon"]).status.code(), Some(2));
}

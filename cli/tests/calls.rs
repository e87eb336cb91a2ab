//! Calls whose words are wrong: exit 2, the word and its fix, before any cluster is asked.

use std::process::Command;

/// Two contexts where nobody listens: whoever asks them fails otherwise than by the call's words.
const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: east
clusters:
- {name: east, cluster: {server: 'https://127.0.0.1:1'}}
- {name: west, cluster: {server: 'https://127.0.0.1:2'}}
users: [{name: me, user: {token: none}}]
contexts:
- {name: east, context: {cluster: east, user: me}}
- {name: west, context: {cluster: west, user: me}}
";

/// Exit status, and what was printed.
fn isthmus(args: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus"));
    let said = command.args(args).env("KUBECONFIG", &kubeconfig).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (said.status.code(), text(said.stdout) + &text(said.stderr))
}

#[track_caller]
fn refused(call: &str, words: &[&str]) {
    let (code, said) = isthmus(&call.split(' ').collect::<Vec<_>>());
    assert_eq!(code, Some(2), "{call}: {said}");
    for word in words {
        assert!(said.contains(word), "{call}: no {word}: {said}");
    }
}

#[test]
fn terms_that_break_a_link_are_refused() {
    let range = ["--gateway-ranges", "10.0.0.0/99", "no CIDR", "Fix: "];
    refused("link east west --gateway-ranges 10.0.0.0/8,10.0.0.0/99", &range);
    refused("link east west --gateway-ranges 10.0.0.0/99 --dry-run", &range);
    let namespace = ["--import", "Shop!", "Fix: "];
    refused("link east west --import Shop!", &namespace);
    refused("link --fleet none.yaml --import shop,Shop!", &namespace);
    let (code, said) = isthmus(&["link", "east", "west", "--import", "*"]);
    assert!(code == Some(1) && said.contains("ISM2005"), "{said}");
}

#[test]
fn no_link_is_taken_down_between_a_cluster_and_itself() {
    refused("unlink west west", &["ISM2012", "\"west\"", "itself", "Fix: "]);
    let (_, help) = isthmus(&["unlink", "--help"]);
    let kubeconfig = help.split("--kubeconfig <FILE>").nth(1).unwrap().split("--").next().unwrap();
    assert!(kubeconfig.contains("~/.kube/config"), "{help}");
}

#[test]
fn names_that_fit_nothing_are_refused() {
    refused("link east east", &["ISM2012", "Fix: "]);
    refused("link east west --server mars=https://10.0.0.1:6443", &["ISM2012", "mars", "Fix: "]);
    refused("export deploy/x", &["ISM2020", "deploy", "Fix: "]);
    refused("export svc/X!", &["ISM2020", "X!", "Fix: "]);
    refused("export svc/x --context nope", &["ISM2002", "nope", "east, west", "Fix: "]);
    refused("why deploy/x a:80", &["ISM2030", "deploy", "Fix: "]);
    refused("why pod/x a", &["ISM2030", "HOST:PORT", "Fix: "]);
    refused("check --controller west=127.0.0.1:1", &["ISM2625", "west", "Fix: "]);
    refused("install --context east --name west=w", &["ISM2071", "west", "Fix: "]);
}

#[test]
fn a_peer_is_another_cluster_of_the_kubeconfig() {
    for call in ["why pod/x a:80", "export svc/x", "export svc/x --dry-run"] {
        refused(&format!("{call} --peer nope"), &["ISM2002", "nope", "east, west"]);
        refused(&format!("{call} --peer west --peer east"), &["ISM2033", "\"east\"", "itself"]);
    }
}

#[test]
fn what_is_said_of_a_context_shows_its_form() {
    refused("install --name foo", &["\"foo\" is not CONTEXT=NAME"]);
    refused("install --network foo", &["\"foo\" is not CONTEXT=NAME"]);
    refused("link east west --server foo", &["\"foo\" is not CONTEXT=https://ADDRESS:PORT"]);
}

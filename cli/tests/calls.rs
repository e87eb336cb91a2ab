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

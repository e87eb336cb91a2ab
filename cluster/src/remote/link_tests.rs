//! Histories of one link's credentials.

use super::*;
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

fn kubeconfig(token: &str) -> kubeconfig::Remote {
    use base64::Engine as _;
    let pem = "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n";
    let ca = base64::engine::general_purpose::STANDARD.encode(pem);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: w\nclusters: [{{name: w, cluster: {{server: 'https://10.0.0.2:6443', certificate-authority-data: {ca}}}}}]\n\
         users: [{{name: w, user: {{token: {token}}}}}]\ncontexts: [{{name: w, context: {{cluster: w, user: w}}}}]\n"
    );
    kubeconfig::parse(text.as_bytes(), kubeconfig::Rules::default()).unwrap()
}

fn told() -> Arc<Told> {
    Arc::new(Told {
        cluster: "west".parse().unwrap(),
        uid: "u".into(),
        network: "net-west".parse().unwrap(),
        trust_domain: "west.mesh".parse().unwrap(),
        root_certificates: String::new(),
        gateways: vec![],
        services: BTreeMap::new(),
        findings: vec![],
    })
}

struct World {
    link: Link,
    now: Moment,
}

impl World {
    fn new() -> Self {
        let now = Moment { at: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        Self { link: Link::new(secret(), now), now }
    }
    fn wait(&mut self, seconds: u64) {
        self.now.at += Duration::from_secs(seconds);
    }
    fn step(&mut self, input: Input) -> String {
        let actions = self.link.step(self.now, input);
        let words: Vec<String> = actions
            .iter()
            .map(|action| match action {
                Action::Start { generation, .. } => format!("start {generation}"),
                Action::Stop { generation } => format!("stop {generation}"),
                Action::Forget => "forget".into(),
            })
            .collect();
        words.join(", ")
    }
    fn secret(&mut self, token: &str) -> String {
        self.step(Input::Secret(secret(), Ok(kubeconfig(token))))
    }
    fn synced(&mut self, generation: u64) -> String {
        let report = Report { told: Some(told()), heard: Some(self.now), ..Report::default() };
        self.step(Input::Report { generation, report })
    }
    fn silent(&mut self, generation: u64) -> String {
        let verdict = Some(Verdict::Silent(Problem::new("ConnectionRefused", "it refuses")));
        let told = self.link.remote().state.exports;
        self.step(Input::Report {
            generation,
            report: Report { told, verdict, ..Report::default() },
        })
    }
}

fn secret() -> ObjectRef {
    ObjectRef::new("Secret", "isthmus-system", "istio-remote-secret-west")
}

#[test]
fn the_same_kubeconfig_again_is_silence() {
    let mut w = World::new();
    assert_eq!(w.secret("a"), "start 1");
    assert_eq!(w.secret("a"), "");
    assert_eq!(w.synced(1), "");
    assert_eq!(w.secret("a"), "");
}

#[test]
fn a_new_credential_takes_over_only_once_synced() {
    let mut w = World::new();
    w.secret("a");
    w.synced(1);
    assert_eq!(w.secret("b"), "start 2");
    let old = kubeconfig("a").short_fingerprint().to_owned();
    assert_eq!(w.link.remote().credential, old);
    assert_eq!(w.link.remote().problem.unwrap().reason, "Replacing");
    assert!(w.link.remote().state.exports.is_some(), "the old one serves on");
    assert_eq!(w.synced(2), "stop 1");
    assert_ne!(w.link.remote().credential, old);
    assert_eq!(w.link.remote().problem, None);
}

#[test]
fn a_bad_credential_never_takes_over() {
    let mut w = World::new();
    w.secret("a");
    w.synced(1);
    w.secret("b");
    let verdict = Some(Verdict::Refused(Problem::new("Unauthorized", "401")));
    assert_eq!(
        w.step(Input::Report { generation: 2, report: Report { verdict, ..Report::default() } }),
        ""
    );
    let remote = w.link.remote();
    assert_eq!(remote.state.reachable.is, Reachable::True);
    let problem = remote.problem.unwrap();
    assert!(problem.reason == "Unauthorized" && problem.message.contains("401"), "{problem:?}");
    // Another one, and back to the first: what is under way stops, what works is not touched.
    assert_eq!(w.secret("c"), "stop 2, start 3");
    assert_eq!(w.secret("a"), "stop 3");
    assert_eq!(w.link.remote().problem, None);
    // A late word of a stopped one changes nothing.
    assert_eq!(w.synced(3), "");
    assert_eq!(w.link.remote().credential, kubeconfig("a").short_fingerprint());
}

#[test]
fn a_refused_kubeconfig_leaves_the_old_one_at_work_and_says_why() {
    let mut w = World::new();
    w.secret("a");
    w.synced(1);
    w.secret("b");
    let problem = Problem::new("ExecNotAllowed", "exec");
    assert_eq!(w.step(Input::Secret(secret(), Err(problem))), "stop 2");
    let remote = w.link.remote();
    assert_eq!(remote.problem.unwrap().reason, "ExecNotAllowed");
    assert!(remote.state.exports.is_some());
}

#[test]
fn unknown_has_an_age_and_loses_nothing() {
    let mut w = World::new();
    w.secret("a");
    assert_eq!(w.link.remote().state.reachable.is, Reachable::Unknown);
    w.wait(1);
    w.synced(1);
    assert_eq!(w.link.remote().state.reachable, Reachability { is: Reachable::True, since: w.now });
    w.wait(60);
    w.silent(1);
    let since = w.now;
    w.wait(60);
    w.silent(1);
    let state = w.link.remote().state;
    assert_eq!(state.reachable, Reachability { is: Reachable::Unknown, since });
    assert!(state.exports.is_some());
    w.synced(1);
    assert_eq!(w.link.remote().state.reachable.is, Reachable::True);
}

#[test]
fn a_deleted_secret_ends_the_link_after_a_moment() {
    let mut w = World::new();
    w.secret("a");
    w.synced(1);
    assert_eq!(w.step(Input::SecretGone), "");
    assert!(w.link.remote().leaving && w.link.remote().state.exports.is_some());
    w.wait(2);
    assert_eq!(w.step(Input::Tick), "");
    w.wait(2);
    assert_eq!(w.step(Input::Tick), "forget");
}

#[test]
fn delete_and_create_is_a_replacement() {
    let mut w = World::new();
    w.secret("a");
    w.synced(1);
    w.step(Input::SecretGone);
    w.wait(2);
    assert_eq!(w.secret("b"), "start 2");
    w.wait(10);
    assert_eq!(w.step(Input::Tick), "");
    assert_eq!(w.synced(2), "stop 1");
}

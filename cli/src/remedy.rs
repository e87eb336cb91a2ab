//! What is wrong with pods' sidecars and how it is mended, in the words of `check` and of `why`.

use crate::output::{SHOWN, some};
use cluster::inject::{Sidecar, Why};
use cluster::operator::look::pods::PodState;
use std::collections::BTreeSet;

/// What is wrong with the sidecar of pods that stand alike, of one namespace: `ISM####` first where it
/// has a code, its fix last. `None` where nothing is.
pub(crate) fn remedy(context: &str, pods: &[&PodState]) -> Option<String> {
    let PodState { namespace, sidecar, .. } = pods.first()?;
    let anew = || anew(context, namespace, pods);
    Some(match sidecar {
        Sidecar::There => return None,
        Sidecar::Both(foreign) => format!(
            "ISM2633 two sidecars: beside ours there is another mesh's ({foreign}), and both capture its \
             traffic. Fix: label the namespace for one mesh only, then {}",
            anew()
        ),
        Sidecar::Missed => format!(
            "ISM2626 no sidecar: its labels ask for one, and it was made before them or the webhook. Fix: \
             {}",
            anew()
        ),
        Sidecar::Without(Why::NotAsked) => {
            format!("no label asks for a sidecar. Fix: {}", labelled(context, namespace, pods))
        }
        Sidecar::Without(why) => why.to_string(),
    })
}

/// How pods of a namespace without label get their sidecars.
pub(crate) fn labelled(context: &str, namespace: &str, pods: &[&PodState]) -> String {
    let anew = anew(context, namespace, pods);
    format!(
        "`kubectl --context {context} label namespace {namespace} istio-injection=enabled`, then {anew}"
    )
}

/// How a cluster that has another root gets the mesh's again.
pub(crate) fn another_root(context: &str, cluster: &str) -> String {
    format!(
        "`isthmus trust issue {cluster} --dir DIR --apply --context {context}` with the folder of the \
         mesh's root, then `isthmus install --context {context} --trust-dir DIR`, and make anew pods that \
         were made meanwhile"
    )
}

/// `pod a`, `pods a, b, c and 2 more`.
pub(crate) fn named(pods: &[&PodState]) -> String {
    let names: BTreeSet<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
    let noun = if names.len() == 1 { "pod" } else { "pods" };
    format!("{noun} {}", some(names))
}

/// How pods are made anew.
fn anew(context: &str, namespace: &str, pods: &[&PodState]) -> String {
    let owners: BTreeSet<&str> = pods.iter().filter_map(|pod| pod.owner.as_deref()).collect();
    let mut acts = vec![];
    if !owners.is_empty() {
        let command = format!("kubectl --context {context} -n {namespace} rollout restart");
        acts.push(for_each(&command, owners, ""));
    }
    let bare: Vec<&PodState> = pods.iter().filter(|pod| pod.owner.is_none()).copied().collect();
    if !bare.is_empty() {
        let them = if bare.len() == 1 { "it" } else { "them" };
        acts.push(format!("delete {} in {namespace} and make {them} anew", named(&bare)));
    }
    acts.join("; ")
}

/// A command for the first few of some names, and how many more it is to be done for.
pub(crate) fn for_each<'a>(
    command: &str,
    names: impl IntoIterator<Item = &'a str>,
    rest: &str,
) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let first = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(" ");
    let gap = if rest.is_empty() { "" } else { " " };
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", and likewise for {more} more"),
    };
    format!("`{command} {first}{gap}{rest}`{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, sidecar: Sidecar, owner: Option<&str>) -> PodState {
        PodState {
            namespace: "shop".into(),
            name: name.into(),
            owner: owner.map(str::to_owned),
            age: 0,
            sidecar,
            blocked: None,
        }
    }

    #[track_caller]
    fn check(pods: &[PodState], words: &[&str]) {
        let said = remedy("east", &pods.iter().collect::<Vec<_>>()).unwrap();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }

    #[test]
    fn each_reason_comes_with_what_mends_it() {
        let one = |sidecar, owner| [pod("a", sidecar, owner)];
        let restart = "-n shop rollout restart deployment/hello`";
        check(&one(Sidecar::Missed, Some("deployment/hello")), &["ISM2626", restart]);
        let label = "label namespace shop istio-injection=enabled`, then delete pod a in shop";
        check(&one(Sidecar::Without(Why::NotAsked), None), &[label]);
        check(&one(Sidecar::Without(Why::HostNetwork), None), &["ISM2710", "hostNetwork"]);
        let both = Sidecar::Both("container istio-proxy".into());
        check(&one(both, Some("statefulset/db")), &["ISM2633", "istio-proxy", "statefulset/db"]);
        assert_eq!(remedy("east", &[&pod("a", Sidecar::There, None)]), None);
    }

    #[test]
    fn who_is_not_named_is_counted() {
        let names = ["a", "b", "c", "d", "e"];
        let owned =
            |name: &&str| pod(name, Sidecar::Missed, Some(format!("deployment/{name}").as_str()));
        let owned: Vec<PodState> = names.iter().map(owned).collect();
        let restart =
            "rollout restart deployment/a deployment/b deployment/c`, and likewise for 2 more";
        check(&owned, &[restart]);
        let bare: Vec<PodState> =
            names.iter().map(|name| pod(name, Sidecar::Missed, None)).collect();
        let delete = "delete pods a, b, c and 2 more in shop and make them anew";
        check(&bare, &[delete]);
        check(&[owned, bare].concat(), &[restart, delete]);
    }
}

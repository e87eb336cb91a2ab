//! Pods that are not in the mesh though somebody means them to be, containers that do not start, the
//! webhook that injects, and nodes' clocks: one line for each sort of mistake in a namespace.

use super::super::item::{About, Group, Item, Mark};
use super::super::seen::{Cluster, Seen};
use super::{CLOCK_MAX, unread};
use crate::output::some;
use crate::remedy::{for_each, labelled, named, remedy};
use cluster::inject::{INIT_CONTAINER, Sidecar, Why};
use cluster::operator::look::nodes::{NODES_MAX, NodeClock};
use cluster::operator::look::pods::{Blocked, PodState, Pods};
use cluster::operator::look::webhook::{CONFIGURATION, Tried, Webhook};
use cluster::operator::look::{Look, OBJECTS_MAX};
use cluster::parse::pod::SIDECAR_CONTAINER;
use mesh::inventory::Inventory;
use std::collections::{BTreeMap, BTreeSet};
use trust::bundle::Bundle;

/// Deployment, and Service, of the program that the webhook should ask.
const CONTROL_PLANE: &str = "isthmus-control-plane";
/// Seconds before a pod is judged: an image may need them.
const YOUNG: i64 = 30;
/// Seconds that a Lease may be old whose node is Ready: it is renewed every 10, and taken for dead
/// behind 40 (50 since Kubernetes 1.32).
const LEASE_OLD: i64 = 90;
/// Seconds that a Lease may be renewed in the future.
const LEASE_AHEAD: i64 = 30;

pub(super) fn pods(seen: &Seen, cluster: &Cluster, look: &Look, items: &mut Vec<Item>) {
    let context = &cluster.context;
    match &look.nodes {
        Ok(nodes) => {
            items.extend(clocks(context, &nodes.all));
            let fix = "see by `timedatectl` on the others that their clocks are right";
            items.extend(nodes.cut.then(|| half(Group::Servers, context, NODES_MAX, "nodes", fix)));
        }
        Err(why) => items.push(unread(Group::Servers, context, "its nodes' clocks", why)),
    }
    let hook = match &look.webhook {
        Ok(hook) => hook.as_ref(),
        Err(why) => {
            items.push(unread(Group::Programs, context, "its injecting webhook", why));
            None
        }
    };
    if let Some(hook) = hook {
        webhook(seen, cluster, look, hook, items);
    }
    let pods = match &look.pods {
        Ok(pods) => pods,
        Err(why) => return items.push(unread(Group::Pods, context, "its pods", why)),
    };
    let own = look.inventory.as_ref().ok();
    let exporting = own.iter().flat_map(|own| &own.service_exports);
    let exporting: BTreeSet<&str> = exporting.map(|name| name.namespace.as_str()).collect();
    let root = seen.root_namespace.as_str();
    if pods.cut {
        let fix = "ask `isthmus why` of a pod that is not named here";
        items.push(half(Group::Pods, context, OBJECTS_MAX, "pods or namespaces", fix));
    }
    let before = items.len();
    blocked(context, pods, root, &exporting, items);
    // Where nothing injects, pods have the proxies that somebody gave them.
    if hook.is_some() {
        sidecars(context, pods, items);
        items.extend(own.into_iter().flat_map(|own| unlabelled(context, pods, own)));
        if items.len() == before && !pods.asking.is_empty() {
            items.push(well(context, pods));
        }
    }
}

fn wrong(context: &str, namespace: &str, mark: Mark, sentence: &str) -> Item {
    let about = About::Pods(context.to_owned(), namespace.to_owned());
    Item::wrong(Group::Pods, mark, about, context, sentence)
}

/// What was not read is said: of it nothing else is.
fn half(group: Group, context: &str, most: usize, what: &str, fix: &str) -> Item {
    let sentence = format!(
        "ISM2634 it has more than {most} {what}, and nothing is said of those behind the first {most}. \
         Fix: {fix}."
    );
    Item::wrong(group, Mark::Warning, About::Other, context, &sentence)
}

fn well(context: &str, pods: &Pods) -> Item {
    let asking = |pod: &&PodState| pods.asking.contains(&pod.namespace);
    let have = pods.all.iter().filter(asking).filter(|pod| pod.sidecar == Sidecar::There).count();
    let rest = if pods.cut { format!(" (of the first {OBJECTS_MAX})") } else { String::new() };
    let spaces = pods.asking.len();
    let said =
        format!("pods with sidecars: {have}, in namespaces labelled for them: {spaces}{rest}");
    Item::good(Group::Pods, About::Other, context, said)
}

/// Pods that lack the sidecar they ask for, whose own spec keeps it out, or that have two.
fn sidecars(context: &str, pods: &Pods, items: &mut Vec<Item>) {
    let mut of: BTreeMap<(&str, &Sidecar), Vec<&PodState>> = BTreeMap::new();
    for pod in pods.all.iter().filter(|pod| pod.age >= YOUNG) {
        let meant = match &pod.sidecar {
            Sidecar::There => true,
            Sidecar::Without(why) => why.is_expected(),
            Sidecar::Missed | Sidecar::Both(_) => false,
        };
        if !meant {
            of.entry((&pod.namespace, &pod.sidecar)).or_default().push(pod);
        }
    }
    for ((namespace, _), pods) in of {
        let Some(sentence) = remedy(context, &pods) else { continue };
        let (code, rest) = sentence.split_once(' ').unwrap_or(("", &sentence));
        let sentence = format!("{code} {} in namespace {namespace}: {rest}.", named(&pods));
        items.push(wrong(context, namespace, Mark::Warning, &sentence));
    }
}

/// What a namespace exports without sidecars.
#[derive(Default)]
struct Bare<'a> {
    services: BTreeSet<&'a str>,
    pods: BTreeMap<&'a str, &'a PodState>,
    /// One of the services has no copy with a sidecar.
    whole: bool,
}

/// Copies of exported services in namespaces that no label puts into the mesh: nobody elsewhere reaches
/// them.
fn unlabelled(context: &str, pods: &Pods, own: &Inventory) -> Vec<Item> {
    let without: BTreeMap<(&str, &str), &PodState> = pods
        .all
        .iter()
        .filter(|pod| pod.age >= YOUNG && pod.sidecar == Sidecar::Without(Why::NotAsked))
        .map(|pod| ((pod.namespace.as_str(), pod.name.as_str()), pod))
        .collect();
    let mut of: BTreeMap<&str, Bare<'_>> = BTreeMap::new();
    for name in &own.service_exports {
        let copies = own.endpoints.get(name).map_or(&[][..], Vec::as_slice);
        let space = name.namespace.as_str();
        let bare = copies.iter().filter(|copy| !copy.meshed);
        let bare: Vec<&PodState> =
            bare.filter_map(|copy| without.get(&(space, copy.pod.as_str())).copied()).collect();
        if !bare.is_empty() {
            let known = of.entry(space).or_default();
            known.services.insert(&name.name);
            known.pods.extend(bare.into_iter().map(|pod| (pod.name.as_str(), pod)));
            known.whole |= copies.iter().all(|copy| !copy.meshed);
        }
    }
    let line = |(namespace, bare): (&str, Bare<'_>)| {
        let pods: Vec<&PodState> = bare.pods.into_values().collect();
        let sentence = format!(
            "ISM2627 namespace {namespace} exports {} and has no label that asks for sidecars: other \
             clusters call over mTLS only, and do not reach its copies. Fix: {}.",
            some(bare.services),
            labelled(context, namespace, &pods)
        );
        wrong(context, namespace, if bare.whole { Mark::Broken } else { Mark::Warning }, &sentence)
    };
    of.into_iter().map(line).collect()
}

/// Sorts of waiting that differ in how they are mended.
fn stuck(blocked: &Blocked) -> (&'static str, &'static str) {
    match blocked.reason.as_str() {
        "CrashLoopBackOff" => {
            ("ends each time it is started", "see why in `kubectl logs --previous`")
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => (
            "cannot be started",
            "correct its command and what it mounts; `kubectl describe` tells more",
        ),
        _ => {
            ("cannot get its image", "correct the image's name, push it, or give imagePullSecrets")
        }
    }
}

fn blocked(
    context: &str,
    pods: &Pods,
    root: &str,
    exporting: &BTreeSet<&str>,
    items: &mut Vec<Item>,
) {
    type Key<'a> = (&'a str, &'a str, &'a str, &'static str);
    let mut of: BTreeMap<Key<'_>, Vec<(&PodState, &Blocked)>> = BTreeMap::new();
    for pod in pods.all.iter().filter(|pod| pod.age >= YOUNG) {
        let space = pod.namespace.as_str();
        let ours = space == root || exporting.contains(space) || pods.asking.contains(space);
        let Some(blocked) = pod.blocked.as_ref().filter(|_| ours) else { continue };
        let key = (space, blocked.container.as_str(), blocked.image.as_str(), stuck(blocked).0);
        of.entry(key).or_default().push((pod, blocked));
    }
    for ((namespace, container, image, what), found) in of {
        let (pods, why): (Vec<&PodState>, Vec<&Blocked>) = found.into_iter().unzip();
        let why = why[0];
        let said =
            if why.message.is_empty() { String::new() } else { format!(", {}", why.message) };
        let sentence = format!(
            "ISM2628 {} in namespace {namespace}: container {container} {what} ({image:?}: {}{said}). \
             Fix: {}.",
            named(&pods),
            why.reason,
            stuck(why).1
        );
        let mesh = namespace == root || [SIDECAR_CONTAINER, INIT_CONTAINER].contains(&container);
        let mark = if mesh { Mark::Broken } else { Mark::Warning };
        items.push(wrong(context, namespace, mark, &sentence));
    }
}

/// The certificates of a text, one a line as it were.
fn certificates(bundle: &Bundle) -> BTreeSet<String> {
    bundle.pem().split("-----BEGIN").map(|text| text.trim().to_owned()).skip(1).collect()
}

fn webhook(seen: &Seen, cluster: &Cluster, look: &Look, hook: &Webhook, items: &mut Vec<Item>) {
    let (context, root) = (&cluster.context, &seen.root_namespace);
    let about = About::Webhook(context.clone());
    let say = |mark, sentence: &str| {
        Item::wrong(Group::Programs, mark, about.clone(), context, sentence)
            .following([About::Signing(context.clone()), About::Installed(context.clone())])
    };
    // Where it is not answered, its programs may be those that do not start.
    let mute = |mark, sentence: &str| {
        let item = say(mark, sentence);
        let follows = [vec![About::Pods(context.clone(), root.clone())], item.follows].concat();
        Item { follows, ..item }
    };
    let roots = look.mesh.as_ref().ok().and_then(|(mesh, _)| mesh.as_ref());
    let roots = roots.and_then(|mesh| Bundle::from_pem(&mesh.root_certificates).ok());
    let foreign = roots.map(|roots| certificates(&roots)).is_some_and(|roots| {
        let believes = |text: &String| {
            Bundle::from_pem(text).is_ok_and(|it| !certificates(&it).is_disjoint(&roots))
        };
        !hook.bundles.iter().all(believes)
    });
    let effect = "pods that ask for a sidecar are not made";
    if foreign {
        let said = match &hook.tried {
            Tried::Failed(why) => format!("; a dry run says: {why}"),
            Tried::Not | Tried::Injected | Tried::PassedOver(_) | Tried::Late => String::new(),
        };
        items.push(say(
            Mark::Broken,
            &format!(
                "ISM2629 the caBundle of MutatingWebhookConfiguration {CONFIGURATION} is not \
                 the mesh's root, which the control plane's certificate leads to: {effect}{said}. Fix: \
                 `isthmus install --context {context}` writes it again."
            ),
        ));
    } else {
        match &hook.tried {
            Tried::Not | Tried::Injected => {}
            Tried::PassedOver(namespace) => items.push(mute(
                Mark::Broken,
                &format!(
                    "ISM2630 a new pod in namespace {namespace} would get no sidecar, though the label \
                     asks for it: the webhook {CONFIGURATION} was passed over. Fix: `isthmus \
                     install --context {context}` writes its selectors and failurePolicy again; see that \
                     the control plane runs."
                ),
            )),
            Tried::Failed(why) => {
                items.push(mute(Mark::Broken, &failed(hook, why, context, root, effect)));
            }
            Tried::Late => items.push(mute(
                Mark::Warning,
                &format!(
                    "ISM2630 the webhook {CONFIGURATION} did not answer a dry run in time; pods that ask \
                     for a sidecar wait for it. Fix: see that the control plane runs, and that the API \
                     server reaches it at port 15017."
                ),
            )),
        }
    }
    if hook.cut {
        let fix = "see `kubectl get mutatingwebhookconfigurations` for other injectors";
        let what = "MutatingWebhookConfigurations";
        items.push(half(Group::Programs, context, OBJECTS_MAX, what, fix));
    }
    for (rival, namespaces) in &hook.rivals {
        let label = for_each(
            &format!("kubectl --context {context} label namespace"),
            namespaces.iter().map(String::as_str),
            "istio-injection- isthmus.dev/inject=enabled",
        );
        items.push(say(
            Mark::Warning,
            &format!(
                "ISM2632 two injectors: MutatingWebhookConfiguration {rival} gives Istio's sidecar to pods \
                 of namespace {} before ours is asked, which then leaves them alone. Fix: {label}.",
                some(namespaces)
            ),
        ));
    }
}

/// Why the API server could not call our webhook, as a sentence.
fn failed(hook: &Webhook, why: &str, context: &str, root: &str, effect: &str) -> String {
    let program = format!("{root}/{CONTROL_PLANE}");
    let place = hook.places.iter().find(|place| **place != program).unwrap_or(&program);
    // A URL is somebody's own, who knows what is there.
    let elsewhere = *place != program && !place.contains("://");
    let anew =
        format!("`isthmus install --context {context}` leads it to the control plane again.");
    // Go's words, for both ends of a certificate's life.
    if why.contains("x509: certificate has expired or is not yet valid") {
        let fix = if elsewhere {
            anew
        } else if why.contains(" is before ") {
            "set the clocks of the API server's machine and of the nodes by NTP or chrony; the control plane \
             signs by its own."
                .into()
        } else {
            format!(
                "`kubectl --context {context} -n {root} rollout restart deployment/{CONTROL_PLANE}` lets it \
                 sign another; where that is no better, see how long Secret cacerts is good, and the clocks."
            )
        };
        return format!(
            "ISM2635 the certificate that {place} shows for the webhook {CONFIGURATION} is not good now: \
             {why}; {effect}. Fix: {fix}"
        );
    }
    let fix = if elsewhere {
        anew
    } else {
        format!(
            "see that the control plane runs and is ready, and that its certificate is good (`kubectl \
             --context {context} -n {root} get pods`)."
        )
    };
    format!(
        "ISM2630 the API server cannot call the webhook {CONFIGURATION} at {place}: {why}; {effect}. Fix: {fix}"
    )
}

fn clocks(context: &str, nodes: &[NodeClock]) -> Option<Item> {
    let mut off: Vec<&NodeClock> =
        nodes.iter().filter(|it| it.age > LEASE_OLD || it.age < -LEASE_AHEAD).collect();
    off.sort_by_key(|it| std::cmp::Reverse(it.age.abs()));
    let worst = off.first()?.age.abs();
    let one = |it: &&NodeClock| {
        let word = if it.age > 0 { "behind" } else { "ahead" };
        format!("{} is {} s {word}", it.node, it.age.abs())
    };
    let sentence = format!(
        "ISM2631 clocks of nodes are off, by the Leases that their kubelets renew: {}; \
         certificates look expired or not yet valid to pods there. Fix: let NTP or chrony set their clocks; \
         where a clock is right, see why its kubelet renews Lease kube-node-lease/{} no more.",
        some(off.iter().map(one)),
        off[0].node
    );
    let mark = if worst > CLOCK_MAX { Mark::Broken } else { Mark::Warning };
    Some(Item::wrong(Group::Servers, mark, About::Other, context, &sentence))
}

#[cfg(test)]
mod tests;

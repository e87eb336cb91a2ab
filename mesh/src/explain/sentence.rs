//! The sentences of an explanation.

use super::{Explanation, Hint, Meaning, NoAddress, NoEndpoints, NoPod, Plain, Step, Verdict};
use crate::compile::horizon::Reach;
use crate::inventory::MtlsMode;
use crate::name::ServiceName;
use std::collections::BTreeMap;
use std::fmt::{Display, Formatter, Result};

impl Display for Explanation {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "{}", self.asked)?;
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        f.write_str(match self.verdict {
            Verdict::Reachable => "It can be called.",
            Verdict::Partly => {
                "Some calls are denied, for a denial is not tried elsewhere; the last steps say which."
            }
            Verdict::Unreachable => "It cannot be called; the last steps say why.",
            Verdict::NotCarried if self.is_address() => {
                "The mesh does not carry it; it goes there as it is."
            }
            Verdict::NotCarried => "The mesh does not carry it; it goes where DNS sends it.",
        })
    }
}

impl Explanation {
    fn is_address(&self) -> bool {
        let of_address = |hint: &Hint| matches!(hint, Hint::Address | Hint::PodAddress { .. });
        self.steps.iter().any(
            |step| matches!(step, Step::UnknownName { hints, .. } if hints.iter().any(of_address)),
        )
    }
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".into() } else { items.join(", ") }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Completed { host } => write!(f, "the search list completes it to {host}"),
            Self::Name { host, addresses, meaning } => {
                write!(f, "{host} is {meaning}; its addresses: {}", list(addresses))
            }
            Self::UnknownName { host, hints } => {
                write!(f, "{host} is not known here: {}", list(hints))
            }
            Self::NoAddress { host, reason } => {
                write!(f, "{host} has no virtual address: {reason}")
            }
            Self::NoPort { host, port, offered, udp: true } => write!(
                f,
                "port {port} of {host} is UDP, which proxies do not carry; it offers {}",
                list(offered)
            ),
            Self::NoPort { host, port, offered, udp: false } => {
                write!(f, "{host} has no port {port}; it offers {}", list(offered))
            }
            Self::Listener { name, protocol } => {
                write!(f, "listener {name} takes it as {protocol}")
            }
            Self::AddressTaken { address, holder: Some(holder) } => {
                write!(f, "its address {address} belongs to {holder}, which had it first")
            }
            Self::AddressTaken { address, holder: None } => {
                write!(f, "its address {address} belongs to nobody here")
            }
            Self::Route { name, attempts, hedge_ms } => write!(
                f,
                "route {name}: up to {attempts} more attempts, a second one after {hedge_ms} ms"
            ),
            Self::Cluster { name, load_balancing, rule } => {
                write!(f, "cluster {name}, balanced by {load_balancing}")?;
                match rule {
                    Some(rule) => write!(f, " ({rule})"),
                    None => write!(f, " (no DestinationRule)"),
                }
            }
            Self::WithoutSidecar { workload, reaches } => {
                write!(f, "pod {workload} has no sidecar: {reaches}")
            }
            Self::LocalOnly { host, global } => write!(
                f,
                "{host} means this cluster's copies alone, since it is not exported here; {global} \
                 means all exporters'"
            ),
            Self::Copies { cluster, locality, count, priority, tier, reach, mtls } => {
                let place = locality.to_string();
                let place = if place.is_empty() { "an unknown locality" } else { &place };
                write!(f, "{count} in {cluster}, {place} ({tier}): ")?;
                match reach {
                    Reach::Direct(socket) => write!(f, "directly at {socket}")?,
                    Reach::Through(doors) => write!(f, "through gateway {}", list(doors))?,
                    Reach::Unreachable(reason) => write!(f, "unreachable, {reason}")?,
                }
                f.write_str(if *mtls { ", mTLS" } else { ", plaintext (not in the mesh)" })?;
                match priority {
                    Some(priority) => write!(f, ", priority {priority}"),
                    None => f.write_str(", not used"),
                }
            }
            Self::NoCopies { host } => {
                write!(f, "{host} has no ready copy in any cluster that serves this port")
            }
            Self::NoEndpoints { service, reason } => no_endpoints(f, service, reason),
            Self::NoPod { host, pod, service, reason } => {
                write!(f, "{host} leads nowhere: ")?;
                no_pod(f, pod, service, reason)
            }
            Self::Identities { cluster, expected } => {
                write!(f, "in {cluster} the server must be {}", list(expected))
            }
            Self::Inbound { workload, port, mode, by } => {
                write!(f, "pod {workload} takes port {port} ")?;
                f.write_str(match mode {
                    MtlsMode::Strict => "over mTLS only",
                    MtlsMode::Permissive => "over mTLS or in plaintext",
                    MtlsMode::Disable => "in plaintext only",
                })?;
                match by {
                    Some(by) => write!(f, " ({by})"),
                    None => write!(f, " (no PeerAuthentication)"),
                }
            }
            Self::Authorization { cluster, workload, port, caller, decision } => {
                write!(f, "pod {workload}")?;
                if let Some(cluster) = cluster {
                    write!(f, " of {cluster}")?;
                }
                write!(f, ", port {port}, {decision}; the caller is ")?;
                match caller {
                    Some(identity) => write!(f, "{identity}"),
                    None => f.write_str("nobody that proves a name (plaintext)"),
                }
            }
            Self::AuthorizationElsewhere { cluster } => write!(
                f,
                "in {cluster} its own AuthorizationPolicies decide, which were not looked at \
                 (--peer and its context does)"
            ),
        }
    }
}

fn labels(selector: &BTreeMap<String, String>) -> String {
    list(selector.iter().map(|(key, value)| format!("{key}={value}")))
}

fn no_endpoints(f: &mut Formatter<'_>, service: &ServiceName, reason: &NoEndpoints) -> Result {
    write!(f, "Service {service} has no endpoints: ")?;
    let namespace = &service.namespace;
    match reason {
        NoEndpoints::NoSelector => f.write_str(
            "it has no selector, and nobody has written any. Fix: give it the labels of its pods as \
             spec.selector, or write an EndpointSlice",
        ),
        NoEndpoints::NoPods { selector } => write!(
            f,
            "no pod in namespace {namespace} has the labels that it selects, {}. Fix: start pods with \
             them there, or correct spec.selector",
            labels(selector)
        ),
        NoEndpoints::NoneReady { selector, pods } => write!(
            f,
            "in namespace {namespace} it selects {}, and those with these labels are not ready: {}. \
             Fix: see what they wait for (kubectl describe pod {} -n {namespace})",
            labels(selector),
            list(pods),
            pods.first().map_or("", String::as_str)
        ),
    }
}

fn no_pod(f: &mut Formatter<'_>, pod: &str, service: &ServiceName, reason: &NoPod) -> Result {
    let ServiceName { namespace, name } = service;
    match reason {
        NoPod::NotReady => write!(
            f,
            "pod {namespace}/{pod} is not ready, and DNS names ready ones alone. Fix: see what it waits \
             for (kubectl describe pod {pod} -n {namespace}); pods that must find each other before \
             they are ready want publishNotReadyAddresses: true in Service {service}"
        ),
        NoPod::NotSelected { selector } => write!(
            f,
            "pod {namespace}/{pod} is there, and Service {service} selects others, {}. Fix: correct \
             the Service's selector or the pod's labels, or name the pod's own Service",
            labels(selector)
        ),
        NoPod::OtherSubdomain => write!(
            f,
            "pod {namespace}/{pod} is behind Service {service} without a name there. Fix: start it by a \
             StatefulSet whose serviceName is {name} (or with hostname: {pod} and subdomain: {name})"
        ),
        // Why there is none is the next step.
        NoPod::NoSuch { named } if named.is_empty() => {
            write!(f, "there is no pod {pod} behind Service {service}, and no other that is ready")
        }
        NoPod::NoSuch { named } => write!(
            f,
            "there is no pod {pod} behind Service {service}. Fix: start it, or name one that is ready: {}",
            list(named)
        ),
    }
}

impl Display for Plain {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::ClusterIp => f.write_str(
                "kube-proxy picks a copy of this cluster, and the call goes there in plaintext",
            ),
            Self::OwnCopies(others) => {
                f.write_str(
                    "where the cluster's DNS forwards the name (isthmus dns patch) it leads to this \
                     cluster's copies alone, in plaintext",
                )?;
                if others.is_empty() {
                    return Ok(());
                }
                write!(f, "; those of {} need a sidecar", list(others))
            }
            Self::Nothing(clusters) => write!(
                f,
                "the cluster's DNS answers NXDOMAIN, since its copies are in {}, where only a \
                 sidecar leads. Fix: let the pod have one (label its namespace \
                 istio-injection=enabled, then start it anew)",
                list(clusters)
            ),
            Self::Outside => f.write_str("it goes where the cluster's DNS sends it"),
        }
    }
}

impl Display for Meaning {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::LocalService => "a Service of this cluster",
            Self::AllExporters => "a service of all clusters that export it",
            Self::OneCluster => "one cluster's copies of a service",
            Self::UsersEntry => "a ServiceEntry's host",
            Self::OnePod => "one pod of a Service of this cluster",
        })
    }
}

impl Display for NoAddress {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Headless => {
                "it is headless, its pods are dialled by their own addresses, in plaintext"
            }
            Self::ExternalName => {
                "it is an ExternalName, the cluster's DNS answers with another name"
            }
            Self::UsersEntry => {
                "its ServiceEntry gives none, so proxies cannot tell it from others"
            }
            Self::OnePod => "it is one pod's, which is dialled by its own address, in plaintext",
            Self::NothingCallable => {
                "no cluster exports a port of it that can be called (see the problems of its \
                 ExportedService: headless, ExternalName and UDP cannot)"
            }
        })
    }
}

impl Display for Hint {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::OtherNamespaces(names) => write!(f, "there is {}", list(names)),
            Self::NotExported(name) => {
                write!(f, "{name} is here but not exported (isthmus export {name})")
            }
            Self::NotPublishedYet(name) => write!(
                f,
                "{name} is exported here, and its name is not published yet (is the federation \
                 controller running?)"
            ),
            Self::ExportedBy(name, clusters) => {
                write!(f, "{name} is exported by {}", list(clusters))
            }
            Self::Silent(clusters) => write!(
                f,
                "the linked clusters {} announce no such service here: not exported there, not in \
                 spec.import.namespaces of the link, or not heard yet (isthmus status)",
                list(clusters)
            ),
            Self::NoLinks => f.write_str("no cluster is linked (isthmus link)"),
            Self::Outside => f.write_str("it is no name of the mesh, upstream DNS decides"),
            Self::NoName => f.write_str("it is no name that DNS can have (ASCII, labels of 63)"),
            Self::Address => f.write_str("no Service or ServiceEntry has this address"),
            Self::PodAddress { pod, strict } => {
                write!(
                    f,
                    "it is the address of pod {pod}, not of a service: it is called in plaintext"
                )?;
                f.write_str(if *strict { ", which the pod refuses (STRICT)" } else { "" })
            }
            Self::PodName { pod, service } => write!(
                f,
                "names of the mesh stand for services, and none for one pod of {service}. Fix: in the \
                 pod's own cluster call {pod}.{}; for others give the pod a Service of its own (with a \
                 ClusterIP, and the selector statefulset.kubernetes.io/pod-name: {pod}) and export that",
                service.local_host()
            ),
            Self::Vacant { range, had, homes } => {
                write!(
                    f,
                    "it lies in {range}, whose addresses are names' alone, and no name has it now, so \
                     sidecars refuse it"
                )?;
                match (had, &homes[..]) {
                    (Some(host), _) => write!(
                        f,
                        "; {host} had it last, and no cluster exports that any more. Fix: export it \
                         again; if it is not to come back, start the client anew, which still holds \
                         the address"
                    ),
                    (None, []) => f.write_str(
                        "; no service that is known here would get it. Fix: see by which name the \
                         client found it, and ask for that; a linked cluster may still know the address \
                         (the same question with its --context), since it is a name's in all of them",
                    ),
                    (None, homes) => write!(
                        f,
                        "; it would be the address of {}, which no cluster exports to here. Fix: ask \
                         for that name instead, which says what is missing",
                        list(homes)
                    ),
                }
            }
        }
    }
}

//! Gives Services of type LoadBalancer addresses on the WAN, which a ready node owns: what a cloud
//! or MetalLB's layer 2 mode does. kube-proxy does the rest.

use super::control::Control;
use super::site::Site;
use crate::home::Home;
use crate::objects::{self, apply_status};
use crate::process::Job;
use anyhow::{Context, Result, ensure};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::process::Command;

/// How it is started.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(long)]
    kubeconfig: PathBuf,
    /// First address to give.
    #[arg(long)]
    first: Ipv4Addr,
    /// Last address to give.
    #[arg(long)]
    last: Ipv4Addr,
    /// A node and its network namespace, `NAME=NAMESPACE`; the first ready one owns all addresses.
    #[arg(long = "node", value_parser = pair)]
    nodes: Vec<(String, Host)>,
}

fn pair(text: &str) -> Result<(String, Host), String> {
    let both = text.split_once('=');
    let both = both.map(|(name, netns)| (name.to_owned(), Host::Netns(netns.to_owned())));
    both.ok_or_else(|| format!("`{text}` is not NAME=NAMESPACE"))
}

/// Whose interface a node's addresses are at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// Of a network namespace of this machine.
    Netns(String),
    /// Of a container in Docker.
    Container { docker: PathBuf, name: String },
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netns(name) | Self::Container { name, .. } => f.write_str(name),
        }
    }
}

/// What a cluster's load balancer gives, and where.
#[derive(Debug, Clone)]
pub(crate) struct Range {
    pub(crate) first: Ipv4Addr,
    pub(crate) last: Ipv4Addr,
    /// Nodes by their names; the first ready one owns all addresses.
    pub(crate) nodes: Vec<(String, Host)>,
}

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The process of one cluster.
pub(super) fn job(site: Site, control: &Control, home: &Home) -> Job {
    let (first, last) = site.balanced();
    let own = &home.parts.own;
    let nodes = (1..=site.nodes).map(|number| site.node_name(number));
    let nodes = nodes.map(|node| format!("--node={node}={}-{node}", home.prefix));
    Job::new(format!("{}/load-balancer", site.name), &control.spot, &own.program, &home.logs)
        .stays()
        .args(own.verb)
        .args(["load-balancer".to_owned()])
        .args(["--kubeconfig".to_owned(), control.admin().display().to_string()])
        .args([format!("--first={first}"), format!("--last={last}")])
        .args(nodes)
}

/// Looks at the Services twice a second, until the process ends. An API server that is down keeps
/// what was given.
pub async fn run(options: Options) -> Result<()> {
    let text = std::fs::read_to_string(&options.kubeconfig)
        .with_context(|| format!("reading {}", options.kubeconfig.display()))?;
    let config = kube::config::Kubeconfig::from_yaml(&text)?;
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await?;
    let client = kube::Client::try_from(config)?;
    let Options { first, last, nodes, .. } = options;
    serve(&Range { first, last, nodes }, &client, |said| println!("{said}")).await
}

/// As [`run`], of a cluster whose client is there already; `tell` hears who has which address.
pub(crate) async fn serve(range: &Range, client: &kube::Client, tell: impl Fn(&str)) -> Result<()> {
    let mut owned = BTreeMap::new();
    let mut said = String::new();
    loop {
        if let Err(error) = look(range, client, &mut owned, &tell).await {
            let error = format!("{error:#}");
            if said != error {
                eprintln!("{error}");
                said = error;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One look: tells Services their addresses, and nodes what they own.
async fn look(
    range: &Range,
    client: &kube::Client,
    owned: &mut BTreeMap<Ipv4Addr, Host>,
    tell: &impl Fn(&str),
) -> Result<()> {
    let services = objects::api(client, "v1", "Service", "").list(&Default::default()).await?.items;
    let nodes = objects::api(client, "v1", "Node", "").list(&Default::default()).await?.items;
    let wants: Vec<Want> = services.iter().filter_map(Want::of).collect();
    let given = give(&wants, range.first, range.last);
    let ready: Vec<&str> = nodes.iter().filter(|node| is_ready(node)).map(name).collect();
    let owner = range.nodes.iter().find(|(node, _)| ready.contains(&node.as_str()));
    let (_, host) = owner.or_else(|| range.nodes.first()).context("the cluster has no node")?;
    // First who owns it, then who is told.
    let wanted: BTreeSet<Ipv4Addr> = given.iter().flatten().copied().collect();
    for (address, holder) in owned.clone() {
        if !wanted.contains(&address) || holder != *host {
            ip(&holder, &["addr", "del", &format!("{address}/32"), "dev", "eth0"]).await?;
            owned.remove(&address);
        }
    }
    for address in wanted {
        if owned.contains_key(&address) {
            continue;
        }
        ip(host, &["addr", "replace", &format!("{address}/32"), "dev", "eth0"]).await?;
        announce(host, address).await;
        tell(&format!("{address} is of {host}"));
        owned.insert(address, host.clone());
    }
    for (want, address) in wants.iter().zip(given) {
        if address == want.has {
            continue;
        }
        let ingress = address.map(|address| json!({"ip": address, "ipMode": "VIP"}));
        let ingress: Vec<Value> = ingress.into_iter().collect();
        let status = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": want.name, "namespace": want.namespace},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        apply_status(client, &status).await?;
    }
    Ok(())
}

/// A Service that wants an address of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Want {
    namespace: String,
    name: String,
    has: Option<Ipv4Addr>,
    /// `spec.loadBalancerIP`.
    asks: Option<Ipv4Addr>,
}

impl Want {
    /// `None`: of another type, of a class of somebody else, or about to be deleted.
    fn of(service: &DynamicObject) -> Option<Self> {
        let (spec, status) = (&service.data["spec"], &service.data["status"]);
        let other = spec["type"] != "LoadBalancer" || !spec["loadBalancerClass"].is_null();
        if other || service.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let address = |value: &Value| value.as_str()?.parse().ok();
        Some(Self {
            namespace: service.metadata.namespace.clone()?,
            name: service.metadata.name.clone()?,
            has: address(&status["loadBalancer"]["ingress"][0]["ip"]),
            asks: address(&spec["loadBalancerIP"]),
        })
    }
}

/// An address for each: the one it asks for, else the one it has, else the lowest free one. `None`
/// where all are given.
fn give(wants: &[Want], first: Ipv4Addr, last: Ipv4Addr) -> Vec<Option<Ipv4Addr>> {
    let ours = |address: &Ipv4Addr| (first..=last).contains(address);
    let mut taken = BTreeSet::new();
    let mut given = vec![None; wants.len()];
    // Who asks comes before who has.
    for asked in [true, false] {
        for (want, place) in wants.iter().zip(&mut given) {
            let address = if asked { want.asks } else { want.has.filter(|_| want.asks.is_none()) };
            *place = place.or(address.filter(|address| ours(address) && taken.insert(*address)));
        }
    }
    let all = u32::from(first)..=u32::from(last);
    for (want, place) in wants.iter().zip(&mut given) {
        // An address that was asked for and is another's is waited for.
        if place.is_none() && want.asks.is_none() {
            *place = all.clone().map(Ipv4Addr::from).find(|address| taken.insert(*address));
        }
    }
    given
}

fn name(object: &DynamicObject) -> &str {
    object.metadata.name.as_deref().unwrap_or_default()
}

fn is_ready(node: &DynamicObject) -> bool {
    let conditions = node.data["status"]["conditions"].as_array();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    conditions.is_some_and(|all| all.iter().any(ready))
}

/// So long a change of an address may take.
const IP_MAX: Duration = Duration::from_secs(20);

async fn ip(host: &Host, args: &[&str]) -> Result<()> {
    let mut command = match host {
        Host::Netns(name) => {
            let mut command = Command::new("ip");
            command.args(["-n", name]);
            command
        }
        Host::Container { docker, name } => {
            let mut command = Command::new(docker);
            command.args(["exec", name, "ip"]);
            command
        }
    };
    let done = command.args(args).kill_on_drop(true).output();
    let what = args.join(" ");
    let out = tokio::time::timeout(IP_MAX, done)
        .await
        .with_context(|| format!("{host}: `ip {what}` did not end in {IP_MAX:?}"))?
        .with_context(|| format!("{host}: starting `ip {what}`"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{host}: ip {what}: {}", said.trim());
    Ok(())
}

/// Tells the WAN who has the address now; without it neighbours find out when their entry ages. A
/// cluster of one container need not: its addresses never move.
async fn announce(host: &Host, address: Ipv4Addr) {
    let Host::Netns(netns) = host else { return };
    let said = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{netns}"))
        .args(["busybox", "arping", "-U", "-c", "1", "-w", "1", "-I", "eth0"])
        .arg(address.to_string())
        .output();
    if let Err(error) = said.await {
        eprintln!("{address} is not announced: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(name: &str, has: Option<u8>, asks: Option<u8>) -> Want {
        let address = |last: u8| Ipv4Addr::new(198, 18, 1, last);
        let (namespace, name) = ("shop".to_owned(), name.to_owned());
        Want { namespace, name, has: has.map(address), asks: asks.map(address) }
    }

    fn last(wants: &[Want]) -> Vec<Option<u8>> {
        let range = (Ipv4Addr::new(198, 18, 1, 100), Ipv4Addr::new(198, 18, 1, 102));
        let given = give(wants, range.0, range.1);
        given.into_iter().map(|address| Some(address?.octets()[3])).collect()
    }

    #[test]
    fn addresses_stay_and_no_two_services_share_one() {
        let wants = [want("a", None, None), want("b", Some(100), None), want("c", None, None)];
        assert_eq!(last(&wants), [Some(101), Some(100), Some(102)]);
        let more = [&wants[..], &[want("d", None, None)]].concat();
        assert_eq!(last(&more)[3], None, "all are given");
        assert_eq!(last(&[want("a", Some(99), None)]), [Some(100)], "not ours to keep");
    }

    #[test]
    fn who_asks_for_an_address_gets_it_or_waits() {
        assert_eq!(last(&[want("a", Some(100), Some(102))]), [Some(102)]);
        let both = [want("a", Some(101), None), want("b", None, Some(101))];
        assert_eq!(last(&both), [Some(100), Some(101)]);
        let same = [want("a", None, Some(101)), want("b", None, Some(101))];
        assert_eq!(last(&same), [Some(101), None]);
    }

    #[test]
    fn only_services_that_ask_for_us_are_wanted() {
        let service = |spec: Value| -> Option<Want> {
            let object = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "a", "namespace": "shop"}, "spec": spec,
                "status": {"loadBalancer": {"ingress": [{"ip": "198.18.1.100"}]}},
            });
            Want::of(&serde_json::from_value(object).unwrap())
        };
        assert_eq!(service(json!({"type": "ClusterIP"})), None);
        let other = json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/none"});
        assert_eq!(service(other), None);
        assert_eq!(service(json!({"type": "LoadBalancer"})), Some(want("a", Some(100), None)));
    }
}

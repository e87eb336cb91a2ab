//! Split horizon: what one place sees of a service, as priorities and weights.
//!
//! Own network's copies as they are, by zone, region and rest; every other network folded into its
//! gateways, nearest region first. Each copy counts the least common multiple of the gateway counts
//! involved, so that it divides evenly over any cluster's gateways (Istio's rule).

use crate::inventory::TrafficDistribution;
use crate::name::{ClusterId, Locality, Network};
use crate::program::{LbEndpoint, LocalityGroup};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// From where one looks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Viewpoint<'a> {
    pub(crate) network: &'a Network,
    pub(crate) locality: &'a Locality,
    /// Empty where it is not known.
    pub(crate) node: &'a str,
}

/// Copies of a service: one of a known address, or as many as `weight` behind a gateway.
#[derive(Debug, Clone)]
pub(crate) struct Copies<'a> {
    pub(crate) cluster: &'a ClusterId,
    pub(crate) network: &'a Network,
    pub(crate) locality: &'a Locality,
    pub(crate) weight: u32,
    /// They speak mesh mTLS.
    pub(crate) meshed: bool,
    pub(crate) place: Place<'a>,
}

#[derive(Debug, Clone)]
pub(crate) enum Place<'a> {
    Address {
        socket: SocketAddr,
        pod: &'a str,
        node: &'a str,
    },
    /// Only counted: reached through one of these gateways.
    Behind {
        doors: &'a [SocketAddr],
    },
}

/// How one gets to copies, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reach {
    Direct(SocketAddr),
    Through(Vec<SocketAddr>),
    Unreachable(Unreachable),
}

/// Why copies cannot be reached; they are absent then, never silently direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Unreachable {
    NoGateway,
    NotMeshed,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoGateway => "no gateway of its cluster with a usable IP address is known here",
            Self::NotMeshed => "it is not in the mesh, and gateways carry mTLS only",
        })
    }
}

/// How near copies are, in the order in which they are tried; [`groups`] closes the gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Tier {
    /// With trafficDistribution PreferSameNode only.
    SameNode,
    /// With any trafficDistribution only.
    SameSubzone,
    SameZone,
    SameRegion,
    OwnNetwork,
    /// Another network in the client's region.
    OtherNetworkSameRegion,
    OtherNetwork,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameNode => "same node",
            Self::SameSubzone => "same subzone",
            Self::SameZone => "same zone",
            Self::SameRegion => "same region",
            Self::OwnNetwork => "own network",
            Self::OtherNetworkSameRegion => "another network in the same region",
            Self::OtherNetwork => "another network",
        })
    }
}

/// The way from here to these copies.
pub(crate) fn reach(from: Viewpoint<'_>, copies: &Copies<'_>) -> Reach {
    match &copies.place {
        Place::Address { socket, .. } if copies.network == from.network => Reach::Direct(*socket),
        // An address of another network means another machine here: pods' ranges overlap.
        Place::Address { .. } => Reach::Unreachable(Unreachable::NoGateway),
        Place::Behind { .. } if !copies.meshed => Reach::Unreachable(Unreachable::NotMeshed),
        Place::Behind { doors: [] } => Reach::Unreachable(Unreachable::NoGateway),
        Place::Behind { doors } => Reach::Through(doors.to_vec()),
    }
}

/// How near these copies are.
pub(crate) fn tier(
    from: Viewpoint<'_>,
    copies: &Copies<'_>,
    distribution: Option<TrafficDistribution>,
) -> Tier {
    let (here, there) = (from.locality, copies.locality);
    let region = here.region == there.region;
    let Place::Address { node, .. } = copies.place else {
        // Two unknown regions are not one.
        let near = region && !here.region.is_empty();
        return if near { Tier::OtherNetworkSameRegion } else { Tier::OtherNetwork };
    };
    let zone = region && here.zone == there.zone;
    let subzone = zone && here.subzone == there.subzone && !here.subzone.is_empty();
    let same_node = !node.is_empty() && node == from.node;
    match distribution {
        Some(TrafficDistribution::PreferSameNode) if same_node => Tier::SameNode,
        Some(_) if subzone => Tier::SameSubzone,
        _ if zone => Tier::SameZone,
        _ if region => Tier::SameRegion,
        _ => Tier::OwnNetwork,
    }
}

/// Copies as load balancing groups: sorted by priority, then locality; no gaps in priorities.
pub(crate) fn groups(
    from: Viewpoint<'_>,
    copies: &[Copies<'_>],
    distribution: Option<TrafficDistribution>,
) -> Vec<LocalityGroup> {
    let ways: Vec<(&Copies<'_>, Reach)> =
        copies.iter().map(|copies| (copies, reach(from, copies))).collect();
    // Divides evenly over the gateways of any cluster.
    let unit = ways.iter().fold(1, |unit, (_, way)| match way {
        Reach::Through(doors) => lcm(unit, doors.len() as u64),
        Reach::Direct(_) | Reach::Unreachable(_) => unit,
    });
    let mut sums: BTreeMap<(Tier, &Locality), BTreeMap<Key<'_>, u64>> = BTreeMap::new();
    for (copies, way) in &ways {
        if copies.weight == 0 {
            continue;
        }
        let group = sums.entry((tier(from, copies, distribution), copies.locality));
        let weight = u64::from(copies.weight);
        match way {
            Reach::Direct(socket) => {
                let Place::Address { pod, .. } = copies.place else { continue };
                let key = Key {
                    address: *socket,
                    cluster: copies.cluster,
                    network: copies.network,
                    tls: copies.meshed,
                    gateway: false,
                    workload: pod,
                };
                // One pod in two slices is one pod.
                group.or_default().insert(key, weight * unit);
            }
            Reach::Through(doors) => {
                let sums = group.or_default();
                for door in doors {
                    let key = Key {
                        address: *door,
                        cluster: copies.cluster,
                        network: copies.network,
                        tls: true,
                        gateway: true,
                        workload: "",
                    };
                    *sums.entry(key).or_default() += weight * unit / doors.len() as u64;
                }
            }
            Reach::Unreachable(_) => {}
        }
    }
    number(sums)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a> {
    address: SocketAddr,
    cluster: &'a ClusterId,
    network: &'a Network,
    tls: bool,
    gateway: bool,
    workload: &'a str,
}

fn number(sums: BTreeMap<(Tier, &Locality), BTreeMap<Key<'_>, u64>>) -> Vec<LocalityGroup> {
    // Envoy wants every sum of weights within 32 bits.
    let total: u64 = sums.values().flat_map(BTreeMap::values).sum();
    let scale = total / u64::from(u32::MAX / 2) + 1;
    let mut groups: Vec<LocalityGroup> = Vec::new();
    let mut last = None;
    let mut priority = 0;
    for ((tier, locality), sums) in sums {
        if last.is_some_and(|last| last != tier) {
            priority += 1;
        }
        last = Some(tier);
        let endpoint = |(key, sum): (Key<'_>, u64)| LbEndpoint {
            address: key.address,
            cluster: key.cluster.clone(),
            network: key.network.clone(),
            weight: u32::try_from((sum / scale).max(1)).unwrap_or(u32::MAX),
            tls: key.tls,
            gateway: key.gateway,
            workload: key.workload.to_owned(),
        };
        let endpoints: Vec<LbEndpoint> = sums.into_iter().map(endpoint).collect();
        let weight = endpoints.iter().fold(0u32, |sum, copy| sum.saturating_add(copy.weight));
        groups.push(LocalityGroup { priority, locality: locality.clone(), weight, endpoints });
    }
    groups
}

/// Least common multiples up to this are kept exactly; beyond it weights are rounded.
const UNIT_MAX: u64 = 1 << 24;

fn lcm(a: u64, b: u64) -> u64 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    let lcm = a / x.max(1) * b;
    if lcm > UNIT_MAX { a } else { lcm }
}

//! Virtual addresses for names without a ClusterIP: the same in every cluster, without a talk.
//!
//! slot = hash(host) mod size, then linear probing; what a host has it keeps. A freed slot rests
//! [`super::REST`] before another host gets it (decision 7): until then it is in `taken`.

use crate::name::Hostname;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One host that wants addresses.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) host: Hostname,
    /// Of its oldest export: older, then lexically smaller, hosts go first.
    pub(super) created: i64,
    /// What it has now.
    pub(super) has: Vec<IpAddr>,
}

/// What a host got, and whether it is where every other cluster would put it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) addresses: Vec<IpAddr>,
    /// Addresses that are not the host's own slot, since somebody else holds that.
    pub(super) displaced: Vec<IpAddr>,
    /// A family whose range is full.
    pub(super) full: bool,
}

/// Grants each wish one address of either family. `taken` is everybody else's.
pub(super) fn grant(
    v4: ipnet::Ipv4Net,
    v6: ipnet::Ipv6Net,
    mut wishes: Vec<Wish>,
    taken: &BTreeSet<IpAddr>,
) -> BTreeMap<Hostname, Grant> {
    wishes.sort_by(|a, b| (a.created, &a.host).cmp(&(b.created, &b.host)));
    let mut grants: BTreeMap<Hostname, Grant> = BTreeMap::new();
    for range in [Range::v4(v4), Range::v6(v6)] {
        let mut used = taken.clone();
        let mut late = Vec::new();
        for wish in &wishes {
            let kept = wish.has.iter().find(|ip| range.slot_of(**ip).is_some());
            match kept {
                Some(ip) if used.insert(*ip) => range.give(&mut grants, &wish.host, *ip),
                Some(_) | None => late.push(&wish.host),
            }
        }
        for host in late {
            match range.probe(host, &used) {
                Some(ip) => {
                    used.insert(ip);
                    range.give(&mut grants, host, ip);
                }
                None => grants.entry(host.clone()).or_default().full = true,
            }
        }
    }
    grants
}

/// Whether an address is a host's own slot.
pub(super) fn is_home(
    v4: ipnet::Ipv4Net,
    v6: ipnet::Ipv6Net,
    host: &Hostname,
    address: IpAddr,
) -> bool {
    let ranges = [Range::v4(v4), Range::v6(v6)];
    let slot = |range: &Range| range.slot_of(address).zip(range.home(host));
    ranges.iter().filter_map(slot).any(|(slot, home)| slot == home)
}

/// The usable part of a range: without its network address, the first (often a router's) and the
/// last (broadcast).
struct Range {
    base: u128,
    usable: u128,
    v6: bool,
}

/// Slots at the start of a range that are not handed out.
const SKIPPED: u128 = 2;

impl Range {
    fn v4(net: ipnet::Ipv4Net) -> Self {
        let size = 1u128 << (32 - net.prefix_len());
        let base = u128::from(u32::from(net.network()));
        Self { base, usable: size.saturating_sub(SKIPPED + 1), v6: false }
    }

    fn v6(net: ipnet::Ipv6Net) -> Self {
        let size = 1u128.checked_shl(128 - u32::from(net.prefix_len())).unwrap_or(u128::MAX);
        let base = u128::from(net.network());
        Self { base, usable: size.saturating_sub(SKIPPED + 1), v6: true }
    }

    fn address(&self, slot: u128) -> IpAddr {
        let value = self.base + SKIPPED + slot;
        if self.v6 {
            return Ipv6Addr::from(value).into();
        }
        Ipv4Addr::from(u32::try_from(value).expect("a slot of an IPv4 range is below 2^32")).into()
    }

    fn slot_of(&self, address: IpAddr) -> Option<u128> {
        let value = match address {
            IpAddr::V4(ip) if !self.v6 => u128::from(u32::from(ip)),
            IpAddr::V6(ip) if self.v6 => u128::from(ip),
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        let slot = value.checked_sub(self.base + SKIPPED)?;
        (slot < self.usable).then_some(slot)
    }

    fn home(&self, host: &Hostname) -> Option<u128> {
        let digest = Sha256::digest(host.as_str());
        let bytes = digest.first_chunk::<16>().expect("SHA-256 has 32 bytes");
        u128::from_be_bytes(*bytes).checked_rem(self.usable)
    }

    fn probe(&self, host: &Hostname, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let home = self.home(host)?;
        // At most `used.len()` slots can be in the way, so one more finds a free one.
        let tries = self.usable.min(used.len() as u128 + 1);
        (0..tries)
            .map(|step| self.address((home + step) % self.usable))
            .find(|ip| !used.contains(ip))
    }

    fn give(&self, grants: &mut BTreeMap<Hostname, Grant>, host: &Hostname, ip: IpAddr) {
        let grant = grants.entry(host.clone()).or_default();
        grant.addresses.push(ip);
        if self.slot_of(ip) != self.home(host) {
            grant.displaced.push(ip);
        }
    }
}

//! The two places where a fleet's programs run: what addresses they have there, and their ports.

use std::net::Ipv4Addr;

/// Where a fleet runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Network namespaces, made by root: real addresses, the same in every cluster, and capture.
    Namespaces,
    /// This machine's own loopback, for anybody: a /16 a cluster and a /24 a pod, no capture.
    Loopback,
}

impl Place {
    /// A cluster's node as its own pods reach it.
    pub fn node(self, cluster: u8) -> Ipv4Addr {
        match self {
            Self::Namespaces => Ipv4Addr::new(10, 244, 0, 1),
            Self::Loopback => Ipv4Addr::new(127, cluster, 0, 1),
        }
    }

    /// Where a cluster's door `last` is for other clusters: 1 is the node, 11 and up are gateways.
    pub fn outside(self, cluster: u8, last: u8) -> Ipv4Addr {
        match (self, last) {
            (Self::Namespaces, _) => Ipv4Addr::new(198, 18, cluster, last),
            (Self::Loopback, 1) => self.node(cluster),
            (Self::Loopback, _) => self.pod(cluster, last),
        }
    }

    /// A pod's address.
    pub fn pod(self, cluster: u8, last: u8) -> Ipv4Addr {
        match self {
            Self::Namespaces => Ipv4Addr::new(10, 244, 0, last),
            Self::Loopback => Ipv4Addr::new(127, cluster, last, 1),
        }
    }

    /// Where admin pages of a process are that others see at `address`.
    pub fn pages(self, address: Ipv4Addr) -> Ipv4Addr {
        match self {
            Self::Namespaces => Ipv4Addr::LOCALHOST,
            Self::Loopback => address,
        }
    }

    /// What a process binds that others reach at `address`.
    pub fn bound(self, address: Ipv4Addr) -> Ipv4Addr {
        match self {
            Self::Namespaces => Ipv4Addr::UNSPECIFIED,
            Self::Loopback => address,
        }
    }

    /// Port of a cluster's DNS, and of its pods'.
    pub fn dns_port(self) -> u16 {
        match self {
            Self::Namespaces => 53,
            // Not 5353: many machines have mDNS there, on all addresses.
            Self::Loopback => 15053,
        }
    }

    /// HTTP port of service `hello`.
    pub fn http_port(self) -> u16 {
        match self {
            Self::Namespaces => 80,
            Self::Loopback => 8080,
        }
    }

    /// The range that holds a cluster's gateways, where a link has to name it.
    pub fn gateway_range(self, cluster: u8) -> Option<String> {
        match self {
            Self::Namespaces => None,
            Self::Loopback => Some(format!("127.{cluster}.0.0/16")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Place;
    use std::collections::BTreeSet;

    #[test]
    fn on_loopback_no_two_share_an_address_and_none_leaves_the_machine() {
        let mut seen = BTreeSet::new();
        for cluster in 1..=3 {
            let node = Place::Loopback.node(cluster);
            let pods = [11, 12, 21, 22, 31].map(|last| Place::Loopback.pod(cluster, last));
            for address in pods.into_iter().chain([node]) {
                assert!(address.is_loopback() && seen.insert(address), "{address}");
                assert_eq!(Place::Loopback.bound(address), address);
            }
            // A gateway is one address, seen from inside and outside.
            assert_eq!(Place::Loopback.outside(cluster, 11), Place::Loopback.pod(cluster, 11));
        }
    }
}

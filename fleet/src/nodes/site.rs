//! Where the clusters are: names, localities, and addresses, which only the WAN tells apart.

use std::net::Ipv4Addr;

/// Pods of every cluster.
pub const PODS: &str = "10.244.0.0/16";
/// Address of every cluster's DNS.
pub(super) const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Services of every cluster.
pub const SERVICES: &str = "10.96.0.0/16";

/// One cluster as it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    pub name: &'static str,
    /// 1 to 250: its addresses on the WAN are 198.18.NUMBER.0/24.
    pub number: u8,
    pub region: &'static str,
    pub zone: &'static str,
    /// 1 to 80.
    pub nodes: u8,
}

/// The clusters of every fleet, as `crate::CLUSTERS`: west is in east's region, north is not.
pub const SITES: [Site; 3] = [
    Site { name: "east", number: 1, region: "europe", zone: "europe-1", nodes: 1 },
    Site { name: "west", number: 2, region: "europe", zone: "europe-2", nodes: 1 },
    Site { name: "north", number: 3, region: "america", zone: "america-1", nodes: 1 },
];

impl Site {
    /// Where its API server is.
    pub fn control(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 1)
    }

    /// A node's address; nodes count from 1.
    pub fn node(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 10 + number)
    }

    /// First and last address that Services of type LoadBalancer get.
    pub fn balanced(self) -> (Ipv4Addr, Ipv4Addr) {
        (Ipv4Addr::new(198, 18, self.number, 100), Ipv4Addr::new(198, 18, self.number, 199))
    }

    /// Name of a node, and the last part of its namespace's.
    pub fn node_name(self, number: u8) -> String {
        format!("{}-{number}", self.name)
    }

    /// Pods of one node: the same in every cluster.
    pub fn pods(number: u8) -> String {
        format!("10.244.{number}.0/24")
    }
}

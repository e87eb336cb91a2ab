//! Where a cluster of kind is on its Docker network, and which addresses of that network it may give away.

use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;

/// What `docker inspect` is asked of a node: a line of address and prefix length for each network.
pub(super) const ASKED: &str = "{{range .NetworkSettings.Networks}}\
                                {{.IPAddress}} {{.IPPrefixLen}}{{\"\\n\"}}{{end}}";

/// A node's address on its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) node: Ipv4Addr,
    /// Bits of it that are the network's.
    prefix: u8,
}

impl Address {
    /// Of what Docker answers to [`ASKED`].
    pub(super) fn of(said: &str) -> Result<Self> {
        let line = said.lines().map(str::trim).find(|line| !line.is_empty());
        let both = line.and_then(|line| line.split_once(' '));
        let (node, prefix) = both.with_context(|| format!("it has no address: {said:?}"))?;
        let node = node.parse().with_context(|| format!("its address {node:?}"))?;
        let prefix = prefix.parse().with_context(|| format!("its prefix length {prefix:?}"))?;
        ensure!(prefix <= 32, "its prefix length {prefix} is none of IPv4");
        Ok(Self { node, prefix })
    }

    /// First and last address for Services of type LoadBalancer of the cluster `number`, 1 to 3: of the
    /// last blocks of 256 in the network, since Docker gives its own from the first on. The same last
    /// octets as on machines of our own making.
    pub(super) fn balanced(self, number: u8) -> Result<(Ipv4Addr, Ipv4Addr)> {
        // Eight blocks: the nodes' own in the first, three of ours before the last.
        ensure!(
            self.prefix <= 21,
            "the Docker network of kind's nodes ({}/{}) has too few addresses for load balancers. Fix: \
             remove the network (docker network rm kind), and let Docker's default-address-pools have \
             a size of 21 or less",
            self.node,
            self.prefix
        );
        let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or_default();
        let last_block = (u32::from(self.node) | hosts) >> 8;
        let block = last_block - 4 + u32::from(number);
        let address = |last: u32| Ipv4Addr::from((block << 8) | last);
        Ok((address(100), address(199)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_balancers_have_their_own_blocks_at_the_end_of_the_network() {
        let address = Address::of("172.18.0.2 16\n").unwrap();
        assert_eq!(address.node, Ipv4Addr::new(172, 18, 0, 2));
        let first = |number: u8| address.balanced(number).unwrap().0.to_string();
        assert_eq!(
            [first(1), first(2), first(3)],
            ["172.18.252.100", "172.18.253.100", "172.18.254.100"]
        );
        let last = Address::of("192.168.0.3 20").unwrap().balanced(3).unwrap().1;
        assert_eq!(last, Ipv4Addr::new(192, 168, 14, 199));
    }

    #[test]
    fn what_is_no_address_or_too_small_a_network_is_refused() {
        for said in ["", "\n", "172.18.0.2", "fc00::2 64", "172.18.0.2 99"] {
            assert!(Address::of(said).is_err(), "{said:?}");
        }
        let small = Address::of("10.1.2.3 24").unwrap().balanced(1).unwrap_err().to_string();
        assert!(small.contains("10.1.2.3/24") && small.contains("Fix:"), "{small}");
    }
}

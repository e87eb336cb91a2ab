//! A sidecar without capture: names lead to slots in the pod's own range of loopback, which it binds.
//!
//! For machines where nobody may write nft rules. The application asks this sidecar's DNS, gets a
//! slot and connects to it; the slot stands for the mesh's virtual address of that name, and from
//! there on everything is as with captured traffic. What comes in arrives at the pod's address and is
//! handed to the application's.

use anyhow::ensure;
use ipnet::Ipv4Net;
use mesh::name::Hostname;
use mesh::zone::Zone;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Ports below are root's.
const FIRST_PORT: u16 = 1024;

/// Section `loopback` of the file, in place of `outbound` and `inbound`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Loopback {
    pub slots: Slots,
    /// Where the application listens; what arrives at the pod's address goes there.
    pub application: Ipv4Addr,
    /// The application's ports, bound at the pod's first address.
    #[serde(default)]
    pub inbound: Vec<u16>,
}

/// The names this pod may call.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Slots {
    /// A range of loopback that is this pod's alone; each name gets an address of it.
    pub range: Ipv4Net,
    pub names: Vec<Name>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Name {
    pub host: Hostname,
    pub ports: Vec<u16>,
}

/// Which slot stands for which name.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    hosts: BTreeMap<Ipv4Addr, Hostname>,
    ports: Vec<(Ipv4Addr, u16)>,
    application: Ipv4Addr,
}

impl Loopback {
    /// Gives each name its slot, in the order of the file, past the pod's and the application's own
    /// addresses.
    pub(crate) fn table(&self, pod: &[IpAddr]) -> anyhow::Result<Table> {
        let Slots { range, names } = &self.slots;
        for address in [range.network(), range.broadcast(), self.application] {
            ensure!(
                address.is_loopback(),
                "ISM1039 loopback: {address} is not in 127.0.0.0/8, so others would reach what is \
                 bound there. Fix: choose slots.range and application in it"
            );
        }
        ensure!(
            !pod.contains(&self.application.into()),
            "ISM1039 loopback.application {} is the pod's own address, which the sidecar binds. \
             Fix: give the application another of the pod's range",
            self.application
        );
        let ports = names.iter().flat_map(|name| &name.ports).chain(&self.inbound);
        if let Some(port) = ports.into_iter().find(|port| **port < FIRST_PORT) {
            anyhow::bail!(
                "ISM1039 loopback: port {port} needs root. Fix: use ports from {FIRST_PORT} up"
            );
        }
        let own = |slot: &Ipv4Addr| *slot == self.application || pod.contains(&(*slot).into());
        let mut free = range.hosts().filter(|slot| !own(slot));
        let mut table =
            Table { hosts: BTreeMap::new(), ports: vec![], application: self.application };
        for name in names {
            let Some(slot) = free.next() else {
                anyhow::bail!(
                    "ISM1039 loopback.slots: {range} has no slot for {} and the names after it. \
                     Fix: widen the range",
                    name.host
                );
            };
            ensure!(
                !table.hosts.values().any(|host| *host == name.host),
                "ISM1039 loopback.slots names {} twice. Fix: list its ports together",
                name.host
            );
            table.ports.extend(name.ports.iter().map(|port| (slot, *port)));
            table.hosts.insert(slot, name.host.clone());
        }
        Ok(table)
    }
}

impl Table {
    /// What is bound for the application's own connections.
    pub(crate) fn listeners(&self) -> Vec<SocketAddr> {
        self.ports.iter().map(|place| (*place).into()).collect()
    }

    /// Where the mesh has what `slot` stands for, or why it is nowhere.
    pub(crate) fn destination(
        &self,
        slot: SocketAddr,
        zone: Option<&Zone>,
    ) -> Result<SocketAddr, String> {
        let host = match slot.ip() {
            IpAddr::V4(ip) => self.hosts.get(&ip),
            IpAddr::V6(_) => None,
        };
        let host = host.ok_or_else(|| format!("{slot} stands for no name"))?;
        let zone = zone.ok_or_else(|| format!("no zone has come yet, so {host} is nowhere"))?;
        let addresses = zone.names.get(host).map(Vec::as_slice).unwrap_or_default();
        let first = addresses.iter().find(|ip| ip.is_ipv4()).or_else(|| addresses.first());
        let ip = first.ok_or_else(|| format!("the mesh has no address for {host}"))?;
        Ok((*ip, slot.port()).into())
    }

    /// Where the application has the port that `arrived` was for.
    pub(crate) fn application(&self, arrived: SocketAddr) -> SocketAddr {
        (self.application, arrived.port()).into()
    }

    /// The zone as this pod's application may use it: a name with an address becomes its slot, and
    /// one without a slot exists and leads nowhere.
    pub(crate) fn zone(&self, mesh: &Zone) -> Zone {
        let mut zone = mesh.clone();
        for (host, addresses) in &mut zone.names {
            let slot = self.hosts.iter().find(|(_, known)| *known == host);
            let slot = slot.filter(|_| !addresses.is_empty());
            *addresses = slot.map(|(slot, _)| IpAddr::V4(*slot)).into_iter().collect();
        }
        zone
    }
}

#[cfg(test)]
mod tests {
    use super::{Loopback, Table};
    use mesh::zone::{Answer, RecordType, Zone, answer};
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr};

    const POD: &str = "127.1.5.1";

    fn loopback(range: &str, application: &str, port: u16) -> Loopback {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("loopback.yaml");
        let text = format!(
            "slots:\n  range: {range}\n  names:\n  - {{host: hello.shop.global, ports: [{port}, 9000]}}\n  \
             - {{host: other.shop.global, ports: [8080]}}\napplication: {application}\ninbound: [8080]\n"
        );
        std::fs::write(&file, text).unwrap();
        runtime::config::load(&file).unwrap()
    }

    fn table(loopback: &Loopback) -> anyhow::Result<Table> {
        loopback.table(&[POD.parse().unwrap()])
    }

    #[test]
    fn a_slot_stands_for_the_meshs_address() {
        let table = table(&loopback("127.1.5.0/24", "127.1.5.2", 8080)).unwrap();
        let listeners: Vec<String> = table.listeners().iter().map(ToString::to_string).collect();
        assert_eq!(listeners, ["127.1.5.3:8080", "127.1.5.3:9000", "127.1.5.4:8080"]);
        let names = [
            ("hello.shop.global", vec!["2001:2::7", "240.240.7.2"]),
            ("unlisted.shop.global", vec!["240.240.7.3"]),
        ];
        let parse = |ip: &&str| ip.parse::<IpAddr>().unwrap();
        let names = names
            .map(|(host, ips)| (host.parse().unwrap(), ips.iter().map(parse).collect::<Vec<_>>()));
        let mesh = Zone {
            names: BTreeMap::from(names),
            namespaces: ["shop".to_owned()].into(),
            complete: true,
        };
        let to = |slot: &str| {
            table.destination(slot.parse().unwrap(), Some(&mesh)).map(|to| to.to_string())
        };
        assert_eq!(to("127.1.5.3:9000").unwrap(), "240.240.7.2:9000");
        assert!(to("127.1.5.4:8080").unwrap_err().contains("other.shop.global"));
        assert!(to("127.1.5.9:8080").unwrap_err().contains("no name"));
        assert!(table.destination("127.1.5.3:9000".parse().unwrap(), None).is_err());

        let zone = table.zone(&mesh);
        let slot = Ipv4Addr::new(127, 1, 5, 3);
        assert_eq!(answer(&zone, "hello.shop.global", RecordType::A), Answer::V4(vec![slot]));
        assert_eq!(answer(&zone, "hello.shop.global", RecordType::Aaaa), Answer::NoData);
        assert_eq!(answer(&zone, "unlisted.shop.global", RecordType::A), Answer::NoData);
        assert_eq!(answer(&zone, "nobody.shop.global", RecordType::A), Answer::NxDomain);
    }

    #[test]
    fn what_cannot_be_right_is_said() {
        for (range, application, port) in [
            ("10.1.5.0/24", "127.1.5.2", 8080),
            ("127.1.5.0/24", "10.1.5.2", 8080),
            ("127.1.5.0/24", POD, 8080),
            ("127.1.5.0/24", "127.1.5.2", 80),
            ("127.1.5.4/32", "127.1.5.2", 8080),
        ] {
            let problem = table(&loopback(range, application, port)).unwrap_err().to_string();
            assert!(problem.contains("ISM1039") && problem.contains("Fix: "), "{problem}");
        }
    }
}

//! The pod's traffic through its sidecar: one nft table, whole or not at all.
//!
//! Same ways as Istio's: outbound TCP to 15001, inbound TCP to 15006, DNS to 15053, all by
//! original destination; the proxy's own user passes. What the inbound side forwards to the
//! application leaves from 127.0.0.6 (IPv6: ::1), so it is not taken in again, while a call of the
//! pod to itself through its service is.

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};

/// Source address of what the inbound side forwards to an application on IPv4 (Istio's choice).
pub const INBOUND_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same on IPv6, where only ::1 is loopback.
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::LOCALHOST;

/// Ports that are never taken in: HBONE, and the sidecar's own metrics and health.
const INBOUND_NEVER: [u16; 4] = [15008, 15020, 15021, 15090];

/// Inode of the first network namespace, from Linux 6.18 on (`NET_NS_INIT_INO`, linux/nsfs.h); before
/// that its number tells nothing.
const MACHINES_OWN: u64 = 0xEFFF_FFF9;

/// The name of our table; everything of ours is in it.
const TABLE: &str = "isthmus_sidecar";

/// Which traffic goes through the sidecar of this network namespace.
#[derive(Debug, Clone, Args)]
pub struct Redirect {
    /// User ids whose traffic is left alone: the sidecar's own.
    #[arg(long, default_values_t = [1337], value_delimiter = ',')]
    pub uid: Vec<u32>,
    /// Port that outbound TCP goes to.
    #[arg(long, default_value_t = 15001, value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,
    /// Port that inbound TCP goes to.
    #[arg(long, default_value_t = 15006, value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,
    /// Port that DNS over UDP and TCP goes to.
    #[arg(long, default_value_t = 15053, value_parser = clap::value_parser!(u16).range(1..))]
    pub dns_port: u16,
    /// Leave DNS alone.
    #[arg(long)]
    pub no_dns: bool,
    /// Destination ports that outbound connections reach directly.
    #[arg(long, value_delimiter = ',')]
    pub exclude_outbound_ports: Vec<u16>,
    /// Destinations (CIDR) that outbound connections reach directly.
    #[arg(long, value_delimiter = ',')]
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Ports of this pod that are reached directly, besides 15008, 15020, 15021 and 15090.
    #[arg(long, value_delimiter = ',')]
    pub exclude_inbound_ports: Vec<u16>,
    /// Take the rules away.
    #[arg(long)]
    pub remove: bool,
    /// Print the nft script, change nothing.
    #[arg(long)]
    pub dry_run: bool,
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            uid: vec![1337],
            outbound_port: 15001,
            inbound_port: 15006,
            dns_port: 15053,
            no_dns: false,
            exclude_outbound_ports: vec![],
            exclude_outbound_cidrs: vec![],
            exclude_inbound_ports: vec![],
            remove: false,
            dry_run: false,
        }
    }
}

impl Redirect {
    /// Prints or applies, as the flags say. Needs CAP_NET_ADMIN in the pod's network namespace.
    pub fn run(&self) -> anyhow::Result<()> {
        let script = self.script();
        if self.dry_run {
            print!("{script}");
            return Ok(());
        }
        let own = std::fs::metadata("/proc/self/ns/net").map(|it| it.ino()).ok();
        ensure!(
            self.remove || own != Some(MACHINES_OWN),
            "ISM1050 this is the machine's own network namespace, and all of the machine's connections \
             would be redirected. Fix: run it in the pod's (`ip netns exec`, `nsenter --net`); --dry-run \
             prints what it would do"
        );
        apply(&script)
    }

    /// The nft script: one transaction that replaces our table, so applying it twice is once.
    pub fn script(&self) -> String {
        // Naming the table first creates it when it is not there, so that deleting never fails.
        let mut script = format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n");
        if !self.remove {
            script += &self.table();
        }
        script
    }

    fn table(&self) -> String {
        let Self { outbound_port, inbound_port, dns_port, .. } = self;
        let uids = list(&self.uid);
        let ports_out = self.returns("tcp dport", &list(&self.exclude_outbound_ports));
        let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
            self.exclude_outbound_cidrs.iter().partition(|net| matches!(net, IpNet::V4(_)));
        let cidrs = self.returns("ip daddr", &list(&v4)) + &self.returns("ip6 daddr", &list(&v6));
        let never: BTreeSet<u16> =
            INBOUND_NEVER.iter().chain(&self.exclude_inbound_ports).copied().collect();
        let ports_in = list(&never.into_iter().collect::<Vec<_>>());
        let mut dns = String::new();
        if !self.no_dns {
            for transport in ["udp", "tcp"] {
                let _ = writeln!(dns, "    {transport} dport 53 redirect to :{dns_port}");
            }
        }
        format!(
            "table inet {TABLE} {{
  chain outbound {{
    type nat hook output priority -100; policy accept;
    meta skuid {{ {uids} }} goto proxy
{dns}    oifname \"lo\" return
{ports_out}{cidrs}    meta l4proto tcp redirect to :{outbound_port}
  }}
  chain proxy {{
    oifname != \"lo\" return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    ip saddr {INBOUND_SOURCE_V4} return
    ip6 saddr {INBOUND_SOURCE_V6} return
    tcp dport {{ {ports_in} }} return
    meta l4proto tcp redirect to :{inbound_port}
  }}
  chain inbound {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname \"lo\" return
    fib daddr type != local return
    tcp dport {{ {ports_in} }} return
    meta l4proto tcp redirect to :{inbound_port}
  }}
}}
"
        )
    }

    /// A rule that leaves `what` alone; nothing for an empty list, which nft refuses.
    fn returns(&self, what: &str, values: &str) -> String {
        if values.is_empty() {
            String::new()
        } else {
            format!("    {what} {{ {values} }} return\n")
        }
    }
}

/// Whether `source` is where our inbound side dials applications from.
pub fn inbound_source(destination: IpAddr) -> IpAddr {
    match destination {
        IpAddr::V4(_) => INBOUND_SOURCE_V4.into(),
        IpAddr::V6(_) => INBOUND_SOURCE_V6.into(),
    }
}

/// Gives `script` to nft, which takes all of it or nothing.
fn apply(script: &str) -> anyhow::Result<()> {
    // Not every PATH of a root shell has sbin in it.
    let nft = ["/usr/sbin/nft", "/sbin/nft"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap_or("nft");
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!("ISM1037 cannot start {nft}. Fix: install nftables in the image that runs this")
        })?;
    let mut input = child.stdin.take().context("stdin of nft is a pipe")?;
    // When nft ends early its exit code says more than our broken pipe.
    let written = input.write_all(script.as_bytes());
    drop(input);
    let output = child.wait_with_output().context("waiting for nft")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(2_000).collect();
        bail!(
            "ISM1038 nft refused the redirect rules ({}): {said}. Fix: run this as root (or with \
             CAP_NET_ADMIN) in the pod's network namespace, on a kernel with nf_tables and NAT",
            output.status
        );
    }
    written.context("writing to nft")
}

fn list<T: std::fmt::Display>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::Redirect;

    #[test]
    fn the_script_replaces_one_table() {
        let script = Redirect {
            exclude_outbound_ports: vec![3306],
            exclude_outbound_cidrs: vec![
                "10.9.0.0/16".parse().unwrap(),
                "fd00::/8".parse().unwrap(),
            ],
            exclude_inbound_ports: vec![9000],
            ..Redirect::default()
        }
        .script();
        assert!(script.starts_with(
            "table inet isthmus_sidecar {}\ndelete table inet isthmus_sidecar\ntable inet"
        ));
        for line in [
            "meta skuid { 1337 } goto proxy",
            "udp dport 53 redirect to :15053",
            "tcp dport { 3306 } return",
            "ip daddr { 10.9.0.0/16 } return",
            "ip6 daddr { fd00::/8 } return",
            "tcp dport { 9000, 15008, 15020, 15021, 15090 } return",
        ] {
            assert!(script.contains(line), "{line} in {script}");
        }
        let without = Redirect { no_dns: true, ..Redirect::default() }.script();
        assert!(!without.contains("dport 53") && !without.contains("ip daddr {"), "{without}");
    }

    #[test]
    fn removing_leaves_nothing() {
        let script = Redirect { remove: true, ..Redirect::default() }.script();
        assert_eq!(script, "table inet isthmus_sidecar {}\ndelete table inet isthmus_sidecar\n");
    }
}

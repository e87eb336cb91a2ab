//! Who has bound an address of this machine, by what the kernel shows in `/proc`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// A sentence about whoever holds `address`, for a message.
pub(super) fn holder(address: SocketAddrV4) -> String {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6"];
    let texts = tables.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let mut found = texts.iter().flat_map(|text| text.lines()).filter_map(bound);
    let Some(bound) = found.find(|bound| {
        let at = bound.address;
        at.port() == address.port() && (at.ip() == *address.ip() || at.ip().is_unspecified())
    }) else {
        return "somebody who is gone by now".into();
    };
    match process(bound.inode) {
        Some((pid, command)) => format!("process {pid} ({command})"),
        None => format!("a process of the user with uid {}", bound.uid),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Bound {
    address: SocketAddr,
    uid: u32,
    inode: u64,
}

/// One line of the kernel's tables, where it is a socket that waits for strangers.
fn bound(line: &str) -> Option<Bound> {
    /// TCP that listens, and UDP that is not connected.
    const OPEN: [&str; 2] = ["0A", "07"];
    let fields: Vec<&str> = line.split_whitespace().collect();
    if !OPEN.contains(fields.get(3)?) {
        return None;
    }
    let (ip, port) = fields.get(1)?.split_once(':')?;
    // Words of 32 bits in the machine's own order; of IPv6 only "any" and mapped IPv4 matter.
    let last = u32::from_str_radix(ip.get(ip.len().checked_sub(8)?..)?, 16).ok()?;
    let ip = Ipv4Addr::from(last.to_ne_bytes());
    Some(Bound {
        address: (IpAddr::V4(ip), u16::from_str_radix(port, 16).ok()?).into(),
        uid: fields.get(7)?.parse().ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// The process that has a socket open, where we may look: our own user's, or as root all.
fn process(inode: u64) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        let holds = files
            .flatten()
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| target.to_string_lossy() == wanted);
        if holds {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = command.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            let command: Vec<_> = words.filter(|word| !word.is_empty()).collect();
            return Some((pid, command.join(" ")));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::holder;
    use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

    #[test]
    fn we_find_ourselves() {
        let own = format!("process {} ", std::process::id());
        let one = TcpListener::bind((Ipv4Addr::new(127, 9, 9, 9), 0)).unwrap();
        let port = one.local_addr().unwrap().port();
        let said = holder(SocketAddrV4::new(Ipv4Addr::new(127, 9, 9, 9), port));
        assert!(said.starts_with(&own), "{said}");
        // Who listens on all addresses holds each of them.
        let all = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = all.local_addr().unwrap().port();
        let said = holder(SocketAddrV4::new(Ipv4Addr::new(127, 9, 9, 9), port));
        assert!(said.starts_with(&own), "{said}");
        let nobody = holder(SocketAddrV4::new(Ipv4Addr::new(127, 9, 9, 10), 1));
        assert!(nobody.contains("gone"), "{nobody}");
    }
}

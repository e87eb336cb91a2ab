//! What the kernel says of a process's TCP sockets.

use anyhow::{Context, Result, bail};
use fleet::process::Process;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

/// States of `/proc/PID/net/tcp` (Linux: `include/net/tcp_states.h`).
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// One row that belongs to the process.
struct Row {
    local: String,
    remote: String,
    state: String,
    inode: u64,
}

/// Ports and inodes of the sockets it listens on.
pub(super) fn listening(process: &Process) -> Result<Vec<(u16, u64)>> {
    let mut found = Vec::new();
    for row in rows(process, &["tcp", "tcp6"])?.iter().filter(|row| row.state == LISTEN) {
        let port =
            row.local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        found.push((port.context("a port")?, row.inode));
    }
    Ok(found)
}

/// How many connections it has to `remote`.
pub(super) fn connections(process: &Process, remote: SocketAddrV4) -> Result<usize> {
    let remote = kernel_form(*remote.ip(), remote.port());
    let rows = rows(process, &["tcp"])?;
    Ok(rows.iter().filter(|row| row.state == ESTABLISHED && row.remote == remote).count())
}

/// The address as a number of the machine's own order, and the port.
fn kernel_form(ip: Ipv4Addr, port: u16) -> String {
    format!("{:08X}:{port:04X}", u32::from_ne_bytes(ip.octets()))
}

/// Its table of sockets is its namespace's; its own are those it holds.
fn rows(process: &Process, tables: &[&str]) -> Result<Vec<Row>> {
    let pid = process.pid();
    let held: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.display().to_string())
        .collect();
    let mut rows = Vec::new();
    for table in tables {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}"))?;
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, state, _, _, _, _, _, inode, ..] = words[..] else {
                bail!("/proc/{pid}/net/{table} has a line {line:?}");
            };
            if held.contains(&format!("socket:[{inode}]")) {
                rows.push(Row {
                    local: local.to_owned(),
                    remote: remote.to_owned(),
                    state: state.to_owned(),
                    inode: inode.parse()?,
                });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        let expected = if cfg!(target_endian = "little") { "0B0212C6" } else { "C612020B" };
        assert_eq!(kernel_form(Ipv4Addr::new(198, 18, 2, 11), 15443), format!("{expected}:3C53"));
    }
}

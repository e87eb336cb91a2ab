//! Where the processes of one pod or node are, and how to reach them there.

use crate::netns::{Fault, Netns, connect_from};
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Tells a program to end with the process of this id ([`crate::process::end_with_parent`]).
pub(crate) const PARENT: &str = "ISTHMUS_PARENT";

/// A pod's or a node's own part of a place.
#[derive(Debug)]
pub enum Spot {
    Netns(Netns),
    Loopback,
}

/// A way into a spot; opens nothing by itself.
#[derive(Debug, Clone)]
pub enum Door {
    /// Name of a network namespace.
    Netns(String),
    Loopback,
}

impl Spot {
    pub fn door(&self) -> Door {
        match self {
            Self::Netns(netns) => Door::Netns(netns.name().to_owned()),
            Self::Loopback => Door::Loopback,
        }
    }

    /// Its namespace, for what only a namespace has.
    pub fn netns(&self) -> Result<&Netns> {
        match self {
            Self::Netns(netns) => Ok(netns),
            Self::Loopback => bail!("only network namespaces have this; loopback has no packets"),
        }
    }

    /// Puts `fault` on what comes and goes by `device`; replaces an earlier fault.
    pub fn fault(&self, device: &str, fault: Fault) -> Result<()> {
        self.netns()?.fault(device, fault)
    }

    /// Takes any fault away.
    pub fn heal(&self) -> Result<()> {
        match self {
            Self::Netns(netns) => netns.heal(),
            Self::Loopback => Ok(()),
        }
    }

    /// Connects from inside; the socket stays usable outside.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.door().connect(to, limit)
    }
}

impl Door {
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
        match self {
            Self::Netns(name) => connect_from(Path::new(&format!("/run/netns/{name}")), to, limit),
            Self::Loopback => Ok(TcpStream::connect_timeout(&to, limit)?),
        }
    }

    /// A command that will run inside, in the caller's file system.
    pub fn command(&self, program: &Path) -> Command {
        match self {
            Self::Netns(name) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
                command
            }
            Self::Loopback => Command::new(program),
        }
    }

    /// A command for a process of a fleet: under `user` where a place has users, and dead at the
    /// latest with this process, unless it `stays`.
    pub(crate) fn start(
        &self,
        program: &Path,
        user: Option<u32>,
        own_etc: bool,
        stays: bool,
    ) -> Command {
        use std::os::unix::process::CommandExt;
        match self {
            Self::Netns(name) => {
                let mut command = if own_etc {
                    let mut command = Command::new("ip");
                    command.args(["netns", "exec", name]);
                    command
                } else {
                    let mut command = Command::new("nsenter");
                    command.arg(format!("--net=/run/netns/{name}")).arg("--");
                    command
                };
                // Every wrapper execs the next, so the pid we signal is the program's own.
                command.arg("setpriv");
                if stays {
                    // Ctrl-C at the terminal is for us, who end things in order.
                    command.process_group(0);
                } else {
                    command.args(["--pdeathsig", "KILL"]);
                }
                if let Some(id) = user {
                    command.args([
                        format!("--reuid={id}"),
                        format!("--regid={id}"),
                        "--clear-groups".into(),
                    ]);
                }
                command.arg("--").arg(program);
                command
            }
            Self::Loopback => {
                let mut command = Command::new(program);
                // A group of its own: Ctrl-C at the terminal is for us, who end things in order.
                command.env(PARENT, std::process::id().to_string()).process_group(0);
                command
            }
        }
    }
}

/// GET over a fresh connection made inside a spot: status and body.
pub fn http_get(spot: &Spot, to: SocketAddr, path: &str, limit: Duration) -> Result<(u16, String)> {
    http_get_at(&spot.door(), to, path, limit)
}

/// As [`http_get`], by the way in.
pub fn http_get_at(
    door: &Door,
    to: SocketAddr,
    path: &str,
    limit: Duration,
) -> Result<(u16, String)> {
    let mut stream = door.connect(to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n")?;
    let mut answer = vec![];
    stream.take(64 << 20).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { dechunk(body)? } else { body.to_owned() }))
}

fn dechunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk without size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
        if size == 0 {
            return Ok(whole);
        }
        ensure!(rest.len() >= size + 2, "a chunk is cut short");
        whole.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
}

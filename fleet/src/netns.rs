//! Network namespaces: a WAN, nodes and pods, their links, and the faults a link can have.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A network namespace of this fleet; removed when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

/// What happens to packets that match a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A TCP reset or an ICMP error comes back at once.
    Refuse,
    /// Nothing comes back: both directions vanish.
    Drop,
    /// What is sent to it vanishes; what it sends arrives.
    DropIn,
    /// What it sends vanishes; what is sent to it arrives.
    DropOut,
    /// What it sends to this one address and TCP port vanishes.
    DropTo(SocketAddr),
}

impl Netns {
    /// Makes a namespace with its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let netns = Self { name: name.to_owned() };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that names it, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}", self.name))
    }

    /// `ip -n NAME …`.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        ip(&[&["-n", self.name.as_str()], args].concat())
    }

    /// A bridge with `address` (CIDR), up.
    pub fn bridge(&self, bridge: &str, address: &str) -> Result<()> {
        self.ip(&["link", "add", bridge, "type", "bridge"])?;
        self.ip(&["addr", "add", address, "dev", bridge])?;
        self.ip(&["link", "set", bridge, "up"])
    }

    /// Plugs a leg `leg` with `address` (CIDR) into `bridge` of `other`.
    pub fn plug(
        &self,
        leg: &str,
        address: &str,
        other: &Self,
        bridge: &str,
        port: &str,
    ) -> Result<()> {
        self.plug_into(leg, address, &other.name, bridge, port)
    }

    /// As [`Self::plug`], by the other's name.
    pub fn plug_into(
        &self,
        leg: &str,
        address: &str,
        other: &str,
        bridge: &str,
        port: &str,
    ) -> Result<()> {
        ip(&[
            "link", "add", port, "netns", other, "type", "veth", "peer", "name", leg, "netns",
            &self.name,
        ])?;
        ip(&["-n", other, "link", "set", port, "master", bridge, "up"])?;
        self.ip(&["addr", "add", address, "dev", leg])?;
        self.ip(&["link", "set", leg, "up"])
    }

    /// Loads a ruleset.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut child = self
            .command("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting nft")?;
        child.stdin.take().expect("piped").write_all(rules.as_bytes())?;
        let out = child.wait_with_output()?;
        ensure!(
            out.status.success(),
            "nft in {}: {}\n{rules}",
            self.name,
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(())
    }

    /// Writes a sysctl of this namespace, `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /proc/sys/{key}");
        let status = self.command("sh").args(["-c", &script]).status()?;
        ensure!(status.success(), "setting {key} in {}", self.name);
        Ok(())
    }

    /// A command that will run in this namespace, in the caller's file system.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Puts `fault` on what comes and goes by `device`; replaces an earlier fault.
    pub fn fault(&self, device: &str, fault: Fault) -> Result<()> {
        let refuse = ["meta l4proto tcp reject with tcp reset", "reject"];
        let to = match fault {
            Fault::DropTo(to) => {
                let family = if to.is_ipv4() { "ip" } else { "ip6" };
                format!("{family} daddr {} tcp dport {} drop", to.ip(), to.port())
            }
            Fault::Refuse | Fault::Drop | Fault::DropIn | Fault::DropOut => String::new(),
        };
        let to = [to.as_str()];
        let (inward, outward): (&[&str], &[&str]) = match fault {
            // Only what arrives is refused: the reset itself must get out.
            Fault::Refuse => (&refuse, &[]),
            Fault::Drop => (&["drop"], &["drop"]),
            Fault::DropIn => (&["drop"], &[]),
            Fault::DropOut => (&[], &["drop"]),
            Fault::DropTo(_) => (&[], &to),
        };
        let mut rules =
            String::from("add table inet fault\ndelete table inet fault\ntable inet fault {\n");
        for (hook, verbs) in [
            ("input", [("iifname", inward), ("oifname", &[][..])]),
            ("forward", [("iifname", inward), ("oifname", outward)]),
            ("output", [("iifname", &[][..]), ("oifname", outward)]),
        ] {
            rules.push_str(&format!(
                "  chain {hook} {{\n    type filter hook {hook} priority -300;\n"
            ));
            for (side, verbs) in verbs {
                for verb in verbs {
                    rules.push_str(&format!("    {side} \"{device}\" {verb}\n"));
                }
            }
            rules.push_str("  }\n");
        }
        rules.push_str("}\n");
        self.nft(&rules)
    }

    /// Takes any fault away.
    pub fn heal(&self) -> Result<()> {
        // `add` first, so that deleting what is not there is no error.
        self.nft("add table inet fault\ndelete table inet fault\n")
    }
}

/// Connects from inside the namespace that `path` names; the socket stays usable outside it.
pub(crate) fn connect_from(path: &Path, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let path = path.to_owned();
    let worker = std::thread::spawn(move || {
        enter(&path)?;
        Ok(TcpStream::connect_timeout(&to, limit)?)
    });
    worker.join().map_err(|_| anyhow::anyhow!("connecting to {to} panicked"))?
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("removing namespace {}: {error:#}", self.name);
        }
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.name));
    }
}

/// Moves the calling thread (and threads it starts later) into a namespace.
pub fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("entering {}", path.display()))
}

/// So long a killed process may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);

/// Removes all namespaces `PREFIX-*` with the processes in them: what a crash left behind.
pub fn sweep(prefix: &str) -> Result<()> {
    let out = Command::new("ip").args(["netns", "list"]).output().context("ip netns list")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let ours = |name: &&str| name.starts_with(&format!("{prefix}-"));
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.split_whitespace().next()).filter(ours).collect();
    let me = std::process::id();
    for name in &names {
        let pids = Command::new("ip").args(["netns", "pids", name]).output()?;
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            let pid: i32 = pid.parse().context("a process id")?;
            if pid.unsigned_abs() != me {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    // What is killed is gone a little later, and holds files until then.
    let deadline = Instant::now() + GONE_MAX;
    for name in &names {
        while Instant::now() < deadline {
            let pids = Command::new("ip").args(["netns", "pids", name]).output()?;
            let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
            if pids.split_whitespace().all(|pid| pid == me.to_string()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    for name in &names {
        ip(&["netns", "del", name])?;
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
    }
    Ok(())
}

fn ip(args: &[&str]) -> Result<()> {
    let out = Command::new("ip").args(args).output().context("starting ip")?;
    ensure!(
        out.status.success(),
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

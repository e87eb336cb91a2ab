//! Processes of a fleet: started in their spot under their user, dead at the latest with us.

use crate::spot::{Door, PARENT, Spot};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};

/// What to start, and where; kept so that it can be started again.
#[derive(Debug, Clone)]
pub struct Job {
    /// Names the log file, and the process in messages: `west/kube-apiserver`.
    pub name: String,
    /// Where it runs.
    pub door: Door,
    /// User and group id, where the place has users; `None` is root.
    pub user: Option<u32>,
    /// Give it `/etc/netns/NAMESPACE/*` as `/etc/*` (`ip netns exec`); else the caller's files.
    pub own_etc: bool,
    /// It does not end with us: whoever takes the fleet down ends it.
    pub stays: bool,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub log: PathBuf,
}

impl Job {
    pub fn new(name: impl Into<String>, spot: &Spot, program: &Path, logs: &Path) -> Self {
        let name = name.into();
        let log = logs.join(format!("{}.log", name.replace('/', "_")));
        Self {
            name,
            door: spot.door(),
            user: None,
            own_etc: false,
            stays: false,
            program: program.to_owned(),
            args: vec![],
            env: vec![],
            log,
        }
    }

    pub fn user(mut self, id: u32) -> Self {
        self.user = Some(id);
        self
    }

    pub fn own_etc(mut self) -> Self {
        self.own_etc = true;
        self
    }

    pub fn stays(self) -> Self {
        self.stays_if(true)
    }

    pub fn stays_if(mut self, stays: bool) -> Self {
        self.stays = stays;
        self
    }

    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    fn command(&self) -> Result<Command> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening {}", self.log.display()))?;
        let mut command = self.door.start(&self.program, self.user, self.own_etc, self.stays);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    /// Starts it.
    pub fn start(self) -> Result<Process> {
        let child = spawn(self.command()?).with_context(|| format!("starting {}", self.name))?;
        Ok(Process { job: self, child: Mutex::new(child) })
    }
}

/// One process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    job: Job,
    child: Mutex<Child>,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.job.name
    }

    pub fn log(&self) -> &Path {
        &self.job.log
    }

    /// `None` while it runs (a stopped process runs).
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().expect("no holder panics").try_wait().ok().flatten()
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().expect("no holder panics").id()
    }

    /// Sends a signal; nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        // Under the lock and only while not waited for, so that the id cannot be another's.
        let mut child = self.child.lock().expect("no holder panics");
        if matches!(child.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.lock().expect("no holder panics").wait();
    }

    /// SIGSTOP: it keeps its sockets and says nothing.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGTERM, and waits up to `limit` for the end; SIGKILL after it.
    pub async fn terminate(&self, limit: std::time::Duration) -> Option<ExitStatus> {
        self.signal(Signal::SIGTERM);
        let deadline = tokio::time::Instant::now() + limit;
        while tokio::time::Instant::now() < deadline {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        self.kill();
        None
    }

    /// Starts it again where it has ended; resumes it where it is stopped.
    pub fn revive(&self) -> Result<()> {
        self.resume();
        let mut child = self.child.lock().expect("no holder panics");
        if child.try_wait()?.is_some() {
            *child = spawn(self.job.command()?)
                .with_context(|| format!("starting {} again", self.job.name))?;
        }
        Ok(())
    }

    /// The last lines of its log, for messages.
    pub fn last_words(&self) -> String {
        last_lines(&self.job.log, 15)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last `count` lines of a file.
pub fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Makes this process end with the one that started it, where that one asked for it. To be called
/// first thing: what starts later inherits nothing of it.
pub fn end_with_parent() -> Result<()> {
    let Ok(parent) = std::env::var(PARENT) else { return Ok(()) };
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the parent")?;
    // It may have ended before we asked.
    let alive = nix::unistd::getppid().to_string() == parent;
    anyhow::ensure!(alive, "the process {parent} that started this one is gone");
    Ok(())
}

/// A process's proportional set size in bytes; 0 where it has ended.
pub fn pss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a command from one thread that lives as long as the harness. The kernel sends the
/// parent-death signal when the *thread* that forked ends, and pool threads end early.
pub fn spawn(command: Command) -> Result<Child> {
    static ORDERS: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let orders = ORDERS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            while let Ok((mut command, answer)) = receiver.recv() {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (sender, receiver) = mpsc::channel();
    orders.send((command, sender)).ok().context("the starter of processes is gone")?;
    Ok(receiver.recv().context("the starter of processes is gone")??)
}

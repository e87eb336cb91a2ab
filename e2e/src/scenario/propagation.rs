//! How long a change of readiness takes to reach a sidecar, in another cluster and in the own.

use super::controllers::endpoints_in;
use super::{HOST, Stage, call, p99_ms};
use anyhow::{Result, bail};
use fleet::launcher::{Launcher, Pod};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Changes measured, each way counted as one.
const CHANGES: usize = 100;
/// At most five changes a second.
const PACE: Duration = Duration::from_millis(200);

/// A keep-alive connection to a sidecar's admin page.
struct Page {
    stream: BufReader<TcpStream>,
}

impl Page {
    fn open(pod: &Pod) -> Result<Self> {
        let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
        let stream = pod.spot.connect(admin, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// `/clusters`, which must state its length.
    fn read(&mut self) -> Result<String> {
        self.stream.get_mut().write_all(b"GET /clusters HTTP/1.1\r\nhost: admin\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("the admin page closed");
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(String::from_utf8(body)?)
    }

    /// Looks every few milliseconds until `host` has, or has not, an endpoint that starts with
    /// `prefix`; how long that was after `start`.
    fn until(
        &mut self,
        host: &str,
        prefix: &str,
        wanted: bool,
        start: Instant,
    ) -> Result<Duration> {
        loop {
            let found = endpoints_in(&self.read()?, host)?;
            if found.iter().any(|address| address.starts_with(prefix)) == wanted {
                return Ok(start.elapsed());
            }
            if start.elapsed() > Duration::from_secs(10) {
                bail!("{prefix} is not {wanted} for {host} after 10 s: {found:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Toggles `service`'s readiness and measures until the watched sidecar has followed.
async fn measure(
    launcher: &Launcher,
    pod: &Pod,
    host: &str,
    prefix: &str,
    steps: [&[&str]; 2],
) -> Result<Vec<Duration>> {
    let mut page = Page::open(pod)?;
    let mut took = vec![];
    for change in 0..CHANGES {
        let next = Instant::now() + PACE;
        let start = Instant::now();
        // The first step takes the endpoints with `prefix` away, the second brings them back.
        launcher.write_ready("hello", steps[change % 2]).await?;
        took.push(page.until(host, prefix, change % 2 == 1, start)?);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(took)
}

pub(super) async fn propagation(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client) = (stage.fleet, stage.client()?);
    let west = stage.cluster("west");
    let all: &[&str] = &["hello-1", "hello-2"];
    call(fleet, client, &format!("http://{HOST}/"), 5.0).await?;
    west.launcher.pause(true).await;
    // West's gateways are the endpoints of west in east.
    let remote = measure(&west.launcher, client, HOST, "198.18.2.", [&[], all]).await;
    let local = async {
        // A sidecar of west that uses the service, so that it is subscribed to its endpoints.
        let user = west.pod("hello-1")?;
        let host = "hello.shop.svc.cluster.local";
        call(fleet, user, &format!("http://{host}/"), 5.0).await?;
        measure(&west.launcher, user, host, "10.244.0.22", [&["hello-1"], all]).await
    }
    .await;
    west.launcher.write_ready("hello", all).await?;
    west.launcher.pause(false).await;
    for (what, took, limit) in [
        ("a service in west goes 0 <-> 2 ready endpoints: EDS in east", remote, 500.0),
        ("an endpoint of the own cluster changes: EDS there", local, 100.0),
    ] {
        let promise = format!("{what}, p99 <= {limit} ms");
        match took {
            Ok(mut took) => {
                let p99 = p99_ms(&mut took);
                let median = took[took.len() / 2].as_secs_f64() * 1000.0;
                let figure = format!("p99 {p99:.0} ms, median {median:.0} ms, {CHANGES} changes");
                stage.judge(&promise, &figure, p99 <= limit, &[]);
            }
            Err(error) => stage.judge(&promise, &format!("{error:#}"), false, &[]),
        }
    }
    Ok(())
}

//! Requests that two parsers could take for different ones, from a client in east through two sidecars
//! and a gateway to four servers that are not ours: none of them may see a request that nobody sent.

use super::{Stage, inside};
use anyhow::{Context, Result, ensure};
use fleet::launcher::{Pod, Service};
use fleet::objects::{apply, delete};
use fleet::smuggling::backends::{Backends, Kind, Seen};
use fleet::smuggling::payloads::{self, Meant, Names, Payload, Wire};
use fleet::smuggling::{Told, Tried};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};

const HOST: &str = "edge.shop.global";
/// The pods behind it.
const PODS: [&str; 2] = ["hello-1", "hello-2"];
/// After this everything that was sent is in the logs.
const LOGS_AFTER: Duration = Duration::from_secs(3);

/// One way to a backend: how its port is spoken to.
#[derive(Debug, Clone, Copy)]
struct Column {
    kind: Kind,
    wire: Wire,
}

impl Column {
    fn all() -> Vec<Self> {
        let of = |wire| Kind::ALL.map(|kind| Self { kind, wire });
        [of(Wire::One), of(Wire::Two)].concat()
    }

    fn port(self) -> u16 {
        match self.wire {
            Wire::One => self.kind.port(),
            Wire::Two => self.kind.port_http2(),
        }
    }

    /// The port's name, which says what it speaks; makes the paths of its requests its own, too.
    fn name(self) -> String {
        let protocol = if self.wire == Wire::One { "http" } else { "http2" };
        format!("{protocol}-{}", self.kind.name())
    }
}

pub(super) async fn smuggling(stage: &Stage<'_>) -> Result<()> {
    let west = stage.cluster("west");
    let mut backends = Vec::new();
    for pod in PODS {
        backends.push(Backends::start(west.pod(pod)?, &stage.fleet.home)?);
    }
    let service = Service {
        namespace: "shop".into(),
        name: "edge".into(),
        selector: BTreeMap::from([("app".into(), "hello".into())]),
        ports: Column::all().iter().map(|c| (c.name(), c.port(), c.port())).collect(),
    };
    west.launcher.serve(service).await?;
    apply(west.client(), &export()).await?;
    let tried = try_all(stage, &backends).await;
    delete(west.client(), &export()).await?;
    tried
}

fn export() -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": "edge", "namespace": "shop"},
    })
}

async fn try_all(stage: &Stage<'_>, backends: &[Backends]) -> Result<()> {
    let client = stage.client()?;
    for column in Column::all() {
        answers(stage, client, column).await?;
    }
    let runs = Column::all().into_iter().map(|column| async move {
        let to = format!("{HOST}:{}", column.port());
        send(stage, client, &to, &column.name(), &[]).await.map(|told| (column, told))
    });
    let told = futures::future::try_join_all(runs).await?;
    sleep(LOGS_AFTER).await;
    table(stage, backends, &told)?;
    naively(stage, backends).await
}

/// Returns once both sides know the port.
async fn answers(stage: &Stage<'_>, client: &Pod, column: Column) -> Result<()> {
    let (limit, url) =
        (Instant::now() + Duration::from_secs(30), format!("http://{HOST}:{}/", column.port()));
    loop {
        match inside(stage.fleet, client, &["call", &url]).await {
            Ok(said) if said.trim() == "seen" => return Ok(()),
            Ok(said) => anyhow::bail!("{url} is answered with {said:?}"),
            Err(problem) if Instant::now() > limit => {
                return Err(problem).with_context(|| format!("{} never answered", column.name()));
            }
            Err(_) => sleep(Duration::from_millis(250)).await,
        }
    }
}

async fn send(stage: &Stage<'_>, pod: &Pod, to: &str, tag: &str, more: &[&str]) -> Result<Told> {
    let args = ["smuggle", "--host", HOST, "--to", to, "--tag", tag];
    let said = inside(stage.fleet, pod, &[&args, more].concat()).await?;
    Ok(serde_json::from_str(&said)?)
}

/// What became of one payload on its way to one backend.
struct Cell {
    text: String,
    wrong: Option<String>,
}

/// `e`: refused by east's sidecar, `w`: by west's, each with the status or the end; `once`, `pair`:
/// the backend saw that and the client was answered; `cut`: it saw a beginning.
fn cell(column: Column, index: usize, payload: &Payload, told: &Told, logs: &Logs) -> Result<Cell> {
    let id = fleet::smuggling::id(&column.name(), index);
    let names = Names { host: HOST.into(), id: id.clone() };
    let tried: &Tried = told.tried.iter().find(|tried| tried.id == id).context("it was tried")?;
    let seen = &logs.seen[&column.kind.name()];
    // All attempts at one request are one: a GET that is late is sent to another copy too.
    let of = |path: &str| -> Vec<&Seen> {
        let mut known = BTreeSet::new();
        let mut first = |s: &&Seen| s.request.is_empty() || known.insert(s.request.clone());
        seen.iter().filter(|s| names_path(&s.path, path)).filter(|s| first(s)).collect()
    };
    let (outer, second, hidden) = (of(&names.path()), of(&names.second()), of(&names.hidden()));
    let answered = tried.answers.iter().filter(|status| **status == 200).count();
    let end = match tried.answers.last() {
        Some(status) => status.to_string(),
        None => tried.end.clone(),
    };
    let strange = outer.iter().find(|seen| seen.host != HOST && Some(&*seen.host) != payload.host);
    let wanted = match payload.meant {
        Meant::Refused => 0..=0,
        Meant::AtMostOne => 0..=1,
        Meant::One => 1..=1,
        Meant::Pair => 2..=2,
    };
    let arrived = outer.len() + second.len();
    let wrong = if !hidden.is_empty() {
        Some(format!("the canary arrived, {} times", hidden.len()))
    } else if !wanted.contains(&arrived) {
        Some(format!("{arrived} requests arrived"))
    } else if second.len() > 1 || outer.len() > 1 {
        Some("a request arrived twice".into())
    } else if answered > *wanted.end() || *wanted.start() > answered {
        Some(format!("{answered} answers came"))
    } else {
        strange.map(|seen| format!("its host became {:?}", seen.host))
    };
    let text = match (arrived, answered) {
        (0, _) if logs.west.contains(&format!("\"{}\"", names.path())) => format!("w {end}"),
        (0, _) => format!("e {end}"),
        (2, 2) => "pair".into(),
        (1, 1) => "once".into(),
        (_, _) => format!("cut {end}"),
    };
    Ok(Cell {
        text,
        wrong: wrong.map(|why| format!("{} to {}: {why}", payload.name, column.name())),
    })
}

/// The path names this one, and not one with a longer number.
fn names_path(path: &str, wanted: &str) -> bool {
    path.match_indices(wanted)
        .any(|(at, _)| !path[at + wanted.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

/// What was seen in west.
struct Logs {
    seen: BTreeMap<&'static str, Vec<Seen>>,
    /// Lines of the sidecars' access logs that are about payloads.
    west: String,
}

impl Logs {
    fn read(stage: &Stage<'_>, backends: &[Backends]) -> Result<Self> {
        let mut seen = BTreeMap::new();
        for kind in Kind::ALL {
            let all: Vec<Vec<Seen>> =
                backends.iter().map(|backends| backends.seen(kind)).collect::<Result<_>>()?;
            seen.insert(kind.name(), all.concat());
        }
        let columns: Vec<String> = Column::all().into_iter().map(Column::name).collect();
        let mut west = String::new();
        for pod in PODS {
            let proxy = stage.cluster("west").pod(pod)?.proxy.get().context("its sidecar runs")?;
            let log = std::fs::read(proxy.log())?;
            let log = String::from_utf8_lossy(&log);
            // What was played before may have left a million others.
            let ours = |line: &&str| columns.iter().any(|column| line.contains(column));
            west.extend(log.lines().filter(ours).flat_map(|line| [line, "\n"]));
        }
        Ok(Self { seen, west })
    }
}

fn table(stage: &Stage<'_>, backends: &[Backends], told: &[(Column, Told)]) -> Result<()> {
    let logs = Logs::read(stage, backends)?;
    ensure!(!logs.west.is_empty(), "west's sidecars log nothing");
    let heads: Vec<String> = told.iter().map(|(column, _)| column.name()).collect();
    stage.note(&format!("{:<46} {}", "payload", heads.join(" | ")));
    let (mut wrong, mut outcomes, mut rows) = (Vec::new(), BTreeMap::<_, usize>::new(), 0);
    for (index, payload) in payloads::all().enumerate() {
        let mut texts = Vec::new();
        for (column, told) in told {
            let cell = cell(*column, index, payload, told, &logs)?;
            let kind = cell.text.split(' ').next().unwrap_or_default().to_owned();
            *outcomes.entry(kind).or_default() += 1;
            texts.push(if cell.wrong.is_some() { format!("{}!", cell.text) } else { cell.text });
            wrong.extend(cell.wrong);
        }
        let unlike: BTreeSet<&String> = texts.iter().collect();
        let line = if unlike.len() == 1 { format!("all: {}", texts[0]) } else { texts.join(" | ") };
        stage.note(&format!("{:<4}{:<42} {line}", wire(payload), payload.name));
        rows += 1;
    }
    let counts: Vec<String> = outcomes.iter().map(|(what, n)| format!("{what} {n}")).collect();
    stage.judge(
        "no ambiguous request becomes two, is changed, or goes on where nobody can read it",
        &format!(
            "{rows} payloads to {} ports: {}; wrong: {} {}",
            told.len(),
            counts.join(", "),
            wrong.len(),
            wrong.iter().take(8).cloned().collect::<Vec<_>>().join("; ")
        ),
        wrong.is_empty(),
        &[],
    );
    let others: usize = told.iter().map(|(_, told)| told.others).sum();
    let wronged: Vec<&String> = told.iter().flat_map(|(_, told)| &told.wronged).collect();
    stage.judge(
        "meanwhile everybody else is given the answers to their own requests",
        &format!("{others} calls, {} wronged {}", wronged.len(), wronged.first().map_or("", |w| w)),
        others > 0 && wronged.is_empty(),
        &[],
    );
    Ok(())
}

fn wire(payload: &Payload) -> &'static str {
    match payload.wire {
        Wire::One => "h1",
        Wire::Two => "h2",
    }
}

/// The same table behind a proxy that goes by `Content-Length` alone, without any sidecar: that canaries
/// arrive there shows that they would be seen.
async fn naively(stage: &Stage<'_>, backends: &[Backends]) -> Result<()> {
    let pod = stage.cluster("west").pod(PODS[0])?;
    let runs = Kind::ALL.map(|kind| async move {
        let (to, tag) = (format!("127.0.0.1:{}", kind.port()), format!("naive-{}", kind.name()));
        send(stage, pod, &to, &tag, &["--naive"]).await.map(|told| (kind, told))
    });
    let told = futures::future::try_join_all(runs).await?;
    sleep(LOGS_AFTER).await;
    let (mut figures, mut all) = (Vec::new(), 0);
    for (kind, told) in &told {
        let seen = backends[0].seen(*kind)?;
        let smuggled: Vec<&Tried> = (told.tried.iter())
            .filter(|tried| {
                let hidden = Names { host: HOST.into(), id: tried.id.clone() }.hidden();
                seen.iter().any(|seen| names_path(&seen.path, &hidden))
                    && !told.believed.contains(&hidden)
            })
            .collect();
        all += smuggled.len();
        let first = smuggled.first().map_or("", |tried| &tried.name);
        figures.push(format!("{} {} ({first})", kind.name(), smuggled.len()));
    }
    stage.judge(
        "control: behind a naive proxy the same table smuggles requests",
        &format!("payloads that did: {}", figures.join(", ")),
        all > 0,
        &[],
    );
    Ok(())
}

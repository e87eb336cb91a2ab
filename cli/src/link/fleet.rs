//! `isthmus link --fleet FILE`: many clusters at once. The plan is printed before anything is changed,
//! and a cluster that cannot be linked costs its own links only.

use super::pair::{Credential, End, Half, Terms, check_pair, wait_ready};
use super::{Link, namespace, range};
use crate::bad_call::bad_call;
use crate::output;
use anyhow::{Result, anyhow, bail, ensure};
use cluster::operator::Operator;
use futures::StreamExt as _;
use mesh::name::ClusterId;
use runtime::config::ConfigError;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Clusters asked, and pairs linked, at the same time.
const PARALLEL: usize = 8;
/// Most clusters of one file.
const CLUSTERS_MAX: usize = 256;
/// A cluster must say who it is within this.
const DESCRIBE_MAX: Duration = Duration::from_secs(10);

/// A file as it is written. Unknown fields are refused with their line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    #[serde(default)]
    api_version: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    clusters: Vec<Member>,
    /// Pairs to link; absent: each with each.
    #[serde(default)]
    links: Option<Vec<[String; 2]>>,
    /// Namespaces that every link may import; absent: what stands is kept, else all.
    #[serde(default)]
    import: Vec<String>,
    /// Ranges that gateway addresses of every link must lie in.
    #[serde(default)]
    gateway_ranges: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Member {
    /// Its id, as its ConfigMap `isthmus-mesh` has it.
    name: String,
    /// Context of the kubeconfig; absent: its name.
    #[serde(default)]
    context: Option<String>,
    /// Its API server as the other clusters reach it; absent: as the kubeconfig has it.
    #[serde(default)]
    server: Option<String>,
}

impl Member {
    fn context(&self) -> &str {
        self.context.as_deref().unwrap_or(&self.name)
    }
}

/// A file that makes sense: every cluster once, every pair once.
#[derive(Debug)]
struct Fleet {
    clusters: BTreeMap<String, Member>,
    pairs: Vec<(String, String)>,
    import: Vec<String>,
    gateway_ranges: Vec<String>,
}

const API_VERSION: &str = cluster::api::GROUP_VERSION;
const KIND: &str = "Fleet";

impl Fleet {
    /// Everything that can be told without asking a cluster.
    fn of(file: File, only: &[String]) -> Result<Self> {
        let said = (file.api_version.as_deref(), file.kind.as_deref());
        ensure!(
            matches!(said, (None, None) | (Some(API_VERSION), Some(KIND))),
            "ISM2060 the file says apiVersion {:?} and kind {:?}. Fix: leave both out, or write \
             {API_VERSION} and {KIND}",
            said.0.unwrap_or_default(),
            said.1.unwrap_or_default()
        );
        let count = file.clusters.len();
        ensure!(
            (2..=CLUSTERS_MAX).contains(&count),
            "ISM2060 clusters has {count}, 2 to {CLUSTERS_MAX} can be linked. Fix: name them all"
        );
        let mut clusters: BTreeMap<String, Member> = BTreeMap::new();
        for (place, member) in file.clusters.into_iter().enumerate() {
            let field = format!("clusters[{place}]");
            let name = member.name.clone();
            if let Err(why) = name.parse::<ClusterId>() {
                bail!(
                    "ISM2060 {field}.name: {why}. Fix: write the id of its ConfigMap isthmus-mesh"
                );
            }
            ensure!(
                !clusters.contains_key(&name),
                "ISM2061 {field}.name: cluster {name} is named twice. Fix: remove one of the two"
            );
            if let Some(twin) = clusters.values().find(|other| other.context() == member.context())
            {
                bail!(
                    "ISM2061 {field}.context: context {:?} is named twice, for {} and {name}. Fix: give \
                     each cluster its own",
                    member.context(),
                    twin.name
                );
            }
            clusters.insert(name, member);
        }
        if let Some(name) = only.iter().find(|name| !clusters.contains_key(*name)) {
            return Err(bad_call(format!(
                "ISM2062 --only names {name:?}, which the file does not have. Fix: name one of {}",
                names(&clusters)
            )));
        }
        let mut pairs = match file.links {
            None => each_with_each(&clusters),
            Some(list) if list.is_empty() => bail!(
                "ISM2062 links is empty, so nothing would be linked. Fix: leave links out to link each \
                 cluster with each, or name pairs: [[a, b]]"
            ),
            Some(list) => listed(&list, &clusters)?,
        };
        for (field, list, check) in [
            ("import", &file.import, namespace as fn(&str) -> Result<String, String>),
            ("gatewayRanges", &file.gateway_ranges, range),
        ] {
            for (place, text) in list.iter().enumerate() {
                check(text).map_err(|why| anyhow!("ISM2064 {field}[{place}]: {why}"))?;
            }
        }
        pairs.retain(|(a, b)| only.is_empty() || only.contains(a) || only.contains(b));
        Ok(Self { clusters, pairs, import: file.import, gateway_ranges: file.gateway_ranges })
    }
}

fn names(clusters: &BTreeMap<String, Member>) -> String {
    clusters.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn each_with_each(clusters: &BTreeMap<String, Member>) -> Vec<(String, String)> {
    let names: Vec<&String> = clusters.keys().collect();
    let pairs = names.iter().enumerate().flat_map(|(place, a)| {
        names[place + 1..].iter().map(|b| ((*a).clone(), (*b).clone())).collect::<Vec<_>>()
    });
    pairs.collect()
}

fn listed(
    list: &[[String; 2]],
    clusters: &BTreeMap<String, Member>,
) -> Result<Vec<(String, String)>> {
    let mut pairs = BTreeSet::new();
    for (place, [a, b]) in list.iter().enumerate() {
        for name in [a, b] {
            ensure!(
                clusters.contains_key(name),
                "ISM2062 links[{place}]: {name:?} is no cluster of the file. Fix: name one of {}",
                names(clusters)
            );
        }
        ensure!(a != b, "ISM2062 links[{place}]: {a} cannot be linked to itself. Fix: name two");
        let pair = if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
        ensure!(
            pairs.insert(pair),
            "ISM2061 links[{place}]: {a} and {b} are there twice. Fix: remove one of the two"
        );
    }
    Ok(pairs.into_iter().collect())
}

/// A pair, planned: one half each way.
struct Planned<'a> {
    a: &'a End,
    b: &'a End,
    halves: [Half; 2],
}

/// What came of a pair.
enum Outcome {
    Linked { changed: bool, took: Duration },
    Failed(String),
}

fn load(file: &Path) -> Result<File> {
    runtime::config::load(file).map_err(|error| match error {
        ConfigError::Unreadable { path, source } => anyhow::anyhow!(
            "ISM2060 the fleet file {} cannot be read: {source}. Fix: name a file this user may read",
            path.display()
        ),
        other @ (ConfigError::TooLarge { .. }
        | ConfigError::Invalid { .. }
        | ConfigError::Unset { .. }) => other.into(),
    })
}

pub(super) async fn run(call: &Link, file: &Path) -> Result<ExitCode> {
    let fleet = Fleet::of(load(file)?, &call.only)?;
    let mut terms = call.terms();
    for (ours, theirs) in
        [(&mut terms.import, &fleet.import), (&mut terms.gateway_ranges, &fleet.gateway_ranges)]
    {
        if ours.is_empty() {
            ours.clone_from(theirs);
        }
    }
    let ends = ends(call, &fleet).await;
    let ends = distinct(ends);
    let mut failed: BTreeMap<&(String, String), String> = BTreeMap::new();
    let mut able = Vec::new();
    for pair in &fleet.pairs {
        match (&ends[&pair.0], &ends[&pair.1]) {
            (Ok(a), Ok(b)) => able.push((pair, a, b)),
            (a, b) => {
                let why = |name: &str, end: &Result<End, String>| {
                    end.as_ref().err().map(|_| format!("{name} cannot be linked"))
                };
                let why = why(&pair.0, a).into_iter().chain(why(&pair.1, b));
                _ = failed.insert(pair, why.collect::<Vec<_>>().join(", "));
            }
        }
    }
    let looks = able.into_iter().map(async |(pair, a, b)| (pair, look(a, b, &terms).await));
    let planned: Vec<_> = futures::stream::iter(looks).buffered(PARALLEL).collect().await;
    let mut plans = Vec::new();
    for (pair, plan) in planned {
        match plan {
            Ok(plan) => plans.push((pair, plan)),
            Err(why) => _ = failed.insert(pair, format!("{why:#}")),
        }
    }
    show(&fleet, &ends, &plans, &failed);
    if call.dry_run {
        say!("nothing was changed.");
        let whole = failed.is_empty();
        return Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let wait = Duration::from_secs(call.wait);
    let (count, terms) = (plans.len(), &terms);
    let work = plans.iter().map(async |(pair, plan)| (*pair, link(plan, terms, wait).await));
    let mut work = futures::stream::iter(work).buffer_unordered(PARALLEL);
    let (mut made, mut left, mut broken, mut done) = (0, 0, failed.len(), 0);
    while let Some(((a, b), outcome)) = work.next().await {
        done += 1;
        let text = match outcome {
            Outcome::Linked { changed, took } => {
                if changed {
                    made += 1
                } else {
                    left += 1
                }
                let word = if changed { "linked" } else { "unchanged" };
                format!("{word} after {:.1} s", took.as_secs_f64())
            }
            Outcome::Failed(why) => {
                broken += 1;
                format!("× {why}")
            }
        };
        say!("  [{done}/{count}] {a} - {b}: {text}");
    }
    say!("{made} linked, {left} left as they were, {broken} failed.");
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every cluster that a pair needs, asked who it is; an error costs that cluster alone.
async fn ends(call: &Link, fleet: &Fleet) -> BTreeMap<String, Result<End, String>> {
    let needed: BTreeSet<&String> = fleet.pairs.iter().flat_map(|(a, b)| [a, b]).collect();
    let asks = needed.into_iter().map(async |name| {
        let member = &fleet.clusters[name];
        let asked = tokio::time::timeout(DESCRIBE_MAX, end(call, member)).await;
        let end = asked.unwrap_or_else(|_| {
            bail!("ISM2063 {name} has not said who it is within {} s", DESCRIBE_MAX.as_secs())
        });
        (name.clone(), end.map_err(|why| format!("{why:#}")))
    });
    futures::stream::iter(asks).buffer_unordered(PARALLEL).collect().await
}

async fn end(call: &Link, member: &Member) -> Result<End> {
    let operator = Operator::load(call.kubeconfig.as_deref(), Some(member.context())).await?;
    let described = operator.describe(&call.root_namespace).await?;
    ensure!(
        described.cluster == member.name,
        "ISM2063 the file calls the cluster of context {} {}, it calls itself {} (ConfigMap \
         isthmus-mesh, data.cluster). Fix: correct the one that is wrong",
        member.context(),
        member.name,
        described.cluster
    );
    let hint = format!("write server: https://ADDRESS:PORT for {} into the file", member.name);
    let server = member.server.clone().map(|server| (server, "the fleet file"));
    Ok(End { operator, described, server, hint })
}

/// Two names that lead to one cluster are both wrong: nobody can say which is meant.
fn distinct(
    mut ends: BTreeMap<String, Result<End, String>>,
) -> BTreeMap<String, Result<End, String>> {
    let mut of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, end) in &ends {
        if let Ok(end) = end {
            of.entry(end.described.uid.clone()).or_default().push(name.clone());
        }
    }
    for (uid, twins) in of.into_iter().filter(|(_, names)| names.len() > 1) {
        for name in &twins {
            let why = format!(
                "ISM2015 {} are one cluster (kube-system has UID {uid}). Fix: name each cluster once",
                twins.join(" and ")
            );
            ends.insert(name.clone(), Err(why));
        }
    }
    ends
}

async fn look<'a>(a: &'a End, b: &'a End, terms: &Terms) -> Result<Planned<'a>> {
    check_pair(a, b)?;
    let (there, back) = tokio::try_join!(Half::plan(a, b, terms), Half::plan(b, a, terms))?;
    Ok(Planned { a, b, halves: [there, back] })
}

fn show(
    fleet: &Fleet,
    ends: &BTreeMap<String, Result<End, String>>,
    plans: &[(&(String, String), Planned<'_>)],
    failed: &BTreeMap<&(String, String), String>,
) {
    let many = |number: usize, word| output::count(number.try_into().unwrap_or(u32::MAX), word);
    say!("plan: {} of {}", many(fleet.pairs.len(), "link"), many(ends.len(), "cluster"));
    for (name, end) in ends {
        let text = match end {
            Ok(end) => format!("{} {}", end.operator.server, end.described.trust_domain),
            Err(why) => format!("× {why}"),
        };
        say!("{}", output::paragraph(&format!("  {name} "), 15, &text));
    }
    for ((a, b), plan) in plans {
        for (half, reader, read) in [(&plan.halves[0], a, b), (&plan.halves[1], b, a)] {
            let consent = if half.agreed { "consent stands" } else { "consent is written" };
            let text = format!("credential {}; {consent}", half.credential);
            say!("  {reader} reads {read}: {text}");
        }
    }
    for ((a, b), why) in failed {
        say!("{}", output::paragraph("", 2, &format!("{a} - {b}: left out, {why}")));
    }
}

async fn link(plan: &Planned<'_>, terms: &Terms, wait: Duration) -> Outcome {
    let begun = Instant::now();
    let Planned { a, b, halves: [there, back] } = plan;
    let made = async {
        there.make(a, b, terms).await?;
        back.make(b, a, terms).await?;
        tokio::try_join!(wait_ready(a, b, terms, wait), wait_ready(b, a, terms, wait))?;
        anyhow::Ok(())
    };
    match made.await {
        Ok(()) => {
            let same = |half: &Half| half.agreed && half.credential == Credential::Kept;
            Outcome::Linked { changed: !(same(there) && same(back)), took: begun.elapsed() }
        }
        Err(why) => Outcome::Failed(format!("{why:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(text: &str, only: &[&str]) -> Result<Fleet> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("fleet.yaml");
        std::fs::write(&file, text)?;
        let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
        Fleet::of(load(&file)?, &only)
    }

    fn pairs(text: &str, only: &[&str]) -> Vec<String> {
        let pairs = fleet(text, only).unwrap().pairs;
        pairs.into_iter().map(|(a, b)| format!("{a}-{b}")).collect()
    }

    const THREE: &str =
        "clusters: [{name: west}, {name: east, context: kind-east}, {name: north}]\n";

    #[test]
    fn without_a_list_each_is_linked_with_each() {
        assert_eq!(pairs(THREE, &[]), ["east-north", "east-west", "north-west"]);
        let whole = format!("apiVersion: isthmus.dev/v1alpha1\nkind: Fleet\n{THREE}");
        assert_eq!(pairs(&whole, &[]).len(), 3);
        let fleet = fleet(THREE, &[]).unwrap();
        assert_eq!(fleet.clusters["east"].context(), "kind-east");
        assert_eq!(fleet.clusters["west"].context(), "west");
    }

    #[test]
    fn the_next_cluster_costs_its_own_links() {
        assert_eq!(pairs(THREE, &["north"]), ["east-north", "north-west"]);
        let listed = format!("{THREE}links: [[west, east], [north, east]]\n");
        assert_eq!(pairs(&listed, &[]), ["east-north", "east-west"]);
        assert_eq!(pairs(&listed, &["west"]), ["east-west"]);
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let cases = [
            ("clusters: [{name: a}, {name: b}]\nlink: []\n", "link", "line 2"),
            ("clusters: [{name: a}, {name: b, contxt: c}]\n", "contxt", "line 1"),
            ("clusters: [{name: a}, {name: a}]\n", "ISM2061", "clusters[1].name"),
            (
                "clusters: [{name: a, context: x}, {name: b, context: x}]\n",
                "ISM2061",
                "named twice",
            ),
            ("clusters: [{name: a, context: b}, {name: b}]\n", "ISM2061", "for a and b"),
            ("clusters: [{name: a}]\n", "ISM2060", "has 1"),
            ("clusters: [{name: A_b}, {name: b}]\n", "ISM2060", "clusters[0].name"),
            ("kind: Flock\nclusters: [{name: a}, {name: b}]\n", "ISM2060", "Flock"),
            ("clusters: [{name: a}, {name: b}]\nlinks: [[a, c]]\n", "ISM2062", "\"c\""),
            ("clusters: [{name: a}, {name: b}]\nlinks: [[a, a]]\n", "ISM2062", "itself"),
            ("clusters: [{name: a}, {name: b}]\nlinks: [[a, b], [b, a]]\n", "ISM2061", "links[1]"),
            ("clusters: [{name: a}, {name: b}\nlinks: []\n", "ISM1003", "line"),
            ("", "ISM1003", "end of input"),
            ("clusters: [{name: a}, {name: b}]\nlinks: []\n", "ISM2062", "links is empty"),
            ("clusters: [{name: a}, {name: b}]\nimport: [\"Shop!\"]\n", "ISM2064", "import[0]"),
            (
                "clusters: [{name: a}, {name: b}]\ngatewayRanges: [10.0.0.0/8, 10.0.0.0/99]\n",
                "ISM2064",
                "gatewayRanges[1]: \"10.0.0.0/99\"",
            ),
        ];
        for (text, what, place) in cases {
            let error = fleet(text, &[]).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains(place), "{text}: {error}");
            assert!(error.contains("Fix: "), "{error}");
        }
        let error = load(Path::new("/nowhere/fleet.yaml")).unwrap_err().to_string();
        assert!(error.contains("ISM2060") && error.contains("/nowhere/fleet.yaml"), "{error}");
        let error = fleet(THREE, &["moon"]).unwrap_err();
        assert!(crate::bad_call::is_bad_call(&error), "{error}");
        let error = error.to_string();
        assert!(error.contains("ISM2062") && error.contains("east, north, west"), "{error}");
    }
}

//! What befalls the pods of the mesh itself: a gateway dies, a control plane is gone, an API server hangs.

use super::{HOST, Stage, until};
use anyhow::{Context, Result, ensure};
use fleet::nodes::Nodes;
use fleet::objects;
use fleet::process::Process;
use fleet::verdict::{Kind, Record, figures};
use std::time::{Duration, Instant};

/// Until a fault, from the load's start on.
const BEFORE: Duration = Duration::from_secs(6);
/// How long west's API server does not answer.
const HANGS: Duration = Duration::from_secs(120);
/// East has noticed (decision: 30 s of silence, told within 5).
const NOTICED: Duration = Duration::from_secs(45);
const LIMIT: Duration = Duration::from_secs(120);
const REACHABLE: &str = "jsonpath={.status.conditions[?(@.type==\"Reachable\")].status}";

pub(super) async fn pod_faults(stage: &Stage<'_>) -> Result<()> {
    stage.in_use([1, 2, 1]).await?;
    gateway_dies(stage).await?;
    no_control_plane(stage).await?;
    stage.shop_gone().await
}

/// A process is stopped as nobody stops one in a container: a kubelet would start it anew.
pub(super) async fn api_hangs(stage: &Stage<'_>, nodes: &Nodes) -> Result<()> {
    stage.in_use([1, 2, 1]).await?;
    api_server_hangs(stage, &nodes.cluster("west").control.api.server).await?;
    stage.shop_gone().await
}

async fn gateway_dies(stage: &Stage<'_>) -> Result<()> {
    let kill = async {
        tokio::time::sleep(BEFORE).await;
        let list = ["-n", "isthmus-system", "get", "pods", "-l", "app=isthmus-eastwestgateway"];
        let pods = stage.kubectl("west", &[&list[..], &["-o", "name"]].concat()).await?;
        let pod = pods.lines().next().context("west has no gateway")?.to_owned();
        let kill = ["-n", "isthmus-system", "delete", &pod, "--force", "--grace-period=0"];
        stage.kubectl("west", &kill).await
    };
    let (records, killed) = tokio::join!(stage.load(HOST, 100, 20), kill);
    killed?;
    whole(stage, "one of west's gateway pods is deleted by force", &records?);
    let gateway = "isthmus-eastwestgateway";
    stage.pods.cluster("west").deployment_ready("isthmus-system", gateway, LIMIT).await
}

async fn api_server_hangs(stage: &Stage<'_>, server: &Process) -> Result<()> {
    let reachable = async || {
        let get =
            ["-n", "isthmus-system", "get", "clusterlinks.isthmus.dev", "west", "-o", REACHABLE];
        stage.kubectl("east", &get).await
    };
    let hang = async {
        tokio::time::sleep(BEFORE).await;
        server.stop();
        let begun = Instant::now();
        let noticed = until(NOTICED, "east noticing", async || {
            let status = reachable().await?;
            ensure!(status != "True", "Reachable is {status}");
            Ok((status, begun.elapsed()))
        })
        .await;
        tokio::time::sleep(HANGS.saturating_sub(begun.elapsed())).await;
        server.resume();
        noticed
    };
    let seconds = (BEFORE + HANGS).as_secs() + 10;
    let (records, noticed) = tokio::join!(stage.load(HOST, 100, seconds), hang);
    let (status, after) = noticed?;
    stage.judge(
        "west's API server hangs: east says that it does not hear west within 45 s",
        &format!("Reachable is {status} after {:.0} s", after.as_secs_f64()),
        true,
    );
    whole(stage, "west's API server hangs for 2 minutes", &records?);
    let begun = Instant::now();
    until(LIMIT, "east hearing west again", async || {
        let status = reachable().await?;
        ensure!(status == "True", "Reachable is {status}");
        Ok(())
    })
    .await?;
    stage.judge(
        "heard again, it is said to be",
        &format!("after {:.0} s", begun.elapsed().as_secs_f64()),
        true,
    );
    Ok(())
}

/// East's control plane is gone: what runs goes on, and no pod starts without its sidecar.
async fn no_control_plane(stage: &Stage<'_>) -> Result<()> {
    let scale = async |replicas: u32| {
        let replicas = format!("--replicas={replicas}");
        let scale =
            ["-n", "isthmus-system", "scale", "deployment/isthmus-control-plane", &replicas];
        stage.kubectl("east", &scale).await
    };
    scale(0).await?;
    let list = ["-n", "isthmus-system", "get", "pods", "-l", "app=isthmus-control-plane"];
    until(LIMIT, "the control plane's end", async || {
        let left = stage.kubectl("east", &[&list[..], &["-o", "name"]].concat()).await?;
        ensure!(left.trim().is_empty(), "{left} are left");
        Ok(())
    })
    .await?;
    first_calls(stage).await?;
    stage.kubectl("east", &["-n", "shop", "rollout", "restart", "deployment/tools"]).await?;
    let events = ["-n", "shop", "get", "events", "--field-selector", "reason=FailedCreate"];
    let message = "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}";
    let said = until(LIMIT, "the event of a pod that was not made", async || {
        let said = stage.kubectl("east", &[&events[..], &["-o", message]].concat()).await?;
        let line = said.lines().find(|line| line.contains("failed calling webhook"));
        Ok(line.with_context(|| format!("no event of the webhook: {said}"))?.to_owned())
    })
    .await;
    let plain = plain(stage).await?;
    stage.judge(
        "a pod that starts while no control plane answers is not made, its ReplicaSet says why, and \
         none is in plaintext",
        &format!("{said:?}; without sidecar: {plain:?}"),
        said.is_ok() && plain.is_empty(),
    );
    let records = stage.load(HOST, 100, 10).await?;
    whole(stage, "no control plane in east", &records);
    scale(2).await?;
    let begun = Instant::now();
    let status = ["-n", "shop", "rollout", "status", "--timeout=120s", "deployment/tools"];
    let done = stage.kubectl("east", &status).await;
    let plain = self::plain(stage).await?;
    stage.judge(
        "with a control plane again it is made, with its sidecar",
        &format!("after {:.0} s; without sidecar: {plain:?}", begun.elapsed().as_secs_f64()),
        done.is_ok() && plain.is_empty(),
    );
    done?;
    let url = "http://exact.shop.svc.cluster.local/";
    let answer = until(LIMIT, url, async || stage.curl(url).await).await;
    stage.judge(
        "the service that was refused then is called now",
        &format!("{answer:?}"),
        answer.is_ok(),
    );
    Ok(())
}

/// A name is used for the first time while nobody says how it is reached: a service of the mesh is not
/// called in plaintext, by a caller who has no name there, and the world goes on.
async fn first_calls(stage: &Stage<'_>) -> Result<()> {
    let url = "http://exact.shop.svc.cluster.local/";
    let called = stage.curl(url).await;
    let log = ["-n", "shop", "logs", "deployment/tools", "-c", "isthmus-proxy"];
    let log = stage.kubectl("east", &log).await?;
    let refused = log.lines().rfind(|line| line.contains("no_control_plane")).unwrap_or_default();
    let figure = match &called {
        Ok(answer) => format!("it was answered: {answer}"),
        Err(problem) => format!("{problem:#}; its sidecar: {refused}"),
    };
    stage.judge(
        "no control plane in east: the first call to another service of east is refused, not sent in \
         plaintext",
        &figure,
        called.is_err() && refused.contains("outbound"),
    );
    let address = "jsonpath={.subsets[0].addresses[0].ip}:{.subsets[0].ports[0].port}";
    let get = ["-n", "default", "get", "endpoints", "kubernetes", "-o", address];
    let world = format!("https://{}/livez", stage.kubectl("west", &get).await?.trim());
    let exec = ["-n", "shop", "exec", "deployment/tools", "-c", "tools", "--", "curl", "-sSk"];
    let call = ["-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &world];
    let status = stage.kubectl("east", &[&exec[..], &call].concat()).await;
    stage.judge(
        "and what is none of the mesh's is called as ever",
        &format!("{world}: {status:?}"),
        status.is_ok(),
    );
    Ok(())
}

/// East's pods of users that have no sidecar.
async fn plain(stage: &Stage<'_>) -> Result<Vec<String>> {
    let pods = objects::api(&stage.pods.cluster("east").client, "v1", "Pod", "shop");
    let pods = pods.list(&Default::default()).await?.items;
    let sidecar = |pod: &kube::core::DynamicObject| {
        let containers = pod.data["spec"]["initContainers"].as_array();
        containers.is_some_and(|all| all.iter().any(|it| it["name"] == "isthmus-proxy"))
    };
    let without = pods.into_iter().filter(|pod| !sidecar(pod));
    Ok(without.filter_map(|pod| pod.metadata.name).collect())
}

/// Judges that every one of them was answered.
fn whole(stage: &Stage<'_>, what: &str, records: &[Record]) {
    let all = figures(records, Kind::Get, 0, u64::MAX);
    stage.judge(
        &format!("{what}: none of the GETs fails"),
        &all.to_string(),
        all.requests > 0 && all.failed + all.cut == 0,
    );
}

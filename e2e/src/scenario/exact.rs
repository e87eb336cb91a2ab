//! What goes in comes out, octet by octet, across clusters and over every kind of port.

use super::{Stage, call_until, inside};
use anyhow::Result;
use fleet::exact::{PORTS, Tried};
use fleet::launcher::Service;
use fleet::objects::{apply, delete};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const HOST: &str = "exact.shop.global";

pub(super) async fn byte_exact(stage: &Stage<'_>) -> Result<()> {
    let west = stage.cluster("west");
    let service = Service {
        namespace: "shop".into(),
        name: "exact".into(),
        selector: BTreeMap::from([("app".into(), "hello".into())]),
        ports: PORTS.iter().map(|(port, name, to)| ((*name).into(), *port, *to)).collect(),
    };
    west.launcher.serve(service).await?;
    apply(west.client(), &export()).await?;
    let tried = tries(stage).await;
    delete(west.client(), &export()).await?;
    for Tried { name, problem, took_ms } in tried? {
        let figure = problem.clone().unwrap_or_else(|| format!("every octet, in {took_ms} ms"));
        stage.judge(&name, &figure, problem.is_none(), &[]);
    }
    Ok(())
}

async fn tries(stage: &Stage<'_>) -> Result<Vec<Tried>> {
    let (fleet, client) = (stage.fleet, stage.client()?);
    let limit = Duration::from_secs(30);
    call_until(fleet, client, &format!("http://{HOST}/"), limit, |_| true).await?;
    let said = inside(fleet, client, &["exact", "--host", HOST]).await?;
    Ok(serde_json::from_str(&said)?)
}

fn export() -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": "exact", "namespace": "shop"},
    })
}

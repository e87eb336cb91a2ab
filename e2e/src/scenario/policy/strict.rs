//! A PeerAuthentication that becomes STRICT, and who came in plaintext before.

use super::super::Stage;
use super::Open;
use anyhow::Result;
use fleet::objects::{apply, delete};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

fn strict() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}},
    })
}

/// A client without a sidecar, beside west's hello.
pub(super) async fn reaches_plaintext(stage: &Stage<'_>) -> Result<()> {
    let west = stage.cluster("west");
    let hello = SocketAddr::from((west.pod("hello-1")?.address, 9000));
    let open = Open::new(&west.spot, hello)?;
    apply(west.client(), &strict()).await?;
    let written = Instant::now();
    let cut = tokio::task::spawn_blocking(move || open.until_cut(written)).await?;
    let figure = match &cut {
        Ok(took) => format!("cut after {} ms", took.as_millis()),
        Err(error) => format!("{error:#}"),
    };
    let kept = cut.is_ok_and(|took| took < Duration::from_secs(1));
    let promise = "STRICT cuts a plaintext connection that was open, within 1 s";
    stage.judge(promise, &figure, kept, &[]);
    let again = Open::new(&west.spot, hello);
    let figure = again.as_ref().map_or_else(|error| format!("{error:#}"), |_| "greeted".into());
    stage.judge("and takes no other", &figure, again.is_err(), &[]);
    end(stage).await
}

/// As it was before, however far it came.
pub(super) async fn end(stage: &Stage<'_>) -> Result<()> {
    delete(stage.cluster("west").client(), &strict()).await
}

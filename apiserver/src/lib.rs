//! A small Kubernetes API server in one process: enough for kube-rs unchanged and for kubectl's everyday
//! verbs, on loopback, without root, etcd or containers. It refuses what kube-apiserver refuses.
//!
//! The heart is without IO: `operation` says what is asked, `server` and `write` decide it on the `store`, and an
//! `Outcome` or a `Refusal` comes out. `serve` is the thin layer of TLS and HTTP around it, `journal` that of the disk.
//!
//! Not done, and said so where it is asked for: rules in CEL (a warning), conversion webhooks (501), protobuf and
//! CBOR bodies (415), kinds that only controllers act on (404), and all that needs running Pods (501). No controller
//! and no kubelet runs, so a namespace goes at once with its contents, a Pod too, and what is owned with its owner.

mod access;
mod allocate;
mod bootstrap;
mod builtin;
mod custom;
mod definition;
mod delete;
mod discovery;
mod fields;
mod identity;
mod journal;
mod kind;
mod manage;
mod names;
mod object;
mod openapi;
mod operation;
mod patch;
mod pki;
mod prepare;
mod refusal;
mod review;
mod run;
mod schema;
mod selector;
mod serve;
mod server;
mod shape;
mod store;
mod table;
mod view;
mod watch;
mod wire;
mod write;

pub use run::{Config, run};

/// The Kubernetes this server speaks like.
pub const VERSION: &str = "v1.36.3+isthmus";

fn version() -> serde_json::Value {
    serde_json::json!({
        "major": "1", "minor": "36", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

//! The program killed at any moment while it writes: it opens again, and nothing acknowledged is lost.

use crate::port::Port;
use crate::support::until;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const KILLS: usize = 100;

/// The program, in a process of its own; killed when dropped.
pub(crate) struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    pub(crate) async fn start(folder: &Path, port: &Port) -> Self {
        let kubeconfig = folder.join("kubeconfig");
        let _ = std::fs::remove_file(&kubeconfig);
        let mut program = Self(Self::command(folder, port).spawn().unwrap());
        until("the program is ready", || {
            let ended = program.0.try_wait().unwrap();
            let log = || std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "it ended with {ended:?}: {}", log());
            kubeconfig.is_file().then_some(())
        })
        .await;
        program
    }

    pub(crate) fn command(folder: &Path, port: &Port) -> Command {
        let config = json!({
            "listen": port.address, "kubeconfig": folder.join("kubeconfig"),
            "store": folder.join("store/objects"),
        });
        std::fs::create_dir_all(folder.join("store")).unwrap();
        std::fs::write(folder.join("config.yaml"), config.to_string()).unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-apiserver"));
        command.arg("--config").arg(folder.join("config.yaml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.unwrap());
        command
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_a_hundred_times_it_loses_nothing_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let port = Port::held();
    // The newest number of each writer that was acknowledged.
    let acknowledged: Arc<[AtomicU64; 4]> = Arc::default();
    let mut writes = 0;
    for kill in 0..KILLS {
        let program = Program::start(folder.path(), &port).await;
        let client = cluster::client::connect(&folder.path().join("kubeconfig")).await.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client, "default");
        for (writer, newest) in acknowledged.iter().enumerate() {
            let newest = newest.load(Ordering::SeqCst);
            if newest == 0 {
                continue;
            }
            let map = maps.get(&format!("w{writer}")).await;
            let map = map.unwrap_or_else(|error| panic!("kill {kill}: w{writer} is lost: {error}"));
            let found: u64 = map.data.unwrap()["n"].parse().unwrap();
            // One more may have been kept than the client heard of.
            assert!(found == newest || found == newest + 1, "kill {kill}: {found}, not {newest}");
            acknowledged[writer].store(found, Ordering::SeqCst);
        }
        let before: u64 = acknowledged.iter().map(|n| n.load(Ordering::SeqCst)).sum();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (maps, acknowledged) = (maps.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    loop {
                        let next = acknowledged[writer].load(Ordering::SeqCst) + 1;
                        let name = format!("w{writer}");
                        // Bodies of many sizes: the kill falls anywhere in a record.
                        let pad = "x".repeat((next as usize * 7919) % 20_000);
                        let map = json!({
                            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                            "data": {"n": next.to_string(), "pad": pad},
                        });
                        let params = PatchParams::apply("crash").force();
                        match maps.patch(&name, &params, &Patch::Apply(&map)).await {
                            Ok(_) => acknowledged[writer].store(next, Ordering::SeqCst),
                            Err(_) => return,
                        }
                    }
                })
            })
            .collect();
        // Killed once it has acknowledged a few, each time at another point of its work.
        let enough = before + 3 + (kill as u64 * 5) % 17;
        let deadline = Instant::now() + Duration::from_secs(60);
        while acknowledged.iter().map(|n| n.load(Ordering::SeqCst)).sum::<u64>() < enough {
            assert!(Instant::now() < deadline, "it stopped writing");
            tokio::time::sleep(Duration::from_micros(200 + (kill as u64 * 37) % 500)).await;
        }
        program.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        writes = acknowledged.iter().map(|n| n.load(Ordering::SeqCst)).sum();
    }
    println!("{KILLS} kills, {writes} writes acknowledged, none lost");
}

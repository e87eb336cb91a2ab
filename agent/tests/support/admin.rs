//! Envoy's admin pages, as far as an agent asks them, on a port of a test's own.
#![allow(dead_code, reason = "each test uses a part")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// What the pages say.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    /// Status and text of `/ready`.
    pub(crate) ready: (u16, &'static str),
    pub(crate) listeners: &'static str,
    /// Connections of Envoy's one listener.
    pub(crate) active: u64,
}

pub(crate) const SERVING: Said =
    Said { ready: (200, "LIVE\n"), listeners: "inbound::0.0.0.0:15006\n", active: 0 };

/// Ends with the runtime of its test.
pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    pub(crate) said: Arc<Mutex<Said>>,
    /// Every order it was given, and each page that was read, with its method.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Admin {
    pub(crate) async fn start(said: Said) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (said, asked) = (Arc::new(Mutex::new(said)), Arc::<Mutex<Vec<String>>>::default());
        let (says, notes) = (said.clone(), asked.clone());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap() > 0
                {
                }
                let head = String::from_utf8(head).unwrap();
                let [method, path] = head.split(' ').take(2).collect::<Vec<_>>()[..] else {
                    continue;
                };
                notes.lock().unwrap().push(format!("{method} {path}"));
                let (status, text) = says.lock().unwrap().answer(method, path);
                let answer = format!(
                    "HTTP/1.1 {status} A\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
                // An agent that ends does not wait for it.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, said, asked }
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// What it was ordered, in turn.
    pub(crate) fn orders(&self) -> Vec<String> {
        let mut asked = self.asked();
        asked.retain(|asked| asked.starts_with("POST "));
        asked
    }
}

impl Said {
    fn answer(&self, method: &str, path: &str) -> (u16, String) {
        let page = path.split('?').next().unwrap();
        match (method, page) {
            ("GET", "/ready") => (self.ready.0, self.ready.1.to_owned()),
            ("GET", "/listeners") => (200, self.listeners.to_owned()),
            ("GET", "/stats") => {
                let stats = format!(
                    "listener.0.0.0.0_15006.downstream_cx_active: {}\n\
                     listener.0.0.0.0_15006.downstream_cx_total: 9\n\
                     listener.admin.downstream_cx_active: 1\n",
                    self.active
                );
                (200, stats)
            }
            ("POST", "/drain_listeners") => (200, "OK\n".to_owned()),
            // As Envoy answers a GET of what changes something.
            (_, "/drain_listeners") => (405, String::new()),
            (_, _) => (404, String::new()),
        }
    }
}

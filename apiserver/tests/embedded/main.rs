//! The server as its clients meet it: kube-rs unchanged, beside a real kube-apiserver, killed, and under attack.

mod crash;
mod hostile;
mod kubectl;
mod objects;
mod programs;
mod rows;
#[path = "../../../cluster/tests/own/server.rs"]
mod server;
mod support;
mod table;

use server::port;

//! The server as its clients meet it: kube-rs unchanged, beside a real kube-apiserver, killed, and under attack.

mod crash;
mod hostile;
mod kubectl;
mod objects;
#[path = "../../../runtime/tests/support/port.rs"]
mod port;
mod programs;
mod real;
mod rows;
mod support;
mod table;

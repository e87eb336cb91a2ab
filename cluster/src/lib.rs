//! Kubernetes, and only here: what a cluster's API server says becomes values of the mesh, and what
//! the mesh decides becomes objects again. No other room knows an API group, a label or a watch.
//!
//! Reading order: [`client`] (how we connect and what we never wait for), [`heard`] (how old our
//! knowledge is), [`follow`] (one kind, for ever), [`parse`] (object to value, with findings),
//! [`watch`] (all kinds of the own cluster as one `Inventory`), then secrets, tokens, and the
//! federation's doors: [`remote`], [`renewal`], [`kubeconfig`], [`apply`], [`link_objects`], [`events`], [`lease`],
//! [`api`];
//! [`inject`] (a pod's sidecar, a pure function); last the operator's: [`operator`] and [`credential`];
//! everywhere [`plain`], [`refusal`] and `yaml`.

pub mod api;
pub mod apply;
pub mod client;
pub mod credential;
pub mod events;
pub mod follow;
pub mod heard;
pub mod inject;
pub mod kubeconfig;
pub mod lease;
pub mod link_objects;
pub mod operator;
pub mod parse;
pub mod plain;
pub mod refusal;
pub mod remote;
pub mod renewal;
pub mod secret;
pub mod token;
pub mod watch;
mod yaml;

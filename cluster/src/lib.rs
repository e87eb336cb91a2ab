//! Kubernetes, and only here: our CRDs, watches into values of the mesh, remote secrets, writes.

pub mod api;
pub mod kubeconfig;

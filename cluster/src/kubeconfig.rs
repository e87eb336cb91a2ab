//! The allow-list for kubeconfigs that come out of Secrets.

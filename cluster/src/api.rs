//! The objects of `isthmus.dev/v1alpha1`: only what nobody else has a kind for.

pub mod cluster_link;
pub mod exported_service;

//! cluster
pub mod credential;
pub mod operator;

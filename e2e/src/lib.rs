//! Three clusters brought up by `fleet`: linked, loaded, hurt, judged.

pub mod machine;
pub mod scenario;

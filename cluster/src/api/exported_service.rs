//! What a cluster tells the others about one exported service.

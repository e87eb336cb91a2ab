//! federation-controller

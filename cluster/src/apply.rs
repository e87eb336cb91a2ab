//! Makes a `mesh::federate::Plan` so, by server-side apply, under the leader's term.

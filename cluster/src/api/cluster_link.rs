//! A link to another cluster: the operator's consent, and what is known of the other side.

//! A linked cluster: its secret, its watches, and how old what we know of it is.

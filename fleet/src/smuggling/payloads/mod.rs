//! Requests that two parsers could take for different ones, octet by octet.
//!
//! Each hides a second request, the canary, where one reading sees a body, a header or noise and
//! another sees a request. Pure data: the tests of `proxy-http` read the same table.

mod one;
mod two;

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Payload {
    pub name: &'static str,
    pub wire: Wire,
    pub meant: Meant,
    /// The host a backend may be told, where it is not the one that is called.
    pub host: Option<&'static str>,
    make: fn(&Names) -> Vec<u8>,
}

/// How it is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    One,
    Two,
}

/// What may become of it; its canary may reach nobody in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meant {
    /// It is no request by any reading that matters: nobody may be sent anything of it.
    Refused,
    /// One request at most: its head may be right, and its body is wrong, or is the canary.
    AtMostOne,
    /// Nothing is wrong with it: it must arrive, once.
    One,
    /// Two requests, one after the other: both must arrive, once each.
    Pair,
}

/// What is filled in.
#[derive(Debug, Clone)]
pub struct Names {
    /// The host that is called.
    pub host: String,
    /// Makes the paths of one payload unlike those of all others.
    pub id: String,
}

impl Names {
    /// The path of the request that may arrive.
    pub fn path(&self) -> String {
        format!("/p/{}", self.id)
    }

    /// The path of the second of a pair.
    pub fn second(&self) -> String {
        format!("/s/{}", self.id)
    }

    /// The path that must never arrive.
    pub fn hidden(&self) -> String {
        format!("/canary/{}", self.id)
    }

    fn canary(&self) -> String {
        format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", self.hidden(), self.host)
    }
}

impl Payload {
    pub fn bytes(&self, names: &Names) -> Vec<u8> {
        (self.make)(names)
    }

    const fn new(
        name: &'static str,
        wire: Wire,
        meant: Meant,
        make: fn(&Names) -> Vec<u8>,
    ) -> Self {
        Self { name, wire, meant, host: None, make }
    }

    const fn to(self, host: &'static str) -> Self {
        Self { host: Some(host), ..self }
    }
}

/// The table.
pub fn all() -> impl Iterator<Item = &'static Payload> {
    one::PAYLOADS.iter().chain(two::PAYLOADS)
}

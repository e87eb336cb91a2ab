//! How many connections may live at once, in all and of one source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Places for connections. Clones share them.
#[derive(Debug, Clone)]
pub struct Places {
    held: Arc<Mutex<Held>>,
    all_max: usize,
    per_source_max: usize,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    sources: HashMap<IpAddr, usize>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub struct Place {
    held: Arc<Mutex<Held>>,
    source: IpAddr,
}

impl Places {
    /// `per_source_max` of one address: who takes all of its own leaves the others theirs.
    pub fn new(all_max: usize, per_source_max: usize) -> Self {
        Self { held: Arc::default(), all_max, per_source_max }
    }

    /// A place for a connection from there; `None` where all are taken, or all of that source.
    pub fn take(&self, source: IpAddr) -> Option<Place> {
        let source = source.to_canonical();
        let mut held = self.held.lock().expect("no holder panics");
        let own = held.sources.get(&source).copied().unwrap_or_default();
        if held.all >= self.all_max || own >= self.per_source_max {
            return None;
        }
        held.all += 1;
        held.sources.insert(source, own + 1);
        drop(held);
        Some(Place { held: self.held.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock().expect("no holder panics");
        held.all -= 1;
        if let Some(count) = held.sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                held.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_takes_its_own_and_no_more() {
        let places = Places::new(3, 2);
        let take = |source: &str| places.take(source.parse().unwrap());
        let mut one = vec![take("192.0.2.1").unwrap(), take("::ffff:192.0.2.1").unwrap()];
        assert!(take("192.0.2.1").is_none(), "both spellings are one source");
        let _other = take("192.0.2.2").expect("it has its own");
        assert!(take("192.0.2.3").is_none(), "all are taken");
        one.pop();
        assert!(take("192.0.2.3").is_some(), "one was given back");
        drop(one);
        assert_eq!(places.held.lock().unwrap().sources.len(), 1, "who left is forgotten");
    }
}

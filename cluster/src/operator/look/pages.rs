//! Lists by pages: an API server is never asked for all of a kind at once, and a look has a limit.

use super::{Operator, absent};
use kube::api::{Api, ListParams};
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// Most objects of one kind that one look reads.
pub const OBJECTS_MAX: usize = 2_000;
/// Objects of one answer.
const PAGE: u32 = 250;

impl Operator {
    /// Hands over each object as its page arrives, until `most` have been read. True where there are
    /// more; a kind that is not served has none.
    pub(super) async fn listed<K: Clone + DeserializeOwned + Debug>(
        &self,
        what: &str,
        api: &Api<K>,
        most: usize,
        mut each: impl FnMut(K),
    ) -> anyhow::Result<bool> {
        let mut page = ListParams::default().limit(PAGE);
        let mut read = 0;
        loop {
            let answer = self.asked(&format!("listing {what}"), absent(api.list(&page).await))?;
            let Some(answer) = answer else { return Ok(false) };
            read += answer.items.len();
            answer.items.into_iter().for_each(&mut each);
            match answer.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(_) if read >= most => return Ok(true),
                Some(more) => page.continue_token = Some(more),
                None => return Ok(false),
            }
        }
    }
}

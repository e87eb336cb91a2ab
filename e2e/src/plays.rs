//! A scenario's play and, where that was red, what is done about it: evidence kept, and a second play.

use crate::evidence;
use e2e::machine::watched;
use fleet::verdict::{self, Verdict};
use std::path::Path;
use std::time::Instant;

/// How every scenario of a run is played.
#[derive(Clone, Copy)]
pub(crate) struct Plays<'a> {
    /// Folder of every program's logs, which are kept where a verdict is red.
    pub(crate) logs: Option<&'a Path>,
    /// One with a red verdict is played once more.
    pub(crate) again: bool,
}

impl Plays<'_> {
    /// Plays one; what it judged. A red verdict says what the machine was like.
    pub(crate) async fn play(
        self,
        name: &str,
        play: impl AsyncFn() -> Vec<Verdict>,
    ) -> Vec<Verdict> {
        let first = self.once(name, &play).await;
        if !self.again || first.iter().all(|verdict| verdict.kept) {
            return first;
        }
        verdict::repeated(first, self.once(name, &play).await)
    }

    async fn once(self, name: &str, play: impl AsyncFn() -> Vec<Verdict>) -> Vec<Verdict> {
        let begun = Instant::now();
        let (mut verdicts, machine) = watched(play()).await;
        println!("  {name} took {:.0} s; {machine}", begun.elapsed().as_secs_f64());
        for red in verdicts.iter_mut().filter(|verdict| !verdict.kept) {
            red.figure = format!("{}; {machine}", red.figure);
        }
        if let Some(logs) = self.logs {
            evidence::keep_red(logs, name, &verdicts);
        }
        verdicts
    }
}

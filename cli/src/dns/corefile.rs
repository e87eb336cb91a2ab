//! A Corefile with the mesh's zones in it, and without: text in, text out.
//!
//! CoreDNS reads server blocks, `ZONE … { PLUGIN … }` (coredns.io, "Configuration"; the syntax is the
//! Caddyfile's of Caddy 1). Ours stands between two marks at the beginning, so that taking it out gives
//! the octets that were there before.

use std::fmt;
use std::net::IpAddr;

/// What pods without a sidecar may ask for.
pub(super) const ZONES: [&str; 2] = ["global", "clusterset.local"];

const BEGIN: &str =
    "# isthmus begin: written by `isthmus dns patch`, taken out by `isthmus dns unpatch`";
const END: &str = "# isthmus end";

/// Why a Corefile is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This line opens or closes what nothing closes or opened.
    Unbalanced { line: usize },
    /// One server without braces, beside which there can be no other.
    NoBlock { line: usize },
    /// Our marks are there in another order than we write them.
    Marks { line: usize },
    /// A server block of somebody else answers for our zone.
    Taken { zone: &'static str, line: usize },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbalanced { line } => write!(
                f,
                "ISM2085 line {line} of the Corefile has a brace without its other one. Fix: correct it \
                 (CoreDNS does not load it either)"
            ),
            Self::NoBlock { line } => write!(
                f,
                "ISM2085 line {line} of the Corefile begins a server without braces, beside which no \
                 other can stand. Fix: write it as ZONE {{ … }}"
            ),
            Self::Marks { line } => write!(
                f,
                "ISM2085 line {line} of the Corefile is a mark of isthmus without its other one. Fix: \
                 remove the block of isthmus and its marks by hand, then patch again"
            ),
            Self::Taken { zone, line } => write!(
                f,
                "ISM2086 line {line} of the Corefile is a server block for {zone} that isthmus did not \
                 write, and CoreDNS takes no second one. Fix: remove that zone from it, or let it forward \
                 to Service isthmus-system/isthmus-dns itself"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// The Corefile with our block, once, however often it is patched.
pub(super) fn patch(text: &str, servers: &[IpAddr]) -> Result<String, Refusal> {
    let others = unpatch(text)?;
    let blocks = read(&others)?;
    for (line, label) in &blocks.labels {
        if let Some(zone) = ZONES.into_iter().find(|zone| zone_of(label) == *zone) {
            return Err(Refusal::Taken { zone, line: *line });
        }
    }
    let zones = ZONES.map(|zone| format!("{zone}:53")).join(" ");
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let servers = servers.join(" ");
    Ok(format!("{BEGIN}\n{zones} {{\n    errors\n    forward . {servers}\n}}\n{END}\n{others}"))
}

/// The Corefile without our block; the same text where it has none.
pub(super) fn unpatch(text: &str) -> Result<String, Refusal> {
    let mut left = String::with_capacity(text.len());
    let mut begun = None;
    for (index, whole) in text.split_inclusive('\n').enumerate() {
        let line = index + 1;
        match (whole.trim(), begun) {
            (BEGIN, None) => begun = Some(line),
            (END, Some(_)) => begun = None,
            (BEGIN, Some(_)) | (END, None) => return Err(Refusal::Marks { line }),
            (_, None) => left.push_str(whole),
            (_, Some(_)) => {}
        }
    }
    match begun {
        Some(line) => Err(Refusal::Marks { line }),
        None => Ok(left),
    }
}

/// Whether CoreDNS reads a changed Corefile by itself.
pub(super) fn reloads(text: &str) -> bool {
    read(text).is_ok_and(|blocks| blocks.reloads)
}

/// What is told of the blocks of a Corefile.
#[derive(Debug, Default, PartialEq, Eq)]
struct Blocks {
    /// Lines and labels of server blocks.
    labels: Vec<(usize, String)>,
    reloads: bool,
}

fn read(text: &str) -> Result<Blocks, Refusal> {
    let mut blocks = Blocks::default();
    // Lines of the braces that are open, and labels whose brace has not come yet.
    let (mut open, mut labels): (Vec<usize>, Vec<(usize, String)>) = (vec![], vec![]);
    let mut import = 0;
    let mut last = 0;
    for (line, word) in words(text) {
        let first = line != last;
        last = line;
        match word.as_str() {
            "{" => {
                if open.is_empty() {
                    blocks.labels.append(&mut labels);
                }
                open.push(line);
            }
            "}" => {
                open.pop().ok_or(Refusal::Unbalanced { line })?;
            }
            // A line of its own between blocks.
            "import" if open.is_empty() && labels.is_empty() => import = line,
            _ if open.is_empty() && line == import => {}
            _ if open.is_empty() => {
                // Labels may go on in the next line behind a comma alone.
                let goes_on = labels.last().is_none_or(|(_, label)| label.ends_with(','));
                if first && !goes_on {
                    return Err(Refusal::NoBlock { line: labels[0].0 });
                }
                labels.push((line, word));
            }
            "reload" if open.len() == 1 && first => blocks.reloads = true,
            _ => {}
        }
    }
    if let Some(line) = open.first() {
        return Err(Refusal::Unbalanced { line: *line });
    }
    match labels.first() {
        Some((line, _)) => Err(Refusal::NoBlock { line: *line }),
        None => Ok(blocks),
    }
}

/// Words with their lines: split at white space, quoted ones whole, without comments.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words = vec![];
    let (mut word, mut began, mut line) = (String::new(), 0, 1);
    let (mut quoted, mut comment) = (false, false);
    for letter in text.chars() {
        let ends = letter.is_whitespace() && !quoted;
        if comment && letter != '\n' {
            continue;
        }
        if ends {
            if !word.is_empty() {
                words.push((began, std::mem::take(&mut word)));
            }
        } else if letter == '#' && word.is_empty() && !quoted {
            comment = true;
        } else {
            if letter == '"' && (word.is_empty() || quoted) {
                quoted = !quoted;
            }
            if word.is_empty() {
                began = line;
            }
            word.push(letter);
        }
        if letter == '\n' {
            line += 1;
            comment = false;
        }
    }
    if !word.is_empty() {
        words.push((began, word));
    }
    words
}

/// The zone of a label: `dns://Global.:53,` is `global`.
fn zone_of(label: &str) -> String {
    let label = label.trim_end_matches(',');
    let label = label.split_once("://").map_or(label, |(_, rest)| rest);
    let zone = label.split_once(':').map_or(label, |(zone, _)| zone);
    zone.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kubeadm's.
    const USUAL: &str = "\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}
";

    fn one() -> [IpAddr; 1] {
        ["10.96.4.7".parse().unwrap()]
    }

    #[test]
    fn a_block_is_written_once_and_taken_out_to_the_octet() {
        let patched = patch(USUAL, &one()).unwrap();
        assert!(patched.contains(
            "\nglobal:53 clusterset.local:53 {\n    errors\n    forward . 10.96.4.7\n}\n"
        ));
        assert!(patched.ends_with(USUAL));
        assert_eq!(patch(&patched, &one()).unwrap(), patched, "again, nothing changes");
        let moved = patch(&patched, &["10.96.4.8".parse().unwrap(), "fd00::7".parse().unwrap()]);
        let moved = moved.unwrap();
        assert!(moved.contains("forward . 10.96.4.8 fd00::7\n") && !moved.contains("10.96.4.7"));
        assert_eq!(moved.matches("isthmus begin").count(), 1);
        for text in [USUAL, "", "# nothing yet", ".:53 {\n}"] {
            assert_eq!(unpatch(&patch(text, &one()).unwrap()).unwrap(), text);
            assert_eq!(unpatch(text).unwrap(), text);
        }
    }

    #[test]
    fn what_others_wrote_for_our_zones_is_refused_with_its_line() {
        let taken =
            |label: &str| patch(&format!("{USUAL}{label} {{\n  forward . 10.0.0.1\n}}\n"), &one());
        for (label, zone) in [
            ("global", "global"),
            ("global:53", "global"),
            ("corp:53, dns://GLOBAL.:53", "global"),
            ("a b clusterset.local.:5353", "clusterset.local"),
            ("corp,\nclusterset.local", "clusterset.local"),
        ] {
            let line = if label.contains('\n') { 22 } else { 21 };
            assert_eq!(taken(label), Err(Refusal::Taken { zone, line }), "{label}");
        }
        // Names that only look like it.
        for label in ["corp.global", "global.corp", "#global {}\ncorp", "(global-snippet)"] {
            assert!(taken(label).is_ok(), "{label}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        let refused = |text: &str| patch(text, &one()).unwrap_err();
        assert_eq!(refused(".:53 {\n  errors\n"), Refusal::Unbalanced { line: 1 });
        assert_eq!(refused(".:53 {\n}\n}\n"), Refusal::Unbalanced { line: 3 });
        assert_eq!(refused(".:53\nerrors\nforward . 1.1.1.1\n"), Refusal::NoBlock { line: 1 });
        assert_eq!(refused(".:53 errors"), Refusal::NoBlock { line: 1 });
        let patched = patch(USUAL, &one()).unwrap();
        let halved = patched.replace(&format!("{END}\n"), "");
        assert_eq!(refused(&halved), Refusal::Marks { line: 1 });
        let halved = patched.replace(&format!("{BEGIN}\n"), "");
        assert_eq!(refused(&halved), Refusal::Marks { line: 5 });
        assert_eq!(unpatch(&halved), Err(Refusal::Marks { line: 5 }));
    }

    #[test]
    fn imports_comments_and_quotes_are_read_as_coredns_reads_them() {
        let text = "\
import /etc/coredns/custom/*.server # of k3s and AKS
(common) {
    log \". {{ not a brace\" {
        class error
    }
}
.:53 {
    import common
    template ANY ANY \"global {\"
    # reload
}
";
        let blocks = read(text).unwrap();
        assert_eq!(blocks.labels, [(2, "(common)".into()), (7, ".:53".into())]);
        assert!(!blocks.reloads && !reloads(text) && reloads(USUAL));
        assert!(patch(text, &one()).unwrap().ends_with(text));
    }
}

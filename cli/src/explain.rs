//! `isthmus explain CODE`: what an `ISM####` code means, what happens to traffic, how to mend it, and
//! who says it.
//!
//! The texts lie in `cli/codes/ROOM.yaml`, one file for each room that gives codes out. A test in
//! `xtask` compares them with the sources: a code without a text fails it, and a text without a code.

use crate::output::{self, Format};
use anyhow::{Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::str::FromStr;

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// ISM2012, ism2012 or 2012; all codes if not given.
    code: Option<Code>,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// `ISM` and four digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Code(pub(crate) u16);

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = match text.split_at_checked(3) {
            Some((word, digits)) if word.eq_ignore_ascii_case("ism") => digits,
            Some(_) | None => text,
        };
        let four = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = four.then(|| digits.parse().ok()).flatten();
        number.map(Self).ok_or_else(|| format!("{text:?} is not ISM and four digits"))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ISM{:04}", self.0)
    }
}

/// Each room and its file.
const ROOMS: [(&str, &str); 14] = [
    ("agent", include_str!("../codes/agent.yaml")),
    ("apiserver", include_str!("../codes/apiserver.yaml")),
    ("cli", include_str!("../codes/cli.yaml")),
    ("cluster", include_str!("../codes/cluster.yaml")),
    ("control-plane", include_str!("../codes/control-plane.yaml")),
    ("dns", include_str!("../codes/dns.yaml")),
    ("federation-controller", include_str!("../codes/federation-controller.yaml")),
    ("fleet", include_str!("../codes/fleet.yaml")),
    ("gateway", include_str!("../codes/gateway.yaml")),
    ("mesh", include_str!("../codes/mesh.yaml")),
    ("runtime", include_str!("../codes/runtime.yaml")),
    ("sidecar", include_str!("../codes/sidecar.yaml")),
    ("trust", include_str!("../codes/trust.yaml")),
    ("xds", include_str!("../codes/xds.yaml")),
];

/// Codes that the same part says, with the same effect on traffic unless a code has its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    from: String,
    traffic: String,
    codes: BTreeMap<u16, Text>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    means: String,
    mend: String,
    traffic: Option<String>,
}

/// One code, explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Explanation {
    pub(crate) code: String,
    pub(crate) means: String,
    /// What happens to calls meanwhile.
    pub(crate) traffic: String,
    pub(crate) mend: String,
    /// Who says it, and where.
    pub(crate) from: String,
    /// The folder of the sources that gives it out.
    pub(crate) room: &'static str,
}

/// All codes by number.
fn all() -> BTreeMap<Code, Explanation> {
    let mut all = BTreeMap::new();
    for (room, text) in ROOMS {
        let groups: Vec<Group> =
            serde_saphyr::from_str(text).expect("a test reads every file of codes");
        for group in groups {
            for (number, text) in group.codes {
                let code = Code(number);
                let explanation = Explanation {
                    code: code.to_string(),
                    means: text.means,
                    traffic: text.traffic.unwrap_or_else(|| group.traffic.clone()),
                    mend: text.mend,
                    from: group.from.clone(),
                    room,
                };
                all.insert(code, explanation);
            }
        }
    }
    all
}

/// The codes whose numbers are nearest, for who mistyped one.
fn nearest(all: &BTreeMap<Code, Explanation>, code: Code) -> Vec<Code> {
    let mut codes: Vec<Code> = all.keys().copied().collect();
    // A slip of the finger changes few digits, a slip of the eye the last one.
    let differ = |other: Code| {
        let (a, b) = (format!("{:04}", code.0), format!("{:04}", other.0));
        a.bytes().zip(b.bytes()).filter(|(a, b)| a != b).count()
    };
    codes.sort_by_key(|other| (differ(*other), other.0.abs_diff(code.0)));
    codes.truncate(3);
    codes
}

impl Call {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let all = all();
        let Some(code) = self.code else {
            if self.output == Format::Table {
                let text = |it: &Explanation| output::paragraph(&it.code, 9, &it.means) + "\n";
                output::print(all.values().map(text).collect::<String>().as_bytes());
            } else {
                output::value(self.output, &all.values().collect::<Vec<_>>())?;
            }
            return Ok(ExitCode::SUCCESS);
        };
        let Some(explanation) = all.get(&code) else {
            let near: Vec<String> = nearest(&all, code).iter().map(ToString::to_string).collect();
            bail!(
                "ISM2050 there is no code {code} in this version; the nearest are {}. Fix: `isthmus \
                 explain` lists all",
                near.join(", ")
            );
        };
        if self.output != Format::Table {
            output::value(self.output, explanation)?;
            return Ok(ExitCode::SUCCESS);
        }
        for (name, text) in [
            (explanation.code.as_str(), &explanation.means),
            ("traffic", &explanation.traffic),
            ("mend", &explanation.mend),
            ("said by", &explanation.from),
        ] {
            say!("{}", output::paragraph(name, 9, text));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_whole() {
        let all = all();
        let count: usize = ROOMS
            .iter()
            .map(|(_, text)| serde_saphyr::from_str::<Vec<Group>>(text).unwrap())
            .map(|groups| groups.iter().map(|group| group.codes.len()).sum::<usize>())
            .sum();
        assert_eq!(all.len(), count, "a code is explained twice");
        for (code, it) in all {
            for text in [&it.means, &it.traffic, &it.mend, &it.from] {
                assert!(text.len() > 10 && text.ends_with('.'), "{code}: {text:?}");
                assert!(!text.contains("  "), "{code}: {text:?}");
            }
        }
    }

    #[test]
    fn a_code_is_read_as_people_write_it() {
        for text in ["ISM2012", "ism2012", "Ism2012", "2012"] {
            assert_eq!(text.parse(), Ok(Code(2012)), "{text}");
        }
        for text in ["", "ISM", "ISM201", "ISM20122", "+123", "20é", "ISM-012", "ISM 2012"] {
            assert!(text.parse::<Code>().is_err(), "{text}");
        }
        assert_eq!(Code(7).to_string(), "ISM0007");
    }

    #[test]
    fn an_unknown_code_leads_to_its_neighbours() {
        let near = nearest(&all(), Code(2065));
        assert_eq!(near, [Code(2064), Code(2063), Code(2062)]);
        assert!(nearest(&all(), Code(9302)).contains(&Code(2302)));
    }
}

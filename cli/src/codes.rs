//! `isthmus explain CODE`: what a code means, why it happens, and what to do; offline.

use anyhow::{Context as _, Result};
use clap::Args;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// `ISM` and four digits; without one, all codes are listed.
    code: Option<String>,
}

/// Code, title, what happened and what to do. One line each, sorted.
const CODES: &[(u16, &str, &str)] = include!("codes.in");

impl Call {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let Some(code) = self.code else {
            for (number, title, _) in CODES {
                println!("ISM{number:04}  {title}");
            }
            return Ok(ExitCode::SUCCESS);
        };
        let digits = code.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let found = digits.parse().ok().and_then(|number: u16| CODES.iter().find(|c| c.0 == number));
        let (number, title, text) = found.with_context(|| {
            format!("there is no code {code:?}. Fix: `isthmus explain` lists all codes")
        })?;
        println!("ISM{number:04}  {title}\n\n{text}");
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::CODES;
    use std::collections::BTreeSet;
    use std::path::Path;

    /// Every `ISM` code that the source can print is explained, and no other.
    #[test]
    fn every_code_in_the_source_is_explained() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut used = BTreeSet::new();
        let mut folders: Vec<_> = std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().path().join("src"))
            .filter(|path| path.is_dir())
            .collect();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("cli/src/codes.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    for (at, _) in text.match_indices("ISM") {
                        let digits = text.get(at + 3..at + 7).unwrap_or_default();
                        if digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()) {
                            used.insert(digits.parse::<u16>().unwrap());
                        }
                    }
                    for (at, _) in text.match_indices("code: ") {
                        let rest = &text[at + 6..];
                        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                        if digits.len() == 4 {
                            used.insert(digits.parse::<u16>().unwrap());
                        }
                    }
                }
            }
        }
        let explained: BTreeSet<u16> = CODES.iter().map(|code| code.0).collect();
        assert_eq!(CODES.len(), explained.len(), "a code stands twice");
        let missing: Vec<_> = used.difference(&explained).collect();
        assert!(missing.is_empty(), "not explained: {missing:?}");
        let idle: Vec<_> = explained.difference(&used).collect();
        assert!(idle.is_empty(), "explained but never printed: {idle:?}");
    }
}

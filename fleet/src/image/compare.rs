//! Two layouts beside each other: whether they are the same octets, and where they first part.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Compares the layouts in two folders, name by name: each name with the digest of its manifest. The
/// first difference is the error, and so is a file of theirs that holds one of the texts in `never`.
pub fn folders(one: &Path, other: &Path, never: &[String]) -> Result<Vec<(String, String)>> {
    let (names, others) = (layouts(one)?, layouts(other)?);
    let alone = names.symmetric_difference(&others).next();
    ensure!(alone.is_none(), "{} is in one folder alone", alone.expect("it is there"));
    ensure!(!names.is_empty(), "{} holds no layout", one.display());
    let compared = names.into_iter().map(|name| {
        let read = |folder: &Path| {
            let path = folder.join(&name);
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        let (tar, other) = (read(one)?, read(other)?);
        let layout = Layout::read(&tar).with_context(|| name.clone())?;
        if tar != other {
            let other = Layout::read(&other).with_context(|| name.clone())?;
            let difference = layout.difference(&other);
            let difference = difference.unwrap_or_else(|| "what is around the blobs".into());
            bail!("{name} is not the same twice: {difference}");
        }
        if let Some(shown) = layout.holds(never) {
            bail!("{name} is the same twice, but {shown}");
        }
        Ok((name, layout.digest))
    });
    compared.collect()
}

/// Names of the files that are layouts.
fn layouts(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    Ok(names.into_iter().filter(|name| name.ends_with(".tar")).collect())
}

/// What a reader follows from `index.json` on.
struct Layout {
    /// Of its manifest.
    digest: String,
    index: Value,
    manifest: Value,
    config: Value,
    layers: Vec<Vec<Entry>>,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    time: u64,
    link: Option<PathBuf>,
    bytes: Vec<u8>,
}

impl Layout {
    fn read(tar: &[u8]) -> Result<Self> {
        let files: BTreeMap<PathBuf, Vec<u8>> =
            entries(tar)?.into_iter().map(|entry| (entry.path, entry.bytes)).collect();
        let file = |path: &str| files.get(Path::new(path)).with_context(|| format!("no {path}"));
        let blob = |of: &Value| {
            let digest = of["digest"].as_str().context("a descriptor has no digest")?;
            anyhow::Ok((digest.to_owned(), file(&format!("blobs/{}", digest.replace(':', "/")))?))
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).context("no JSON");
        let index = json(file("index.json")?)?;
        let (digest, manifest) = blob(&index["manifests"][0])?;
        let manifest = json(manifest)?;
        let config = json(blob(&manifest["config"])?.1)?;
        let named = manifest["layers"].as_array().context("a manifest has no layers")?;
        let layers = named.iter().map(|layer| entries(blob(layer)?.1)).collect::<Result<_>>()?;
        Ok(Self { digest, index, manifest, config, layers })
    }

    /// Where `other` parts from it: files first, for the rest holds their digests.
    fn difference(&self, other: &Self) -> Option<String> {
        let layers = self.layers.iter().zip(&other.layers);
        let values = [
            ("the number of layers", self.layers.len() == other.layers.len()),
            ("its config", self.config == other.config),
            ("its manifest", self.manifest == other.manifest),
            ("index.json", self.index == other.index),
        ];
        layers.into_iter().find_map(|(layer, other)| parts(layer, other)).or_else(|| {
            let (what, _) = values.into_iter().find(|(_, same)| !same)?;
            Some(format!("{what}: {} against {}", self.config, other.config))
        })
    }

    /// The first file in which one of these texts stands, and what stands around it.
    fn holds(&self, texts: &[String]) -> Option<String> {
        self.layers.iter().flatten().find_map(|entry| {
            let at = texts.iter().find_map(|text| find(&entry.bytes, text.as_bytes()))?;
            let around = around(&entry.bytes, at);
            Some(format!("/{} shows where it was built: `{around}`", entry.path.display()))
        })
    }
}

fn entries(tar: &[u8]) -> Result<Vec<Entry>> {
    let mut archive = tar::Archive::new(tar);
    let read = archive.entries()?.map(|entry| {
        let mut entry = entry?;
        let mut bytes = vec![];
        entry.read_to_end(&mut bytes)?;
        let header = entry.header();
        Ok(Entry {
            path: entry.path()?.into_owned(),
            kind: header.entry_type().as_byte(),
            mode: header.mode()?,
            owner: (header.uid()?, header.gid()?),
            time: header.mtime()?,
            link: entry.link_name()?.map(std::borrow::Cow::into_owned),
            bytes,
        })
    });
    read.collect()
}

/// The first entry in which two layers part, and how.
fn parts(one: &[Entry], other: &[Entry]) -> Option<String> {
    let by_path = |layer: &[Entry]| -> BTreeMap<PathBuf, Entry> {
        layer.iter().map(|entry| (entry.path.clone(), entry.clone())).collect()
    };
    let (ours, theirs) = (by_path(one), by_path(other));
    let paths: BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
    let differs = paths.into_iter().find_map(|path| {
        let how = match (ours.get(path), theirs.get(path)) {
            (Some(one), Some(other)) => entry(one, other)?,
            (Some(_), None) => "only the first has it".into(),
            (None, _) => "only the second has it".into(),
        };
        Some(format!("/{}: {how}", path.display()))
    });
    differs.or_else(|| (one != other).then(|| "the order of the files in a layer".into()))
}

/// How two entries of one path part.
fn entry(one: &Entry, other: &Entry) -> Option<String> {
    let shown = |entry: &Entry| {
        let Entry { path: _, kind, mode, owner: (user, group), time, link, bytes: _ } = entry;
        let link = link.as_ref().map(|to| format!(" to {}", to.display())).unwrap_or_default();
        format!("{}{link} {mode:o} {user}:{group} of {time}", char::from(*kind))
    };
    let (head, other_head) = (shown(one), shown(other));
    if head != other_head {
        return Some(format!("{head} against {other_head}"));
    }
    octets(&one.bytes, &other.bytes)
}

/// Where two files part: the octet, and a path that only one of them holds, since that is mostly why.
fn octets(one: &[u8], other: &[u8]) -> Option<String> {
    if one == other {
        return None;
    }
    let common = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    let (len, other_len) = (one.len(), other.len());
    let mut said = format!("octet {common} of {len} against {other_len}");
    let (paths, others) = (paths(one), paths(other));
    let alone = |of: &BTreeSet<&[u8]>, not: &BTreeSet<&[u8]>| {
        let text = of.difference(not).next()?;
        Some(String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).into_owned())
    };
    match (alone(&paths, &others), alone(&others, &paths)) {
        (None, None) => {
            let (here, there) = (around(one, common), around(other, common));
            said.push_str(&format!(": `{here}` against `{there}`; they hold the same paths"));
        }
        (here, there) => {
            let shown = |path: Option<String>| {
                path.map_or_else(|| "nothing".to_owned(), |it| format!("`{it}`"))
            };
            said.push_str(&format!(": {} against {}", shown(here), shown(there)));
        }
    }
    Some(said)
}

/// Octets of a text that are shown at most.
const SHOWN: usize = 160;

/// What looks like a path of some depth: code holds shorter ones by chance.
fn paths(bytes: &[u8]) -> BTreeSet<&[u8]> {
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+@".contains(byte);
    let words = bytes.split(|byte| !letter(byte)).filter(|word| word.len() >= 12);
    let absolute = words.filter_map(|word| {
        let start = word.iter().position(|byte| *byte == b'/')?;
        Some(&word[start..])
    });
    absolute.filter(|path| path.iter().filter(|byte| **byte == b'/').count() >= 3).collect()
}

/// What stands around an octet, as text where it is text.
fn around(bytes: &[u8], at: usize) -> String {
    let text = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
    let before = bytes[..at].iter().rev().take(SHOWN / 2).take_while(|byte| text(byte)).count();
    let after = bytes[at..].iter().take(SHOWN / 2).take_while(|byte| text(byte)).count();
    if after == 0 {
        return hex::encode(&bytes[at..bytes.len().min(at + 8)]);
    }
    String::from_utf8_lossy(&bytes[at - before..at + after]).into_owned()
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    let first = *text.first()?;
    let mut from = 0;
    loop {
        let at = from + bytes[from..].iter().position(|byte| *byte == first)?;
        if bytes[at..].starts_with(text) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{File, Image, write_oci};

    /// What is said of two folders with one image each, of these files.
    fn compared(one: &[File], other: &[File], user: &str, never: &[&str]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, files: &[File], user: &str| {
            let folder = dir.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let (name, files) = ("docker.io/isthmus/a:1".to_owned(), files.to_vec());
            let image = Image { name, files, user: user.into(), ..Image::default() };
            write_oci(&image, &folder.join("a-1.tar")).unwrap();
            folder
        };
        let never: Vec<String> = never.iter().map(|&text| text.to_owned()).collect();
        let same = folders(&write("one", one, "1:1"), &write("other", other, user), &never)?;
        assert_eq!(same.len(), 1);
        Ok(same[0].0.clone())
    }

    #[test]
    fn the_first_file_that_differs_is_named_and_how() {
        let file = |path: &str, text: &str| File::new(path, 0o644, text);
        let ours = [file("/a", "x"), file("/b", "\0at /srv/one/src/lib.rs\0 and /rustc/lib.rs")];
        let said = |other: &[File]| compared(&ours, other, "1:1", &[]).unwrap_err().to_string();
        assert_eq!(compared(&ours, &ours, "1:1", &[]).unwrap(), "a-1.tar");
        let longer = file("/b", "\0at /srv/other/src/lib.rs\0 and /rustc/lib.rs");
        assert_eq!(
            said(&[ours[0].clone(), longer.clone()]),
            "a-1.tar is not the same twice: /b: octet 10 of 42 against 44: \
             `/srv/one/src/lib.rs` against `/srv/other/src/lib.rs`"
        );
        // Both files differ: the first is named.
        assert_eq!(
            said(&[file("/a", "y"), longer]),
            "a-1.tar is not the same twice: /a: octet 0 of 1 against 1: `x` against `y`; \
             they hold the same paths"
        );
        let mode = [File::new("/a", 0o755, "x"), ours[1].clone()];
        let wanted = "a-1.tar is not the same twice: /a: 0 644 0:0 of 0 against 0 755 0:0 of 0";
        assert_eq!(said(&mode), wanted);
        assert!(said(&ours[..1]).ends_with("/b: only the first has it"));
        let config = compared(&ours, &ours, "0:0", &[]).unwrap_err().to_string();
        assert!(config.contains("its config: ") && config.contains("\"User\":\"0:0\""), "{config}");
    }

    #[test]
    fn a_text_that_must_not_be_there_is_found_in_the_same_files_too() {
        let ours = [File::new("/b", 0o755, "\0built in /srv/one/src/lib.rs\0")];
        assert!(compared(&ours, &ours, "1:1", &["/srv/two", "/rustc"]).is_ok());
        let error = compared(&ours, &ours, "1:1", &["/srv/two", "/srv/one"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a-1.tar is the same twice, but /b shows where it was built: \
             `built in /srv/one/src/lib.rs`"
        );
    }

    #[test]
    fn a_layout_of_one_folder_alone_is_a_difference() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        for folder in [&one, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        let said = || folders(&one, &other, &[]).unwrap_err().to_string();
        assert!(said().contains("holds no layout"), "{}", said());
        std::fs::write(one.join("a-1.tar"), "").unwrap();
        assert_eq!(said(), "a-1.tar is in one folder alone");
    }
}

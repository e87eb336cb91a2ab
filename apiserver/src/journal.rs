//! The store's file: records appended with checksums and synced before anybody hears of them.
//!
//! A record is its length, a checksum of length and place, the payload, a checksum of the payload. A kill
//! can leave only the last one unfinished, and that one nobody was told of. Anything wrong before a whole
//! record is damage, which is never guessed away.

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 16] = b"isthmus-store 1\n";
const HEAD: usize = 8;
const TAIL: usize = 8;

/// Smallest file that is worth rewriting.
const COMPACT_FROM: u64 = 8 << 20;

/// The open file.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    compact_at: u64,
    /// Why nothing more is written: a sync failed, so nobody knows what the disk holds.
    broken: Option<String>,
}

impl Journal {
    /// Opens or makes the file; returns its records, oldest first.
    pub(crate) fn open(path: &Path) -> anyhow::Result<(Self, Vec<Vec<u8>>)> {
        let shown = path.display();
        let mut file = options().open(path).with_context(|| {
            format!("ISM7101 cannot open the store {shown}. Fix: name a file in a folder this user may write")
        })?;
        if file.try_lock().is_err() {
            bail!(
                "ISM7102 the store {shown} is in use by another process. Fix: end that one, or name another file"
            );
        }
        let mut bytes = vec![];
        file.read_to_end(&mut bytes).with_context(|| {
            format!("ISM7103 cannot read the store {shown}. Fix: check the disk, or restore the file from a copy")
        })?;
        if bytes.len() < MAGIC.len() && MAGIC.starts_with(&bytes) {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(MAGIC)?;
            file.sync_all()?;
            sync_folder(path)?;
            bytes = MAGIC.to_vec();
        }
        if !bytes.starts_with(MAGIC) {
            bail!(
                "ISM7104 {shown} is not a store: offset 0 does not begin with its mark. Fix: name the right file; a new one is made where none is"
            );
        }
        let (records, end) = records(&bytes).map_err(|offset| {
            anyhow::anyhow!(
                "ISM7105 the store {shown} is damaged at offset {offset}: a whole record follows one that is not. \
                 Fix: restore the file from a copy, or move it away to start empty"
            )
        })?;
        if end < bytes.len() {
            let torn = path.with_extension("torn");
            let lost = bytes.len() - end;
            tracing::warn!(
                offset = end,
                bytes = lost,
                kept = %torn.display(),
                "the store's last record is unfinished: nobody was told of it, it is dropped"
            );
            if let Err(error) = std::fs::write(&torn, &bytes[end..]) {
                tracing::warn!(%error, "the dropped bytes could not be kept");
            }
            file.set_len(end as u64)?;
            file.sync_all()?;
        }
        let length = end as u64;
        file.seek(SeekFrom::Start(length))?;
        let records = records.iter().map(|range| bytes[range.clone()].to_vec()).collect();
        let compact_at = COMPACT_FROM.max(2 * length);
        Ok((Self { path: path.to_owned(), file, length, compact_at, broken: None }, records))
    }

    /// Writes one record and waits until the disk has it. On an error the file is as before.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<(), String> {
        if let Some(why) = &self.broken {
            return Err(why.clone());
        }
        let record = record(self.length, payload);
        let shown = self.path.display();
        if let Err(error) = self.file.write_all(&record) {
            let undone = self.file.set_len(self.length).is_ok()
                && self.file.seek(SeekFrom::Start(self.length)).is_ok();
            let why = format!(
                "the store {shown} cannot be written: {error}. Fix: free space on its disk"
            );
            if !undone {
                self.broken = Some(why.clone());
            }
            return Err(why);
        }
        if let Err(error) = self.file.sync_data() {
            let why = format!(
                "the store {shown} cannot be synced: {error}. Fix: check the disk, then start the server again"
            );
            self.broken = Some(why.clone());
            return Err(why);
        }
        self.length += record.len() as u64;
        Ok(())
    }

    /// Whether it is time for [`Journal::rewrite`].
    pub(crate) fn is_long(&self) -> bool {
        self.length > self.compact_at
    }

    /// Puts `payloads` in the place of everything, at once or not at all.
    pub(crate) fn rewrite(
        &mut self,
        payloads: impl Iterator<Item = Vec<u8>>,
    ) -> std::io::Result<()> {
        // Where it fails, the next attempt waits until the file has grown again.
        self.compact_at = self.length + COMPACT_FROM;
        let fresh = self.path.with_extension("new");
        let written = self.write_fresh(&fresh, payloads);
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        let (file, length) = written?;
        std::fs::rename(&fresh, &self.path)?;
        self.file = file;
        self.length = length;
        self.compact_at = COMPACT_FROM.max(2 * length);
        sync_folder(&self.path)
    }

    fn write_fresh(
        &self,
        path: &Path,
        payloads: impl Iterator<Item = Vec<u8>>,
    ) -> std::io::Result<(File, u64)> {
        let mut file = options().open(path)?;
        file.try_lock().map_err(std::io::Error::from)?;
        file.set_len(0)?;
        let mut length = MAGIC.len() as u64;
        let mut out = std::io::BufWriter::new(&mut file);
        out.write_all(MAGIC)?;
        for payload in payloads {
            let record = record(length, &payload);
            out.write_all(&record)?;
            length += record.len() as u64;
        }
        out.flush()?;
        drop(out);
        file.sync_all()?;
        Ok((file, length))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// A file's name is on the disk once its folder is.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn sum<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    let mut first = [0; N];
    first.copy_from_slice(&hash.finalize()[..N]);
    first
}

fn record(offset: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a request's body is limited").to_le_bytes();
    let mut record = Vec::with_capacity(HEAD + payload.len() + TAIL);
    record.extend(length);
    record.extend(sum::<4>(&[&length, &offset.to_le_bytes()]));
    record.extend(payload);
    record.extend(sum::<TAIL>(&[payload]));
    record
}

/// What stands at an offset.
enum Found {
    Whole(std::ops::Range<usize>),
    Bad,
}

fn at(bytes: &[u8], offset: usize) -> Found {
    let Some(head) = bytes.get(offset..offset + HEAD) else { return Found::Bad };
    let (length, check) = head.split_at(4);
    if sum::<4>(&[length, &(offset as u64).to_le_bytes()]) != check {
        return Found::Bad;
    }
    let length = u32::from_le_bytes(length.try_into().expect("four bytes were cut")) as usize;
    let payload = offset + HEAD..offset + HEAD + length;
    let (Some(text), Some(tail)) =
        (bytes.get(payload.clone()), bytes.get(payload.end..payload.end + TAIL))
    else {
        return Found::Bad;
    };
    if sum::<TAIL>(&[text]) != tail { Found::Bad } else { Found::Whole(payload) }
}

/// The payloads and where they end; or where the damage is.
fn records(bytes: &[u8]) -> Result<(Vec<std::ops::Range<usize>>, usize), usize> {
    let mut found = vec![];
    let mut offset = MAGIC.len();
    while offset < bytes.len() {
        match at(bytes, offset) {
            Found::Whole(payload) => {
                offset = payload.end + TAIL;
                found.push(payload);
            }
            Found::Bad => {
                let later = offset + 1..bytes.len();
                let whole = later.into_iter().any(|o| matches!(at(bytes, o), Found::Whole(_)));
                return if whole { Err(offset) } else { Ok((found, offset)) };
            }
        }
    }
    Ok((found, offset))
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;

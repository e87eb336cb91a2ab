//! How answers look: one fact a line, errors with cause and fix, JSON and YAML on request.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Arguments;
use std::io::{Error, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// A line of an answer. Unlike `println!`, which panics, it never stops the work that it tells of: see
/// [`end`].
macro_rules! say {
    () => {
        $crate::output::put(format_args!("\n"))
    };
    ($($text:tt)*) => {
        $crate::output::put(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// The same without the end of the line.
macro_rules! put {
    ($($text:tt)*) => {
        $crate::output::put(format_args!($($text)*))
    };
}

/// A line beside the answer, on standard error; where nobody reads that, nobody is told.
macro_rules! note {
    ($($text:tt)*) => {
        $crate::output::note(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// What first kept an answer from being written.
static LOST: OnceLock<Error> = OnceLock::new();

/// Writes a piece of an answer, unless an earlier one was lost.
pub(crate) fn put(text: Arguments<'_>) {
    write(&mut std::io::stdout().lock(), text, &LOST);
}

/// Writes a line of [`note!`].
pub(crate) fn note(text: Arguments<'_>) {
    _ = std::io::stderr().lock().write_fmt(text);
}

fn write(to: &mut impl Write, text: Arguments<'_>, lost: &OnceLock<Error>) {
    if lost.get().is_none()
        && let Err(error) = to.write_fmt(text)
    {
        _ = lost.set(error);
    }
}

/// Writes at once what still waits for the end of its line.
pub(crate) fn flush() {
    if let Err(error) = std::io::stdout().flush() {
        _ = LOST.set(error);
    }
}

/// How a verb ends, by what became of its answer: a reader that has seen enough (`| head`) is no
/// error, a full disk is one.
pub(crate) fn end(code: ExitCode) -> ExitCode {
    flush();
    match lost(&LOST) {
        Some(problem) => {
            error(&problem);
            ExitCode::FAILURE
        }
        None => code,
    }
}

fn lost(lost: &OnceLock<Error>) -> Option<anyhow::Error> {
    let why = lost.get().filter(|why| why.kind() != ErrorKind::BrokenPipe)?;
    Some(anyhow::anyhow!(
        "ISM2091 the answer cannot be written to standard output: {why}. Fix: make room where it \
         is sent, or send it elsewhere; what was to be done was done as far as the exit status says"
    ))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    Json,
    Yaml,
}

/// For verbs whose answer is an object, which is for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Language {
    Json,
    Yaml,
}

impl From<Language> for Format {
    fn from(language: Language) -> Self {
        match language {
            Language::Json => Self::Json,
            Language::Yaml => Self::Yaml,
        }
    }
}

/// Prints a value for machines.
pub(crate) fn value(format: Format, value: &impl Serialize) -> Result<()> {
    say!("{}", written(format, value)?.trim_end());
    Ok(())
}

/// A value in the words of machines.
pub(crate) fn written(format: Format, value: &impl Serialize) -> Result<String> {
    match format {
        Format::Table | Format::Json => serde_json::to_string_pretty(value).context("not JSON"),
        Format::Yaml => serde_saphyr::to_string(value).context("not YAML"),
    }
}

/// An error: the sentence, then what lies below it, one line each.
pub(crate) fn error(error: &anyhow::Error) {
    let mut lines = told(error).into_iter();
    note!("error {}", lines.next().unwrap_or_default());
    for cause in lines {
        note!("  because {cause}");
    }
}

fn told(error: &anyhow::Error) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for cause in error.chain() {
        // Of what a Kubernetes client says, one sentence is for people.
        if let Some(cause) = cluster::refusal::cause(cause) {
            lines.push(cause);
            break;
        }
        let cause = cause.to_string();
        // Wrapped errors often repeat their source in their own text.
        if lines.last().is_none_or(|said| !said.contains(&cause)) {
            lines.push(cause);
        }
    }
    lines
}

/// Prints a whole text.
pub(crate) fn print(text: &[u8]) {
    if LOST.get().is_none()
        && let Err(error) = std::io::stdout().write_all(text)
    {
        _ = LOST.set(error);
    }
}

/// Columns that text is wrapped to: the terminal's, from 40 to 100; 80 where there is none.
pub(crate) fn columns() -> usize {
    terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0).clamp(40, 100))
}

/// Words in lines of at most `width` characters; a word that is longer has a line of its own.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Names in one sentence; the others are counted.
pub(crate) const SHOWN: usize = 3;

/// The first few names, and how many more.
pub(crate) fn some<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut names = names.into_iter();
    let first: Vec<T> = names.by_ref().take(SHOWN).collect();
    let first = first.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    match names.count() {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// `1 service`, `2 services`.
pub(crate) fn count(number: u32, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// A name in a column of its own, and a text beside it in as many lines as it needs.
pub(crate) fn paragraph(name: &str, indent: usize, text: &str) -> String {
    let lines = wrap(text, columns().saturating_sub(indent));
    format!("{name:<indent$}{}", lines.join(&format!("\n{:indent$}", "")))
}

/// `42s`, `7m`, `3h`, `12d`: as kubectl writes ages.
pub(crate) fn age(seconds: i64) -> String {
    match seconds {
        ..0 => "0s".into(),
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Rows under a head, columns as wide as their longest cell, two spaces between.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([head[column].len()])
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}  "));
        }
        say!("{}", text.trim_end());
    };
    line(head.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufWriter, Error, ErrorKind, Write as _};
    use std::sync::OnceLock;

    struct Broken(ErrorKind, usize);

    impl std::io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            self.1 += 1;
            Err(Error::from(self.0))
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_is_no_error_and_a_full_disk_is_one() {
        for (kind, wrong) in [(ErrorKind::BrokenPipe, false), (ErrorKind::StorageFull, true)] {
            let (mut to, lost) = (Broken(kind, 0), OnceLock::new());
            for _ in 0..3 {
                super::write(&mut to, format_args!("a line\n"), &lost);
            }
            assert_eq!(to.1, 1, "after the first nothing is written");
            let said = super::lost(&lost).map(|error| error.to_string());
            assert_eq!(said.is_some(), wrong, "{said:?}");
            assert!(said.is_none_or(|said| said.starts_with("ISM2091 ") && said.contains("Fix: ")));
        }
        let (mut to, lost) = (BufWriter::new(Vec::new()), OnceLock::new());
        super::write(&mut to, format_args!("{}", 1), &lost);
        to.flush().unwrap();
        assert_eq!((to.get_ref().as_slice(), super::lost(&lost).is_none()), (&b"1"[..], true));
    }

    #[test]
    fn words_are_wrapped_and_never_cut() {
        let lines = super::wrap("one  two three\nfour https://api.example.com:6443", 9);
        assert_eq!(lines, ["one two", "three", "four", "https://api.example.com:6443"]);
        assert_eq!(super::wrap(" ", 9), [""; 0]);
        let lines = super::paragraph("mend", 6, &"word ".repeat(40));
        assert!(lines.starts_with("mend  word") && lines.contains("\n      word"));
        assert!(lines.lines().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("refused").context("connect: refused").context("asking");
        assert_eq!(super::told(&error), ["asking", "connect: refused"]);
    }

    #[test]
    fn one_is_no_plural() {
        let all = [0, 1, 2].map(|number| super::count(number, "link"));
        assert_eq!(all, ["0 links", "1 link", "2 links"]);
    }

    #[test]
    fn ages_read_as_kubectls() {
        let ages: Vec<String> =
            [-3, 0, 119, 120, 7199, 7200, 172_800].into_iter().map(super::age).collect();
        assert_eq!(ages, ["0s", "0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}

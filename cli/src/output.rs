//! How answers look: one fact a line, errors with cause and fix, JSON and YAML on request.

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    Json,
    Yaml,
}

/// Prints a value for machines.
pub(crate) fn value(format: Format, value: &impl Serialize) -> Result<()> {
    let text = match format {
        Format::Table | Format::Json => serde_json::to_string_pretty(value).context("not JSON")?,
        Format::Yaml => serde_saphyr::to_string(value).context("not YAML")?,
    };
    println!("{}", text.trim_end());
    Ok(())
}

/// An error: the sentence, then what lies below it, one line each.
pub(crate) fn error(error: &anyhow::Error) {
    let mut said = error.to_string();
    eprintln!("error {said}");
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Wrapped errors often repeat their source in their own text.
        if !said.contains(&cause) {
            eprintln!("  because {cause}");
        }
        said = cause;
    }
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
        println!("{}", text.trim_end());
    };
    line(head.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn ages_read_as_kubectls() {
        let ages: Vec<String> =
            [-3, 0, 119, 120, 7199, 7200, 172_800].into_iter().map(super::age).collect();
        assert_eq!(ages, ["0s", "0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}

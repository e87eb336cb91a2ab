//! What the demo shows: facts in two columns, the strip of answers, colour where there is a terminal.

use std::io::IsTerminal as _;

/// Widest line, also where the terminal is wider: it must read well in a window of 80.
const WIDEST: usize = 80;
/// Where a fact's text begins.
const INDENT: usize = 15;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    West,
    North,
}

impl Paint {
    /// A letter of the strip is coloured by the cluster that answered.
    pub(super) fn of(letter: char) -> Self {
        match letter {
            'w' => Self::West,
            'n' => Self::North,
            '!' | '~' => Self::Bad,
            _ => Self::Plain,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\x1b[1m",
            Self::Dim => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Bad => "\x1b[1;31m",
            Self::West => "\x1b[36m",
            Self::North => "\x1b[33m",
        }
    }
}

/// The terminal, or what stands in for it.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
    width: usize,
    /// Letters in the strip's current line.
    column: usize,
}

impl Screen {
    pub(super) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let colour = terminal
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let found = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        let width = found.filter(|_| terminal).unwrap_or(WIDEST).clamp(40, WIDEST);
        Self { colour, width, column: 0 }
    }

    fn painted(&self, text: &str, paint: Paint) -> String {
        if self.colour && paint != Paint::Plain {
            return format!("{}{text}\x1b[0m", paint.code());
        }
        text.to_owned()
    }

    /// A chapter's title.
    pub(super) fn title(&mut self, text: &str) {
        self.end_strip();
        say!();
        for line in wrap(text, self.width) {
            say!("{}", self.painted(&line, Paint::Bold));
        }
    }

    /// `name  text`, the text wrapped below itself.
    pub(super) fn fact(&mut self, name: &str, text: &str, paint: Paint) {
        self.end_strip();
        let mut first = true;
        // Errors of others end in line breaks.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for line in wrap(&text, self.width - INDENT) {
            let head = if first { name } else { "" };
            say!("  {head:<12} {}", self.painted(&line, paint));
            first = false;
        }
    }

    /// Lines another command of ours wrote; what is too long goes on below its own column.
    pub(super) fn quote(&mut self, text: &str) {
        self.end_strip();
        for line in text.lines() {
            let indent = line.len() - line.trim_start().len();
            let line = shortened(line.trim_start());
            // A second column begins after two spaces; else what follows is set in a little.
            let column =
                line.find("  ").map(|at| at + line[at..].len() - line[at..].trim_start().len());
            let column = column.filter(|column| (1..INDENT).contains(column));
            let (head, rest) = line.split_at(column.unwrap_or(0));
            let hang = indent + column.unwrap_or(2);
            for (number, part) in wrap(rest, self.width - hang).iter().enumerate() {
                match number {
                    0 => say!("{:indent$}{head}{part}", ""),
                    _ => say!("{:hang$}{part}", ""),
                }
            }
        }
    }

    /// What happens now, above the part of the strip that shows it.
    pub(super) fn event(&mut self, text: &str) {
        self.end_strip();
        for line in wrap(text, self.width - 2) {
            say!("  {}", self.painted(&line, Paint::Bold));
        }
    }

    /// Whose the next part of the strip is, where it is not the mesh's.
    pub(super) fn aside(&mut self, text: &str) {
        self.end_strip();
        say!("  {}", self.painted(text, Paint::Dim));
    }

    /// One more letter of the strip.
    pub(super) fn letter(&mut self, letter: char) {
        if self.column == 0 {
            put!("  ");
        }
        put!("{}", self.painted(&letter.to_string(), Paint::of(letter)));
        self.column += 1;
        if self.column == self.width - 4 {
            self.end_strip();
        }
        crate::output::flush();
    }

    pub(super) fn end_strip(&mut self) {
        if self.column > 0 {
            say!();
        }
        self.column = 0;
    }

    /// Rows of words, the first left and the others right, as wide as their longest.
    pub(super) fn table(&mut self, rows: &[Vec<String>]) {
        self.end_strip();
        let columns = rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        };
        for (number, row) in rows.iter().enumerate() {
            let mut line = format!("  {:<width$}", row[0], width = width(0));
            for (column, cell) in row.iter().enumerate().take(columns).skip(1) {
                line.push_str(&format!("  {cell:>width$}", width = width(column)));
            }
            let paint = if number == 0 { Paint::Dim } else { Paint::Plain };
            say!("{}", self.painted(&line, paint));
        }
    }
}

/// A fingerprint by its first digits: whoever compares two sees that they differ.
fn shortened(line: &str) -> String {
    let digest = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = line.split(' ').map(|word| if digest(word) { &word[..16] } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// Lines of at most `width` characters; a longer word stands alone.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is a first line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::{shortened, wrap};

    #[test]
    fn lines_fit_and_no_word_is_lost() {
        let text =
            "a gateway of west is stopped, and an-address-that-is-longer-than-the-line waits";
        let lines = wrap(text, 20);
        assert_eq!(lines.join(" "), text);
        let digest = "0123456789abcdef".repeat(4);
        assert_eq!(shortened(&format!("east  {digest} x")), "east  0123456789abcdef x");
        for line in &lines {
            assert!(line.chars().count() <= 20 || !line.contains(' '), "{line:?}");
        }
    }
}

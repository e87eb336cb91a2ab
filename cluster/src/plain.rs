//! Somebody else's words, fit to stand in a sentence of ours.

/// `text` on one line and at most `max` characters long. Control characters, and those that turn the
/// direction of writing, become spaces; what is cut ends with `…`.
pub fn plain(text: &str, max: usize) -> String {
    let mut chars = text.chars().map(|c| if commands(c) { ' ' } else { c });
    let mut plain: String = chars.by_ref().take(max).collect();
    if chars.next().is_some() {
        plain.pop();
        plain.push('…');
    }
    plain
}

/// Whether a terminal obeys it instead of showing it.
fn commands(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_it_and_obeys_nothing() {
        assert_eq!(plain("a\u{1b}[2J\nb\u{202e}c\u{9b}", 64), "a [2J b c ");
        assert_eq!(plain("größer", 6), "größer");
        assert_eq!(plain("größer", 4), "grö…");
    }
}

//! Just enough Rust grammar to tell code from comments and literals, and to find functions and tests.
//!
//! A real parser would be exact and would be the only dependency; braces are enough for our rules.

/// The code and the comments of a source file, each with everything else blanked out.
///
/// Lines keep their numbers: a blanked character becomes a space, a line feed stays.
pub(super) struct Masked {
    pub(super) code: String,
    pub(super) comments: String,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// The line of the word `fn`, counted from 1.
    pub(super) line: usize,
    /// From the word `fn` to the closing brace, both included.
    pub(super) n_lines: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

/// Separates code, comments and literals (strings, raw strings, bytes and characters).
pub(super) fn mask(source: &str) -> Masked {
    let chars: Vec<char> = source.chars().collect();
    let mut masked = Masked {
        code: String::new(),
        comments: String::new(),
    };
    let mut at = 0;
    while at < chars.len() {
        let (part, end) = token(&chars, at);
        for &c in &chars[at..end] {
            let keep = |kept: Part| if kept == part || c == '\n' { c } else { ' ' };
            masked.code.push(keep(Part::Code));
            masked.comments.push(keep(Part::Comment));
        }
        at = end;
    }
    masked
}

/// The token that starts at `at`, and the index after it.
fn token(chars: &[char], at: usize) -> (Part, usize) {
    if starts_with(chars, at, "//") {
        (Part::Comment, find(chars, at, |c| c == '\n'))
    } else if starts_with(chars, at, "/*") {
        (Part::Comment, block_comment_end(chars, at))
    } else if let Some(end) = string_end(chars, at).or_else(|| char_end(chars, at)) {
        (Part::Literal, end)
    } else if is_word_char(chars[at]) {
        (Part::Code, find(chars, at, |c| !is_word_char(c)))
    } else {
        (Part::Code, at + 1)
    }
}

fn starts_with(chars: &[char], at: usize, text: &str) -> bool {
    text.chars()
        .enumerate()
        .all(|(i, c)| chars.get(at + i) == Some(&c))
}

/// The first index from `from` on whose character is wanted, or the end.
fn find(chars: &[char], from: usize, wanted: impl Fn(char) -> bool) -> usize {
    (from..chars.len())
        .find(|&i| wanted(chars[i]))
        .unwrap_or(chars.len())
}

pub(super) fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Block comments nest in Rust.
fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0;
    let mut i = at;
    while i < chars.len() {
        if starts_with(chars, i, "/*") {
            depth += 1;
            i += 2;
        } else if starts_with(chars, i, "*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    chars.len()
}

/// The end of `"..."`, `b"..."`, `c"..."`, `r#"..."#` and their mixtures.
fn string_end(chars: &[char], at: usize) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""]
        .into_iter()
        .find(|p| starts_with(chars, at, p))?;
    let hashes_at = at + prefix.len();
    let is_raw = prefix.ends_with('r');
    let quote = if is_raw {
        find(chars, hashes_at, |c| c != '#')
    } else {
        hashes_at
    };
    if chars.get(quote) != Some(&'"') {
        return None;
    }
    if !is_raw {
        return Some(escaped_end(chars, quote + 1, '"'));
    }
    let close = format!("\"{}", "#".repeat(quote - hashes_at));
    let close_at = (quote + 1..chars.len()).find(|&i| starts_with(chars, i, &close));
    Some(close_at.map_or(chars.len(), |i| i + close.len()))
}

/// The end of `'x'` or `b'x'`; a lifetime is none.
fn char_end(chars: &[char], at: usize) -> Option<usize> {
    let quote = if starts_with(chars, at, "b'") {
        at + 1
    } else {
        at
    };
    if chars.get(quote) != Some(&'\'') {
        return None;
    }
    let is_escaped = chars.get(quote + 1) == Some(&'\\');
    let is_plain = chars.get(quote + 2) == Some(&'\'');
    (is_escaped || is_plain).then(|| escaped_end(chars, quote + 1, '\''))
}

/// The index after the first `close` that has no backslash before it.
fn escaped_end(chars: &[char], from: usize, close: char) -> usize {
    let mut i = from;
    while i < chars.len() && chars[i] != close {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

/// All functions with a body in masked code, nested ones included.
pub(super) fn functions(code: &str) -> Vec<Function> {
    let chars: Vec<char> = code.chars().collect();
    let mut found = Vec::new();
    let mut line = 1;
    let mut at = 0;
    while at < chars.len() {
        let (_, end) = token(&chars, at);
        if end - at == 2 && starts_with(&chars, at, "fn") {
            found.extend(function_at(&chars, at, line));
        }
        line += usize::from(chars[at] == '\n');
        at = end;
    }
    found
}

/// The function whose word `fn` is at `at`: none for a pointer type, a signature or a macro's `$name`.
fn function_at(chars: &[char], at: usize, line: usize) -> Option<Function> {
    let name_at = find(chars, at + 2, |c| !c.is_whitespace());
    let name_end = find(chars, name_at, |c| !is_word_char(c) && c != '#');
    if name_end == name_at {
        return None;
    }
    let end = item_end(chars, name_end);
    (end > 0 && chars[end - 1] == '}').then(|| Function {
        name: chars[name_at..name_end].iter().collect(),
        line,
        n_lines: 1 + chars[at..end].iter().filter(|&&c| c == '\n').count(),
    })
}

/// The index after an item that starts at `from`: after its closing brace, or after its semicolon.
fn item_end(chars: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut i = from;
    while i < chars.len() {
        match chars[i] {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return i + 1,
            // In a signature, braces may also enclose a constant: `Matrix<{ N + 1 }>`.
            '{' if depth > 0 || follows_angle_bracket(chars, i) => i = close_brace(chars, i),
            '{' => return (close_brace(chars, i) + 1).min(chars.len()),
            _ => {}
        }
        i += 1;
    }
    chars.len()
}

fn follows_angle_bracket(chars: &[char], at: usize) -> bool {
    chars[..at].iter().rev().find(|c| !c.is_whitespace()) == Some(&'<')
}

/// The index of the brace that closes the one at `open`, or the end.
fn close_brace(chars: &[char], open: usize) -> usize {
    let mut depth = 0;
    for (i, c) in chars.iter().enumerate().skip(open) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

/// For each line of masked code, whether it belongs to an item under `#[cfg(test)]`.
pub(super) fn test_lines(code: &str) -> Vec<bool> {
    let chars: Vec<char> = code.chars().collect();
    let line_of = |i: usize| chars[..i].iter().filter(|&&c| c == '\n').count();
    let mut lines = vec![false; code.lines().count()];
    for at in 0..chars.len() {
        let opens = ["#[cfg(test)]", "#[cfg(all(test"]
            .iter()
            .any(|text| starts_with(&chars, at, text));
        if opens {
            let end = item_end(&chars, at + 1);
            lines[line_of(at)..=line_of(end - 1)].fill(true);
        }
    }
    lines
}

#[cfg(test)]
mod tests;

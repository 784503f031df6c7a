//! Untrusted text: validation of names, and escaping for output. Pure.
#![forbid(unsafe_code)]

use std::borrow::Cow;

/// The prefix of all labels. Containers without such a label are ignored.
pub const PREFIX: &str = "pod-steer.";
/// Maximum length of a service's name, in characters.
pub const SERVICE_CHARS_MAX: usize = 63;
/// Maximum length of a version (that of an image's tag) and of a backend's name, in characters.
pub const NAME_CHARS_MAX: usize = 128;

/// Maximum length of a quoted value in a message, in characters.
const QUOTED_CHARS_MAX: usize = 60;

/// The kind of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A service.
    Service,
    /// A version of a service.
    Version,
    /// A backend; a container's id is one too.
    Backend,
}

impl Name {
    fn noun(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Version => "version",
            Self::Backend => "name",
        }
    }

    /// Why a text is not a valid name of this kind, and what to write instead.
    pub fn fault(self, text: &str) -> Option<String> {
        let max = if self == Self::Service { SERVICE_CHARS_MAX } else { NAME_CHARS_MAX };
        let count = text.chars().count();
        if text.is_empty() {
            return Some(match self {
                Self::Service => "it is empty; write a name, as in web".to_owned(),
                Self::Version => "it is empty; write a version, as in v1, or leave it out".to_owned(),
                Self::Backend => "it is empty; write a name, as in web-1, or leave it out".to_owned(),
            });
        }
        if count > max {
            return Some(format!("it has {count} characters; the maximum is {max}"));
        }
        let sign = |c: char| quoted(c.encode_utf8(&mut [0; 4]));
        let (is_allowed, remedy): (fn(char) -> bool, _) = match self {
            Self::Service => {
                (|c| c.is_ascii_alphanumeric() || "._-".contains(c), "letters a-z, A-Z, digits, '.', '_', '-'")
            }
            Self::Version => (|c| c.is_ascii_graphic(), "printable ASCII without spaces, as in v1.2"),
            // `is_alphanumeric` excludes control characters and characters that change the direction or position of others.
            Self::Backend => (
                |c| c.is_ascii_graphic() || c.is_alphanumeric(),
                "letters, digits and punctuation without spaces, as in web-1",
            ),
        };
        if let Some(c) = text.chars().find(|&c| !is_allowed(c)) {
            let noun = if self == Self::Version { "version" } else { "name" };
            return Some(format!("{} is not allowed in a {noun}; use {remedy}", sign(c)));
        }
        if self != Self::Service {
            return None;
        }
        let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        (!begins_well)
            .then(|| "it begins with a punctuation character; begin with a letter or a digit, as in web".to_owned())
    }

    /// An error of one line, unless the text is a valid name of this kind.
    pub fn check(self, text: &str) -> Result<(), String> {
        match self.fault(text) {
            None => Ok(()),
            Some(fault) => Err(format!("{} {} is refused: {fault}", self.noun(), quoted(text))),
        }
    }
}

/// Escapes invisible characters, as in `\u{1b}`: control characters, and those that change the direction or position of others. The result
/// is one line.
pub fn visible(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| matches!(c, '\\' | '\'' | '"') || c.escape_debug().len() == 1;
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) { shown.push(c) } else { shown.extend(c.escape_debug()) }
    }
    Cow::Owned(shown)
}

/// As [`visible`], cut to a maximum number of characters.
pub fn shown(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => visible(text).into_owned(),
        Some((end, _)) => visible(&text[..end]).into_owned() + "…",
    }
}

/// Quotes an untrusted text for a message: on one line, with invisible characters escaped, cut to `QUOTED_CHARS_MAX`.
pub fn quoted(text: &str) -> String {
    let mut shown = String::from('"');
    let mut chars_left = QUOTED_CHARS_MAX;
    for c in text.chars() {
        let start = shown.len();
        match c {
            // An apostrophe needs no escape between these quotes.
            '\'' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
        let Some(left) = chars_left.checked_sub(shown[start..].chars().count()) else {
            shown.truncate(start);
            return shown + "\"…";
        };
        chars_left = left;
    }
    shown + "\""
}

/// `1 connection`, `2 connections`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_visible() {
        for kind in [Name::Service, Name::Version, Name::Backend] {
            assert_eq!(kind.check("web-1.2_x"), Ok(()));
            for bad in ["", "two words", "a\nb", "\x1b[31mred", "a\u{202e}b", "a\u{200b}b", &"x".repeat(2_000_000)] {
                let error = kind.check(bad).unwrap_err();
                assert!(error.lines().count() == 1 && error.chars().count() < 400, "{error}");
                assert!(!error.contains(['\x1b', '\u{202e}']), "{error}");
            }
        }
        assert!(Name::Service.check(&"x".repeat(63)).is_ok() && Name::Service.check(&"x".repeat(64)).is_err());
        assert!(Name::Backend.check(&"x".repeat(128)).is_ok() && Name::Backend.check(&"x".repeat(129)).is_err());
        assert!(Name::Service.check("caf\u{e9}").is_err() && Name::Version.check("caf\u{e9}").is_err());
        assert_eq!(Name::Backend.check("caf\u{e9}-商店-1"), Ok(()));
        assert!(Name::Service.check("-web").is_err() && Name::Version.check("-v1").is_ok());
    }

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(visible("it's \"a\\b\" – ü, ◎"), "it's \"a\\b\" – ü, ◎");
        assert_eq!(visible("a\x1b[31mb\r\n\u{9b}c\u{202e}"), "a\\u{1b}[31mb\\r\\n\\u{9b}c\\u{202e}");
        assert_eq!((shown("abc", 3), shown("abcd", 3)), ("abc".to_owned(), "abc…".to_owned()));
        assert_eq!(shown("\n\n", 1), "\\n…");
    }
}

//! Images of containers, and patterns for them. The name of an image refers to another image once its tag is moved; its id never does.
//! Pure.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::shown;

/// Prefix of image ids.
const ID_PREFIX: &str = "sha256:";
/// Hexadecimal digits of an id.
const ID_DIGITS: usize = 64;
/// Number of digits that messages show.
const SHOWN_DIGITS: usize = 12;
/// Maximum length of a name or pattern: registries allow 255 bytes for the name and 128 for the tag.
const NAME_BYTES_MAX: usize = 512;

/// The image of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name when the container was created, as the engine reports it; empty if it is longer than any image name.
    name: String,
    /// Its id, or empty.
    id: String,
}

impl Image {
    /// An image as an engine describes it.
    pub fn new(name: &str, id: &str) -> Self {
        let name = if name.len() > NAME_BYTES_MAX { "" } else { name };
        let digits = id.strip_prefix(ID_PREFIX).unwrap_or(id);
        let id = if is_digits(digits) { format!("{ID_PREFIX}{digits}") } else { String::new() };
        Self { name: name.to_owned(), id }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.name, NAME_BYTES_MAX))?;
        match self.id.get(..ID_PREFIX.len() + SHOWN_DIGITS) {
            Some(short) if self.name.is_empty() => f.write_str(short),
            Some(short) => write!(f, " ({short})"),
            None => Ok(()),
        }
    }
}

fn is_digits(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// A pattern of allowed images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImagePattern {
    /// Images with a name that matches: `*` matches any characters except `/`, `**` any characters.
    Name(String),
    /// The image with this id.
    Id(String),
}

impl ImagePattern {
    /// Parses a pattern. An error says what is wrong and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(digits) = text.strip_prefix(ID_PREFIX) {
            return if is_digits(digits) {
                Ok(Self::Id(text.to_owned()))
            } else {
                Err(format!("an id is {ID_PREFIX} and {ID_DIGITS} digits 0-9, a-f; write all of it"))
            };
        }
        match text {
            "" => Err("it is empty; write the name of an image, as in registry.example/web:*".to_owned()),
            text if text.len() > NAME_BYTES_MAX => Err(format!("it is longer than {NAME_BYTES_MAX} characters")),
            text if !text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Err("it is not the name of an image; write printable ASCII without spaces".to_owned())
            }
            text => Ok(Self::Name(text.to_owned())),
        }
    }

    /// Whether an image is one of these.
    pub fn matches(&self, image: &Image) -> bool {
        match self {
            Self::Id(id) => *id == image.id,
            Self::Name(pattern) => matches(pattern.as_bytes(), image.name.as_bytes()),
        }
    }
}

/// Whether a pattern matches a whole text. Takes at most time proportional to the product of their lengths.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    // For each prefix of the text, by length: whether the part of the pattern so far matches it.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    let mut rest = pattern;
    while let [first, others @ ..] = rest {
        let crosses = others.first() == Some(&b'*');
        rest = match first {
            b'*' => {
                for end in 1..=text.len() {
                    reached[end] |= reached[end - 1] && (crosses || text[end - 1] != b'/');
                }
                if crosses { &others[1..] } else { others }
            }
            byte => {
                for end in (1..=text.len()).rev() {
                    reached[end] = reached[end - 1] && text[end - 1] == *byte;
                }
                reached[0] = false;
                others
            }
        };
    }
    reached[text.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_match() {
        for (pattern, name, is) in [
            ("nginx", "nginx", true),
            ("nginx", "nginx:1", false),
            ("nginx", "evil/nginx", false),
            ("nginx:*", "nginx:1.27", true),
            ("nginx:*", "nginx", false),
            ("registry.example/web:*", "registry.example/web:v1", true),
            ("registry.example/web:*", "registry.example/web:v1/evil", false),
            ("registry.example/*", "registry.example/web:v1", true),
            ("registry.example/*", "registry.example/team/web:v1", false),
            ("registry.example/**", "registry.example/team/web:v1", true),
            ("web*", "web.evil.example/x", false),
            ("*b*b*", "abbb", true),
            ("*", "", true),
            ("*", "a/b", false),
            ("**", "a/b:c", true),
            ("a**c*", "a/b/cd", true),
            ("***", "a/b", true),
            ("ab", "b", false),
            ("b", "ab", false),
        ] {
            let pattern = ImagePattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(&Image::new(name, "")), is, "{pattern:?} {name}");
        }
        let (stars, long) = ("*a".repeat(256), "a".repeat(NAME_BYTES_MAX));
        assert!(!ImagePattern::parse(&stars).unwrap().matches(&Image::new(&(long[1..].to_owned() + "b"), "")));
    }

    #[test]
    fn an_id_is_compared_with_the_id_alone() {
        let digits = "0a".repeat(32);
        let id = ImagePattern::parse(&format!("sha256:{digits}")).unwrap();
        // Some engines leave the beginning out.
        assert!(id.matches(&Image::new("any", &digits)) && id.matches(&Image::new("any", &format!("sha256:{digits}"))));
        assert!(!id.matches(&Image::new(&format!("sha256:{digits}"), "")), "a name is what was typed");
        assert!(!id.matches(&Image::new("any", &"0b".repeat(32))));
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert!(!ImagePattern::parse("x*").unwrap().matches(&Image::new(&long, "")));
    }

    #[test]
    fn wrong_patterns_have_a_remedy() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for (text, said) in [
            ("", "empty"),
            ("sha256:0a0b", "all of it"),
            ("sha256:*", "all of it"),
            ("a b", "without spaces"),
            ("a\x1b", "printable"),
            (long.as_str(), "longer"),
        ] {
            assert!(ImagePattern::parse(text).expect_err(text).contains(said), "{text}");
        }
    }

    #[test]
    fn images_are_shown() {
        let id = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Image::new("web\x1b:1", &id).to_string(), "web\\u{1b}:1 (sha256:0a0a0a0a0a0a)");
        assert_eq!(Image::new("", &id).to_string(), "sha256:0a0a0a0a0a0a");
    }
}

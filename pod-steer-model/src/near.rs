//! Suggestions for misspelt names. Pure.

use crate::text::quoted;

/// Maximum number of names that an error lists.
const LISTED_MAX: usize = 10;

/// The name that begins with a text, or the closest one. Up to a third of the characters wrong is a misspelling; more is another word.
pub fn nearest<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_lowercase();
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(begins) = known.iter().find(|name| !lower.is_empty() && name.to_lowercase().starts_with(&lower)) {
        return Some(begins);
    }
    let (edits, nearest) = known.into_iter().map(|name| (distance(&lower, &name.to_lowercase()), name)).min()?;
    (edits * 3 <= lower.chars().count().max(3)).then_some(nearest)
}

/// A list of names for an error: `api, web`, cut after some.
pub fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    match names.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
        None if names.is_empty() => "none".to_owned(),
        None => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..LISTED_MAX].join(", ")),
    }
}

/// The error for an unknown service, with the name that was probably meant and the existing ones.
pub fn no_service(name: &str, services: &[&str]) -> String {
    let meant = nearest(name, services.iter().copied()).map(|meant| format!("; did you mean {meant}?"));
    format!(
        "there is no service {}{}; known: {}",
        quoted(name),
        meant.unwrap_or_default(),
        listed(services.iter().copied())
    )
}

/// The edit distance of two texts: characters inserted, deleted, replaced, or two neighbours exchanged.
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // The difference in length is a lower bound: skip the table for distant words.
    if a.len().abs_diff(b.len()) > 3 {
        return a.len().abs_diff(b.len());
    }
    let mut edits = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            edits[i][j] = match (i, j) {
                (0, n) | (n, 0) => n,
                _ => {
                    let replaced = edits[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let best = replaced.min(edits[i - 1][j] + 1).min(edits[i][j - 1] + 1);
                    let exchanged = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    if exchanged { best.min(edits[i - 2][j - 2] + 1) } else { best }
                }
            };
        }
    }
    edits[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_are_distinguished_from_other_words() {
        let known = ["api", "shop-web", "web"];
        for (text, meant) in
            [("wbe", Some("web")), ("WEB", Some("web")), ("shop-wbe", Some("shop-web")), ("shop", Some("shop-web"))]
        {
            assert_eq!(nearest(text, known), meant, "{text}");
        }
        for other in ["", "nope", "database", "xy"] {
            assert_eq!(nearest(other, known), None, "{other}");
        }
    }

    #[test]
    fn lists_are_short() {
        let names: Vec<String> = (0..13).map(|n| n.to_string()).collect();
        assert_eq!(listed(names.iter().map(String::as_str)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more");
        assert_eq!(no_service("wbe", &["web"]), "there is no service \"wbe\"; did you mean web?; known: web");
        assert_eq!(no_service("x", &[]), "there is no service \"x\"; known: none");
    }
}

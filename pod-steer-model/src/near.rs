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

/// The places of the backends that a text names, in a list of ids and names: all of this name, or else the one whose id begins so.
///
/// # Errors
///
/// There is none, or the beginning is that of several ids.
pub fn backends_named(named: &str, backends: &[(&str, &str)]) -> Result<Vec<usize>, String> {
    let places = |is: &dyn Fn(&(&str, &str)) -> bool| -> Vec<usize> {
        backends.iter().enumerate().filter(|(_, backend)| is(backend)).map(|(place, _)| place).collect()
    };
    for exact in [places(&|(_, name)| *name == named), places(&|(id, _)| *id == named)] {
        if !exact.is_empty() {
            return Ok(exact);
        }
    }
    let by_beginning = places(&|(id, _)| !named.is_empty() && id.starts_with(named));
    match by_beginning.len() {
        0 => {
            let mut names: Vec<&str> = backends.iter().map(|(_, name)| *name).collect();
            names.sort_unstable();
            names.dedup();
            let meant = nearest(named, names.iter().copied()).map(|meant| format!("; did you mean {meant}?"));
            let known = listed(names.iter().copied());
            Err(format!("there is no backend {}{}; known: {known}", quoted(named), meant.unwrap_or_default()))
        }
        1 => Ok(by_beginning),
        _ => Err(format!("{} is the beginning of several ids; give the full id", quoted(named))),
    }
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
        let backends = [("abc1", "a"), ("abd2", "b"), ("x3", "b")];
        assert_eq!(backends_named("a", &backends), Ok(vec![0]), "a name before an id");
        assert_eq!(backends_named("b", &backends), Ok(vec![1, 2]), "backends of several services may have one name");
        assert_eq!(backends_named("abd", &backends), Ok(vec![1]));
        assert!(backends_named("ab", &backends).unwrap_err().contains("several ids"));
        assert!(backends_named("", &backends).unwrap_err().ends_with("known: a, b"));
        assert_eq!(backends_named("x", &[("x", "c"), ("x1", "d")]), Ok(vec![0]), "a full id before a beginning");
        assert_eq!(no_service("x", &[]), "there is no service \"x\"; known: none");
    }
}

//! No two folders or files at the top of a crate may depend on each other, directly or indirectly, so that each of them can be read,
//! tested and changed with its dependencies alone.

use std::collections::{BTreeMap, BTreeSet};

/// The crates whose modules are compared.
const CRATES: [&str; 2] = ["pod-steer/src/", "pod-steer-model/src/"];
/// Modules that combine the others.
const TOP: [&str; 3] = ["lib", "main", "fuzzing"];

/// Which modules each module names, with a file that does.
type Needs = BTreeMap<String, BTreeMap<String, String>>;

/// The dependency cycles in a crate, one line each. `files` are paths with their text.
pub fn circles(files: &[(String, String)]) -> Vec<String> {
    let of_crate = |root: &&str| {
        let own = files.iter().filter_map(|(path, text)| Some((path.strip_prefix(*root)?, text.as_str())));
        let needs = needs(own);
        let circles = needs.keys().filter_map(|module| circle(module, &needs));
        // A cycle is found from each of its modules.
        let smallest = circles.filter(|circle| circle.iter().all(|(module, ..)| circle[0].0 <= *module));
        let lines = smallest.map(|circle| {
            let steps = circle.iter().map(|(from, to, file)| format!("`{from}` needs `{to}` ({root}{file})"));
            format!("modules in a circle: {}", steps.collect::<Vec<_>>().join(", "))
        });
        lines.collect::<Vec<_>>()
    };
    CRATES.iter().flat_map(of_crate).collect()
}

fn needs<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Needs {
    let mut needs = Needs::new();
    for (path, text) in files {
        let module = top_of(path);
        // Tests may use any module.
        let is_test = path.ends_with("tests.rs") || path.contains("/tests/");
        if is_test || TOP.contains(&module.as_str()) {
            continue;
        }
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        let own = needs.entry(module.clone()).or_default();
        for other in named(text).into_iter().filter(|other| *other != module) {
            own.entry(other).or_insert_with(|| path.to_owned());
        }
    }
    let known: BTreeSet<String> = needs.keys().cloned().collect();
    needs.values_mut().for_each(|own| own.retain(|other, _| known.contains(other)));
    needs
}

/// `daemon/control.rs` and `daemon.rs` are `daemon`.
fn top_of(path: &str) -> String {
    let top = path.split('/').next().unwrap_or(path);
    top.strip_suffix(".rs").unwrap_or(top).to_owned()
}

/// The modules that a text names after `crate::`, also in braces.
fn named(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rest in text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
        .split("crate::")
        .skip(1)
    {
        match rest.strip_prefix('{') {
            Some(group) => {
                let (mut depth, mut item) = (0, String::new());
                for letter in group.chars() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => names.extend(first_name(&std::mem::take(&mut item))),
                        _ if depth == 0 => item.push(letter),
                        _ => {}
                    }
                }
                names.extend(first_name(&item));
            }
            None => names.extend(first_name(rest)),
        }
    }
    names
}

fn first_name(text: &str) -> Option<String> {
    let text = text.trim_start();
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// A shortest way from a module back to itself: from, to, and the file that says so.
fn circle(start: &str, needs: &Needs) -> Option<Vec<(String, String, String)>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = vec![start];
    while !came_from.contains_key(start) {
        let mut found = Vec::new();
        for from in next {
            for to in needs.get(from)?.keys() {
                if came_from.insert(to, came_from.get(to.as_str()).copied().unwrap_or(from)).is_none() {
                    found.push(to.as_str());
                }
            }
        }
        if found.is_empty() {
            return None;
        }
        next = found;
    }
    let (mut way, mut at) = (Vec::new(), start);
    loop {
        let from = came_from[at];
        way.push((from.to_owned(), at.to_owned(), needs[from][at].clone()));
        at = from;
        if at == start {
            break;
        }
    }
    way.reverse();
    Some(way)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Vec<(String, String)> {
        files.iter().map(|(path, text)| (format!("pod-steer/src/{path}"), (*text).to_owned())).collect()
    }

    #[test]
    fn a_circle_is_found_once() {
        let of = |texts: &[(&str, &str)]| circles(&files(texts));
        let line = of(&[
            ("a.rs", "use crate::{b::One, c};"),
            ("b/mod.rs", "fn f() { crate::d::g() }"),
            ("d.rs", "use crate::{\n    a::{X, b},\n};"),
            ("c.rs", "// use crate::a;\n#[cfg(test)]\nmod tests { use crate::a; }"),
        ]);
        let text = "modules in a circle: `a` needs `b` (pod-steer/src/a.rs), `b` needs `d` (pod-steer/src/b/mod.rs), `d` needs `a` \
                    (pod-steer/src/d.rs)";
        assert_eq!(line, [text]);
        assert!(of(&[("a.rs", "use crate::b;"), ("b.rs", "use crate::c;"), ("c.rs", "")]).is_empty());
        assert!(of(&[("a/x.rs", "use crate::a::y;"), ("a/y.rs", "use crate::a::x;")]).is_empty(), "within a folder");
    }
}

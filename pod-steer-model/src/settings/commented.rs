//! The tables of services in the commented configuration file. Every line is a comment: one of text begins with `# `, and a setting follows
//! its `#` at once. Pure.
#![forbid(unsafe_code)]

use super::{
    declare::Declaration,
    options,
    reference::{HEALTH, RESTRICTIONS, kinds},
};

/// Columns of a line of text.
const COLUMNS: usize = 100;

/// A paragraph of comments.
pub fn paragraph(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push_str(&line);
            lines.push('\n');
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    lines + &line + "\n"
}

/// The tables, with every key that one may have.
pub fn tables() -> String {
    let is_for = |kind: &str, declared: &&Declaration| kinds(declared.key).contains(&kind);
    let http = HEALTH.iter().filter(|declared| is_for("http", declared)).map(|declared| entry(declared, None));
    let others = HEALTH.iter().filter(|declared| !is_for("http", declared));
    let others = others.map(|declared| entry(declared, None));
    let exec = HEALTH.iter().take(1).map(|kind| entry(kind, Some("\"exec\""))).chain(others);
    [
        paragraph(
            "Options of services without labels. The table [service.NAME] is for one service, [service.\"*\"] for all. A label overrides \
             the table of its service, which overrides the table of all.",
        ),
        "#[service.\"*\"]\n\n".to_owned(),
        options::declarations().iter().chain(&RESTRICTIONS).map(|declared| entry(declared, None)).collect(),
        paragraph("The health check. A check is taken as a whole, from the labels or from one table."),
        "#[service.\"*\".health]\n\n".to_owned(),
        http.collect(),
        paragraph("A check of another kind, for the service `worker` alone."),
        "#[service.worker.health]\n\n".to_owned(),
        exec.collect(),
    ]
    .concat()
}

/// What a key means, and the key with a value.
fn entry(declared: &Declaration, value: Option<&str>) -> String {
    let Declaration { key, values, default, doc, .. } = declared;
    let key = match key.strip_prefix("health.") {
        Some(key) => key,
        None if *key == "health" => "kind",
        None => key,
    };
    let text = format!("{doc} Values: {values}. Default: {default}.").replace('`', "");
    let value = value.map_or_else(|| declared.toml(), str::to_owned);
    format!("{}#{key} = {value}\n\n", paragraph(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::reference::table_keys;

    #[test]
    fn every_key_has_a_line() {
        let tables = tables();
        for key in table_keys() {
            let key = if key == "health" { "kind" } else { key.trim_start_matches("health.") };
            assert!(tables.lines().any(|line| line.starts_with(&format!("#{key} = "))), "{key}");
        }
    }

    #[test]
    fn lines_of_text_are_comments_of_limited_length() {
        assert_eq!(paragraph("one  two\nthree"), "# one two three\n");
        let long = paragraph(&"word ".repeat(50));
        assert!(
            long.lines().count() > 1 && long.lines().all(|line| line.starts_with("# word") && line.len() <= COLUMNS)
        );
    }
}

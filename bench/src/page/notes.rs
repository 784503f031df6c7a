//! Remarks on contestants. A remark that applies to several tables is printed once, for all of them.

use std::collections::BTreeMap;

use crate::report::{Report, Section};

use crate::numbers;

/// The common remarks: names with their sentences, in the order of the report.
pub struct Notes {
    common: Vec<(String, String)>,
}

impl Notes {
    pub fn of(report: &Report) -> Self {
        let all: Vec<_> = report.sections.iter().flat_map(sentences).collect();
        let mut times: BTreeMap<_, usize> = BTreeMap::new();
        for one in &all {
            *times.entry(one).or_default() += 1;
        }
        let mut common = Vec::new();
        for one in all.iter().filter(|one| times[one] > 1) {
            if !common.contains(one) {
                common.push(one.clone());
            }
        }
        Self { common }
    }

    /// A name and a text for each contestant with a remark.
    pub fn common(&self) -> Vec<(String, String)> {
        joined(self.common.clone())
    }

    /// The remaining remarks of one table.
    pub fn below(&self, section: &Section) -> Vec<(String, String)> {
        joined(sentences(section).into_iter().filter(|one| !self.common.contains(one)))
    }
}

/// Each remark with its contestant.
fn sentences(section: &Section) -> Vec<(String, String)> {
    let notes = section.rows.iter().filter_map(|row| Some((&row.name, row.note.as_ref()?)));
    let notes = notes.flat_map(|(name, note)| split(note).into_iter().map(|sentence| (name.clone(), sentence)));
    let skipped = section.skipped.iter();
    let skipped = skipped.map(|(name, why)| (name.clone(), format!("not here: {}", numbers::first_sentence(why))));
    notes.chain(skipped).collect()
}

/// On one line each: several lines of a program's output could end a list or begin a heading.
fn split(text: &str) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let goes_on =
            |last: &String| !last.ends_with('.') || last.ends_with("..") || !word.starts_with(char::is_uppercase);
        match sentences.last_mut() {
            Some(last) if goes_on(last) => *last += &format!(" {word}"),
            _ => sentences.push(word.to_owned()),
        }
    }
    sentences
}

fn joined(sentences: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut joined: Vec<(String, String)> = Vec::new();
    for (name, sentence) in sentences {
        match joined.iter_mut().find(|(other, _)| *other == name) {
            Some((_, text)) => *text += &format!(" {sentence}"),
            None => joined.push((name, sentence)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn what_several_tables_have_is_told_once() {
        let mut report = sample::report();
        let note = |first: &str| Some(format!("{first} So it is (`listen ... Reuseport`)."));
        sample::row(&mut report, "new-connections", "pod-steer").note = note("One thing.");
        sample::row(&mut report, "keep-alive", "pod-steer").note = note("Another thing.");
        let why = "it died. Then nothing";
        report.sections[1].skipped.push(("ipvs".to_owned(), why.to_owned()));
        report.sections[2].skipped.push(("ipvs".to_owned(), why.to_owned()));
        let notes = Notes::of(&report);
        let told = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let common = [told("pod-steer", "So it is (`listen ... Reuseport`)."), told("ipvs", "not here: it died")];
        assert_eq!(notes.common(), common);
        let below = [told("pod-steer", "One thing."), told("nginx-stream", "not here: no stream module")];
        assert_eq!(notes.below(&report.sections[0]), below);
        assert_eq!(notes.below(&report.sections[1]), [told("pod-steer", "Another thing.")]);
    }
}

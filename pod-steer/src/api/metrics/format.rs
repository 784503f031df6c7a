//! The two text formats. They differ in the names by which counters are described, and in the end of the page.
#![forbid(unsafe_code)]

use std::{borrow::Cow, collections::BTreeSet};

/// A format in which a page can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0, which Prometheus asks for by default.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus, which all other clients read.
    Prometheus,
}

const OPEN_METRICS: &str = "application/openmetrics-text";

impl Format {
    /// The format for a client that accepts these media types.
    pub fn accepted(accept: Option<&str>) -> Self {
        let asks = accept.is_some_and(|accept| accept.split(',').any(|kind| kind.trim().starts_with(OPEN_METRICS)));
        if asks { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts a page of OpenMetrics to this format.
    pub fn of(self, page: String) -> String {
        match self {
            Self::OpenMetrics => page,
            Self::Prometheus => prometheus(&page),
        }
    }
}

/// OpenMetrics describes a counter without the suffix `_total` that its samples have.
fn prometheus(page: &str) -> String {
    let described = |line: &'_ str, keyword: &str| -> Option<(String, String)> {
        let (name, rest) = line.strip_prefix(keyword)?.split_once(' ')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let types = page.lines().filter_map(|line| described(line, "# TYPE "));
    let counters: BTreeSet<String> = types.filter(|(_, kind)| kind == "counter").map(|(name, _)| name).collect();
    let mut text = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF") {
        let keyword = ["# HELP ", "# TYPE "].into_iter().find(|keyword| line.starts_with(keyword));
        let renamed = keyword.and_then(|keyword| {
            let (name, rest) = described(line, keyword).filter(|(name, _)| counters.contains(name))?;
            Some(Cow::Owned(format!("{keyword}{name}_total {rest}")))
        });
        text.push_str(&renamed.unwrap_or(Cow::Borrowed(line)));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_the_client_accepts() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        for other in [None, Some("*/*"), Some("text/plain;version=0.0.4"), Some("")] {
            assert_eq!(Format::accepted(other), Format::Prometheus, "{other:?}");
        }
    }

    #[test]
    fn counters_have_their_whole_name_in_the_older_format() {
        let page = "# HELP a Opened.\n# TYPE a counter\na_total{b=\"# TYPE a x\"} 3\n# HELP g Live.\n# TYPE g gauge\ng 1.0\n# EOF\n";
        let text = "# HELP a_total Opened.\n# TYPE a_total counter\na_total{b=\"# TYPE a x\"} 3\n# HELP g Live.\n# TYPE g gauge\ng 1.0\n";
        assert_eq!(Format::Prometheus.of(page.to_owned()), text);
        assert_eq!(Format::OpenMetrics.of(page.to_owned()), page);
    }
}

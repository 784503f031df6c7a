//! The text of a page. A metric is made for one page and dropped with it: the values are read elsewhere, when a client asks.
#![forbid(unsafe_code)]

use std::{
    fmt::{self, Write as _},
    sync::Arc,
};

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder, MetricEncoder,
        NoLabelSet, text,
    },
    metrics::MetricType,
    registry::Registry,
};

/// The labels of a series with their values. Copies share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Arc<[(&'static str, Arc<str>)]>);

impl Labels {
    /// These labels.
    pub fn new<const N: usize>(labels: [(&'static str, &str); N]) -> Self {
        Self(labels.into_iter().map(|(label, value)| (label, Arc::from(value))).collect())
    }

    /// These, and one more.
    pub fn with(&self, label: &'static str, value: &str) -> Self {
        Self(self.0.iter().cloned().chain([(label, Arc::from(value))]).collect())
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let labels: Vec<(&str, Escaped<'_>)> = self.0.iter().map(|(label, value)| (*label, Escaped(value))).collect();
        labels.encode(encoder)
    }
}

/// The library writes values as they are. Both formats want three characters escaped.
struct Escaped<'a>(&'a str);

impl EncodeLabelValue for Escaped<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            encoder.write_str(&rest[..at])?;
            encoder.write_str(match rest.as_bytes()[at] {
                b'\n' => "\\n",
                b'"' => "\\\"",
                _ => "\\\\",
            })?;
            rest = &rest[at + 1..];
        }
        encoder.write_str(rest)
    }
}

/// The sum of what was measured, and how many values were up to each limit and above the one before.
pub type Buckets = (f64, Vec<(f64, u64)>);

/// The values of a metric.
#[derive(Debug)]
enum Samples {
    Counters(Vec<(Labels, u64)>),
    Seconds(f64),
    Gauges(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, Buckets)>),
}

#[derive(Debug)]
struct Metric {
    name: &'static str,
    help: &'static str,
    samples: Samples,
}

/// The metrics that were added so far.
#[derive(Debug, Default)]
pub struct Page(Vec<Metric>);

impl Page {
    /// Adds a counter; the format appends `_total` to its name. Each series is given once.
    pub fn counters(&mut self, name: &'static str, help: &'static str, samples: Vec<(Labels, u64)>) {
        self.add(name, help, Samples::Counters(samples));
    }

    /// Adds a counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str, count: u64) {
        self.counters(name, help, vec![(Labels::default(), count)]);
    }

    /// Adds a counter of seconds, without labels.
    pub fn seconds(&mut self, name: &'static str, help: &'static str, seconds: f64) {
        self.add(name, help, Samples::Seconds(seconds));
    }

    /// Adds a gauge. Each series is given once.
    pub fn gauges(&mut self, name: &'static str, help: &'static str, samples: Vec<(Labels, f64)>) {
        self.add(name, help, Samples::Gauges(samples));
    }

    /// Adds a gauge without labels.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.gauges(name, help, vec![(Labels::default(), value)]);
    }

    /// Adds a histogram. Each series is given once.
    pub fn histograms(&mut self, name: &'static str, help: &'static str, samples: Vec<(Labels, Buckets)>) {
        self.add(name, help, Samples::Histograms(samples));
    }

    fn add(&mut self, name: &'static str, help: &'static str, samples: Samples) {
        self.0.push(Metric { name, help, samples });
    }

    /// The page in OpenMetrics.
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut text, &registry);
        text
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Metric { name, help, samples } in &self.0 {
            let kind = match samples {
                Samples::Counters(_) | Samples::Seconds(_) => MetricType::Counter,
                Samples::Gauges(_) => MetricType::Gauge,
                Samples::Histograms(_) => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            match samples {
                Samples::Counters(samples) => {
                    each(&mut metric, samples, |one, count| one.encode_counter::<NoLabelSet, u64, u64>(count, None))?;
                }
                Samples::Seconds(seconds) => metric.encode_counter::<NoLabelSet, f64, u64>(seconds, None)?,
                Samples::Gauges(samples) => each(&mut metric, samples, |one, value| one.encode_gauge(value))?,
                Samples::Histograms(samples) => each(&mut metric, samples, |one, (sum, buckets)| {
                    let count = buckets.iter().map(|(_, count)| count).sum();
                    one.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
                })?,
            }
        }
        Ok(())
    }
}

/// Writes the series of a metric.
fn each<T>(
    metric: &mut MetricEncoder<'_>,
    samples: &[(Labels, T)],
    write: impl Fn(&mut MetricEncoder<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    samples.iter().try_for_each(|(labels, value)| match labels.0.is_empty() {
        true => write(metric, value),
        false => write(&mut metric.encode_family(labels)?, value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_openmetrics() {
        let mut page = Page::default();
        page.counters("a", "Opened.", vec![(Labels::new([("b", "x\"\n\\é"), ("c", "")]).with("d", "y"), 3)]);
        page.gauge("g", "Live.", 0.25);
        page.seconds("s_seconds", "Spent.", 1.5);
        page.histograms("h_seconds", "Took.", vec![(Labels::new([("o", "p")]), (4.5, vec![(0.5, 1), (f64::MAX, 2)]))]);
        let lines = [
            "# HELP a Opened.",
            "# TYPE a counter",
            r#"a_total{b="x\"\n\\é",c="",d="y"} 3"#,
            "# HELP g Live.",
            "# TYPE g gauge",
            "g 0.25",
            "# HELP s_seconds Spent.",
            "# TYPE s_seconds counter",
            "s_seconds_total 1.5",
            "# HELP h_seconds Took.",
            "# TYPE h_seconds histogram",
            r#"h_seconds_sum{o="p"} 4.5"#,
            r#"h_seconds_count{o="p"} 3"#,
            r#"h_seconds_bucket{le="0.5",o="p"} 1"#,
            r#"h_seconds_bucket{le="+Inf",o="p"} 3"#,
            "# EOF",
            "",
        ];
        assert_eq!(page.text(), lines.join("\n"));
    }
}

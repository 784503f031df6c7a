//! Tables and lists as HTML. Everything that comes from outside is escaped by `maud`, and invisible characters are made visible. Pure.
#![forbid(unsafe_code)]

use maud::{Markup, html};

use crate::{
    api::{live::QueueStatus, types::EventRecord},
    cli::{live::board::Figures, words},
    rollout::{Operation, Outcome},
    text::visible,
};

/// A column: its title, and whether its cells are numbers.
pub(super) type Column = (&'static str, bool);

/// From this part on, an accept queue is a warning.
const NEARLY_FULL: f64 = 0.8;
/// Of the overview.
pub(super) const OVERVIEW: [Column; 5] =
    [("Service", false), ("New/s", true), ("Live", true), ("Ready", true), ("Conditions", true)];
const ORDERS: [Column; 6] = [
    ("Order", false),
    ("Service", false),
    ("Time (UTC)", false),
    ("Operator", false),
    ("Outcome", false),
    ("Result", false),
];

/// A table that becomes a list of cards on a narrow page; the roles keep it a table for screen readers. The first cell names the row.
pub(super) fn table(caption: &str, columns: &[Column], rows: impl IntoIterator<Item = Vec<Markup>>) -> Markup {
    let class = |number: bool| number.then_some("number");
    html! {
        table role="table" {
            caption.hidden { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    @for (title, number) in columns { th role="columnheader" scope="col" class=[class(*number)] { (title) } }
                }
            }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (index, (cell, (title, number))) in row.into_iter().zip(columns).enumerate() {
                            @if index == 0 { th role="rowheader" scope="row" { (cell) } }
                            @else { td role="cell" data-label=(title) class=[class(*number)] { (cell) } }
                        }
                    }
                }
            }
        }
    }
}

/// The cells of the overview behind the name.
pub(super) fn sums(figures: &Figures) -> Vec<Markup> {
    vec![
        rate(figures.rate),
        html! { (figures.live) },
        html! { (figures.ready) "/" (figures.backends) },
        conditions(figures.conditions),
    ]
}

/// A number of conditions.
pub(super) fn conditions(count: usize) -> Markup {
    html! { @if count > 0 { span.warning { (count) } } @else { "0" } }
}

/// New connections a second.
pub(super) fn rate(rate: Option<f64>) -> Markup {
    html! {
        @match rate {
            None => "–",
            Some(rate) if rate == 0.0 || rate >= 9.95 => (format!("{rate:.0}")),
            Some(rate) => (format!("{rate:.1}")),
        }
    }
}

/// A part of all, in percent.
pub(super) fn percent(part: Option<f64>) -> Markup {
    html! { @match part { None => "–", Some(part) => (format!("{:.1} %", part * 100.0)) } }
}

/// An accept queue; a warning if it is nearly full.
pub(super) fn queue(queue: Option<QueueStatus>) -> Markup {
    html! {
        @match queue {
            None => "–",
            Some(queue) if queue.usage >= NEARLY_FULL => span.warning { (queue.length) "/" (queue.limit) },
            Some(queue) => { (queue.length) "/" (queue.limit) },
        }
    }
}

/// The last orders.
pub(super) fn orders(orders: &[Operation]) -> Markup {
    let rows = orders.iter().map(|operation| {
        let result = operation.end.as_ref().map(|end| end.message.as_str()).unwrap_or_default();
        vec![
            html! { (visible(&words::order(&operation.order))) },
            html! { (operation.service) },
            html! { (date(operation.begun_ms)) },
            html! { (visible(words::name(&operation.who))) },
            outcome(operation.end.as_ref().map(|end| end.outcome)),
            html! {
                (visible(result))
                @if let Some(reason) = &operation.not_stored { " " span.warning { "not stored: " (visible(reason)) } }
            },
        ]
    });
    html! {
        @if orders.is_empty() { p.quiet { "None yet." } } @else { (table("The last orders", &ORDERS, rows)) }
    }
}

fn outcome(outcome: Option<Outcome>) -> Markup {
    let (class, word) = match outcome {
        None => ("running", "running"),
        Some(outcome @ Outcome::Done) => ("good", words::outcome(outcome)),
        Some(outcome @ (Outcome::Left | Outcome::Aborted)) => ("running", words::outcome(outcome)),
        Some(outcome @ (Outcome::Failed | Outcome::WentBack)) => ("warning", words::outcome(outcome)),
    };
    html! { span class=(class) { (word) } }
}

/// An event.
pub(super) fn event(event: &EventRecord) -> Markup {
    // Whole seconds.
    let time = event.time.split('.').next().unwrap_or_default();
    let clock = time.split_once('T').map_or(time, |(_, clock)| clock);
    html! {
        li {
            time datetime=(event.time) { (clock) }
            " " span.subject { (visible(&event.service)) " " (visible(&event.backend)) }
            " " strong { (event.event) }
            " " span { (visible(&event.detail)) }
        }
    }
}

/// A time of day.
pub(super) fn clock(at_ms: i64) -> String {
    at(at_ms, "%H:%M:%S UTC")
}

fn date(at_ms: i64) -> String {
    at(at_ms, "%Y-%m-%d %H:%M:%S")
}

fn at(at_ms: i64, format: &str) -> String {
    jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default().strftime(format).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_is_escaped() {
        let record = EventRecord {
            time: "2026-01-02T03:04:05.678Z".to_owned(),
            service: "web".to_owned(),
            backend: "<img/src=x>&\"'".to_owned(),
            event: "ready".to_owned(),
            reason: None,
            detail: "a\u{202e}b\n<script>".to_owned(),
        };
        let html = event(&record).into_string();
        assert!(
            html.contains("&lt;img/src=x&gt;&amp;&quot;'") && html.contains("a\\u{202e}b\\n&lt;script&gt;"),
            "{html}"
        );
        assert!(html.contains(">03:04:05<"), "{html}");
    }

    #[test]
    fn a_row_is_named_by_its_first_cell() {
        let html = table("c", &[("Name", false), ("N", true)], [vec![html! { "a" }, html! { "1" }]]).into_string();
        for part in [
            "<th role=\"rowheader\" scope=\"row\">a</th>",
            "<td role=\"cell\" data-label=\"N\" class=\"number\">1</td>",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
    }
}

//! A service on the page, in parts that are updated one by one. Pure.
#![forbid(unsafe_code)]

use maud::{Markup, html};

use super::{
    chart, forms,
    page::View,
    tables::{self, Column},
};
use crate::{
    cli::{
        decisions,
        live::{
            board::{Key, Progress, Row, Service},
            waits::Waits,
        },
        words,
    },
    condition::{Condition, Severity},
    text::visible,
    world::State,
};

/// The id of the element with all services.
pub(super) const SERVICES: &str = "services";
/// Backends of a service that are listed.
const BACKENDS_MAX: usize = 100;
/// Conditions that are listed at one place.
const CONDITIONS_MAX: usize = 30;

const VERSIONS: [Column; 8] = [
    ("Version", false),
    ("New/s", true),
    ("Live", true),
    ("Got", true),
    ("Wanted", true),
    ("Ready", true),
    ("Queue", true),
    ("Opened", true),
];
const BACKENDS: [Column; 8] = [
    ("Backend", false),
    ("Version", false),
    ("State", false),
    ("New/s", true),
    ("Live", true),
    ("Got", true),
    ("Wanted", true),
    ("Queue", true),
];

/// A part of a service: its name, and how it is made.
type Part = (&'static str, fn(&View, &Service) -> Markup);

static PARTS: [Part; 6] = [
    ("head", head),
    ("chart", traffic),
    ("figures", figures),
    ("versions", versions),
    ("backends", backends),
    ("forms", forms::forms),
];

fn id(service: &Service, part: &str) -> String {
    format!("s-{}-{part}", service.row.name)
}

/// The parts of a service, by the ids of their elements.
pub(super) fn parts(view: &View, service: &Service) -> impl Iterator<Item = (String, Markup)> {
    let is_there = move |part: &&Part| part.0 != "forms" || view.site.allow_orders;
    PARTS.iter().filter(is_there).map(move |(name, make)| (id(service, name), make(view, service)))
}

/// All of a service.
pub(super) fn section(view: &View, service: &Service) -> Markup {
    let part = |name: &str, make: fn(&View, &Service) -> Markup| html! { div id=(id(service, name)) { (make(view, service)) } };
    html! {
        section.card id=(format!("service-{}", service.row.name)) aria-labelledby=(id(service, "title")) {
            (part("head", head))
            figure {
                (part("chart", traffic))
                details id=(id(service, "minutes")) {
                    summary { "The chart as a table" }
                    (part("figures", figures))
                }
            }
            (part("versions", versions))
            details id=(id(service, "list")) {
                summary { "Backends" }
                (part("backends", backends))
            }
            @if view.site.allow_orders {
                details.orders id=(id(service, "orders")) {
                    summary { "Give an order" }
                    // Not replaced while the operator fills it in.
                    div id=(id(service, "forms")) data-hold { (forms::forms(view, service)) }
                }
            }
        }
    }
}

/// What is wrong, and that of no service in full.
pub(super) fn summary(view: &View) -> Markup {
    let board = &view.model.answers.board;
    let count = board.conditions.len();
    let of_service = |subject: &str| {
        let names = || view.services.iter().map(|service| service.row.name.as_str());
        let named =
            subject.strip_prefix("service ").or_else(|| Some(subject.strip_prefix("backend ")?.rsplit_once(" of ")?.1));
        named.is_some_and(|named| names().any(|name| name == named))
    };
    let (below, here): (Vec<_>, Vec<_>) = board.conditions.iter().partition(|of| of_service(&of.subject));
    html! {
        dl.tiles {
            div { dt { "New/s" } dd { (tables::rate(board.total.rate)) } }
            div { dt { "Live" } dd { (board.total.live) } }
            div { dt { "Ready backends" } dd { (board.total.ready) "/" (board.total.backends) } }
            div class=[(count > 0).then_some("warned")] { dt { "Conditions" } dd { (count) } }
        }
        @if count == 0 { p.quiet { "No condition needs you." } }
        @if !below.is_empty() { p.quiet { (below.len()) " of the conditions " @if below.len() == 1 { "is" } @else { "are" } " below, at the service." } }
        (conditions(here.into_iter().map(|of| (of.subject.as_str(), &of.condition)).collect()))
    }
}

fn conditions(all: Vec<(&str, &Condition)>) -> Markup {
    html! {
        @if !all.is_empty() {
            ul.conditions aria-label="Conditions" {
                @for (subject, condition) in all.iter().take(CONDITIONS_MAX) {
                    li {
                        strong { (visible(subject)) } ": " (visible(&condition.message)) "."
                        @if !condition.remedy.is_empty() { p.remedy { span { "To do: " } (visible(&condition.remedy)) } }
                    }
                }
                @if all.len() > CONDITIONS_MAX { li { (all.len() - CONDITIONS_MAX) " more: see " code { "pod-steer status" } } }
            }
        }
    }
}

fn head(view: &View, service: &Service) -> Markup {
    let name = &service.row.name;
    let status = view.status(name);
    let warnings = |own: &'_ [Condition]| {
        own.iter().filter(|condition| condition.severity == Severity::Warning).cloned().collect::<Vec<_>>()
    };
    let mut own: Vec<(String, Condition)> = Vec::new();
    if let Some(status) = status {
        own.extend(warnings(&status.conditions).into_iter().map(|condition| (name.clone(), condition)));
        for backend in &status.backends {
            own.extend(warnings(&backend.conditions).into_iter().map(|condition| (backend.name.clone(), condition)));
        }
    }
    let prefix = format!("{name}: ");
    let decided = status.map(|status| decisions::lines(status, usize::MAX)).unwrap_or_default();
    let decided = decided.lines().map(|line| line.strip_prefix(&prefix).unwrap_or(line));
    html! {
        div.title {
            h2 id=(id(service, "title")) { (name) }
            @if let Some(waits) = service.row.waits { span.tag { (waits.word()) } }
            @for port in status.into_iter().flat_map(|status| &status.ports) { code { (port) } }
        }
        (conditions(own.iter().map(|(subject, condition)| (subject.as_str(), condition)).collect()))
        @for line in decided { p.decision { (visible(line)) } }
        @if let Some(progress) = &service.row.operation { (operation(view, service, progress)) }
    }
}

fn operation(view: &View, service: &Service, progress: &Progress) -> Markup {
    let label = id(service, "operation");
    let steps = view
        .status(&service.row.name)
        .and_then(|status| status.operation.as_ref())
        .map(|status| &status.operation.steps);
    html! {
        div.operation {
            p id=(label) { strong { (visible(&progress.order)) } " · " (visible(&progress.text)) }
            progress max="1" value=[progress.part.map(|part| format!("{part:.3}"))] aria-labelledby=(label) {}
            @if let Some(steps) = steps.filter(|steps| !steps.is_empty()) {
                ol { @for step in steps { li { (visible(&words::step(step))) } } }
            }
        }
    }
}

fn traffic(view: &View, service: &Service) -> Markup {
    let shown = view.model.traffic.lines(&service.row.name, view.now_s);
    html! {
        figcaption { "New connections a second, by version, over the last ten minutes" }
        @for size in chart::SIZES {
            @let (title, desc) = (id(service, size.class), id(service, &format!("{}d", size.class)));
            svg class=(format!("chart {}", size.class)) viewBox=(format!("0 0 {} {}", size.width, size.height)) role="img"
                aria-labelledby=(title) aria-describedby=(desc) {
                title id=(title) { "Traffic of " (service.row.name) }
                desc id=(desc) { (chart::described(&shown)) " The table below has the figures." }
                g aria-hidden="true" { (chart::inside(&shown, size)) }
            }
        }
    }
}

/// The chart's figures, a row for each minute.
fn figures(view: &View, service: &Service) -> Markup {
    let shown = view.model.traffic.lines(&service.row.name, view.now_s);
    html! {
        // It can be wider than the page; with the focus, keys scroll it.
        div.scroll tabindex="0" role="group" aria-label=(format!("Figures of {}", service.row.name)) id=(id(service, "scroll")) {
            table.minutes {
                caption.hidden { "New connections a second of " (service.row.name) ", by minute" }
                thead { tr { th scope="col" { "Minutes ago" } @for line in &shown.lines { th.number scope="col" { (line.name) } } } }
                tbody {
                    @for (minute, means) in shown.minutes() {
                        tr { th scope="row" { (minute - 1) "–" (minute) } @for mean in means { td.number { (tables::rate(mean)) } } }
                    }
                }
            }
        }
    }
}

/// A spot with the version's colour in the chart.
fn spot(view: &View, service: &str, version: &str) -> Markup {
    html! {
        @if let Some(colour) = view.model.traffic.colour(service, version) {
            svg.spot viewBox="0 0 10 10" aria-hidden="true" { rect class=(format!("c{colour}")) width="10" height="10" rx="2" {} }
        }
    }
}

/// The share that a version got as a bar, and a mark at the share that is wanted.
fn share(row: &Row) -> Markup {
    let at = |part: f64| format!("{:.1}", part.clamp(0.0, 1.0) * 100.0);
    html! {
        (tables::percent(row.figures.got))
        svg.share viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
            rect.track width="100" height="6" {}
            rect.got width=(at(row.figures.got.unwrap_or_default())) height="6" {}
            rect.wanted x=(at(row.figures.wanted - 0.005)) width="1" height="6" {}
        }
    }
}

fn versions(view: &View, service: &Service) -> Markup {
    let name = &service.row.name;
    let rows = service.versions.iter().map(|(row, _)| {
        let figures = &row.figures;
        vec![
            html! { (spot(view, name, &row.name)) (row.name) },
            tables::rate(figures.rate),
            html! { (figures.live) },
            share(row),
            tables::percent(Some(figures.wanted)),
            html! { (figures.ready) "/" (figures.backends) },
            tables::queue(figures.queue),
            html! { (figures.opened) },
        ]
    });
    tables::table(&format!("Versions of {name}"), &VERSIONS, rows)
}

fn backends(view: &View, service: &Service) -> Markup {
    let name = &service.row.name;
    let all =
        service.versions.iter().flat_map(|(version, backends)| backends.iter().map(move |row| (&version.name, row)));
    let count: usize = service.versions.iter().map(|(_, backends)| backends.len()).sum();
    let rows = all.take(BACKENDS_MAX).map(|(version, row)| {
        let figures = &row.figures;
        let state = row.state.map(|state| state.word()).unwrap_or_default();
        let class = match row.state {
            Some(state) if state.could_serve() => Some("good"),
            Some(State::Exited) if service.row.waits.is_some_and(Waits::is_of_sleep) => None,
            _ => Some("warning"),
        };
        vec![
            html! { (row.name) },
            html! { (spot(view, name, version)) (version) },
            html! { span class=[class] { (state) } },
            tables::rate(figures.rate),
            html! { (figures.live) },
            tables::percent(figures.got),
            tables::percent(Some(figures.wanted)),
            tables::queue(figures.queue),
        ]
    });
    html! {
        (tables::table(&format!("Backends of {name}"), &BACKENDS, rows))
        @if count > BACKENDS_MAX { p.quiet { (count - BACKENDS_MAX) " more: see " code { "pod-steer status " (name) } } }
    }
}

/// The id of a backend's row.
pub(super) fn backend_id(row: &Row) -> Option<&str> {
    match &row.key {
        Key::Backend(_, id) => Some(id),
        _ => None,
    }
}

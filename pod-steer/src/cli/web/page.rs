//! The page: its frame, what stands above and below the services, and which services are shown. Pure, but for the clock.

use std::sync::Arc;

use axum::{
    extract::{Query, State},
    http::Method,
};
use maud::{DOCTYPE, Markup, html};
use serde::Deserialize;

use super::{model::Model, parts, site::Site, tables, updates};
use crate::{api::types::ServiceStatus, cli::live::board::Service, text::shown};

/// Services that are shown in full; the others are in the overview only.
const SERVICES_MAX: usize = 12;
/// Rows of the overview.
const OVERVIEW_MAX: usize = 200;
/// Longest name of a service that is quoted.
const NAME_CHARS_MAX: usize = 63;

/// What the page is to show.
#[derive(Debug, Deserialize)]
pub(super) struct Selection {
    /// This service only.
    pub service: Option<String>,
}

/// The model at an instant, and what of it is shown.
pub(super) struct View<'a> {
    /// The site.
    pub site: &'a Site,
    /// The model.
    pub model: &'a Model,
    /// The services that are shown in full.
    pub services: Vec<&'a Service>,
    /// The time of the page, in seconds since it began.
    pub now_s: f64,
    selection: &'a Selection,
}

/// The notice that a page asks for.
#[derive(Debug, Deserialize)]
pub(super) struct Told {
    told: Option<String>,
}

/// `GET` of the page.
pub(super) async fn page(
    State(site): State<Arc<Site>>,
    method: Method,
    Query(selection): Query<Selection>,
    Query(Told { told }): Query<Told>,
) -> Markup {
    let mut model = site.model();
    // `HEAD` shows it to no one.
    let told = told.filter(|_| method == Method::GET);
    let notice = told.and_then(|number| model.take_notice(number.parse().ok()?));
    frame(&View::new(&site, &model, &selection), notice.as_deref())
}

/// The page that the printed address leads to.
pub(super) fn entrance(folder: &str) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="refresh" content=(format!("0; url={folder}"));
                // Otherwise the browser asks for one at a place that is not the page's.
                link rel="icon" href={ (folder) "icon.svg" } type="image/svg+xml";
                title { "pod-steer" }
            }
            body { p { a href=(folder) { "Open the page" } } }
        }
    }
}

/// The head of every page.
pub(super) fn head(title: &str) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) }
            link rel="icon" href="icon.svg" type="image/svg+xml";
            link rel="stylesheet" href="page.css";
            script src="page.js" defer {}
        }
    }
}

fn frame(view: &View, notice: Option<&str>) -> Markup {
    let selected = view.selection.service.as_deref();
    let title = selected
        .map_or_else(|| "pod-steer".to_owned(), |service| format!("{} · pod-steer", shown(service, NAME_CHARS_MAX)));
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(&title))
            body data-seen=(view.model.last_event()) data-shown=(view.shown()) {
                a.skip href="#main" { "Skip to the services" }
                header {
                    h1 { a href="./" { "pod-steer" } }
                    p #asof { (as_of(view)) }
                    a.button href="" id="reload" { "Refresh" }
                    button type="button" id="hold" aria-pressed="false" hidden { "Hold updates" }
                    button type="button" id="theme" hidden { "Theme" }
                }
                main #main tabindex="-1" {
                    div #lost.alert role="alert" hidden {}
                    div #state role="status" { (state(view)) }
                    @if let Some(notice) = notice { div.notice role="status" { (shown(notice, usize::MAX)) } }
                    div #summary { (parts::summary(view)) }
                    div #overview { (overview(view)) }
                    div id=(parts::SERVICES) { (view.services()) }
                    section.card aria-labelledby="orders-title" {
                        h2 #orders-title { "Orders" }
                        div #orders { (tables::orders(&view.model.orders)) }
                    }
                    section.card aria-labelledby="events-title" {
                        h2 #events-title { "Events" }
                        div #log role="log" aria-live="polite" aria-labelledby="events-title" {
                            ol #events { @for (_, event) in &view.model.events { (tables::event(event)) } }
                            @if view.model.events.is_empty() { p.quiet #no-events { "None since this page began." } }
                        }
                    }
                }
                footer {
                    p { "pod-steer " (view.model.answers.board.live.status.version) " · served by " code { "pod-steer web" } ", for this browser only" }
                }
            }
        }
    }
}

impl<'a> View<'a> {
    /// What a selection shows of the model.
    pub(super) fn new(site: &'a Site, model: &'a Model, selection: &'a Selection) -> Self {
        let is_selected = |service: &&Service| selection.service.as_ref().is_none_or(|name| *name == service.row.name);
        let services = model.answers.board.services.iter().filter(is_selected).take(SERVICES_MAX).collect();
        Self { site, model, services, now_s: model.now_s(), selection }
    }

    /// Which services are shown, as a short text.
    pub(super) fn shown(&self) -> String {
        let names: Vec<&str> = self.services.iter().map(|service| service.row.name.as_str()).collect();
        format!("{:016x}", updates::hash(&names.join(" ")))
    }

    /// The daemon's status of a service.
    pub(super) fn status(&self, service: &str) -> Option<&'a ServiceStatus> {
        self.model.answers.board.live.status.services.iter().find(|own| own.name == service)
    }

    /// Everything that changes, by the ids of the elements that it is in.
    pub(super) fn parts(&self) -> Vec<(String, String)> {
        let of_page = [
            ("asof", as_of(self)),
            ("state", state(self)),
            ("summary", parts::summary(self)),
            ("overview", overview(self)),
            ("orders", tables::orders(&self.model.orders)),
        ];
        let of_page = of_page.into_iter().map(|(id, html)| (id.to_owned(), html));
        let of_services = self.services.iter().flat_map(|service| parts::parts(self, service));
        of_page.chain(of_services).map(|(id, html)| (id, html.into_string())).collect()
    }

    /// The services that are shown in full.
    pub(super) fn services(&self) -> Markup {
        html! {
            @for service in &self.services { (parts::section(self, service)) }
            @if self.services.is_empty() {
                section.card {
                    @match self.selection.service.as_deref() {
                        Some(name) => p { "There is no service " (shown(name, NAME_CHARS_MAX)) ". " a href="./" { "All services" } },
                        None => p { "No services. Label a container with " code { "pod-steer.service" } ", or try " code { "pod-steer exec" } "." },
                    }
                }
            }
        }
    }
}

fn as_of(view: &View) -> Markup {
    html! { "as of " (tables::clock(view.model.answers.board.at_ms)) }
}

/// That the daemon is away.
fn state(view: &View) -> Markup {
    html! {
        @if let Some(away) = &view.model.away {
            div.alert {
                strong { "The daemon has not answered since " (tables::clock(away.since_ms)) ". " }
                "Steering goes on in the kernel; the figures below are from before. " (shown(&away.reason, 300))
            }
        }
    }
}

/// A row for each service, if some are not shown in full.
fn overview(view: &View) -> Markup {
    let all = &view.model.answers.board.services;
    if all.len() < 2 {
        return html! {};
    }
    let link = |name: &str| format!("?service={name}");
    html! {
        nav.card aria-labelledby="overview-title" {
            h2 #overview-title { "Services" }
            (tables::table("Services", &tables::OVERVIEW, all.iter().take(OVERVIEW_MAX).map(|service| {
                let figures = &service.row.figures;
                let mut cells = vec![html! { a href=(link(&service.row.name)) id={ "o-" (service.row.name) } { (service.row.name) } }];
                cells.extend(tables::sums(figures));
                cells
            })))
            @if all.len() > OVERVIEW_MAX { p.quiet { (all.len() - OVERVIEW_MAX) " more: see " code { "pod-steer status" } } }
            @if all.len() > view.services.len() {
                p.quiet {
                    @if view.selection.service.is_some() { a href="./" id="all" { "All services" } }
                    @else { "The first " (view.services.len()) " are shown in full. Choose one above to see it alone." }
                }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::{super::access::Access, *};
    use crate::cli::live::fixture;

    pub(in crate::cli::web) fn site(allow_orders: bool) -> Site {
        let access = Access::new("127.0.0.1:9000".parse().unwrap()).unwrap();
        Site::new(access, PathBuf::new(), allow_orders, Model::new(fixture::live()))
    }

    fn of(site: &Site, service: Option<&str>) -> (String, Vec<(String, String)>) {
        let selection = Selection { service: service.map(str::to_owned) };
        let model = site.model();
        let view = View::new(site, &model, &selection);
        (frame(&view, None).into_string(), view.parts())
    }

    #[test]
    fn each_part_has_its_place() {
        for (site, service) in [(site(false), None), (site(true), Some("web")), (site(true), Some("nope"))] {
            let (page, parts) = of(&site, service);
            for (id, html) in parts {
                assert_eq!(page.matches(&format!(" id=\"{id}\"")).count(), 1, "{id}");
                assert!(page.contains(&html), "{id}: {html}");
            }
        }
    }

    #[test]
    fn what_is_wrong_comes_before_the_figures() {
        let (page, _) = of(&site(false), Some("web"));
        let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is not in {page}"));
        let order = [
            "To do: </span>look at its log",
            "step 1 of 3, 10%",
            "<progress max=\"1\" value=\"",
            "<svg class=\"chart wide\"",
            "Versions of web",
        ];
        assert!(order.map(at).is_sorted(), "{page}");
        assert!(!page.contains("<form") && !page.contains("service-idle"));
        let (page, _) = of(&site(true), None);
        assert!(page.contains("<form") && page.contains("service-idle") && page.contains("href=\"?service=web\""));
    }
}

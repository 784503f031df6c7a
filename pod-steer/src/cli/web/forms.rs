//! Forms for orders, and the page on which an operator confirms one. Pure.
#![forbid(unsafe_code)]

use maud::{DOCTYPE, Markup, html};

use super::{
    page::{self, View},
    parts,
};
use crate::{
    cli::live::board::{Row, Service},
    duration::Written,
    labels::WEIGHT_MAX,
    rollout::Order,
    text::visible,
};

/// The forms of a service.
pub(super) fn forms(view: &View, service: &Service) -> Markup {
    let name = &service.row.name;
    let secret = view.site.access.form();
    let version = |row: &Row| html! { option value=(row.name) { (row.name) } };
    let weights = view.status(name).and_then(|status| status.decision.traffic.weights.as_ref());
    html! {
        div.forms {
            (form(secret, name, None, "Deploy", "Move new connections to a version", html! {
                label { "Version" select name="version" { @for (row, _) in service.versions.iter().rev() { (version(row)) } } }
                label { "How" select name="kind" { option value="deploy" { "All at once" } option value="canary" { "Step by step (canary)" } } }
                label.check { input type="checkbox" name="stop-old" value="yes"; "Stop the old version afterwards" }
            }))
            (form(secret, name, Some("shift"), "Shift", "Set the shares of versions", html! {
                @for (row, _) in &service.versions {
                    label {
                        (row.name)
                        input type="hidden" name="of" value=(row.name);
                        input type="number" name="weight" min="0" max=(WEIGHT_MAX) step="1" inputmode="numeric"
                            value=[weights.map(|weights| weights.get(&row.name).copied().unwrap_or(0))];
                    }
                }
            }))
            (form(secret, name, None, "Drain or resume", "Stop new connections to a part, or let them in again", html! {
                label { "Part" select name="part" {
                    option value="" { "The whole service" }
                    @for (row, _) in &service.versions { option value={ "version:" (row.name) } { "Version " (row.name) } }
                    @for row in service.versions.iter().flat_map(|(_, backends)| backends) {
                        @if let Some(id) = parts::backend_id(row) { option value={ "backend:" (id) } { "Backend " (row.name) } }
                    }
                } }
                label { "What" select name="kind" { option value="drain" { "Drain" } option value="resume" { "Resume" } } }
            }))
            @let (kind, title, why) = match service.row.waits {
                Some(waits) if waits.is_of_sleep() => ("wake", "Wake", "Start its containers"),
                Some(_) => ("unpause", "Unpause", "Let waiting connections in"),
                None => ("pause", "Pause", "Hold new connections instead of refusing them"),
            };
            (form(secret, name, Some(kind), title, why, html! {}))
            (form(secret, name, Some("rollback"), "Roll back", "Undo the last deploy, canary or shift, or end one that is under way", html! {}))
        }
    }
}

fn form(secret: &str, service: &str, kind: Option<&str>, title: &str, why: &str, fields: Markup) -> Markup {
    html! {
        form method="post" action="confirm" autocomplete="off" {
            input type="hidden" name="form" value=(secret);
            input type="hidden" name="service" value=(service);
            @if let Some(kind) = kind { input type="hidden" name="kind" value=(kind); }
            fieldset {
                legend { (why) }
                (fields)
                button type="submit" { (title) "…" }
            }
        }
    }
}

/// The page that asks whether an order is meant. `fields` are those of the form.
pub(super) fn confirmation(
    secret: &str,
    service: &str,
    order: &Order,
    command: &str,
    fields: &[(String, String)],
) -> Markup {
    plain(
        "Confirm the order",
        html! {
            h1 { "Give this order for " (service) "?" }
            p { (effect(service, order)) }
            p { "The same on the command line: " code { (command) } }
            form method="post" action="order" {
                input type="hidden" name="form" value=(secret);
                @for (name, value) in fields.iter().filter(|(name, _)| name != "form") { input type="hidden" name=(name) value=(value); }
                div.choice {
                    button.primary type="submit" id="confirm" autofocus { "Give the order" }
                    a.button href={ "./#service-" (service) } { "Cancel" }
                }
            }
        },
    )
}

/// The page that tells why an order was not carried out.
pub(super) fn refused(error: &str) -> Markup {
    plain(
        "The order was refused",
        html! {
            h1 { "The order was refused" }
            p.alert #error role="alert" { (visible(error)) }
            p { a.button href="./" { "Back" } }
        },
    )
}

fn plain(title: &str, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (page::head(&format!("{title} · pod-steer")))
            body.plain { main #main { section.card { (content) } } }
        }
    }
}

/// What an order does.
fn effect(service: &str, order: &Order) -> Markup {
    html! {
        @match order {
            Order::Deploy(deploy) => {
                "All new connections go to " strong { (deploy.version) } " as soon as it is ready. Connections that are open stay where they are."
                @if deploy.stop_old { " When those of the old version have ended, its backends are stopped." }
            }
            Order::Canary(canary) => {
                strong { (canary.version) } " gets a growing share of new connections, in " (canary.steps.len()) " steps, one every "
                (Written(std::time::Duration::from_millis(canary.every_ms))) ". If it fails, everything goes back."
            }
            Order::Shift(shift) => {
                "New connections are shared by weight: "
                @for (index, (version, weight)) in shift.weights.iter().enumerate() {
                    @if index > 0 { ", " }
                    strong { (version) } " " (weight)
                }
                ". A version that is not listed gets none."
            }
            Order::Rollback => { "The last deploy, canary or shift is undone, or the one that is under way ends." }
            Order::Drain(part) => { "No new connections go to " (title(service, part.version.as_deref(), part.backend.as_deref())) ". Those that are open stay." }
            Order::Resume(part) => { "New connections go to " (title(service, part.version.as_deref(), part.backend.as_deref())) " again." }
            Order::Pause(_) => { "New connections wait, until the pause ends or the client gives up. Those that are open stay." }
            Order::Idle => { "Its containers are stopped. The next client has them started again, and waits until then." }
            Order::Wake(_) => { "Its containers are started." }
            Order::Unpause => { "Waiting and new connections are let in again." }
            Order::Forget => {}
        }
    }
}

fn title(service: &str, version: Option<&str>, backend: Option<&str>) -> Markup {
    html! {
        @match (version, backend) {
            (_, Some(backend)) => { "backend " strong { (backend) } }
            (Some(version), None) => { "version " strong { (version) } }
            (None, None) => { "the whole service " strong { (service) } }
        }
    }
}

//! Orders of the page. A form is turned into the command line that gives the same order, which is parsed as if it had been typed: what the
//! page can order, and with which defaults, is what the command line can.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use tokio::time::timeout;

use super::{access::Refusal, forms, site::Site};
use crate::{
    api::client::{ClientError, encoded},
    bounded,
    cli::{Failure, orders, words},
    rollout::{Operation, Order},
};

/// Maximum size of a form.
const FORM_BYTES_MAX: usize = 32 * 1024;
/// Time limit for a form to arrive.
const FORM_MAX: Duration = Duration::from_secs(10);
/// Time that the next sample may take before the page is shown again.
const SAMPLE_MAX: Duration = Duration::from_secs(1);

/// The fields of a form.
struct Fields(Vec<(String, String)>);

impl Fields {
    async fn of(site: &Site, request: Request) -> Result<Self, Response> {
        let body = match timeout(FORM_MAX, bounded::read(request.into_body(), FORM_BYTES_MAX)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) | Err(_) => {
                return Err((StatusCode::BAD_REQUEST, "the form is too long or did not arrive\n").into_response());
            }
        };
        let fields = Self(form_urlencoded::parse(&body).into_owned().collect());
        let secret = fields.0.iter().find(|(name, _)| name == "form").map(|(_, value)| value.as_str());
        site.access.check_form(secret).map_err(Refusal::into_response)?;
        Ok(fields)
    }

    fn one(&self, name: &'static str) -> &str {
        self.all(name).next().unwrap_or_default()
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The command line that gives the same order, without the program's name.
    fn command(&self) -> Result<Vec<String>, String> {
        let kind = self.one("kind");
        let mut flags = Vec::new();
        let mut names = vec![self.one("service").to_owned()];
        match kind {
            "deploy" | "canary" => {
                names.push(self.one("version").to_owned());
                match (kind, self.one("stop-old")) {
                    (_, "") => {}
                    ("deploy", _) => flags.push("--stop-old".to_owned()),
                    _ => {
                        return Err(
                            "a canary does not stop the old version; choose `All at once`, or do not ask for it"
                                .to_owned(),
                        );
                    }
                }
            }
            "shift" => {
                let weights = self.all("of").zip(self.all("weight")).filter(|(_, weight)| !weight.is_empty());
                names.extend(weights.map(|(version, weight)| format!("{version}={weight}")));
            }
            "drain" | "resume" => match self.one("part").split_once(':') {
                None => {}
                Some((part @ ("version" | "backend"), name)) => flags.push(format!("--{part}={name}")),
                Some(_) => return Err("the form has an unknown part".to_owned()),
            },
            "pause" | "unpause" | "wake" | "rollback" => {}
            _ => return Err("the form has an unknown order".to_owned()),
        }
        // Names may begin with a dash.
        Ok([kind.to_owned()].into_iter().chain(flags).chain(["--".to_owned()]).chain(names).collect())
    }

    /// The service, the order, and the command line for people.
    fn order(&self) -> Result<(String, Order, String), String> {
        let command = self.command()?;
        let (service, order) = orders::parsed(&command)?;
        let is_needed = command.iter().skip_while(|word| *word != "--").skip(1).any(|word| word.starts_with('-'));
        let shown = command.iter().filter(|word| is_needed || *word != "--").map(|word| words::shell(word));
        let shown = ["pod-steer".to_owned()].into_iter().chain(shown).collect::<Vec<_>>().join(" ");
        Ok((service, order, shown))
    }
}

/// Asks whether the order is meant. Nothing is changed.
pub(super) async fn confirm(State(site): State<Arc<Site>>, request: Request) -> Response {
    let fields = match Fields::of(&site, request).await {
        Ok(fields) => fields,
        Err(response) => return response,
    };
    match fields.order() {
        Ok((service, order, command)) => {
            forms::confirmation(site.access.form(), &service, &order, &command, &fields.0).into_response()
        }
        Err(error) => refused(StatusCode::UNPROCESSABLE_ENTITY, &error),
    }
}

/// Gives the order to the daemon.
pub(super) async fn order(State(site): State<Arc<Site>>, request: Request) -> Response {
    let fields = match Fields::of(&site, request).await {
        Ok(fields) => fields,
        Err(response) => return response,
    };
    let (service, order, _) = match fields.order() {
        Ok(order) => order,
        Err(error) => return refused(StatusCode::UNPROCESSABLE_ENTITY, &error),
    };
    let given = orders::give(&site.socket, &service, &order).await;
    let notice = match given {
        Ok(operation) => notice(&operation),
        Err(Failure::Input(error)) => return refused(StatusCode::UNPROCESSABLE_ENTITY, &error),
        Err(Failure::Failed(error)) => {
            let status = match error.downcast_ref() {
                Some(ClientError::Forbidden(_)) => StatusCode::FORBIDDEN,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return refused(status, &crate::chain(error.as_ref()));
        }
        Err(Failure::Said(_)) => return refused(StatusCode::INTERNAL_SERVER_ERROR, "the order failed"),
    };
    let told = site.model().tell(notice);
    let mut ticks = site.ticks();
    site.hurry.notify_one();
    let _ = timeout(SAMPLE_MAX, ticks.changed()).await;
    // The page that has given the order, and no other one, asks for its notice.
    Redirect::to(&format!("./?told={told}#service-{}", encoded(&service))).into_response()
}

fn refused(status: StatusCode, error: &str) -> Response {
    (status, forms::refused(error)).into_response()
}

/// What has become of an order, in one line.
fn notice(operation: &Operation) -> String {
    let what = format!("{} for {}", words::order(&operation.order), operation.service);
    match &operation.end {
        None => format!("{what} is under way (operation {})", operation.id),
        Some(end) if end.message.is_empty() => format!("{what}: {}", words::outcome(end.outcome)),
        Some(end) => format!("{what}: {}", end.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        Fields(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_form_is_a_command_line() {
        let shown = |pairs: &[(&str, &str)]| fields(pairs).order().map(|(_, _, command)| command);
        let deploy = [("kind", "deploy"), ("service", "web"), ("version", "v2")];
        assert_eq!(shown(&deploy).unwrap(), "pod-steer deploy web v2");
        assert_eq!(
            shown(&[&deploy[..], &[("stop-old", "yes")]].concat()).unwrap(),
            "pod-steer deploy --stop-old web v2"
        );
        assert_eq!(
            shown(&[("kind", "canary"), ("service", "web"), ("version", "v2")]).unwrap(),
            "pod-steer canary web v2"
        );
        let shift = [
            ("kind", "shift"),
            ("service", "web"),
            ("of", "v1"),
            ("weight", "90"),
            ("of", "v=2"),
            ("weight", "10"),
            ("of", "v3"),
            ("weight", ""),
        ];
        assert_eq!(shown(&shift).unwrap(), "pod-steer shift web v1=90 v=2=10");
        let drain = |part| [("kind", "drain"), ("service", "web"), ("part", part)];
        assert_eq!(shown(&drain("")).unwrap(), "pod-steer drain web");
        assert_eq!(shown(&drain("version:-v:1")).unwrap(), "pod-steer drain --version=-v:1 web");
        assert_eq!(shown(&drain("backend:a'b")).unwrap(), r"pod-steer drain '--backend=a'\''b' web");
        let odd = [("kind", "deploy"), ("service", "web"), ("version", "--stop-old")];
        assert_eq!(shown(&odd).unwrap(), "pod-steer deploy -- web --stop-old");
        assert!(
            matches!(fields(&odd).order().unwrap().1, Order::Deploy(order) if !order.stop_old && order.version == "--stop-old")
        );
    }

    #[test]
    fn a_wrong_form_is_one_line() {
        for wrong in [
            &[("kind", "unload"), ("service", "web")][..],
            &[("kind", "deploy"), ("service", ""), ("version", "v2")],
            &[("kind", "deploy"), ("service", "web"), ("version", "two words")],
            &[("kind", "canary"), ("service", "web"), ("version", "v2"), ("stop-old", "yes")],
            &[("kind", "shift"), ("service", "web"), ("of", "v1"), ("weight", "-1")],
            &[("kind", "shift"), ("service", "web")],
            &[("kind", "drain"), ("service", "web"), ("part", "all:x")],
            &[],
        ] {
            let error = fields(wrong).order().unwrap_err();
            assert!(error.lines().count() == 1 && error.len() < 300, "{wrong:?}: {error}");
        }
    }
}

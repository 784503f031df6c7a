//! Containers with labels that come from their image: those are ignored, which is a condition.

use super::control::Control;
use crate::{
    condition::{Condition, Reason},
    engine::{Container, ImageLabels},
    near::listed,
    text::{NAME_CHARS_MAX, shown},
};

/// The condition of a container whose image has labels that are ignored.
pub(super) fn image_labels_condition(container: &Container) -> Option<Condition> {
    let image = shown(&container.image, NAME_CHARS_MAX);
    let trust = "start the daemon with `run --trust-image-labels` if its author may decide what is steered";
    match &container.image_labels {
        ImageLabels::Ignored(ignored) if ignored.is_empty() => None,
        ImageLabels::Ignored(ignored) => {
            let labels: Vec<String> = ignored.iter().map(|label| shown(label, NAME_CHARS_MAX)).collect();
            let (labels, are) =
                (listed(labels.iter().map(String::as_str)), if labels.len() == 1 { "is" } else { "are" });
            let message = format!(
                "{labels} {are} ignored: the image {image} has the same (an equal label of the container's own cannot be told \
                 apart)"
            );
            let remedy = format!("give the container other values, remove them from the image, or {trust}");
            Some(Condition::new(Reason::ImageLabelsIgnored, message, remedy))
        }
        ImageLabels::Unknown => {
            let message = format!(
                "its labels are ignored: the image {image} is gone, so labels of the image cannot be told from its own"
            );
            let remedy = format!("create it from an image that is there, or {trust}");
            Some(Condition::new(Reason::ImageLabelsIgnored, message, remedy))
        }
    }
}

impl Control {
    /// The labels of a container do not make it a backend.
    pub(super) fn ignore(&mut self, container: Container, mut conditions: Vec<Condition>) {
        let Some(condition) = image_labels_condition(&container) else {
            if !conditions.is_empty() {
                self.misfit(&container, conditions);
            }
            return;
        };
        self.remove(&container.id);
        conditions.push(condition);
        self.misfit(&container, conditions);
    }
}

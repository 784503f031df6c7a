//! Containers with labels that come from their image: those are ignored, which is a condition.

use super::control::Control;
use crate::{
    engine::{Container, ImageLabels},
    near::listed,
    text::{NAME_CHARS_MAX, shown},
};

/// What is said of a container's image labels, if there is something to say.
pub(super) fn image_labels_text(container: &Container) -> Option<String> {
    let image = shown(&container.image, NAME_CHARS_MAX);
    let remedy = "start the daemon with `run --trust-image-labels` if its author may decide what is steered";
    match &container.image_labels {
        ImageLabels::Ignored(ignored) if ignored.is_empty() => None,
        ImageLabels::Ignored(ignored) => {
            let labels: Vec<String> = ignored.iter().map(|label| shown(label, NAME_CHARS_MAX)).collect();
            let (labels, are) =
                (listed(labels.iter().map(String::as_str)), if labels.len() == 1 { "is" } else { "are" });
            Some(format!(
                "{labels} {are} ignored: the image {image} has the same (an equal label of the container's own cannot be told \
                 apart); give the container other values, remove them from the image, or {remedy}"
            ))
        }
        ImageLabels::Unknown => Some(format!(
            "its labels are ignored: the image {image} is gone, so labels of the image cannot be told from its own; create it \
             from an image that is there, or {remedy}"
        )),
    }
}

impl Control {
    /// The labels of a container do not make it a backend.
    pub(super) fn ignore(&mut self, container: Container, mut errors: Vec<String>) {
        let Some(text) = image_labels_text(&container) else {
            if !errors.is_empty() {
                self.misfit(&container, errors);
            }
            return;
        };
        self.remove(&container.id);
        errors.push(text);
        self.misfit(&container, errors);
    }
}

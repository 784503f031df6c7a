//! Labels that come from an image. An engine copies them to its containers, where they look like labels that the operator set. The
//! image's author is not trusted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use super::{Container, Engine, EngineError};

/// Maximum number of images whose labels are cached.
const KNOWN_MAX: usize = 1_024;

/// What was done about the labels of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageLabels {
    /// These labels were removed from the container's, because the image has them with the same value.
    Ignored(BTreeSet<String>),
    /// The image is gone or cannot be inspected, so its labels are unknown.
    Unknown,
}

impl Default for ImageLabels {
    fn default() -> Self {
        Self::Ignored(BTreeSet::new())
    }
}

/// The images of one engine.
#[derive(Clone, Debug)]
pub(super) struct Images<E> {
    engine: E,
    /// Treat labels of images as labels of their containers.
    trusted: bool,
    /// The pod-steer labels of images, by image id. The image of an id never changes.
    known: Arc<Mutex<HashMap<String, BTreeMap<String, String>>>>,
}

impl<E: Engine> Images<E> {
    pub fn new(engine: E, trusted: bool) -> Self {
        Self { engine, trusted, known: Arc::default() }
    }

    /// Removes the labels of a container's image from the container's labels.
    pub async fn sift(&self, container: &mut Container) -> Result<(), EngineError> {
        if self.trusted || container.labels.is_empty() {
            return Ok(());
        }
        container.image_labels = match self.labels(container).await {
            Ok(image) => ImageLabels::Ignored(take(&mut container.labels, &image)),
            Err(EngineError::NotFound(_)) => ImageLabels::Unknown,
            Err(error) if error.is_of_one_answer() => ImageLabels::Unknown,
            Err(error) => return Err(error),
        };
        Ok(())
    }

    async fn labels(&self, container: &Container) -> Result<BTreeMap<String, String>, EngineError> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // An event names the image as the operator did; a name may lead to another image later.
        let by_id = !container.image_id.is_empty();
        let image = if by_id { &container.image_id } else { &container.image };
        if let Some(labels) = known().get(image).filter(|_| by_id) {
            return Ok(labels.clone());
        }
        let labels = self.engine.image_labels(image).await?;
        if by_id {
            let mut known = known();
            if known.len() == KNOWN_MAX {
                known.clear();
            }
            known.insert(image.clone(), labels.clone());
        }
        Ok(labels)
    }
}

/// Removes the labels that the image has with the same value, and returns their names. A label that the operator set to the same value is
/// removed too: the engine does not distinguish them.
fn take(labels: &mut BTreeMap<String, String>, image: &BTreeMap<String, String>) -> BTreeSet<String> {
    let same: BTreeSet<String> =
        image.iter().filter(|(key, value)| labels.get(*key) == Some(value)).map(|(key, _)| key.clone()).collect();
    labels.retain(|key, _| !same.contains(key));
    same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels<const N: usize>(labels: [(&str, &str); N]) -> BTreeMap<String, String> {
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn a_label_equal_to_the_images_is_removed() {
        let image = labels([("pod-steer.service", "web"), ("pod-steer.ports", "80"), ("pod-steer.weight", "9")]);
        let mut own = labels([("pod-steer.service", "web"), ("pod-steer.ports", "81"), ("pod-steer.version", "v1")]);
        assert_eq!(take(&mut own, &image), ["pod-steer.service".to_owned()].into());
        assert_eq!(own, labels([("pod-steer.ports", "81"), ("pod-steer.version", "v1")]));
        assert!(take(&mut own, &BTreeMap::new()).is_empty() && own.len() == 2);
    }
}

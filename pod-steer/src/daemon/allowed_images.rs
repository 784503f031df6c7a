//! Containers whose image their service does not take: they are no backends, which is a condition.

use super::{control::Control, image_labels::image_labels_condition};
use crate::{
    engine::Container,
    settings::Image,
    world::{Kind, Misfit, Network},
};

impl Control {
    /// Whether a service takes the image of a container; if not, that is said, and the container is no backend any more.
    pub(super) fn takes_image(&mut self, container: &Container, service: &str) -> bool {
        let image = Image::new(&container.image, &container.image_id);
        let Some(fault) = self.world.configured.image_fault(service, &image) else { return true };
        if container.network == Network::Unknown {
            // An event has no id. What it announces is described in a moment.
            return false;
        }
        self.remove(&container.id);
        self.misfit(container, [fault].into_iter().chain(image_labels_condition(container)).collect());
        false
    }

    /// The containers whose image their service does not take any more are no backends.
    pub(super) fn drop_refused_images(&mut self) {
        let refused = self.world.backends.values().filter_map(|backend| {
            let Kind::Container { engine } = &backend.kind else { return None };
            let conditions = vec![self.world.image_fault(backend)?];
            Some((backend.id.clone(), Misfit { name: backend.name.clone(), engine: engine.clone(), conditions }))
        });
        for (id, misfit) in refused.collect::<Vec<_>>() {
            self.remove(&id);
            self.world.misfits.insert(id, misfit);
        }
    }
}

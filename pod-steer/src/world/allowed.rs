//! What the configuration lets a service have: ports and images.

use super::{Backend, Kind, World};

impl World {
    /// Whether a service may claim a port.
    pub fn may_claim(&self, service: &str, port: u16) -> bool {
        self.policy.allows(port) && self.configured.may_claim(service, port)
    }

    /// Why the service of a backend does not take its image. That of a container which an earlier version has stored is not known
    /// before its engine has described it.
    pub fn image_fault(&self, backend: &Backend) -> Option<String> {
        let service = &backend.spec.service;
        match (&backend.kind, &backend.image) {
            (Kind::Container { .. }, None) => None,
            (Kind::Container { .. }, Some(image)) => self.configured.image_fault(service, image),
            _ => self.configured.process_fault(service),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        settings::{Allowed, Image, ImagePattern, Settings},
        world::{
            Backend, Kind, State,
            tests::{backend, socket, world},
        },
    };

    fn container(index: u32, image: Option<Image>) -> Backend {
        let kind = Kind::Container { engine: "unix:///engine".to_owned() };
        Backend { kind, image, ..backend(index, "web", "80:8080") }
    }

    #[test]
    fn only_allowed_images_serve() {
        let stored = serde_json::to_value(container(2, None)).unwrap();
        let mut of_earlier = stored.clone();
        of_earlier.as_object_mut().unwrap().remove("image").expect("it is stored");
        let unknown: Backend = serde_json::from_value(of_earlier).unwrap();
        let (good, bad) = (Some(Image::new("web:1", "")), Some(Image::new("api:1", "")));
        let backends = [container(0, good), container(1, bad), unknown, backend(3, "web", "80:8080")];
        let sockets = [0, 1, 2, 3].map(|index| socket(index, "0.0.0.0", 8080));
        let mut world = world(backends, sockets);
        assert!(world.plan().states.values().all(|state| *state == State::Ready));
        let images = Some(vec![ImagePattern::parse("web:*").unwrap()]);
        world.configured.others = Settings { allowed: Allowed { images, ..Allowed::default() }, ..Settings::default() };
        let plan = world.plan();
        let states = [0, 1, 2, 3].map(|index| plan.states[&index]);
        assert_eq!(states, [State::Ready, State::NotSteered, State::Ready, State::NotSteered]);
        assert!(plan.hindrances[&1][0].contains("api:1") && plan.hindrances[&3][0].contains("no image"));
    }
}

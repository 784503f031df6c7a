//! The options of each service. They are resolved once per service, by the rule that the reference states: the labels of its newest
//! backend, its table, the table of all services, the defaults.

use std::collections::BTreeMap;

use super::{Backend, Phase, World, scope::Scope};
use crate::{
    condition::{Condition, Reason},
    labels::PREFIX,
    settings::ServiceOptions,
};

impl World {
    /// Resolves the options of the services of a scope. Returns disagreements that an operator should know of, by
    /// service.
    pub(super) fn resolve_options(&mut self, scope: &Scope) -> Vec<(String, Condition)> {
        let mut by_service: BTreeMap<&str, Vec<&Backend>> = BTreeMap::new();
        for backend in self.backends.values().filter(|backend| scope.has_service(&backend.spec.service)) {
            by_service.entry(&backend.spec.service).or_default().push(backend);
        }
        let (mut options, mut disagreements) = (BTreeMap::new(), Vec::new());
        for (service, backends) in by_service {
            let Some(newest) = backends.iter().max_by_key(|backend| backend.age()) else { continue };
            let resolved = self.configured.options(service, &newest.spec.options);
            let conditions = self.disagreements(newest, &resolved, &backends);
            disagreements.extend(conditions.into_iter().map(|condition| (service.to_owned(), condition)));
            options.insert(service.to_owned(), resolved);
        }
        self.options.retain(|service, _| !scope.has_service(service));
        self.options.append(&mut options);
        disagreements
    }

    /// A condition for each option that the labels of some running backend would set to another value.
    fn disagreements(&self, newest: &Backend, resolved: &ServiceOptions, backends: &[&Backend]) -> Vec<Condition> {
        let mut others: BTreeMap<&str, Vec<(&Backend, String)>> = BTreeMap::new();
        let is_running = |backend: &&&Backend| matches!(backend.phase, Phase::Running | Phase::Paused);
        let differs = |backend: &&&Backend| backend.spec.options != newest.spec.options;
        for backend in backends.iter().filter(is_running).filter(differs) {
            let own = self.configured.options(&backend.spec.service, &backend.spec.options);
            for ((key, value), (_, in_effect)) in own.written().into_iter().zip(resolved.written()) {
                if value != in_effect {
                    others.entry(key).or_default().push((backend, value));
                }
            }
        }
        let in_effect: BTreeMap<&str, String> = resolved.written().into_iter().collect();
        let condition = |(key, mut of): (&str, Vec<(&Backend, String)>)| {
            of.sort_by_key(|(backend, _)| backend.age());
            let (first, value) = of.first()?;
            let more = if of.len() > 1 { format!(" and {} more", of.len() - 1) } else { String::new() };
            let message = format!(
                "its backends disagree on {PREFIX}{key}: `{}`, by the newest, {}, is in effect, and {}{more} would have `{value}`",
                in_effect.get(key)?,
                newest.name,
                first.name
            );
            Some(Condition::new(Reason::OptionsDisagree, message, "give all of them the same label"))
        };
        others.into_iter().filter_map(condition).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        condition::Reason,
        rollout::Policy,
        settings::{Fallback, GivenOptions, Settings},
        world::{
            Phase, World,
            tests::{backend, socket, world},
        },
    };

    const WEB: &str = "web";

    fn two() -> World {
        world([0, 1].map(|index| backend(index, WEB, "80:8080")), [0, 1].map(|index| socket(index, "0.0.0.0", 8080)))
    }

    #[test]
    fn the_newest_backend_decides_on_every_option() {
        let mut world = two();
        let conditions = world.plan().service_conditions;
        assert!(conditions.is_empty(), "{conditions:?}");
        world.backends.get_mut("id0").unwrap().spec.options = GivenOptions {
            fallback: Some(Fallback::Pass),
            rollout: Some(Policy::Manual),
            slow_start_ms: Some(1),
            panic_percent: Some(2),
            ..GivenOptions::default()
        };
        let plan = world.plan();
        assert_eq!(world.options(WEB), Default::default(), "the oldest backend has no say");
        let conditions = &plan.service_conditions[WEB];
        assert_eq!(conditions.len(), 4, "{conditions:?}");
        assert!(conditions.iter().all(|condition| condition.reason == Reason::OptionsDisagree), "{conditions:?}");
        let said = "pod-steer.fallback: `refuse`, by the newest, name1, is in effect, and name0 would have `pass`";
        assert!(conditions[0].message.contains(said), "{conditions:?}");

        world.backends.get_mut("id1").unwrap().spec.options.fallback = Some(Fallback::Pass);
        assert_eq!((world.plan().service_conditions[WEB].len(), world.options(WEB).fallback), (3, Fallback::Pass));
        // Those that were told to stop will be gone.
        world.backends.get_mut("id0").unwrap().phase = Phase::Stopping;
        assert!(world.plan().service_conditions.is_empty());
    }

    #[test]
    fn a_label_that_repeats_the_table_is_no_disagreement() {
        let mut world = two();
        let options = GivenOptions { slow_start_ms: Some(5), ..GivenOptions::default() };
        world.configured.named.insert(WEB.to_owned(), Settings { options, ..Settings::default() });
        world.backends.get_mut("id0").unwrap().spec.options = options;
        let conditions = world.plan().service_conditions;
        assert_eq!((world.options(WEB).slow_start_ms, conditions.len()), (5, 0));
    }
}

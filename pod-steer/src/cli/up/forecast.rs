//! What Compose says, in a dry run, that it would do to containers, networks and volumes which are there. Pure.

/// What it would end or take away.
const ENDS: [&str; 9] =
    ["Stopping", "Stopped", "Killing", "Killed", "Removing", "Removed", "Recreate", "Recreated", "Restarting"];

/// What a dry run has told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forecast {
    /// Containers that would be stopped or removed.
    pub containers: Vec<String>,
    /// Networks that would be removed.
    pub networks: Vec<String>,
    /// Volumes that are not as the files define them.
    pub volumes: Vec<String>,
}

impl Forecast {
    /// Reads the lines, such as ` DRY-RUN MODE -  Container shop-web-1  Stopping`.
    pub fn read(text: &str) -> Self {
        let mut read = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some((_, rest)) = line.split_once("Volume \"")
                && let Some((name, rest)) = rest.split_once('"')
                && rest.contains("doesn't match")
            {
                add(&mut read.volumes, name);
            }
            let Some([kind, name, _]) = words.windows(3).last().filter(|last| ENDS.contains(&last[2])) else {
                continue;
            };
            match *kind {
                "Container" => add(&mut read.containers, name),
                "Network" => add(&mut read.networks, name),
                "Volume" => add(&mut read.volumes, name),
                _ => {}
            }
        }
        read
    }

    /// Why nothing may be begun.
    pub fn refusal(&self, service: &str) -> Option<String> {
        let containers = self.containers.join(", ");
        match (&self.networks[..], &self.containers[..]) {
            ([], []) => None,
            ([], _) => {
                Some(format!("Compose would stop or remove {containers}; run `docker compose up -d {service}` first"))
            }
            (networks, []) => Some(format!(
                "the definition of the network {} has changed, and Compose would remove it; give the network another name",
                networks.join(", ")
            )),
            (networks, _) => Some(format!(
                "the definition of the network {} has changed, and Compose would stop {containers} to make it anew; give the network another \
                 name, or run `docker compose up -d {service}`, which interrupts the service",
                networks.join(", ")
            )),
        }
    }
}

fn add(names: &mut Vec<String>, name: &str) {
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_is_found() {
        let none =
            " DRY-RUN MODE -  Container shop-web-1  Running \n DRY-RUN MODE -  Container shop-web-2  Creating \n";
        assert_eq!(Forecast::read(none), Forecast::default());
        assert_eq!(Forecast::default().refusal("web"), None);
        let changed = " DRY-RUN MODE -  Container shop-web-1  Stopping \n DRY-RUN MODE -  Container shop-web-1  Stopped \n \
                       DRY-RUN MODE -  Network shop_front  Removed \n DRY-RUN MODE -  Container shop-web-2  Created\n";
        let read = Forecast::read(changed);
        assert_eq!(
            (&read.containers[..], &read.networks[..]),
            (&["shop-web-1".to_owned()][..], &["shop_front".to_owned()][..])
        );
        assert!(read.refusal("web").unwrap().contains("network shop_front has changed"));
        let scaled = Forecast::read(" Container shop-api-2 Stopping\n");
        assert!(scaled.refusal("web").unwrap().contains("stop or remove shop-api-2"));
        let asked = "? Volume \"shop_data\" exists but doesn't match configuration in compose file. Recreate (data will be lost)? [y/N]";
        assert_eq!(
            (Forecast::read(asked).volumes, Forecast::read(asked).refusal("web")),
            (vec!["shop_data".to_owned()], None)
        );
    }
}

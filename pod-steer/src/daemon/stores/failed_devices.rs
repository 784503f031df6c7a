//! Which network devices could not be attached to, and why.

use std::collections::{BTreeMap, BTreeSet};

/// Devices that failed, by index. One stays until it is attached to or gone.
#[derive(Debug, Default)]
pub struct FailedDevices {
    failed: BTreeMap<u32, FailedDevice>,
    /// Those that the attempt which is under way leaves out.
    left_out: BTreeSet<u32>,
}

/// A network device that could not be attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedDevice {
    /// Its name.
    pub name: String,
    /// Why.
    pub error: String,
    /// A bridge has it.
    pub is_port: bool,
}

impl FailedDevices {
    /// These are all devices that there are, by index, with whether a bridge has them. Returns those that the next attempt is to leave out:
    /// all that have failed, unless they are to be tried again.
    pub fn leave_out(&mut self, all: &BTreeMap<u32, bool>, again: bool) -> BTreeSet<u32> {
        self.failed.retain(|index, failed| all.get(index) == Some(&failed.is_port));
        self.left_out = if again { BTreeSet::new() } else { self.failed.keys().copied().collect() };
        self.left_out.clone()
    }

    /// An attempt is over, and these have failed. All others that it did not leave out are attached to.
    pub fn tried(&mut self, failed: impl IntoIterator<Item = (u32, FailedDevice)>) {
        self.failed.retain(|index, _| self.left_out.contains(index));
        self.failed.extend(failed);
    }

    /// Nothing is attached to devices any more.
    pub fn clear(&mut self) {
        self.failed.clear();
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &FailedDevice> {
        self.failed.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(index: u32) -> (u32, FailedDevice) {
        (index, FailedDevice { name: format!("eth{index}"), error: "it is full".to_owned(), is_port: false })
    }

    fn names(devices: &FailedDevices) -> Vec<&str> {
        devices.all().map(|device| device.name.as_str()).collect()
    }

    #[test]
    fn a_device_stays_failed_until_it_is_attached_to_or_gone() {
        let mut devices = FailedDevices::default();
        let wires = |indices: &[u32]| indices.iter().map(|index| (*index, false)).collect::<BTreeMap<_, _>>();
        let all = wires(&[1, 2, 3, 4]);
        assert!(devices.leave_out(&all, true).is_empty());
        devices.tried([failed(2), failed(3)]);
        // A device has come: the others are not tried again, and have not been attached to either.
        assert_eq!(devices.leave_out(&wires(&[1, 2, 3, 4, 5]), false), BTreeSet::from([2, 3]));
        devices.tried([failed(5)]);
        assert_eq!(names(&devices), ["eth2", "eth3", "eth5"]);
        // An attempt that failed as a whole says nothing of a device.
        assert!(devices.leave_out(&all, true).is_empty());
        assert_eq!(names(&devices), ["eth2", "eth3"], "one is gone");
        assert!(devices.leave_out(&all, true).is_empty());
        devices.tried([failed(3)]);
        assert_eq!(names(&devices), ["eth3"], "one is attached to");
        // It has joined a bridge, and gets another program.
        let joined = BTreeMap::from([(3, true)]);
        assert!(devices.leave_out(&joined, false).is_empty() && names(&devices).is_empty());
        devices.tried([failed(3)]);
        devices.clear();
        assert!(names(&devices).is_empty());
    }
}

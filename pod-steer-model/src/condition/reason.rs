//! The reasons of conditions. Programs compare them, so a reason keeps its name and its meaning.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Severity;

/// Declares every reason once: its severity, and what it means for an operator.
macro_rules! reasons {
    ($($reason:ident: $severity:ident, $meaning:literal;)*) => {
        /// The kind of a condition.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "kebab-case")]
        pub enum Reason {
            $(
                #[doc = $meaning]
                $reason,
            )*
        }

        impl Reason {
            /// Every reason, in the order of the reference.
            pub const ALL: &[Self] = &[$(Self::$reason),*];

            /// Whether an operator has to act.
            pub fn severity(self) -> Severity {
                match self {
                    $(Self::$reason => Severity::$severity,)*
                }
            }

            /// What it means for an operator, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$reason => $meaning,)*
                }
            }
        }
    };
}

reasons! {
    // A container or a backend.
    LabelsInvalid: Warning, "The container's `pod-steer` labels are wrong, so it is no backend.";
    ImageLabelsIgnored: Warning, "Labels that come from the container's image are ignored.";
    ContainerNotRead: Warning, "The engine's description of the container could not be read, so its changes are not followed.";
    ImageNotAllowed: Warning, "The service takes only some images, and the container's or process's is none of them.";
    UserNotAllowed: Warning, "A listening socket belongs to a user that the service does not allow, so it gets no clients.";
    TooManyBackends: Warning, "The limit on backends is reached, so the container or process is no backend.";
    NoCgroup: Warning, "The container has no cgroup that pod-steer can attach its programs to, so it is not steered to.";
    OwnNetwork: Warning, "The container has a network namespace of its own, where no client of the shared port arrives.";
    NoNetwork: Warning, "The container has no network device but its loopback device, so no client can reach it.";
    MacvlanNetwork: Warning, "The container is on a macvlan network, whose packets pod-steer does not see.";
    IpvlanNetwork: Warning, "The container is on an ipvlan network, whose packets pod-steer does not see.";
    UserModeNetwork: Warning, "The container's network device is a tun device, whose packets a process of a rootless engine moves.";
    BridgeElsewhere: Warning, "The other end of the container's network device is not in pod-steer's own network namespace.";
    OtherNetworkDevice: Warning, "The container's network device is of a kind that pod-steer does not support.";
    NoAddress: Warning, "The container's network device has no address, or only addresses that are valid on the link alone.";
    NotReachable: Warning, "The container listens only at addresses that no forwarded packet reaches.";
    DevicesNotAttached: Warning, "The programs that forward packets are not attached to some network devices.";
    FirewallDrops: Warning, "The host's firewall drops forwarded packets, and pod-steer could not let them pass.";
    PeerRefused: Warning, "The kernel may lack the fix of CVE-2025-37959, so the backend's packets are forwarded instead of handed over.";
    ForwardUnanswered: Warning, "Connections are forwarded to the backend and none opens; the host's firewall may drop them.";
    ForwardedPortShared: Warning, "Another backend listens on the same port of the container's network namespace, and gets some of the clients that are forwarded.";
    SandboxGone: Warning, "The network namespace of the container's sandbox is no longer in use, so no client arrives there.";
    PortNotAllowed: Warning, "The configuration does not let the service claim this port.";
    PortOfOtherService: Warning, "The port, or this address of it, belongs to another service.";
    PortInUse: Warning, "A process that pod-steer does not manage listened on the port first.";
    OnDemandConflict: Warning, "Another backend of the service opens the same range of ports on demand.";
    NotListening: Warning, "The backend runs, but listens on other ports than it declares, or no longer listens.";
    OtherAddress: Warning, "The backend listens at another address than the one that its service claims.";
    TooManyAddresses: Warning, "The backend listens on one port at too many addresses, and gets no clients of the last ones.";
    ListenerElsewhere: Warning, "A listening socket of the backend lives in another network namespace than the backend.";
    ListenerOfOtherProcess: Warning, "A process that is no backend holds the backend's listener, or opened one in its place; clients are not given to it.";
    ListenerShared: Warning, "A listener of the backend is also held by another backend, and its clients are counted as that backend's.";
    ListenerNotShared: Warning, "The backend bound its port before it was managed, so that no other backend can bind the port.";
    ListenerNotRegistered: Warning, "A listening socket of the backend has no place in the socket map, so it gets no clients.";
    ListenersLeftOut: Warning, "The backend has more listening sockets than it may have, or opens them too fast; the further ones get no clients.";
    Mptcp: Warning, "The backend listens by MPTCP, which cannot be steered.";
    AcceptQueueFull: Warning, "The server accepts too slowly, and the accept queue of a listener is full.";
    CheckFails: Warning, "The backend does not pass its health check, or cannot be checked.";
    EngineCheckFails: Warning, "The health check of the container's engine fails.";
    CgroupLinksLost: Warning, "Programs of the backend's cgroup were detached by something other than pod-steer.";
    // A service.
    OptionsDisagree: Warning, "The labels of the service's backends lead to different values of an option.";
    TooFewHealthy: Warning, "Too few backends pass their checks, so those that passed last go on serving.";
    OtherVersionServes: Warning, "No version with a share has a backend left, so the other versions serve.";
    VersionWaits: Warning, "No version with a share has a backend left, and by the policy `manual` the others wait.";
    CannotSleep: Warning, "The service has the option `idle`, and cannot be put to sleep.";
    WakeFails: Warning, "A service that sleeps is to wake, or has woken, and containers of it cannot be started or do not serve yet.";
    ChangeRefused: Warning, "The kernel refused a change, which is tried again.";
    // An engine.
    EngineUnreachable: Warning, "The engine does not answer; its containers are steered to as last known.";
    EngineAwaited: Warning, "Nothing is changed before the engine has described its containers.";
    ContainersOfOtherEngine: Warning, "Two engines name the same containers.";
    // The daemon and the kernel's state.
    UnmanagedListener: Warning, "A process that pod-steer does not manage listens on a claimed port and gets no clients.";
    NamespaceNotSteered: Warning, "Nothing is steered in the network namespace at the moment.";
    CgroupsNotWatched: Warning, "Some cgroups are not watched, so a container may bind before it is managed.";
    CgroupsPolled: Warning, "The end of `exec` backends is noticed within a second instead of at once.";
    SocketsNotDescribed: Warning, "The map that describes listening sockets lacks some of them.";
    DaemonNotAnnounced: Warning, "The kernel programs do not know that the daemon runs.";
    OwnListenersUnknown: Warning, "Connections of backends to their own ports may be refused.";
    NotPinned: Warning, "A pin is gone, so what it leads to ends with the daemon.";
    PinsLost: Warning, "The directory of pins was removed, or belongs to another daemon.";
    PinsNotPrivate: Warning, "The directory of pins is open to other users.";
    UnknownFile: Warning, "A file that pod-steer did not make is among the pins.";
    RuntimeDirectoryIncomplete: Warning, "The files in the runtime directory are not complete.";
    LedgerUnusable: Warning, "Decisions and history cannot be stored, and are lost when the daemon ends.";
    LedgerNotWritten: Warning, "The latest decisions are not stored yet.";
    LedgerReplaced: Warning, "The stored decisions and history could not be read and begin anew.";
    SettingsInvalid: Warning, "The settings could not be read again, so nothing was changed.";
    SettingsAfterRestart: Warning, "Some settings differ from what is in effect until the daemon is restarted.";
    SettingsAfterUnload: Warning, "Some settings differ from what is in effect until `pod-steer unload` has ended steering.";
    // A feature that a backend lacks.
    PortWithoutListener: Info, "The backend listens on some of its ports and not on this one.";
    AddressOfOtherService: Info, "Another service has claimed single addresses of the backend's port.";
    PortOfOtherUser: Info, "The port is another user's, so the backend's queue is lost when it stops.";
    ViaIgnored: Info, "The backend has a label that asks for forwarding, and clients come to its sockets without that.";
    InPod: Info, "Clients come to the container's own address, since another backend of its service shares its network namespace.";
    PastFirewall: Info, "Clients' packets are handed over to the container past the host's firewall, as its label asks.";
    ConnectionsNotCounted: Info, "The number of the backend's connections is not known.";
}

/// As it is written in JSON.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reasons_are_unique_words_that_are_read_as_they_are_written() {
        let mut words = BTreeSet::new();
        for reason in Reason::ALL {
            let word = reason.to_string();
            assert_eq!(serde_json::to_string(reason).unwrap(), format!("\"{word}\""));
            assert_eq!(serde_json::from_str::<Reason>(&format!("\"{word}\"")).unwrap(), *reason);
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{word}");
            assert!(words.insert(word));
        }
    }

    #[test]
    fn every_meaning_is_one_sentence() {
        for reason in Reason::ALL {
            let meaning = reason.meaning();
            assert!(meaning.ends_with('.') && meaning.matches(". ").count() == 0, "{reason}: {meaning}");
        }
    }
}

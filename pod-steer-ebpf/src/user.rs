//! Lets aya read and write the types of the contract.

use super::*;

macro_rules! pod {
    ($($t:ty),+) => {$(
        // SAFETY: repr(C), integers only, no implicit padding (the sizes are asserted above).
        unsafe impl aya::Pod for $t {}
    )+};
}
pod!(
    Move,
    Meta,
    RuleKey,
    Rule,
    Slot,
    Tuple,
    Flow,
    Destination,
    Link,
    Network,
    CandidateKey,
    Candidate,
    SocketInfo,
    ManagedBlock,
    ManagedPorts,
    OwnListener,
    OwnBlock,
    OwnPorts,
    OwnConnection,
    OwnSocket,
    SourceKey,
    ProbeKey,
    PortKey,
    PortUser,
    Hidden,
    NoteKey,
    BackendCounters,
    ServiceCounters,
    ListenRate,
    Event,
    Observed
);

//! Finds the processes that hold listening sockets. A socket lives as long as any process has a descriptor of it, which may
//! be inherited or passed by `SCM_RIGHTS`; neither shows anywhere but in `/proc/PID/fd`.
//!
//! A search takes a system call for each descriptor, so it runs outside of the daemon's loop. It only reports; `daemon/holders` decides.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    time::{Duration, Instant},
};

use crate::{
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    listening::Listener,
    netns::Netns,
    ports::Port,
    process_set::{ProcessSet, all_processes, listeners_of_netns},
    procs::{FoundSocket, Process, ProcessId, Seat, process_id},
};

/// Time limit of a search. The next search continues.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// A backend whose processes may hold listeners.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its index.
    pub index: BackendIndex,
    /// Its namespace.
    pub netns: Netns,
    /// Ports that it should listen on.
    pub ports: BTreeSet<Port>,
    /// Ports of these without a registered socket.
    pub missing: BTreeSet<Port>,
    /// Its processes.
    pub processes: ProcessSet,
    /// How many of its unregistered listeners one search may return.
    pub room: usize,
}

impl Candidate {
    /// Whether its descriptors have to be searched.
    fn may_hold(&self, of: &Sought, thorough: bool) -> bool {
        match of.asked {
            Asked::Orphan => self.ports.contains(&of.port),
            Asked::Unknown if thorough => self.ports.contains(&of.port),
            Asked::Unknown => self.missing.contains(&of.port),
            Asked::Settled => of.owner != Some(self.index) && self.missing.contains(&of.port),
        }
    }
}

/// A registered socket.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Port that its server asked for.
    pub port: Port,
    /// The descriptor by which it was found last.
    pub seat: Option<Seat>,
    /// The index of its backend.
    pub owner: BackendIndex,
    /// True if its backend has ended or is ending: another backend may hold the socket too.
    pub orphan: bool,
}

/// A search in one namespace.
#[derive(Debug)]
pub struct Question {
    /// The namespace.
    pub netns: Netns,
    /// The registered sockets there, by cookie.
    pub known: BTreeMap<SocketCookie, Known>,
    /// The backends, wherever they are.
    pub candidates: std::sync::Arc<Vec<Candidate>>,
    /// Ports of registered processes that have ended. Other processes may listen there with listeners of their own.
    pub vacant: BTreeSet<Port>,
    /// Look through the descriptors of all backends for listeners that are not registered, not only of those that miss one;
    /// and look for registered ones whose place is not known.
    pub thorough: bool,
}

/// The result of a search.
#[derive(Debug)]
pub struct Answer {
    /// Cookie of the namespace.
    pub netns_cookie: NetnsCookie,
    /// Registered sockets of the search.
    pub asked: BTreeSet<SocketCookie>,
    /// Cookies of all sockets that listen.
    pub listening: BTreeSet<SocketCookie>,
    /// Holders of the listeners that were looked for, by cookie.
    pub held: BTreeMap<SocketCookie, Holding>,
    /// Ports on which backends listen by MPTCP, by index.
    pub mptcp: BTreeMap<BackendIndex, BTreeSet<Port>>,
    /// Backends that have more unregistered listeners than there is room for. The rest was not examined.
    pub beyond: BTreeSet<BackendIndex>,
    /// True if every descriptor in question was examined, so a listener that was not found does not exist.
    pub is_complete: bool,
}

/// The processes that hold a listener.
#[derive(Debug)]
pub struct Holding {
    /// Its port.
    pub port: Port,
    /// Why it was searched for.
    pub asked: Asked,
    /// The backends whose processes have it, each with a copy.
    pub backends: Vec<(BackendIndex, FoundSocket)>,
    /// Processes outside of all backends that have it, if no backend does and it is an orphan or on a vacant port.
    pub strangers: Vec<Stranger>,
}

/// Why a listener is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is registered, and its backend may no longer hold it.
    Orphan,
    /// It is not registered, and a backend should listen on its port.
    Unknown,
    /// It is registered and held by its backend; another backend should listen on its port.
    Settled,
}

/// A process that is not managed.
#[derive(Debug)]
pub struct Stranger {
    /// The process.
    pub process: ProcessId,
    /// Its effective user.
    pub uid: u32,
    /// The name of its program.
    pub name: String,
    /// Its copy of the socket.
    pub socket: FoundSocket,
}

/// Searches one namespace after the other until the time limit. The first one is always searched.
pub fn look(questions: &[Question]) -> Vec<(NetnsCookie, io::Result<Answer>)> {
    look_until(questions, Instant::now() + LOOK_MAX)
}

fn look_until(questions: &[Question], ends: Instant) -> Vec<(NetnsCookie, io::Result<Answer>)> {
    let (mut answers, mut taken) = (Vec::new(), HashMap::new());
    for question in questions {
        if !answers.is_empty() && Instant::now() > ends {
            break;
        }
        answers.push((question.netns.cookie, ask(question, &mut taken, ends)));
    }
    answers
}

/// `taken` counts the listeners that are not registered, by the index of the backend.
fn ask(question: &Question, taken: &mut HashMap<BackendIndex, usize>, ends: Instant) -> io::Result<Answer> {
    let netns_cookie = question.netns.cookie;
    let here = question.candidates.iter().filter(|candidate| candidate.netns == question.netns);
    let here: Vec<ProcessSet> = here.map(|candidate| candidate.processes.clone()).collect();
    let listeners = listeners_of_netns(question.netns, &here)?;
    if listeners.iter().any(|listener| listener.cookie.is_none()) {
        return Err(io::Error::other("sock_diag(7) is not available, and /proc/net has no socket cookies"));
    }
    let asked = question.known.keys().copied().collect();
    let listening = listeners.iter().filter_map(|listener| listener.cookie).collect();
    let mut answer = Answer {
        netns_cookie,
        asked,
        listening,
        held: BTreeMap::new(),
        mptcp: BTreeMap::new(),
        beyond: BTreeSet::new(),
        is_complete: false,
    };
    let sought: HashMap<u64, Sought> = listeners.iter().filter_map(|listener| sought(question, listener)).collect();
    for candidate in question.candidates.iter() {
        let may_hold = |of: &Sought| candidate.may_hold(of, question.thorough);
        if sought.values().any(may_hold) {
            let taken = taken.entry(candidate.index).or_default();
            look_through(candidate, |inode| sought.get(&inode).filter(|of| may_hold(of)), taken, &mut answer, ends);
        }
    }
    let orphans: HashMap<u64, Sought> = sought
        .into_iter()
        .filter(|(_, of)| of.asked == Asked::Orphan || question.vacant.contains(&of.port))
        .filter(|(_, of)| answer.held.get(&of.cookie).is_none_or(|holding| holding.backends.is_empty()))
        .collect();
    if !orphans.is_empty() {
        look_through_all(&orphans, &mut answer, ends);
    }
    answer.is_complete = question.thorough && Instant::now() <= ends;
    Ok(answer)
}

/// A listener that is searched for.
#[derive(Clone, Copy)]
struct Sought {
    cookie: SocketCookie,
    port: Port,
    /// The backend that it is registered of.
    owner: Option<BackendIndex>,
    asked: Asked,
    mptcp: bool,
}

/// The listeners to search for, by inode.
fn sought(question: &Question, listener: &Listener) -> Option<(u64, Sought)> {
    let cookie = listener.cookie?;
    let (port, asked) = match question.known.get(&cookie) {
        None => (listener.port, Asked::Unknown),
        Some(known) => {
            let lost = known.seat.map_or(question.thorough, |seat| !seat.is_taken());
            (known.port, if known.orphan || lost { Asked::Orphan } else { Asked::Settled })
        }
    };
    let owner = question.known.get(&cookie).map(|known| known.owner);
    Some((listener.inode, Sought { cookie, port, owner, asked, mptcp: listener.mptcp }))
}

/// Each listener found costs a descriptor until the result is read, and a backend may have any number of listeners.
fn look_through<'a>(
    candidate: &Candidate,
    sought: impl Fn(u64) -> Option<&'a Sought>,
    taken: &mut usize,
    answer: &mut Answer,
    ends: Instant,
) {
    // One listener that another backend has too is enough for a report.
    let mut shares = false;
    for process in candidate.processes.processes() {
        for seat in process.seats().into_iter().flatten() {
            if Instant::now() > ends {
                return;
            }
            let Some(of) = sought(seat.inode) else { continue };
            let before = answer.held.get(&of.cookie).map(|holding| holding.backends.as_slice()).unwrap_or_default();
            if before.iter().any(|(index, _)| *index == candidate.index) || (of.asked == Asked::Settled && shares) {
                continue;
            }
            if of.asked == Asked::Unknown && !of.mptcp && *taken >= candidate.room {
                answer.beyond.insert(candidate.index);
                continue;
            }
            let Some(socket) = process.listener(seat) else { continue };
            if of.mptcp || socket.mptcp {
                answer.mptcp.entry(candidate.index).or_default().insert(of.port);
                continue;
            }
            match of.asked {
                Asked::Unknown => *taken += 1,
                Asked::Settled => shares = true,
                Asked::Orphan => {}
            }
            holding(answer, of).backends.push((candidate.index, socket));
        }
    }
}

fn holding<'a>(answer: &'a mut Answer, of: &Sought) -> &'a mut Holding {
    let none = || Holding { port: of.port, asked: of.asked, backends: Vec::new(), strangers: Vec::new() };
    answer.held.entry(of.cookie).or_insert_with(none)
}

/// Searches the descriptors of all processes except our own, which holds copies for a moment.
fn look_through_all(orphans: &HashMap<u64, Sought>, answer: &mut Answer, ends: Instant) {
    for process in all_processes().filter_map(|pid| Process::open(pid).ok()) {
        let Ok(seats) = process.seats() else { continue };
        for seat in seats {
            if Instant::now() > ends {
                return;
            }
            let Some(of) = orphans.get(&seat.inode) else { continue };
            let described = || Some((process_id(seat.pid).ok()?, process.uid().ok()?, process.listener(seat)?));
            let Some((id, uid, socket)) = described() else { continue };
            let strangers = &mut holding(answer, of).strangers;
            if strangers.iter().all(|other| other.process != id) {
                strangers.push(Stranger { process: id, uid, name: process.name(), socket });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, sync::Arc};

    use super::*;
    use crate::netns;

    #[test]
    fn a_search_copies_no_more_listeners_than_there_is_room_for() {
        // Entering a namespace needs a privilege.
        let Ok(netns) = netns::identify(&std::fs::File::open("/proc/self/ns/net").unwrap()) else { return };
        let listeners: Vec<TcpListener> = (0..20).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: BTreeSet<Port> =
            listeners.iter().map(|listener| Port::tcp(listener.local_addr().unwrap().port())).collect();
        let own = process_id(std::process::id().cast_signed()).unwrap();
        let processes = ProcessSet { process: Some(own), alone: true, ..ProcessSet::default() };
        let look = |index, room, known: &BTreeMap<SocketCookie, Known>| {
            let (missing, processes) = (ports.clone(), processes.clone());
            let index = BackendIndex(index);
            let candidate = Candidate { index, netns, ports: ports.clone(), missing, processes, room };
            let candidates = Arc::new(vec![candidate]);
            let known = known.clone();
            let question = Question { netns, known, candidates, vacant: BTreeSet::new(), thorough: false };
            look(&[question]).pop().unwrap().1.unwrap()
        };
        let none = BTreeMap::new();
        let first = look(7, 8, &none);
        assert_eq!((first.held.len(), first.beyond), (8, BTreeSet::from([BackendIndex(7)])));
        let all = look(7, 64, &none);
        assert_eq!((all.held.len(), all.beyond), (20, BTreeSet::new()));
        // The registered sockets are held by their backends.
        let known = all.held.iter().map(|(cookie, holding)| {
            let seat = Some(holding.backends[0].1.seat);
            (*cookie, Known { port: holding.port, seat, owner: BackendIndex(7), orphan: false })
        });
        let known: BTreeMap<SocketCookie, Known> = known.collect();
        assert!(look(7, 64, &known).held.is_empty());
        assert_eq!(look(8, 64, &known).held.len(), 1, "another backend that has them too is told of one");
    }

    #[test]
    fn a_search_that_takes_too_long_ends_as_incomplete() {
        // Entering a namespace needs a privilege.
        let Ok(netns) = netns::identify(&std::fs::File::open("/proc/self/ns/net").unwrap()) else { return };
        let question = || Question {
            netns,
            known: BTreeMap::new(),
            candidates: Arc::default(),
            vacant: BTreeSet::new(),
            thorough: true,
        };
        let questions = [question(), question()];
        let complete = |ends| {
            let answers = look_until(&questions, ends);
            answers.into_iter().map(|(_, answer)| answer.unwrap().is_complete).collect::<Vec<_>>()
        };
        assert_eq!(complete(Instant::now() + LOOK_MAX), [true, true]);
        assert_eq!(complete(Instant::now()), [false]);
    }
}

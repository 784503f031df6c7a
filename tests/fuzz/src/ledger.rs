//! The ledger's file: arbitrary bytes, a good file with changes, and arbitrary records in a good file. It is opened, or put
//! aside, or left alone and named; and what was read can be acted on.
//!
//! The first byte of an input says which of these it is.

mod records;

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use pod_steer::{
    clock::by_wall_clock,
    condition::Reason,
    daemon::{Change, Ledger},
    rollout::{Decision, Operation, Order, Phase},
};

use crate::{api::Service, assert_one_line};

/// The file's name in its directory.
const FILE: &str = "state.redb";

pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let directory = Directory::new();
    match kind % 4 {
        0 => directory.write(rest),
        1 => directory.write(&changed(rest)),
        2 => directory.write(&cut(rest)),
        _ => {
            directory.write(good());
            records::write(&directory.0.join(FILE), rest);
        }
    }
    check(&directory);
}

/// The good file with some of its bytes changed: two bytes that say where, and one new byte, again and again.
fn changed(changes: &[u8]) -> Vec<u8> {
    let mut file = good().to_vec();
    for change in changes.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) << 8 | usize::from(change[2]);
        let at = at % file.len();
        file[at] = change[3];
    }
    file
}

/// The good file up to a place, and then something else.
fn cut(rest: &[u8]) -> Vec<u8> {
    let Some((at, rest)) = rest.split_first_chunk() else { return Vec::new() };
    let at = u32::from_le_bytes(*at) as usize % good().len();
    [&good()[..at], rest].concat()
}

/// A file with a decision and an operation.
fn good() -> &'static [u8] {
    static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
    GOOD.get_or_init(|| {
        let directory = Directory::new();
        let mut ledger = Ledger::open(&directory.0);
        let decision = Decision { revision: 1, ..Decision::default() };
        let change = Change { decisions: &[("web", Some(&decision))], operations: &[&operation(1)], stops: Some(&[]) };
        ledger.commit(change).expect("a fresh file can be written");
        drop(ledger);
        fs::read(directory.0.join(FILE)).expect("the ledger has made it")
    })
}

fn operation(id: u64) -> Operation {
    Operation {
        id,
        service: "web".to_owned(),
        who: "root".to_owned(),
        begun_ms: 1,
        order: Order::Pause(Default::default()),
        before: Default::default(),
        undrained: Default::default(),
        recreation: None,
        phase: Phase::Ended,
        steps: Vec::new(),
        end: None,
        not_stored: None,
    }
}

fn check(directory: &Directory) {
    let mut ledger = Ledger::open(&directory.0);
    if let Some(condition) = ledger.condition() {
        assert_one_line(&condition.to_string());
        let unusable = condition.reason == Reason::LedgerUnusable;
        assert!(unusable || directory.has_one_aside(), "neither used nor kept: {condition}");
        assert!(ledger.history(None).is_empty() && ledger.decisions().is_empty());
    }
    let mut service = Service::new();
    for (name, decision) in ledger.decisions() {
        service.decide("web", decision.clone());
        service.decide(&name, decision);
    }
    let history = ledger.history(None);
    for operation in &history {
        let shown = by_wall_clock(ledger.told(operation.clone()));
        let _ = shown.waiting_for(0, 1, 1, 0);
        service.resume(operation.clone());
    }
    assert!(ledger.running().iter().all(|operation| operation.end.is_none()));
    commit(&mut ledger, &history);
    let (id, path) = (ledger.next_operation() - 1, directory.0.clone());
    let lasts = ledger.condition().is_none_or(|condition| condition.reason == Reason::LedgerReplaced);
    drop(ledger);
    assert!(!lasts || Ledger::open(&path).operation(id).is_some(), "what was committed is lost");
}

fn commit(ledger: &mut Ledger, history: &[Operation]) {
    let id = ledger.next_operation();
    assert!(id > 0 && history.iter().all(|operation| operation.id < id), "operation {id} is not new");
    let stops = ledger.stops();
    let change = Change { decisions: &[], operations: &[&operation(id)], stops: Some(&stops) };
    let _ = ledger.commit(change);
    assert!(ledger.operation(id).is_some());
}

/// A directory that is removed with all that is in it.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pod-steer-fuzz-{}-{number}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the directory of temporary files can be written");
        Self(path)
    }

    fn write(&self, bytes: &[u8]) {
        let path: &Path = &self.0.join(FILE);
        fs::write(path, bytes).expect("the directory of temporary files can be written");
    }

    fn has_one_aside(&self) -> bool {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let aside = |name: &str| name.starts_with(FILE) && name != FILE && !name.ends_with(".part");
        entries.filter(|entry| aside(&entry.file_name().to_string_lossy())).count() == 1
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::*;
use crate::rollout::{
    Asleep, AtDeadline, CanaryOrder, DeployOrder, DrainOrder, End, Order, Outcome, Part, PartOrder, Phase, ShiftOrder,
    Step, Traffic,
};

/// Where the child of [`kill_in_the_midst`] writes.
const CHILD_DIR: &str = "POD_STEER_LEDGER_TEST_DIR";

/// A directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pod-steer-ledger-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Self(dir)
    }

    fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn operation(id: u64, order: Order, ended: bool) -> Operation {
    let end = End { outcome: Outcome::Done, at_ms: 2, message: "well".into() };
    Operation {
        id,
        service: if id.is_multiple_of(2) { "web" } else { "shop" }.into(),
        who: "root (uid 0, pid 1)".into(),
        begun_ms: 1,
        order,
        before: Traffic { weights: None, from: [("fd00::/8".parse().unwrap(), "v1".into())].into() },
        undrained: Default::default(),
        recreation: None,
        phase: Phase::Draining {
            since_ms: 1,
            deadline_ms: 3,
            old: ["a".into()].into(),
            connections: 4,
            has_drained: true,
            closed: 3,
            resetting: true,
            reset: 2,
        },
        steps: vec![Step { name: "ready".into(), took_us: 5, detail: String::new() }],
        end: ended.then_some(end),
        not_stored: None,
    }
}

fn orders() -> Vec<Order> {
    let deploy = DeployOrder {
        version: "v2".into(),
        backends: Some(3),
        timeout_ms: 1,
        drain_timeout_ms: 2,
        at_deadline: AtDeadline::Reset,
        close_idle_ms: Some(4),
        max_age_ms: Some(6),
        close_rate: Some(5),
        stop_old: true,
        recreate: false,
        allow_drop: false,
        max_hold_ms: None,
        watch: None,
        keep_old_ms: Some(3),
    };
    let canary = CanaryOrder {
        version: "v2".into(),
        steps: vec![100, 10_000],
        every_ms: 1,
        timeout_ms: 2,
        judge: Default::default(),
    };
    let shift = ShiftOrder {
        weights: [("v1".into(), 1)].into(),
        balance: false,
        from: [("10.0.0.0/8".parse().unwrap(), "v2".into())].into(),
        not_from: ["192.0.2.0/24".parse().unwrap()].into(),
    };
    let part = PartOrder { version: Some("v1".into()), backend: None };
    let drain = DrainOrder {
        drain_timeout_ms: Some(3),
        at_deadline: AtDeadline::Reset,
        close_idle_ms: Some(4),
        max_age_ms: Some(6),
        close_rate: Some(5),
        version: None,
        backend: Some("b".into()),
    };
    vec![
        Order::Deploy(deploy),
        Order::Canary(canary),
        Order::Shift(shift),
        Order::Rollback,
        Order::Drain(drain),
        Order::Resume(part),
        Order::Pause(Default::default()),
        Order::Unpause,
        Order::Forget,
    ]
}

fn decision(revision: u32) -> Decision {
    Decision {
        revision,
        traffic: Traffic {
            weights: Some([("v1".into(), 90), ("v2".into(), 10)].into()),
            from: [("10.0.0.0/8".parse().unwrap(), "v2".into())].into(),
        },
        drained: [Part::Service, Part::Version("v1".into()), Part::Backend("abc".into())].into(),
        paused: true,
        pause_until_ms: Some(40_000),
        asleep: Some(Asleep {
            since_ms: 30_000,
            containers: ["abc".into()].into(),
            unable: ["abc".into()].into(),
            ports: ["80".to_owned()].into(),
        }),
    }
}

/// A ledger with something of everything in it.
fn filled(dir: &Dir) -> Ledger {
    let mut ledger = Ledger::open(&dir.0);
    assert_eq!(ledger.condition(), None);
    let operations: Vec<_> = (1..).zip(orders()).map(|(id, order)| operation(id, order, id != 2)).collect();
    let stop = PlannedStop { service: "web".into(), version: "v1".into(), backends: ["x".into()].into(), at_ms: 9 };
    let change = Change {
        decisions: &[("web", Some(&decision(7))), ("gone", Some(&decision(1)))],
        operations: &operations.iter().collect::<Vec<_>>(),
        stops: Some(&[stop]),
    };
    ledger.commit(change).unwrap();
    ledger.commit(Change { decisions: &[("gone", None)], ..Change::default() }).unwrap();
    ledger
}

#[test]
fn what_was_committed_is_there_again() {
    let dir = Dir::new("again");
    let before = filled(&dir).contents;
    assert_eq!(fs::metadata(&dir.0).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(dir.file()).unwrap().permissions().mode() & 0o777, 0o600);
    let ledger = Ledger::open(&dir.0);
    assert_eq!(ledger.condition(), None);
    assert_eq!(ledger.decisions(), [("web".to_owned(), decision(7))].into());
    assert_eq!(ledger.history(None), before.operations.into_values().collect::<Vec<_>>());
    assert_eq!(ledger.history(Some("web")).iter().map(|operation| operation.id).collect::<Vec<_>>(), [2, 4, 6, 8]);
    assert_eq!(ledger.running().len(), 1);
    assert_eq!((ledger.stops().len(), ledger.next_operation()), (1, 10));
    drop(ledger);
    Ledger::remove_all(&dir.0);
    assert!(!dir.0.exists());
}

#[test]
fn the_oldest_that_have_ended_are_forgotten() {
    let dir = Dir::new("forgotten");
    let mut ledger = Ledger::open(&dir.0);
    let many: Vec<_> = (1..=1010).map(|id| operation(id, Order::Pause(Default::default()), id != 3)).collect();
    ledger.commit(Change { operations: &many.iter().collect::<Vec<_>>(), ..Change::default() }).unwrap();
    drop(ledger);
    let kept = Ledger::open(&dir.0).history(None);
    assert_eq!(kept.len(), 1000);
    assert_eq!(kept.iter().take(2).map(|operation| operation.id).collect::<Vec<_>>(), [3, 12]);
}

/// Something was wrong with the file: it is told and kept aside, and a fresh one is in use.
fn assert_put_aside(dir: &Dir, suffix: &str, said: &str) {
    let mut ledger = Ledger::open(&dir.0);
    let condition = ledger.condition().expect("the file is put aside").clone();
    let aside = dir.names().into_iter().find(|name| name.starts_with(&format!("state.redb.{suffix}-")));
    let aside = aside.unwrap_or_else(|| panic!("{condition}; {:?}", dir.names()));
    assert_eq!((condition.reason, ledger.not_stored()), (Reason::LedgerReplaced, None));
    let message = condition.message;
    assert!(message.contains(said) && message.contains(&aside) && !message.contains('\n'), "{message}");
    assert!(ledger.decisions().is_empty());
    ledger.commit(Change { decisions: &[("web", Some(&decision(1)))], ..Change::default() }).unwrap();
    drop(ledger);
    let again = Ledger::open(&dir.0);
    assert_eq!((again.decisions().len(), again.condition()), (1, None));
}

#[test]
fn damage_is_kept_aside() {
    let dir = Dir::new("damage");
    drop(filled(&dir));
    let good = fs::read(dir.file()).unwrap();
    for bytes in [&[][..], b"x", &good[..good.len() / 2], &good[..4096], &vec![0xa5; 8192]] {
        Ledger::remove_all(&dir.0);
        fs::create_dir_all(&dir.0).unwrap();
        fs::write(dir.file(), bytes).unwrap();
        assert_put_aside(&dir, "damaged", "is damaged");
    }
}

#[test]
fn no_damaged_byte_is_believed() {
    let dir = Dir::new("bytes");
    let before = filled(&dir).contents;
    let good = fs::read(dir.file()).unwrap();
    let (mut seed, mut noticed) = (1_u64, 0);
    let count = if cfg!(debug_assertions) { 150 } else { 2000 };
    for _ in 0..count {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bytes = good.clone();
        // Mostly where something is.
        let places: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
        let at = places[(seed >> 33) as usize % places.len()];
        bytes[at] ^= 1 << (seed >> 20 & 7);
        fs::write(dir.file(), &bytes).unwrap();
        let ledger = Ledger::open(&dir.0);
        if ledger.condition().is_some() {
            noticed += 1;
            assert!(ledger.decisions().is_empty() && ledger.history(None).is_empty());
        } else {
            assert_eq!(ledger.decisions(), before.decisions, "byte {at}");
            assert_eq!(ledger.history(None), before.operations.values().cloned().collect::<Vec<_>>(), "byte {at}");
        }
    }
    println!("{noticed} of {count} damaged bytes were noticed; the others changed nothing that is read");
    assert!(noticed > 0);
}

#[test]
fn another_layout_is_kept_aside() {
    let dir = Dir::new("layout");
    drop(filled(&dir));
    let db = redb::Database::open(dir.file()).unwrap();
    let write = db.begin_write().unwrap();
    write.open_table(disk::META).unwrap().insert("layout", 0).unwrap();
    write.commit().unwrap();
    drop(db);
    assert_put_aside(&dir, "layout-0", "layout 0");
}

#[test]
fn without_a_file_it_works_in_memory() {
    let dir = Dir::new("memory");
    fs::create_dir_all(&dir.0).unwrap();
    let below_a_file = dir.0.join("file/state");
    fs::write(dir.0.join("file"), "").unwrap();
    let mut ledger = Ledger::open(&below_a_file);
    let condition = ledger.condition().expect("it cannot be used");
    assert_eq!(condition.reason, Reason::LedgerUnusable);
    assert!(condition.message.contains("file/state/state.redb"), "{condition}");
    assert_eq!(ledger.not_stored(), Some(condition));
    ledger.commit(Change { decisions: &[("web", Some(&decision(1)))], ..Change::default() }).unwrap();
    assert_eq!(ledger.decisions().len(), 1);
    // Locked by another: its file is left alone.
    let first = filled(&dir);
    let second = Ledger::open(&dir.0);
    let condition = second.condition().expect("it cannot be used");
    assert!(condition.message.contains("another process"), "{condition}");
    assert_eq!(dir.names(), ["file", "state.redb"]);
    assert_eq!((first.decisions().len(), second.decisions().len()), (1, 0));
}

#[test]
fn a_write_that_failed_is_made_up_for() {
    let dir = Dir::new("failed");
    let mut ledger = filled(&dir);
    let error = ledger.failed(&Fault::Unusable("No space left on device".into())).to_string();
    assert!(error.contains("state.redb") && error.contains("No space"), "{error}");
    assert_eq!(ledger.condition().map(|condition| condition.reason), Some(Reason::LedgerNotWritten));
    assert_eq!(ledger.not_stored(), ledger.condition());
    let late = operation(50, Order::Pause(Default::default()), true);
    ledger.contents.apply(&Change { operations: &[&late], ..Change::default() });
    ledger.unstored.insert(50);
    assert!(ledger.told(late.clone()).not_stored.is_some_and(|reason| reason.contains("No space")));
    assert_eq!(ledger.told(operation(49, Order::Pause(Default::default()), true)).not_stored, None);
    ledger.commit(Change { decisions: &[("shop", Some(&decision(2)))], ..Change::default() }).unwrap();
    assert_eq!((ledger.condition(), ledger.told(late).not_stored), (None, None));
    let before = std::mem::take(&mut ledger.contents);
    drop(ledger);
    let again = Ledger::open(&dir.0);
    assert_eq!(again.decisions(), before.decisions);
    assert_eq!((again.next_operation(), again.history(None).len()), (51, before.operations.len()));
}

#[test]
fn how_long_a_commit_takes() {
    let dir = Dir::new("time");
    let mut ledger = filled(&dir);
    let mut took = Vec::new();
    for id in 10..210 {
        let (operation, decision) = (operation(id, orders().remove(0), true), decision(id as u32));
        let began = Instant::now();
        let change = Change { decisions: &[("web", Some(&decision))], operations: &[&operation], stops: None };
        ledger.commit(change).unwrap();
        took.push(began.elapsed());
    }
    took.sort();
    let began = Instant::now();
    drop(ledger);
    assert_eq!(Ledger::open(&dir.0).condition(), None);
    println!("a commit: median {:?}, worst {:?}; to open again {:?}", took[100], took[199], began.elapsed());
}

/// Commits until it is killed, and says what is durable.
fn commit_for_ever(dir: &Path) {
    let mut ledger = Ledger::open(dir);
    assert_eq!(ledger.condition(), None);
    for id in ledger.next_operation().. {
        let change = Change {
            decisions: &[("web", Some(&decision(id as u32)))],
            operations: &[&operation(id, orders().remove(0), true)],
            stops: Some(&[]),
        };
        ledger.commit(change).unwrap();
        println!("\nacknowledged {id}");
    }
}

#[test]
fn kill_in_the_midst() {
    // The child is this test again.
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return commit_for_ever(Path::new(&dir));
    }
    let dir = Dir::new("kill");
    let mut last = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "daemon::ledger::tests::kill_in_the_midst", "--nocapture"]);
        let mut child = child.env(CHILD_DIR, &dir.0).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut said = || lines.find_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        last = said().expect("a first commit");
        std::thread::sleep(Duration::from_micros(1000 + 1370 * round));
        child.kill().unwrap();
        while let Some(id) = said() {
            last = id;
        }
        child.wait().unwrap();
        let ledger = Ledger::open(&dir.0);
        assert_eq!(ledger.condition(), None, "round {round}");
        let next = ledger.next_operation();
        assert!(next == last + 1 || next == last + 2, "round {round}: {last} was acknowledged, {next} is next");
        // One transaction: decision and operation are of the same.
        assert_eq!(u64::from(ledger.decisions()["web"].revision), next - 1, "round {round}");
    }
    println!("20 kills, {last} commits");
}

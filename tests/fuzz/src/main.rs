//! The targets under libFuzzer, in one program: `POD_STEER_FUZZ_TARGET` names the target.
#![no_main]

use std::{cell::RefCell, panic, process::abort, sync::OnceLock};

use pod_steer_fuzz::{TARGETS, Target, target};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Most address space: an allocation beyond it fails, and ends the run as a crash does.
const ADDRESS_SPACE_BYTES: u64 = 4 << 30;

static TARGET: OnceLock<Target> = OnceLock::new();

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

libfuzzer_sys::fuzz_target!(init: prepare(), |input: &[u8]| {
    let Some(target) = TARGET.get() else { return };
    if panic::catch_unwind(|| (target.run)(input)).is_err() {
        LAST_PANIC.with_borrow(|text| eprintln!("{text}"));
        abort();
    }
});

fn prepare() {
    let named = std::env::var("POD_STEER_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = target(&named) else {
        eprintln!("POD_STEER_FUZZ_TARGET={named:?} is no target; use one of {:?}", TARGETS.map(|target| target.name));
        std::process::exit(2);
    };
    TARGET.get_or_init(|| target);
    let limit = Rlimit { current: Some(ADDRESS_SPACE_BYTES), maximum: Some(ADDRESS_SPACE_BYTES) };
    if let Err(error) = setrlimit(Resource::As, limit) {
        eprintln!("cannot limit the address space: {error}");
        std::process::exit(2);
    }
    // pod-steer catches the panics of redb. A panic that it does not catch is the failure, and only that one is printed.
    panic::set_hook(Box::new(|panic| {
        let text = format!("{panic}\n{}", std::backtrace::Backtrace::capture());
        LAST_PANIC.set(text);
    }));
}

//! Shared by all tests: the matrix of strategies, policies and backings, raw accesses whose signals are caught, child
//! processes, and counts of objects that must not leak.

pub(crate) mod child;
pub(crate) mod count;
pub(crate) mod forking;
#[macro_use]
pub(crate) mod fuzz;
pub(crate) mod matrix;
pub(crate) mod memory_map;
pub(crate) mod raw;
pub(crate) mod stopper;
pub(crate) mod storm;
pub(crate) mod stress;
pub(crate) mod waiter;
pub(crate) mod watchdog;

use revocable_mmio::{Mapping, Region};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// Every test calls this first. Catches signals, and applies `REVOCABLE_PRETEND` (names of
/// [`Feature`](revocable_mmio::Feature), separated by commas) before the first probe of a feature.
pub(crate) fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        raw::catch_signals();
        let Ok(names) = std::env::var("REVOCABLE_PRETEND") else { return };
        pretend_missing(&names);
    });
}

#[cfg(revocable_inject)]
fn pretend_missing(names: &str) {
    use revocable_mmio::{Feature, Support};
    let missing = names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| Feature::from_name(name).unwrap_or_else(|| panic!("no feature is called {name}")))
        .fold(Feature::empty(), Feature::union);
    Support::pretend_missing(missing);
}

#[cfg(not(revocable_inject))]
fn pretend_missing(names: &str) {
    panic!("REVOCABLE_PRETEND={names} needs --cfg revocable_inject");
}

/// True if nothing is restricted on purpose: the process is root, and no feature is hidden.
pub(crate) fn at_its_best() -> bool {
    is_root() && std::env::var_os("REVOCABLE_PRETEND").is_none()
}

/// The kernel's series.
pub(crate) fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("there is /proc");
    let mut parts = text.split(['.', '-']).map_while(|part| part.parse().ok());
    (parts.next().expect("a number"), parts.next().expect("a number"))
}

/// Prints why a test, or a part of it, does not run. Panics if it could have run, where everything must run.
pub(crate) fn skip(why: &str, could: bool) {
    // Past the test harness's capture, which hides the output of a test that passes; as one write, beside other threads'.
    let _ = std::io::stderr().write_all(format!("SKIP: {why}\n").as_bytes());
    let must = std::env::var_os("REVOCABLE_CI").is_some_and(|value| value == "1");
    assert!(!(must && could), "skipped on a machine that could run it: {why}");
}

/// Returns from the test, and prints why, unless the condition holds. The last argument says whether this machine could
/// do it.
#[macro_export]
macro_rules! require {
    ($have:expr, $why:expr, could: $could:expr) => {
        if !$have {
            $crate::support::skip($why, $could);
            return;
        }
    };
    ($have:expr, $why:expr) => {
        require!(
            $have,
            $why,
            could: $crate::support::at_its_best() && std::path::Path::new("/dev/userfaultfd").exists()
        )
    };
}

pub(crate) fn is_root() -> bool {
    // /proc/self belongs to the effective user.
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// The size of a page of the kernel's, in bytes.
pub(crate) fn page_size() -> usize {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).expect("the kernel tells")
}

/// The address of a mapping, for accesses by raw pointer and by system call.
pub(crate) fn addr(mapping: &Mapping) -> usize {
    mapping.as_ptr().expose_provenance()
}

/// Runs `meanwhile` while another thread resets the region. The reset ends when `meanwhile` drops the sender or
/// returns.
pub(crate) fn busy<R>(region: &Region, meanwhile: impl FnOnce(mpsc::Sender<()>) -> R) -> R {
    thread::scope(|scope| {
        let (inside, is_inside) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let holder = scope.spawn(move || {
            region.reset(|_| {
                inside.send(()).expect("the test waits for it");
                let _ = ends.recv();
            })
        });
        is_inside.recv().expect("the reset begins");
        let result = meanwhile(end);
        holder.join().expect("no panic").expect("the reset ends");
        result
    })
}

/// Waits until `done`, and panics after ten seconds, or what that is on a slow machine.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let (since, patience) = (Instant::now(), patience(Duration::from_secs(10)));
    while !done() {
        assert!(since.elapsed() < patience, "waited for {patience:?} until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// True if the processors are emulated by software. Everything takes ten times as long then, or more.
pub(crate) fn on_slow_machine() -> bool {
    std::env::var_os("REVOCABLE_VM").is_some()
}

/// How long to wait for what takes less than `usual`, before it counts as a hang. The emulated machine is ten times as slow, and
/// three times more where its host has other work; a patience that is too long costs only a test that hangs.
pub(crate) fn patience(usual: Duration) -> Duration {
    if on_slow_machine() { usual * 30 } else { usual }
}

/// Long enough for a thread to get to where it waits.
pub(crate) fn a_moment() {
    std::thread::sleep(Duration::from_millis(if on_slow_machine() { 240 } else { 30 }));
}

/// How long a stress test runs: `REVOCABLE_STRESS_SECONDS`, or this many milliseconds.
pub(crate) fn stress_time(default_ms: u64) -> Duration {
    let asked = std::env::var("REVOCABLE_STRESS_SECONDS").ok().and_then(|s| s.parse().ok());
    asked.map_or(Duration::from_millis(default_ms), Duration::from_secs)
}

pub(crate) fn read_text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path.as_ref()).unwrap_or_default()
}

/// Sets a flag at the end of its scope, also by a panic: other threads look at it.
pub(crate) struct AtTheEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

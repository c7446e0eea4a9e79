//! A monitor that stands still for an unlimited time. Accesses that need it wait, all others go on, and no revoked
//! memory is reached. Each test resumes the monitor only at its end.

use crate::support;
use crate::support::addr;
use crate::support::stopper::{Stop, Stopped};
use crate::support::watchdog::Watchdog;
use crate::support::{a_moment, eventually, raw, read_text};
use nix::errno::Errno;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, Caller, MapOptions, Mapping, Monitor, OnDisabled, Region, RevokeError, Strategy};
use revocable_mmio::{FaultQueue, Submitted};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

fn zap_possible() -> bool {
    Region::builder(4096).strategy(Strategy::Zap).build().is_ok()
}

/// A monitor of one thread, and that thread's number once it runs.
fn monitor() -> (Monitor, Arc<AtomicI32>) {
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    let tid = Arc::new(AtomicI32::new(0));
    let told = Arc::clone(&tid);
    monitor.on_thread_start(move || told.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst));
    (monitor, tid)
}

fn zap_region(monitor: &Monitor) -> Region {
    let region = Region::builder(1 << 20).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("it builds");
    region.owner().write(0, 7u64).expect("the owner writes");
    region
}

/// Stops the monitor's thread, which sleeps. Returns `None`, and reports a skip, where tracing is forbidden.
fn stop(tid: &AtomicI32, how: Stop) -> Option<Stopped> {
    eventually("the monitor runs", || tid.load(Ordering::SeqCst) != 0);
    let tid = tid.load(Ordering::SeqCst);
    eventually("it sleeps", || read_text(format!("/proc/self/task/{tid}/stat")).contains(") S "));
    match Stopped::new(tid, how) {
        Ok(stopped) => Some(stopped),
        Err(e) => {
            support::skip(&format!("threads can't be traced here: {e}"), support::at_its_best());
            None
        }
    }
}

/// Everything that must work without the monitor, with a region of its own and two mappings.
fn everything_but_the_monitor_goes_on(monitor: &Monitor, resume: impl FnOnce()) {
    let region = zap_region(monitor);
    let sigbus = region.map(MapOptions::new()).expect("it maps");
    let block = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
    let own = region.map(MapOptions::new().accessors_only()).expect("it maps");
    let read = || own.read::<u64>(0);
    let (at, at_block) = (addr(&sigbus), addr(&block));

    // Accesses that need no monitor.
    assert_eq!(read(), Ok(7));
    assert_eq!(sigbus.try_read::<u64>(0), Ok(7));
    drop(region.pin(0..8, FaultFlags::WAIT).expect("a pin needs no monitor"));

    // A revocation ends the loads that wait for the monitor. The policy decides whether they are refused.
    let refused = thread::spawn(move || raw::load64(at));
    let waits = thread::spawn(move || raw::load64(at_block));
    a_moment();
    assert!(!refused.is_finished() && !waits.is_finished(), "no thread resolves their faults");
    assert!(region.disable().expect("nothing is in the way"));
    assert_eq!(refused.join().expect("no panic"), Err(raw::Hit::bus(at)));
    assert_eq!(read().ok(), None);
    assert_eq!(raw::load64(at), Err(raw::Hit::bus(at)));

    let queue = FaultQueue::new(4).expect("an eventfd");
    let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
    let Ok(Submitted::Queued(_token)) = region.fault_async(0, caller, &queue) else { panic!("it is disabled") };
    assert!(region.enable().expect("nothing is in the way"));
    assert_eq!(queue.next().expect("told").result, Ok(()));
    assert_eq!(read(), Ok(7));
    region.reset(|owner| owner.write(0, 8u64)).expect("nothing is in the way").expect("the owner writes");
    assert_eq!(read(), Ok(8));
    for _ in 0..100 {
        assert!(region.disable().expect("nothing is in the way"));
        assert!(region.enable().expect("nothing is in the way"));
    }
    // A restore may have ended the waiting load: until the range is registered, the kernel maps its pages without the
    // monitor.

    // Other strategies give the memory back without the monitor.
    for strategy in [Strategy::Detach, Strategy::Replace] {
        let Ok(other) = Region::builder(1 << 20).strategy(strategy).monitor(monitor.clone()).build() else { continue };
        let mapping = other.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
        let at = addr(&mapping);
        assert!(other.disable().expect("nothing is in the way"));
        let load = thread::spawn(move || raw::load64(at));
        a_moment();
        assert!(other.enable().expect("nothing is in the way"));
        assert_eq!(load.join().expect("no panic"), Ok(0), "{strategy}");
    }

    resume();
    assert!(matches!(waits.join().expect("no panic"), Ok(7 | 8)));
    assert_eq!(raw::load64(at), Ok(8));
}

#[test]
fn revoking_and_restoring_need_no_monitor_and_who_needs_it_waits_for_it() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let _watchdog = Watchdog::new("a stopped monitor", Duration::from_secs(30));
    let (monitor, tid) = monitor();
    let first = zap_region(&monitor);
    let _started = first.map(MapOptions::new()).expect("it maps");
    let Some(mut stopped) = stop(&tid, Stop::Now) else { return };
    stopped.stands();
    everything_but_the_monitor_goes_on(&monitor, || drop(stopped));
}

#[test]
fn a_callback_that_keeps_the_monitor_from_starting_holds_up_only_who_needs_it() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let _watchdog = Watchdog::new("a slow callback", Duration::from_secs(30));
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    let (go, wait) = mpsc::channel::<()>();
    let wait = parking_lot::Mutex::new(wait);
    monitor.on_thread_start(move || {
        let _ = wait.lock().recv();
    });
    everything_but_the_monitor_goes_on(&monitor, || drop(go));
}

/// A monitor that stands in the middle of its answer to a load.
struct InAnAnswer {
    region: Region,
    mapping: Mapping,
    at: usize,
    load: JoinHandle<Result<u64, raw::Hit>>,
    stopped: Stopped,
}

impl InAnAnswer {
    fn begin() -> Option<Self> {
        let (monitor, tid) = monitor();
        let region = zap_region(&monitor);
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let mut stopped = stop(&tid, Stop::AtIoctl)?;
        let at = addr(&mapping);
        let load = thread::spawn(move || raw::load64(at));
        // The monitor has the read side of the memory lock now, and is about to map the page.
        stopped.stands();
        Some(Self { region, mapping, at, load, stopped })
    }
}

#[test]
fn a_monitor_that_stands_in_the_middle_of_an_answer_is_waited_for_and_the_wait_can_be_given_up() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let _watchdog = Watchdog::new("a monitor stopped in a fault", Duration::from_secs(30));
    let Some(InAnAnswer { region, mapping, at, load, stopped }) = InAnAnswer::begin() else { return };
    assert!(matches!(region.try_disable(), Err(RevokeError::Busy(_))));
    let patience = Duration::from_millis(100);
    assert!(matches!(region.disable_timeout(patience), Err(RevokeError::TimedOut { .. })));
    assert!(region.is_enabled());
    assert_eq!(mapping.try_read::<u64>(0), Ok(7), "nothing was changed");
    thread::scope(|scope| {
        let disable = scope.spawn(|| region.disable());
        a_moment();
        assert!(!disable.is_finished(), "the page that is being mapped must not outlive the revocation");
        drop(stopped);
        assert!(disable.join().expect("no panic").expect("it revokes"));
    });
    let loaded = load.join().expect("no panic");
    assert!(loaded == Ok(7) || loaded == Err(raw::Hit::bus(at)), "{loaded:?}");
    assert_eq!(raw::load64(at), Err(raw::Hit::bus(at)));
    assert_eq!(raw::write_from(at, 8), Err(Errno::EFAULT));
}

#[test]
fn a_region_that_is_dropped_while_a_monitor_stands_in_an_answer_is_gone_when_the_drop_returns() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let _watchdog = Watchdog::new("a monitor stopped in a fault", Duration::from_secs(30));
    let Some(InAnAnswer { region, mapping, at, load, stopped }) = InAnAnswer::begin() else { return };
    let dropping = thread::spawn(move || drop(region));
    // Longer than a `try_` verb waits.
    thread::sleep(Duration::from_millis(300));
    assert!(!dropping.is_finished(), "the page that is being mapped must not outlive the region");
    drop(stopped);
    dropping.join().expect("no panic");
    assert_eq!(mapping.read::<u64>(0), Err(AccessError::Gone { offset: 0 }));
    assert_eq!(raw::load64(at), Err(raw::Hit::bus(at)));
    let loaded = load.join().expect("no panic");
    assert!(loaded == Ok(7) || loaded == Err(raw::Hit::bus(at)), "{loaded:?}");
}

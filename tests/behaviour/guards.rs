//! A guard keeps its region enabled. Its holder deadlocks with no revocation, whatever it does meanwhile.

use crate::support::{self, busy};
use revocable_mmio::fault::{FaultFlags, NoLock, Outcome};
use revocable_mmio::{Access, AccessError, FaultAround, MapOptions, Mapping, Monitor, Region, RevokeError, Strategy};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;
const PAGE: usize = 4096;
const A_WHILE: Duration = Duration::from_millis(40);

fn region() -> Region {
    Region::builder(LEN).build().expect("it builds")
}

fn mapping(region: &Region) -> Mapping {
    region.map(MapOptions::new()).expect("it maps")
}

/// A region whose pages are mapped one by one, by userfaultfd. `None` where there is no userfaultfd.
fn zapped() -> Option<Region> {
    let region = Region::builder(LEN).strategy(Strategy::Zap).fault_around(FaultAround::Pages(1)).build();
    region.map_err(|e| support::skip(&e.to_string(), support::at_its_best())).ok()
}

fn own_tid() -> i32 {
    nix::unistd::gettid().as_raw()
}

#[expect(unsafe_code, reason = "raw accesses under a guard are what guards are for")]
fn raw_load(mapping: &Mapping, offset: usize) -> u64 {
    // SAFETY: inside the mapping, and its region is enabled as the caller holds a guard.
    unsafe { mapping.as_ptr().wrapping_add(offset).cast::<u64>().read_volatile() }
}

/// Runs `holder` under a guard while `disable()` waits for it; then the region gets disabled.
fn while_disable_waits(region: &Region, mapping: &Mapping, holder: impl FnOnce()) {
    thread::scope(|scope| {
        let access = mapping.try_access().expect("enabled");
        let disabler = scope.spawn(|| region.disable());
        let is_shut =
            || thread::scope(|scope| scope.spawn(|| mapping.try_access().map(drop)).join()).expect("no panic");
        support::eventually("it waits for the guard", || is_shut().is_err());
        thread::sleep(A_WHILE);
        assert!(!disabler.is_finished(), "it does not wait for the guard");
        holder();
        assert!(!disabler.is_finished(), "it does not wait for the guard");
        drop(access);
        assert!(disabler.join().expect("no panic").expect("disabled"));
    });
    assert!(!region.is_enabled());
}

#[test]
fn a_guard_is_had_while_enabled_and_says_why_not_otherwise() {
    support::start();
    let region = region();
    let mapping = mapping(&region);
    assert_eq!(mapping.with_access(|access| access.write(0, 3u64)), Ok(Ok(())));
    assert_eq!(raw_load(&mapping.try_access().expect("enabled"), 0), 3);
    assert_eq!(region.stats().guards, 0);
    region
        .reset(|_| {
            assert_eq!(mapping.try_access().map(drop), Err(AccessError::WouldBlock { offset: AccessError::WHOLE }))
        })
        .expect("nothing is in the way");
    assert!(region.disable().expect("nothing is in the way"));
    assert_eq!(mapping.try_access().map(drop), Err(AccessError::Disabled { offset: AccessError::WHOLE }));
    assert_eq!(mapping.with_access(|_| ()), Err(AccessError::Disabled { offset: AccessError::WHOLE }));
    drop(region);
    assert_eq!(mapping.try_access().map(drop), Err(AccessError::Gone { offset: AccessError::WHOLE }));
}

#[test]
fn the_stats_and_the_refusals_name_who_holds_guards() {
    support::start();
    let region = region();
    let mapping = mapping(&region);
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let mapping = &mapping;
        scope.spawn(move || {
            let _guards = (mapping.try_access().expect("enabled"), mapping.try_access().expect("enabled"));
            tell.send(own_tid()).expect("the test listens");
            let _ = ends.recv();
        });
        let tid = told.recv().expect("the guards are held");
        assert_eq!(region.stats().guards, 2);
        let Err(RevokeError::Busy(holders)) = region.try_disable() else { panic!("a guard is held") };
        assert_eq!(holders.guards.iter().map(|held| (held.tid, held.count)).collect::<Vec<_>>(), [(tid, 2)]);
        let error = region.disable_timeout(A_WHILE).expect_err("a guard is held");
        assert!(error.to_string().contains(&format!("thread {tid}: 2 for at least")), "{error}");
        let RevokeError::TimedOut { waited, holders } = error else { panic!("{error}") };
        assert!(waited >= A_WHILE / 2 && holders.guards[0].held_for_at_least >= A_WHILE / 2, "{waited:?} {holders:?}");
        assert!(region.is_enabled());
        assert_eq!(mapping.read::<u8>(0), Ok(0), "given up: all is as before");
        drop(end);
    });
    assert!(region.disable().expect("no guard is left"));
}

#[test]
fn a_guards_own_holder_is_told_that_it_would_deadlock() {
    support::start();
    let region = region();
    let mapping = mapping(&region);
    let access = mapping.try_access().expect("enabled");
    for refused in [region.disable(), region.try_disable(), region.disable_timeout(A_WHILE)] {
        assert!(matches!(refused, Err(RevokeError::WouldDeadlock { guards: 1 })), "{refused:?}");
    }
    assert!(matches!(region.reset(|_| ()), Err(RevokeError::WouldDeadlock { guards: 1 })));
    assert!(!region.enable().expect("it is enabled already"));
    drop(access);
    assert!(region.disable().expect("no guard is left"));
}

/// The other thread has the right to change the state and waits for this one's guard. Waiting for that right would
/// never end.
#[test]
fn a_guards_own_holder_is_told_so_while_another_thread_waits_for_the_guard() {
    support::start();
    let region = region();
    let mapping = mapping(&region);
    while_disable_waits(&region, &mapping, || {
        assert!(matches!(region.disable(), Err(RevokeError::WouldDeadlock { guards: 1 })));
        assert!(matches!(region.reset(|_| ()), Err(RevokeError::WouldDeadlock { guards: 1 })));
        assert!(!region.enable().expect("enabled as long as the guard lives"));
    });
}

#[test]
fn a_guards_holder_that_faults_while_disable_waits_gets_its_page() {
    support::start();
    let Some(region) = zapped() else { return };
    let mapping = mapping(&region);
    for page in 0..8 {
        region.owner().write(page * PAGE, page as u64).expect("the owner's view is always there");
    }
    while_disable_waits(&region, &mapping, || {
        assert_eq!(raw_load(&mapping, PAGE), 1, "a raw pointer");
        assert_eq!(mapping.read::<u64>(2 * PAGE), Ok(2), "an access");
        assert_eq!(mapping.fetch_or(3 * PAGE, 8u64), Ok(3), "one that looks at the state first");
        assert_eq!(mapping.read_with::<u64>(4 * PAGE, FaultFlags::WAIT), Ok(4), "one on its behalf");
        assert_eq!(mapping.fault(5 * PAGE, FaultFlags::NOWAIT, &mut NoLock::default()), Ok(Outcome::Mapped));
        let mut bytes = [0xee; 2 * PAGE];
        mapping.read_slice(6 * PAGE, &mut bytes).expect("enabled");
        assert_eq!((bytes[0], bytes[PAGE]), (6, 7), "a copy");
        let other = region.map(MapOptions::new().len(PAGE)).expect("a new mapping");
        assert_eq!(other.read::<u64>(0), Ok(0));
    });
    assert_eq!(mapping.read::<u64>(0), Err(AccessError::Disabled { offset: 0 }));
}

#[test]
fn a_guards_holder_resolves_its_own_faults_while_disable_waits() {
    support::start();
    let Some(region) = zapped() else { return };
    let mapping = region.map(MapOptions::new().accessors_only()).expect("it maps");
    region.owner().write(PAGE, 9u64).expect("the owner's view is always there");
    while_disable_waits(&region, &mapping, || {
        assert_eq!(mapping.read::<u64>(PAGE), Ok(9));
        assert_eq!(mapping.write(2 * PAGE, 1u64), Ok(()));
        assert_eq!(mapping.compare_exchange(PAGE, 9u64, 10), Ok(Ok(9)));
    });
}

#[test]
fn a_guards_holder_pins_while_disable_waits_and_the_pin_is_waited_for_too() {
    support::start();
    let region = region();
    let mapping = mapping(&region);
    thread::scope(|scope| {
        let access = mapping.try_access().expect("enabled");
        let disabler = scope.spawn(|| region.disable());
        thread::sleep(A_WHILE);
        let pin = region.pin(0..PAGE, FaultFlags::WAIT).expect("the region stays enabled");
        drop(access);
        thread::sleep(A_WHILE);
        assert!(!disabler.is_finished(), "it does not wait for the pin");
        drop(pin);
        assert!(disabler.join().expect("no panic").expect("disabled"));
    });
}

/// The waiting thread is the one that would resolve the fault.
#[test]
fn whoever_drives_a_monitor_answers_faults_while_it_waits_for_guards_and_pins() {
    support::start();
    let Ok(monitor) = Monitor::manual() else { return support::skip("no userfaultfd", support::at_its_best()) };
    let around = FaultAround::Pages(1);
    let region = Region::builder(LEN).strategy(Strategy::Zap).fault_around(around).monitor(monitor).build();
    let Ok(region) = region else { return support::skip("no userfaultfd with minor faults", support::at_its_best()) };
    let mapping = mapping(&region);
    for pinned in [false, true] {
        thread::scope(|scope| {
            let (held, is_held) = mpsc::channel();
            let (region, mapping) = (&region, &mapping);
            scope.spawn(move || {
                let _pin = pinned.then(|| region.pin(0..PAGE, FaultFlags::WAIT).expect("enabled"));
                let _access = (!pinned).then(|| mapping.try_access().expect("enabled"));
                held.send(()).expect("the test listens");
                thread::sleep(A_WHILE);
                assert_eq!(raw_load(mapping, 9 * PAGE), 0);
            });
            is_held.recv().expect("held");
            assert!(region.disable().expect("the holder gets its page, and lets go"));
        });
        assert!(region.enable().expect("it can be given back"));
    }
}

#[test]
fn guards_nest_also_while_disable_waits() {
    support::start();
    let region = region();
    let mapping = mapping(&region);
    while_disable_waits(&region, &mapping, || {
        let inner = mapping.try_access().expect("a guard inside of a guard");
        assert_eq!(mapping.with_access(|_| region.stats().guards), Ok(3));
        drop(inner);
        let elsewhere = thread::scope(|scope| scope.spawn(|| mapping.try_access().map(drop)).join());
        assert_eq!(
            elsewhere.expect("no panic"),
            Err(AccessError::WouldBlock { offset: AccessError::WHOLE }),
            "another thread's does not"
        );
    });
}

#[test]
fn who_wants_a_guard_of_a_busy_region_waits_for_it() {
    support::start();
    let region = region();
    let mapping = mapping(&region);
    busy(&region, |end| {
        thread::scope(|scope| {
            let waiter = scope.spawn(|| mapping.with_access(|access| access.read::<u8>(0)));
            thread::sleep(A_WHILE);
            assert!(!waiter.is_finished(), "it does not wait");
            drop(end);
            assert_eq!(waiter.join().expect("no panic"), Ok(Ok(0)));
        });
    });
}

#[test]
fn no_guard_of_any_of_many_threads_lives_while_disabled() {
    support::start();
    const THREADS: usize = 8;
    let region = region();
    let mapping = mapping(&region);
    let (revoked, stop, entered) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let start = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(access) = mapping.try_access() {
                        assert!(!revoked.load(Ordering::SeqCst), "a guard of a revoked region");
                        assert_eq!(raw_load(&access, 64), 0);
                        assert!(!revoked.load(Ordering::SeqCst), "revoked under a guard");
                        entered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        start.wait();
        for _ in 0..50 {
            assert!(region.disable().expect("guards end"));
            revoked.store(true, Ordering::SeqCst);
            thread::yield_now();
            revoked.store(false, Ordering::SeqCst);
            assert!(region.enable().expect("it can be given back"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(entered.load(Ordering::Relaxed) > 0, "no guard was ever had");
    assert_eq!(region.stats().guards, 0);
}

/// Holds a guard until its thread's last destructors run, reports that, and waits until it may go on.
#[derive(Default)]
struct Kept(Cell<Option<Holding>>);

type Holding = (Access<'static>, mpsc::Sender<()>, mpsc::Receiver<()>);

impl Drop for Kept {
    fn drop(&mut self) {
        let (access, ending, go_on) = self.0.take().expect("set");
        let _ = ending.send(());
        let _ = go_on.recv();
        drop(access);
    }
}

thread_local!(static KEPT: Kept = Kept::default());

#[test]
fn a_guard_in_a_thread_local_is_its_threads_until_the_last_destructor() {
    support::start();
    let region = region();
    let kept: &'static Mapping = Box::leak(Box::new(mapping(&region)));
    let (ending, is_ending) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let holder = thread::spawn(move || {
        // Used before any guard, so that it is dropped after everything that guards need.
        KEPT.with(|_| ());
        let access = kept.try_access().expect("enabled");
        KEPT.with(|slot| slot.0.set(Some((access, ending, may_go_on))));
    });
    is_ending.recv().expect("its destructors run");
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(matches!(region.try_disable(), Err(RevokeError::Busy(_))), "the guard is another thread's");
            drop(kept.try_access().expect("enabled"));
            assert!(matches!(region.try_disable(), Err(RevokeError::Busy(_))), "the guard is another thread's");
            go_on.send(()).expect("it waits");
            assert!(region.disable().expect("the guard ends"));
        });
    });
    holder.join().expect("no panic");
    assert_eq!(region.stats().guards, 0);
}

#[test]
fn a_leaked_guard_keeps_its_region_enabled_and_is_not_another_threads() {
    support::start();
    // A thread of another test that is about to take the number would be seen half-way.
    let ended = support::child::alone(|| {
        let region = region();
        let mapping = mapping(&region);
        thread::scope(|scope| {
            scope.spawn(|| std::mem::forget(mapping.try_access().expect("enabled")));
        });
        // A scope ends when the closures of its threads have ended. The threads themselves end a moment later.
        let leaked = || matches!(region.try_disable(), Err(RevokeError::Busy(holders)) if holders.guards[0].tid == 0);
        let since = Instant::now();
        while !leaked() {
            assert!(since.elapsed() < crate::support::patience(Duration::from_secs(10)), "the thread has ended");
            thread::yield_now();
        }
        for _ in 0..8 {
            thread::scope(|scope| {
                let checks = scope.spawn(|| {
                    let Err(RevokeError::Busy(holders)) = region.try_disable() else { panic!("a guard is leaked") };
                    assert_eq!(holders.guards.iter().map(|held| (held.tid, held.count)).collect::<Vec<_>>(), [(0, 1)]);
                    assert!(matches!(region.disable_timeout(A_WHILE / 4), Err(RevokeError::TimedOut { .. })));
                    let _own = mapping.try_access().expect("enabled");
                    assert!(matches!(region.try_disable(), Err(RevokeError::WouldDeadlock { guards: 1 })));
                });
                // A scope does not wait until its threads have ended, and they keep their numbers until then.
                checks.join().expect("no panic");
            });
        }
        assert!(region.is_enabled());
    });
    ended.well();
}

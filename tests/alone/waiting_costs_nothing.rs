//! A waiting thread sleeps: it uses no processor time, and does not wake up to look. The test prints a table
//! (`--nocapture`) and checks bounds that only a thread that polls or spins exceeds.

use crate::support::addr;
use crate::support::count::{sleeps, thread_time};
use crate::support::matrix::STRATEGIES;
use crate::support::watchdog::Watchdog;
use crate::support::{self, child};
use crate::support::{a_moment, eventually, on_slow_machine, raw, storm};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, Caller, MapOptions, Monitor, OnDisabled, PinError, Region, Strategy, Support};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(300);
/// A thread that polls every 10 ms wakes 30 times in that. A revocation that waits reports it every 100 ms, if it is
/// traced.
const MOST_SLEEPS: u64 = 8;

/// A thread that waits for something, and what ends that.
struct Waiter<'a> {
    what: &'static str,
    wait: Box<dyn FnOnce() + Send + 'a>,
}

/// The cost of a thread during one look.
struct Cost {
    time: Duration,
    sleeps: u64,
}

impl Cost {
    fn is_little(&self) -> bool {
        // Leaves room for noise in the clocks of emulated machines. A thread that spins uses all of the time.
        let limit = Duration::from_millis(if on_slow_machine() { 60 } else { 15 });
        self.time < limit && self.sleeps <= MOST_SLEEPS
    }
}

/// The cost of each of the threads. A thread that spins or polls does so in every look; on a slow machine one may take part of
/// the first to get to where it sleeps.
fn costs_of(tids: &[i32]) -> Vec<Cost> {
    let looks = if on_slow_machine() { 4 } else { 1 };
    let mut costs = costs_now(tids);
    for _ in 1..looks {
        if !costs.iter().all(Cost::is_little) {
            costs = costs_now(tids);
        }
    }
    costs
}

/// The cost of each of the threads in the same stretch of time.
fn costs_now(tids: &[i32]) -> Vec<Cost> {
    let before: Vec<_> = tids.iter().map(|tid| (thread_time(*tid), sleeps(*tid))).collect();
    thread::sleep(LOOK);
    let after = tids.iter().zip(before);
    after.map(|(tid, (time, slept))| Cost { time: thread_time(*tid) - time, sleeps: sleeps(*tid) - slept }).collect()
}

fn check(case: &str, what: &str, cost: &Cost) {
    let per_second = 1.0 / LOOK.as_secs_f64();
    let (time, sleeps) = (cost.time.as_secs_f64() * per_second * 1e6, cost.sleeps);
    println!(
        "| {case} | {what} | {time:.0} us/s | {:.0}/s |",
        f64::from(u32::try_from(sleeps).unwrap_or(0)) * per_second
    );
    assert!(cost.is_little(), "{case}, {what}: {:?} and {sleeps} times in {LOOK:?}", cost.time);
}

/// Looks at each waiter while it waits. `end` ends all the waits.
fn look_at(case: &str, waiters: Vec<Waiter<'_>>, end: impl FnOnce()) {
    let _watchdog = Watchdog::new(case, Duration::from_secs(40));
    let tids: Vec<AtomicI32> = waiters.iter().map(|_| AtomicI32::new(0)).collect();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (waiter, tid) in waiters.into_iter().zip(&tids) {
            let wait = waiter.wait;
            let thread = scope.spawn(move || {
                tid.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
                wait();
            });
            threads.push((waiter.what, thread));
        }
        a_moment();
        eventually("they run", || tids.iter().all(|tid| tid.load(Ordering::SeqCst) != 0));
        let all_wait = || threads.iter().all(|(_, thread)| !thread.is_finished());
        let costs =
            all_wait().then(|| costs_of(&tids.iter().map(|tid| tid.load(Ordering::SeqCst)).collect::<Vec<_>>()));
        let finished: Vec<_> =
            threads.iter().filter(|(_, thread)| thread.is_finished()).map(|(what, _)| *what).collect();
        // Before the checks, one of which may fail and would leave the threads waiting.
        end();
        assert!(finished.is_empty(), "{case}: {finished:?} does not wait");
        for ((what, _), cost) in threads.iter().zip(costs.expect("all of them wait")) {
            check(case, what, &cost);
        }
    });
}

#[test]
fn who_waits_for_a_disabled_region_sleeps() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(1 << 20).strategy(strategy).disabled().build() else { continue };
        let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
        let waiters = vec![
            Waiter { what: "raw load", wait: Box::new(|| assert_eq!(raw::load64(addr(&mapping)), Ok(0))) },
            Waiter { what: "accessor", wait: Box::new(|| assert_eq!(mapping.read::<u64>(0), Ok(0))) },
            Waiter {
                what: "on a caller's behalf",
                wait: Box::new(|| assert_eq!(mapping.read_with::<u64>(0, FaultFlags::DEFAULT), Ok(0))),
            },
            Waiter {
                what: "pin",
                wait: Box::new(|| {
                    let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
                    drop(region.pin(0..8, caller).expect("enabled by now"));
                }),
            },
        ];
        look_at(&format!("{strategy}, disabled"), waiters, || {
            region.enable().expect("it comes back");
        });
    }
}

/// Runs `during` while another thread does something that lasts until `during` drops the sender.
fn while_it_lasts(lasts: impl FnOnce(&dyn Fn()) + Send, during: impl FnOnce(Sender<()>)) {
    let ((begun, begins), (end, ended)) = (channel::<()>(), channel::<()>());
    thread::scope(|scope| {
        scope.spawn(move || {
            lasts(&move || {
                begun.send(()).expect("the test listens");
                let _ = ended.recv();
            });
        });
        begins.recv().expect("it begins");
        during(end);
    });
}

#[test]
fn who_waits_for_a_reset_sleeps() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(1 << 20).strategy(strategy).build() else { continue };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let waiters = vec![
            Waiter { what: "raw load", wait: Box::new(|| assert_eq!(raw::load64(addr(&mapping)), Ok(0))) },
            Waiter { what: "accessor", wait: Box::new(|| assert_eq!(mapping.read::<u64>(0), Ok(0))) },
            Waiter { what: "guard", wait: Box::new(|| mapping.with_access(|_| ()).expect("enabled")) },
            Waiter { what: "another reset", wait: Box::new(|| region.reset(|_| ()).expect("it resets")) },
        ];
        while_it_lasts(
            |last| region.reset(|_| last()).expect("it resets"),
            |end| look_at(&format!("{strategy}, in a reset"), waiters, || drop(end)),
        );
    }
}

#[test]
fn a_revocation_that_waits_for_a_guard_or_a_pin_sleeps_and_so_does_who_waits_for_it() {
    support::start();
    let region = Region::builder(1 << 20).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let busy = || eventually("it is busy", || matches!(mapping.try_access(), Err(AccessError::WouldBlock { .. })));
    let waiters = || {
        vec![
            Waiter { what: "disable()", wait: Box::new(|| assert!(region.disable().is_ok())) },
            Waiter { what: "a second disable()", wait: Box::new(|| assert!(region.disable().is_ok())) },
            Waiter {
                what: "a guard",
                wait: Box::new(|| {
                    busy();
                    assert_eq!(mapping.with_access(|_| ()), Err(AccessError::Disabled { offset: AccessError::WHOLE }));
                }),
            },
            Waiter {
                what: "a pin",
                wait: Box::new(|| {
                    busy();
                    assert_eq!(region.pin(0..8, FaultFlags::WAIT).err(), Some(PinError::Disabled));
                }),
            },
        ]
    };
    while_it_lasts(
        |last| mapping.with_access(|_| last()).expect("enabled"),
        |end| look_at("a guard is held", waiters(), || drop(end)),
    );
    region.enable().expect("it comes back");
    let pin = region.pin(0..8, FaultFlags::WAIT).expect("enabled");
    look_at("a pin is held", waiters(), || drop(pin));
}

#[test]
fn a_monitor_with_nothing_to_do_sleeps() {
    support::start();
    require!(Region::builder(4096).strategy(Strategy::Zap).build().is_ok(), "Zap is not possible");
    let monitor = Monitor::with_threads(2).expect("a userfaultfd");
    let tids = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&tids);
    monitor.on_thread_start(move || told.lock().expect("no panic").push(nix::unistd::gettid().as_raw()));
    let region = Region::builder(1 << 20).strategy(Strategy::Zap).monitor(monitor).build().expect("it builds");
    let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
    eventually("both threads run", || tids.lock().expect("no panic").len() == 2);
    let look = || {
        // After a quick succession of faults the monitor is busy for 20 ms more.
        thread::sleep(Duration::from_millis(100));
        let tids = tids.lock().expect("no panic").clone();
        costs_of(&tids)
    };
    let check = |when, costs: Vec<Cost>| costs.iter().for_each(|cost| check(when, "monitor", cost));
    for at in (0..1 << 20).step_by(4096) {
        assert_eq!(raw::load64(addr(&mapping) + at), Ok(0));
    }
    check("enabled", look());
    region.disable().expect("it revokes");
    let costs = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(raw::load64(addr(&mapping)), Ok(0)));
        }
        let costs = look();
        region.enable().expect("it comes back");
        costs
    });
    check("disabled, with four loads that wait", costs);
}

#[test]
fn a_signal_costs_who_waits_what_it_costs_anybody() {
    support::start();
    child::alone(|| {
        require!(Support::current().userfaultfd(), "no userfaultfd");
        storm::prepare();
        for strategy in STRATEGIES {
            let Ok(region) = Region::builder(1 << 20).strategy(strategy).disabled().build() else { continue };
            let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
            let in_a_storm = |access: &dyn Fn()| {
                let _storm = storm::on_this_thread();
                access();
            };
            let load = || in_a_storm(&|| assert_eq!(raw::load64(addr(&mapping)), Ok(0)));
            let accessor = || in_a_storm(&|| assert_eq!(mapping.read::<u64>(0), Ok(0)));
            let _watchdog = Watchdog::new("waiting in a storm", Duration::from_secs(40));
            for (what, wait) in
                [("raw load", Box::new(load) as Box<dyn FnOnce() + Send + '_>), ("accessor", Box::new(accessor))]
            {
                let tid = AtomicI32::new(0);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        tid.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
                        wait();
                    });
                    eventually("it runs", || tid.load(Ordering::SeqCst) != 0);
                    a_moment();
                    let cost = costs_of(&[tid.load(Ordering::SeqCst)]).remove(0);
                    println!(
                        "| {strategy}, 1000 signals/s | {what} | {:?} in {LOOK:?} | {} sleeps |",
                        cost.time, cost.sleeps
                    );
                    region.enable().expect("it comes back");
                    // A thread that spins between two signals uses all of it.
                    assert!(on_slow_machine() || cost.time < LOOK / 2, "{strategy}, {what}: {:?}", cost.time);
                });
                region.disable().expect("it revokes");
            }
        }
    })
    .well();
}

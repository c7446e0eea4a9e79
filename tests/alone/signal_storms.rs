//! Every thread, asleep or not, gets a thousand signals a second, with handlers that restart no system call. A waiter
//! goes on waiting, is woken as usual, and gets the result that it would get without signals.

mod handlers;

use crate::support;
use crate::support::matrix::STRATEGIES;
use crate::support::watchdog::Watchdog;
use crate::support::{child, raw, storm, stress_time};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{Caller, FaultQueue, MapOptions, Mapping, Monitor, OnDisabled, Region, Submitted, Support};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The region's content while no access may see it, and while every access may.
const FORBIDDEN: u64 = 0xdead;
const OPEN: u64 = 7;

/// A waiter that is interrupted tries again, as any program does.
fn readable(fd: impl AsFd) {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    while poll(&mut fds, PollTimeout::NONE) == Err(Errno::EINTR) {}
}

/// An access that is repeated. It waits whenever the region is busy or disabled.
type Task<'a> = (&'static str, Box<dyn Fn() + Sync + 'a>);

/// Everything that can wait, each with its name.
fn tasks<'a>(region: &'a Region, block: &'a Mapping) -> Vec<Task<'a>> {
    let at = block.as_ptr().expose_provenance();
    let caller = || Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
    let mut tasks: Vec<Task<'a>> = vec![
        ("raw load", Box::new(move || assert_eq!(raw::load64(at), Ok(OPEN)))),
        ("accessor", Box::new(|| assert_eq!(block.read::<u64>(0), Ok(OPEN)))),
        ("on behalf", Box::new(|| assert_eq!(block.read_with::<u64>(0, FaultFlags::DEFAULT), Ok(OPEN)))),
        (
            "bulk",
            Box::new(|| {
                let mut bytes = [0; 8];
                block.read_slice(0, &mut bytes).expect("it waits");
                assert_eq!(u64::from_ne_bytes(bytes), OPEN);
            }),
        ),
        (
            "guard",
            Box::new(move || {
                // A disabled region has no guards, and asking for one does not wait.
                let _ = block.with_access(|_| {
                    thread::sleep(Duration::from_micros(300));
                    assert_eq!(raw::load64(at), Ok(OPEN));
                });
            }),
        ),
        (
            "pin",
            Box::new(move || {
                let pin = region.pin(0..8, caller()).expect("it waits");
                thread::sleep(Duration::from_micros(300));
                assert_eq!(raw::load64(pin.as_ptr().expose_provenance()), Ok(OPEN));
            }),
        ),
        (
            "fault",
            Box::new(move || {
                let queue = FaultQueue::new(1).expect("an eventfd");
                match region.fault_async(0, caller(), &queue).expect("there is room") {
                    Submitted::Queued(token) => {
                        readable(&queue);
                        let told = queue.next().expect("it is readable");
                        assert_eq!((told.id, told.result), (token.id(), Ok(())));
                    }
                    other => assert!(matches!(other, Submitted::Ready), "{other:?}"),
                }
            }),
        ),
    ];
    if Support::current().sees_kernel_faults() {
        tasks.push((
            "system call",
            Box::new(move || {
                let file = raw::scratch();
                match raw::pwrite_from(&file, at, 8) {
                    Ok(n) => {
                        let mut bytes = [0; 8];
                        std::fs::File::from(file).read_exact_at(&mut bytes, 0).expect("the file is read");
                        assert_eq!((n, u64::from_ne_bytes(bytes)), (8, OPEN));
                    }
                    // Policy Block refuses system calls while the region is disabled.
                    Err(e) => assert_eq!(e, Errno::EFAULT),
                }
            }),
        ));
    }
    tasks
}

#[test]
fn whoever_waits_in_a_storm_of_signals_waits_on_and_is_let_go() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    child::alone(|| {
        storm::prepare();
        for strategy in STRATEGIES {
            let Ok(region) = Region::builder(64 << 10).strategy(strategy).build() else { continue };
            ride_out(&region, |body| body());
        }
    })
    .well();
}

#[test]
fn a_manual_monitor_whose_thread_is_interrupted_all_the_time_answers_every_fault() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    child::alone(|| {
        storm::prepare();
        let monitor = Monitor::manual().expect("a userfaultfd");
        let zap = Region::builder(64 << 10).strategy(revocable_mmio::Strategy::Zap).monitor(monitor.clone());
        let Ok(region) = zap.build() else { return };
        let end = AtomicBool::new(false);
        ride_out(&region, |body| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let _storm = storm::on_this_thread();
                    while !end.load(Ordering::Relaxed) {
                        let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
                        let _ = poll(&mut fds, PollTimeout::from(10u8));
                        monitor.handle_ready(usize::MAX).expect("an interruption is no failure");
                    }
                });
                body();
                end.store(true, Ordering::Relaxed);
            });
        });
    })
    .well();
}

#[test]
fn no_thread_of_the_crates_own_takes_a_signal() {
    support::start();
    child::alone(|| {
        let seen: Mutex<BTreeMap<String, Option<String>>> = Mutex::default();
        let end = AtomicBool::new(false);
        let fatal = 1u64 << (Signal::SIGBUS as u32 - 1) | 1 << (Signal::SIGSEGV as u32 - 1);
        // SIGKILL and SIGSTOP can't be blocked, and the C library keeps two signals for itself.
        let never = fatal | 1 << (Signal::SIGKILL as u32 - 1) | 1 << (Signal::SIGSTOP as u32 - 1) | 0b11 << 31;
        let look = || {
            for task in std::fs::read_dir("/proc/self/task").expect("it is there").flatten() {
                let status = || support::read_text(task.path().join("status"));
                let field = |text: &str, name: &str| {
                    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
                };
                let blocks = || field(&status(), "SigBlk:").and_then(|mask| u64::from_str_radix(&mask, 16).ok());
                let Some(name) = field(&status(), "Name:").filter(|name| name.starts_with("mmio-")) else { continue };
                let wrong = blocks().filter(|mask| mask | never != u64::MAX);
                // A thread that ends, or has just begun, may be seen half-way.
                let wrong = wrong.and_then(|_| {
                    thread::sleep(Duration::from_millis(5));
                    blocks().filter(|mask| mask | never != u64::MAX)
                });
                let told = wrong.map(|mask| format!("{mask:#x}"));
                let mut seen = seen.lock().expect("no panic");
                let entry = seen.entry(name).or_default();
                *entry = entry.take().or(told);
            }
        };
        let _kicks = revocable_mmio::pci::IoEventLoop::shared().expect("a loop");
        thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    look();
                    thread::sleep(Duration::from_millis(1));
                }
            });
            // Long enough for the thread that frees page tables to be seen. Without recoverable accesses the fill would
            // be slow, and on a slow machine it takes as long with less.
            let slow = cfg!(revocable_portable) || support::on_slow_machine();
            let len = if slow { 2 << 20 } else { 64 << 20 };
            for strategy in STRATEGIES {
                let built = Region::builder(len).strategy(strategy).trim_detached().build();
                let Ok(region) = built else { continue };
                let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block));
                let mapping = mapping.or_else(|_| region.map(MapOptions::new())).expect("it maps");
                for _ in 0..20 {
                    mapping.fill(0, 1, len).expect("it is enabled");
                    region.disable().expect("nothing is in the way");
                    thread::sleep(Duration::from_millis(1));
                    region.enable().expect("it comes back");
                    region.reset(|_| ()).expect("it resets");
                }
                // A guard keeps a thread waiting to end the region.
                let guard = mapping.try_access().expect("it is enabled");
                drop(region);
                thread::sleep(Duration::from_millis(50));
                drop(guard);
            }
            end.store(true, Ordering::Relaxed);
        });
        let seen = seen.into_inner().expect("no panic");
        eprintln!("seen: {seen:?}");
        for name in ["mmio-ioeventfds", "mmio-drop"] {
            assert!(seen.contains_key(name), "{name}: {seen:?}");
        }
        assert!(seen.values().all(Option::is_none), "{seen:?}");
    })
    .well();
}

/// Changes the region's state under a storm, and sees every task done once more after each change.
fn ride_out(region: &Region, run: impl FnOnce(&dyn Fn())) {
    let strategy = region.strategy();
    let watchdog = Watchdog::new(&format!("a storm over {strategy}"), Duration::from_secs(20));
    let block = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
    region.owner().write(0, OPEN).expect("the owner writes");
    let tasks = tasks(region, &block);
    let done: Vec<AtomicU64> = tasks.iter().map(|_| AtomicU64::new(0)).collect();
    let end = AtomicBool::new(false);
    let before = storm::handled();
    let rounds = AtomicU64::new(0);
    run(&|| {
        thread::scope(|scope| {
            for ((name, task), done) in tasks.iter().zip(&done) {
                let end = &end;
                let work = move || {
                    let _storm = storm::on_this_thread();
                    while !end.load(Ordering::Relaxed) {
                        task();
                        done.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_micros(100));
                    }
                };
                thread::Builder::new().name((*name).to_owned()).spawn_scoped(scope, work).expect("a thread");
            }
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    storm::child();
                    thread::sleep(Duration::from_millis(5));
                }
            });
            let _storm = storm::on_this_thread();
            let since = Instant::now();
            while since.elapsed() < stress_time(500) || rounds.load(Ordering::Relaxed) < 3 {
                assert!(region.disable().expect("guards and pins end"));
                region.owner().write(0, FORBIDDEN).expect("the owner writes");
                thread::sleep(Duration::from_millis(5));
                region.owner().write(0, OPEN).expect("the owner writes");
                assert!(region.enable().expect("it comes back"));
                everyone_once_more(&tasks, &done);
                let looked = region.reset(|_| {
                    region.owner().write(0, FORBIDDEN).expect("the owner writes");
                    thread::sleep(Duration::from_millis(3));
                    region.owner().write(0, OPEN).expect("the owner writes");
                });
                looked.expect("it resets");
                everyone_once_more(&tasks, &done);
                watchdog.beat();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            end.store(true, Ordering::Relaxed);
        });
    });
    assert_eq!(region.stats().degraded, 0);
    let (rounds, signals) = (rounds.into_inner(), storm::handled() - before);
    assert!(signals > 10 * rounds, "{strategy}: {signals} signals in {rounds} rounds are no storm");
}

/// Waits until each task has been done again. The watchdog reports a task that is not.
fn everyone_once_more(tasks: &[Task<'_>], done: &[AtomicU64]) {
    let before: Vec<u64> = done.iter().map(|done| done.load(Ordering::Relaxed)).collect();
    for (((name, _), done), before) in tasks.iter().zip(done).zip(before) {
        let since = Instant::now();
        // Twice: the first completion may be of a run that had ended before, and was only counted late.
        while done.load(Ordering::Relaxed) < before + 2 {
            thread::sleep(Duration::from_micros(200));
            if since.elapsed() > crate::support::patience(Duration::from_secs(15)) {
                eprintln!("{name} does not go on");
                thread::sleep(Duration::from_secs(1000));
            }
        }
    }
}

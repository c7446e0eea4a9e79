//! The cost of one access that cannot kill the process, beside the raw access and beside other ways to guard it.
//!
//! Every result goes through a `black_box`, on all sides alike. The compiler unrolls and vectorises a plain summing
//! loop over raw loads, but not a loop over inline assembly, so the bench would compare loops instead of loads. A
//! store's value comes out of a `black_box` for the same reason.
#![expect(unsafe_code, reason = "raw accesses to compare with")]

mod copies;
#[expect(dead_code, reason = "each bench needs a part of it")]
#[path = "../support/mod.rs"]
mod support;

use arc_swap::ArcSwap;
use nix::libc;
use parking_lot::RwLock;
use revocable_mmio::{AccessError, MapOptions, Mapping, Region};
use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::raw::{Map, PAGE, memfd};
use support::{Contest, Ratios, Samples, pick};

const LEN: usize = 17 << 20;
/// Variable offsets stay within what the first-level cache holds.
const WINDOW: usize = 16 << 10;
const STAMP: u64 = 0x5245_564f_4341_424c;
const TURN: Duration = Duration::from_micros(100);
const PAUSE: Duration = Duration::ZERO;

fn main() {
    let mut samples = Samples::default();
    single(&mut samples);
    copies::measure(&mut samples);
    failing(&mut samples);
    samples.table("one access");
    let mut ratios = Ratios::default();
    for (of, to, at_most) in [
        ("register_read", "raw_load", Some(1.1)),
        ("register_write", "raw_store", Some(1.1)),
        ("mapping_read", "raw_load_at", Some(2.0)),
        ("mapping_write", "raw_store_at", Some(2.0)),
        ("guard", "raw_load", Some(8.0)),
        ("parking_lot", "raw_load", None),
        ("arc_swap", "raw_load", None),
        ("crossbeam_pin", "raw_load", None),
        ("guard", "crossbeam_pin", Some(0.4)),
        ("failing", "signal_round_trip", Some(1.5)),
    ] {
        ratios.of(&samples, &format!("access.{of}/{to}"), of, to, at_most);
    }
    for (size, len, shape) in copies::copied() {
        let at_most = Some(if len < 4 << 10 { 1.15 } else { 1.03 });
        for way in ["out", "in"] {
            let (of, to) = (format!("copy_{way}_{size}{shape}"), format!("memcpy_{way}_{size}{shape}"));
            ratios.of(&samples, &format!("access.{of}/memcpy"), &of, &to, at_most);
        }
    }
    for (name, of, at_most) in [("access.guard_ns", "guard", 2.0), ("access.seen_disabled_ns", "seen_disabled", 5.0)] {
        ratios.add(name, samples.p50(of).unwrap_or(f64::NAN), Some(at_most));
    }
    let (alone, together) = crowd();
    ratios.add("access.guard_every_cpu/guard_alone", together / alone, Some(1.1));
    ratios.print();
}

/// A region full of stamps.
fn stamped() -> (Region, Mapping) {
    let region = Region::builder(LEN).build().expect("a region");
    for offset in (0..LEN).step_by(8) {
        region.owner().write(offset, STAMP).expect("inside the region");
    }
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    // Faults are measured by another bench.
    let mut everything = vec![0; LEN];
    mapping.read_slice(0, &mut everything).expect("an enabled region");
    mapping.write_slice(0, &everything).expect("an enabled region");
    (region, mapping)
}

/// An offset that the compiler cannot know.
#[inline(always)]
fn next(offset: usize) -> usize {
    black_box((offset + 72) % WINDOW)
}

fn single(samples: &mut Samples) {
    let (_region, mapping) = stamped();
    let at = mapping.as_ptr().cast::<u64>();
    let register = mapping.register::<u64>(0).expect("inside the mapping");
    let locked = RwLock::new(());
    let swapped = ArcSwap::from_pointee(());
    let collector = crossbeam_epoch::Collector::new();
    let handle = collector.register();

    // SAFETY: inside the live mapping and aligned, and the region stays enabled.
    let load = |at: *const u64| unsafe { at.read_volatile() };
    // SAFETY: as above; no reference to region memory exists.
    let store = |at: *mut u64, value: u64| unsafe { at.write_volatile(value) };

    assert_eq!(load(at), STAMP);
    assert_eq!(register.read().expect("enabled"), STAMP);

    let mut contest = Contest::new("access", PAUSE);
    contest.many("raw_load", TURN, move |n| {
        let at = at;
        for _ in 0..n {
            black_box(load(at));
        }
    });
    contest.many("register_read", TURN, move |n| {
        // On both sides the address is known before the loop, which a black box might change.
        let register = register;
        for _ in 0..n {
            match register.read() {
                Ok(value) => black_box(value),
                Err(_) => refused(),
            };
        }
    });
    contest.many("raw_store", TURN, move |n| {
        let at = at;
        for _ in 0..n {
            store(at, black_box(STAMP));
        }
    });
    contest.many("register_write", TURN, move |n| {
        let register = register;
        for _ in 0..n {
            if register.write(black_box(STAMP)).is_err() {
                refused();
            }
        }
    });
    contest.many("raw_load_at", TURN, move |n| {
        let at = at;
        let mut offset = 0;
        for _ in 0..n {
            black_box(load(at.wrapping_byte_add(offset)));
            offset = next(offset);
        }
    });
    contest.many("mapping_read", TURN, |n| {
        let mut offset = 0;
        for _ in 0..n {
            match mapping.read::<u64>(offset) {
                Ok(value) => black_box(value),
                Err(_) => refused(),
            };
            offset = next(offset);
        }
    });
    contest.many("raw_store_at", TURN, move |n| {
        let at = at;
        let mut offset = 0;
        for _ in 0..n {
            store(at.wrapping_byte_add(offset), black_box(STAMP));
            offset = next(offset);
        }
    });
    contest.many("mapping_write", TURN, |n| {
        let mut offset = 0;
        for _ in 0..n {
            if mapping.write(offset, black_box(STAMP)).is_err() {
                refused();
            }
            offset = next(offset);
        }
    });
    contest.many("guard", TURN, |n| {
        for _ in 0..n {
            let Ok(guard) = mapping.try_access() else { refused() };
            black_box(load(guard.as_ptr().cast()));
        }
    });
    contest.many("parking_lot", TURN, |n| {
        for _ in 0..n {
            let guard = locked.read();
            black_box(load(at));
            drop(guard);
        }
    });
    contest.many("arc_swap", TURN, |n| {
        for _ in 0..n {
            let guard = swapped.load();
            black_box(load(at));
            drop(guard);
        }
    });
    contest.many("crossbeam_pin", TURN, |n| {
        for _ in 0..n {
            let guard = handle.pin();
            black_box(load(at));
            drop(guard);
        }
    });
    contest.run(pick(300, 30), samples);
    assert_eq!(load(at), STAMP, "the stores were these");
    contest.criterion();
}

#[cold]
fn refused() -> ! {
    panic!("an enabled region refused");
}

/// Accesses to a region that is disabled.
fn failing(samples: &mut Samples) {
    let (region, mapping) = stamped();
    let register = mapping.register::<u64>(0).expect("inside the mapping");
    assert!(region.disable().expect("nothing is in the way"));
    let mut contest = Contest::new("failing", PAUSE);
    contest.each("failing", 32, |n, report| {
        let since = Instant::now();
        for _ in 0..n {
            let refusal = black_box(register.read());
            assert!(matches!(refusal, Err(AccessError::Disabled { .. })));
        }
        report(n, since.elapsed());
    });
    contest.many("seen_disabled", TURN, |n| {
        for _ in 0..n {
            match mapping.read::<u64>(8) {
                Err(AccessError::Disabled { offset }) => black_box(offset),
                _ => refused(),
            };
        }
    });
    signal::add(&mut contest);
    contest.run(pick(300, 30), samples);
}

/// The lowest cost of a signal: a load that faults, and a handler that continues after it.
#[cfg(target_arch = "x86_64")]
mod signal {
    use super::*;

    extern "C" fn skip(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes a ucontext_t.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        let registers = &mut context.uc_mcontext.gregs;
        registers[libc::REG_RIP as usize] = registers[libc::REG_R8 as usize];
    }

    /// The signal that revoked memory raises, by the same kind of fault: a load beyond the end of a file.
    pub(super) fn add(contest: &mut Contest<'_>) {
        let file = memfd(0, 0).expect("an empty file");
        let map = Map::new(file.as_fd(), PAGE, PAGE);
        contest.each("signal_round_trip", 32, move |n, report| {
            let crates = exchange(&action());
            let since = Instant::now();
            for _ in 0..n {
                load_and_skip(map.addr());
            }
            report(n, since.elapsed());
            exchange(&crates);
        });
    }

    fn load_and_skip(at: usize) {
        let mut loaded = 1_u64;
        // SAFETY: faults at a page of the bench's own, and continues after the load.
        unsafe {
            std::arch::asm!(
                "lea r8, [rip + 2f]",
                "mov {loaded}, qword ptr [{at}]",
                "2:",
                at = in(reg) at,
                loaded = inout(reg) loaded,
                out("r8") _,
                options(nostack, readonly),
            );
        }
        assert_eq!(loaded, 1, "the load faulted and was skipped");
    }

    fn action() -> libc::sigaction {
        // SAFETY: all-zero is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = skip;
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action
    }

    fn exchange(new: &libc::sigaction) -> libc::sigaction {
        let mut old = action();
        // SAFETY: live sigactions; the crate's own comes back before one of its accesses is made.
        let rc = unsafe { libc::sigaction(libc::SIGBUS, new, &raw mut old) };
        assert_eq!(rc, 0);
        old
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod signal {
    use super::*;

    /// A signal that the thread sends to itself, with a handler that does nothing. There is no fault.
    pub(super) fn add(contest: &mut Contest<'_>) {
        extern "C" fn nothing(_: libc::c_int) {}
        let handler: extern "C" fn(libc::c_int) = nothing;
        // SAFETY: a handler of the right type.
        unsafe { libc::signal(libc::SIGUSR1, handler as *const () as usize) };
        contest.many("signal_round_trip", TURN, |n| {
            for _ in 0..n {
                // SAFETY: takes a number only.
                unsafe { libc::raise(libc::SIGUSR1) };
            }
        });
    }
}

/// The CPU time of one guarded load in ns, for one thread and for one thread on every CPU, in turns. CPU time, because
/// other processes may use the same CPUs.
fn crowd() -> (f64, f64) {
    let (_region, mapping) = stamped();
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let n = pick(2_000_000, 200_000);
    let mut samples = Samples::default();
    for _ in 0..pick(30, 5) {
        for (name, threads) in [("alone", 1), ("together", cpus)] {
            let ready = AtomicUsize::new(0);
            let work = || {
                let guarded = |n| {
                    for _ in 0..n {
                        let Ok(guard) = mapping.try_access() else { refused() };
                        // SAFETY: inside the mapping, kept reachable by the guard.
                        black_box(unsafe { guard.as_ptr().cast::<u64>().read_volatile() });
                    }
                };
                ready.fetch_add(1, Ordering::SeqCst);
                while ready.load(Ordering::SeqCst) < threads {
                    guarded(100);
                }
                let before = thread_cpu_time();
                guarded(n);
                thread_cpu_time() - before
            };
            thread::scope(|scope| {
                let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
                samples.record(name, n, work());
                for other in others {
                    samples.record(name, n, other.join().expect("no panic"));
                }
            });
        }
    }
    samples.table("one guard, CPU time");
    (samples.p50("alone").unwrap_or(f64::NAN), samples.p50("together").unwrap_or(f64::NAN))
}

fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

//! The cost of a decision: a fault that may not wait at a lock that another thread holds, and the decision function
//! itself. Also how soon a waiter learns of a region's return, by an asynchronous fault and by waiting.

#[expect(dead_code, reason = "each bench needs a part of it")]
mod support;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::fault::{self, FaultFlags, NoLock, Outcome, Rules, Seen};
use revocable_mmio::{Caller, FaultQueue, MapOptions, OnDisabled, Region, Submitted};
use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use support::{Contest, Ratios, Samples, pick, short};

const LEN: usize = 1 << 20;
const TURN: Duration = Duration::from_micros(500);

fn main() {
    let mut samples = Samples::default();
    let mut ratios = Ratios::default();
    decisions(&mut samples);
    completions(&mut samples);
    many(&mut samples);
    samples.table("faults that may not wait, and faults that have waited");
    let p50 = |name: &str| samples.p50(name).expect("sampled just now");
    for name in ["fault", "read", "pin"] {
        ratios.add(&format!("nowait.{name}/100ns"), p50(&format!("nowait_{name}")) / 100.0, Some(1.0));
    }
    let decision = (p50("decision") - p50("empty")).max(0.0);
    ratios.add("nowait.decision/10ns", decision / 10.0, Some(1.0));
    let (asynchronous, blocking) = ("async_completion", "blocking_fault_in");
    ratios.of(&samples, "nowait.async_completion/blocking", asynchronous, blocking, Some(2.0));
    ratios.add("nowait.10000_pending/20ms", 10_000.0 * p50("pending_10000") / 20e6, Some(1.0));
    ratios.of(&samples, "nowait.pending_10000/pending_100", "pending_10000", "pending_100", None);
    ratios.print();
    assert!(!ratios.missed() || short(), "a figure was missed");
}

/// NOWAIT while another thread holds the write side, in a reset that lasts as long as the measurement, and decisions
/// alone.
fn decisions(samples: &mut Samples) {
    let region = Region::builder(LEN).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.write(0, 7u64).expect("enabled");
    let held = Ok(Outcome::Retry { lock: fault::LockAfter::Held });
    thread::scope(|scope| {
        let (inside, is_inside) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let region = &region;
        scope.spawn(move || {
            region.reset(|_| {
                inside.send(()).expect("the bench waits for it");
                let _ = ends.recv();
            })
        });
        is_inside.recv().expect("the reset begins");
        let mut contest = Contest::new("nowait", Duration::ZERO);
        contest.many("nowait_fault", TURN, |n| {
            for _ in 0..n {
                assert_eq!(region.fault(black_box(0), FaultFlags::NOWAIT, &mut NoLock::default()), held);
            }
        });
        contest.many("nowait_read", TURN, |n| {
            for _ in 0..n {
                assert!(mapping.try_read::<u64>(black_box(0)).is_err());
            }
        });
        contest.many("nowait_pin", TURN, |n| {
            for _ in 0..n {
                assert!(region.pin(black_box(0)..1, FaultFlags::NOWAIT).is_err());
            }
        });
        contest.many("decision", TURN, |n| {
            for _ in 0..n {
                let (flags, seen) = (black_box(FaultFlags::NOWAIT), black_box(Seen::Contended));
                let _ = black_box(fault::decide(flags, seen, Rules::CRATE));
            }
        });
        contest.many("empty", TURN, |n| {
            for _ in 0..n {
                black_box(black_box(FaultFlags::NOWAIT));
            }
        });
        contest.run(pick(200, 20), samples);
        contest.criterion();
        drop(end);
    });
    assert_eq!(mapping.try_read::<u64>(0), Ok(7), "the region is back");
}

/// From the call of `enable()` until the waiter has returned. Each waiter sleeps: one in poll(2) on its queue's
/// descriptor, one in `fault_in`.
fn completions(samples: &mut Samples) {
    let region = Region::builder(LEN).build().expect("a region");
    let queue = FaultQueue::new(1).expect("a queue");
    let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
    // Another thread enables the region a little later. Returns the time from that call until `wait` has returned.
    let latency = |wait: &dyn Fn()| {
        thread::scope(|scope| {
            let enabler = scope.spawn(|| {
                thread::sleep(Duration::from_micros(200));
                let since = Instant::now();
                assert!(region.enable().expect("it can be given back"));
                since
            });
            wait();
            let known = Instant::now();
            known.saturating_duration_since(enabler.join().expect("no panic"))
        })
    };
    let mut contest = Contest::new("nowait", Duration::ZERO);
    contest.each("async_completion", 10, |n, report| {
        for _ in 0..n {
            assert!(region.disable().expect("nothing is in the way"));
            let Ok(Submitted::Queued(token)) = region.fault_async(0, caller, &queue) else { panic!("it is disabled") };
            let took = latency(&|| {
                let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::NONE).expect("it can be polled");
                let done = queue.next().expect("the descriptor tells");
                assert_eq!((done.id, done.result), (token.id(), Ok(())));
            });
            report(1, took);
        }
    });
    contest.each("blocking_fault_in", 10, |n, report| {
        for _ in 0..n {
            assert!(region.disable().expect("nothing is in the way"));
            let took = latency(&|| {
                assert!(region.fault_in(0, caller, &mut NoLock::default()).expect("enabled again").unlocked);
            });
            report(1, took);
        }
    });
    contest.run(pick(141, 7), samples);
    contest.criterion();
}

/// One fault of many: submitted, completed by `enable()`, and taken from its queue.
fn many(samples: &mut Samples) {
    const PAGE: usize = 4096;
    let region = Region::builder(10_000 * PAGE).build().expect("a region");
    let queue = FaultQueue::new(10_000).expect("a queue");
    let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
    for faults in [100, 10_000] {
        for _ in 0..pick(21, 3) {
            assert!(region.disable().expect("nothing is in the way"));
            let since = Instant::now();
            let submit = |page| match region.fault_async(page * PAGE, caller, &queue) {
                Ok(Submitted::Queued(token)) => token,
                other => panic!("it is disabled, and each page has one fault: {other:?}"),
            };
            let tokens: Vec<_> = (0..faults).map(submit).collect();
            assert!(region.enable().expect("it can be given back"));
            for token in &tokens {
                assert_eq!(queue.next().map(|done| done.id), Some(token.id()), "in order");
            }
            samples.record(&format!("pending_{faults}"), faults as u64, since.elapsed());
        }
    }
}

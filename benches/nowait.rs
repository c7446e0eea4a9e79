//! What a decision costs: a fault that may not wait, at a lock that another thread holds; the decision function itself; and
//! how soon whoever waits for a region learns of its return, by an asynchronous fault and by waiting.

use criterion::{BenchmarkId, Criterion};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::fault::{self, FaultFlags, NoLock, Outcome, Rules, Seen};
use revocable_mmio::{Caller, FaultQueue, MapOptions, OnDisabled, Region, Submitted};
use std::hint::black_box;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

const LEN: usize = 1 << 20;

fn short() -> bool {
    std::env::var("REVOCABLE_BENCH").is_ok_and(|v| v == "short") || !std::env::args().any(|arg| arg == "--bench")
}

/// A rival's time for so many operations.
type Run<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

fn many<'a>(mut operation: impl FnMut() + 'a) -> Run<'a> {
    Box::new(move |n| {
        let since = Instant::now();
        for _ in 0..n {
            operation();
        }
        since.elapsed()
    })
}

/// The medians of the rivals, in ns, which take turns of `n` operations.
fn medians<const N: usize>(names: [&str; N], mut rivals: [Run<'_>; N], n: u64, rounds: usize) -> [f64; N] {
    let mut samples: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    for _ in 0..rounds {
        for (rival, samples) in rivals.iter_mut().zip(&mut samples) {
            samples.push(rival(n).as_nanos() as f64 / n as f64);
        }
    }
    if !short() {
        let mut criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(800))
            .sample_size(10)
            .configure_from_args();
        let mut group = criterion.benchmark_group("nowait");
        for (name, rival) in names.iter().zip(&mut rivals) {
            group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter_custom(&mut *rival));
        }
        group.finish();
    }
    let medians = samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    });
    for (name, median) in names.iter().zip(medians) {
        println!("{name:<28}{median:>12.2} ns");
    }
    medians
}

fn main() {
    let mut ratios = Vec::new();
    decisions(&mut ratios);
    completions(&mut ratios);
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    println!("\nmachine {model}, {cpus} CPUs; kernel {}", read("/proc/sys/kernel/osrelease").trim());
    println!("load {}", read("/proc/loadavg").trim());
    for (name, value, _) in &ratios {
        println!("ratio {name} {value:.4}");
    }
    for (name, value, at_most) in &ratios {
        let verdict = if value <= at_most { "reached" } else { "MISSED" };
        println!("{verdict} {name} <= {at_most}");
    }
    let missed = ratios.iter().any(|(_, value, at_most)| value > at_most);
    assert!(!missed || short(), "a figure was missed");
}

/// NOWAIT while another thread holds the write side, from a reset that lasts as long as the measurement; and decisions alone.
fn decisions(ratios: &mut Vec<(&'static str, f64, f64)>) {
    let region = Region::builder(LEN).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.write(0, 7u64).expect("enabled");
    let (n, rounds) = if short() { (20_000, 5) } else { (200_000, 21) };
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
        let [fault, access, pin, decision, empty] = medians(
            ["nowait_fault", "nowait_read", "nowait_pin", "decision", "empty"],
            [
                many(|| {
                    assert_eq!(region.fault(black_box(0), FaultFlags::NOWAIT, &mut NoLock::default()), held);
                }),
                many(|| assert!(mapping.try_read::<u64>(black_box(0)).is_err())),
                many(|| assert!(region.pin(black_box(0)..1, FaultFlags::NOWAIT).is_err())),
                many(|| {
                    let _ = black_box(fault::decide(
                        black_box(FaultFlags::NOWAIT),
                        black_box(Seen::Contended),
                        Rules::CRATE,
                    ));
                }),
                many(|| {
                    black_box(black_box(FaultFlags::NOWAIT));
                }),
            ],
            n,
            rounds,
        );
        ratios.push(("nowait.fault/100ns", fault / 100.0, 1.0));
        ratios.push(("nowait.read/100ns", access / 100.0, 1.0));
        ratios.push(("nowait.pin/100ns", pin / 100.0, 1.0));
        ratios.push(("nowait.decision/10ns", (decision - empty).max(0.0) / 10.0, 1.0));
        drop(end);
    });
    assert_eq!(mapping.try_read::<u64>(0), Ok(7), "the region is back");
}

/// From the call of `enable()` to the waiter's knowing of it. Both waiters are asleep: one in poll(2) on its queue's
/// descriptor, one in `fault_in`.
fn completions(ratios: &mut Vec<(&'static str, f64, f64)>) {
    let region = Region::builder(LEN).build().expect("a region");
    let queue = FaultQueue::new(1).expect("a queue");
    let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
    let turns = if short() { 20 } else { 200 };
    // Disables, has another thread enable a little later, and answers how long after that call `told` returned.
    let latency = |told: &dyn Fn()| {
        thread::scope(|scope| {
            let enabler = scope.spawn(|| {
                thread::sleep(Duration::from_micros(200));
                let since = Instant::now();
                assert!(region.enable().expect("it can be given back"));
                since
            });
            told();
            let known = Instant::now();
            known.saturating_duration_since(enabler.join().expect("no panic"))
        })
    };
    let asynchronous: Run<'_> = Box::new(|n| {
        let once = |_| {
            assert!(region.disable().expect("nobody is in the way"));
            let Ok(Submitted::Queued(token)) = region.fault_async(0, caller, &queue) else { panic!("it is disabled") };
            latency(&|| {
                let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::NONE).expect("it can be polled");
                let done = queue.next().expect("the descriptor tells");
                assert_eq!((done.id, done.result), (token.id(), Ok(())));
            })
        };
        (0..n).map(once).sum()
    });
    let blocking: Run<'_> = Box::new(|n| {
        let once = |_| {
            assert!(region.disable().expect("nobody is in the way"));
            latency(&|| {
                assert!(region.fault_in(0, caller, &mut NoLock::default()).expect("enabled again").unlocked);
            })
        };
        (0..n).map(once).sum()
    });
    let rounds = if short() { 3 } else { 7 };
    let [asynchronous, blocking] =
        medians(["async_completion", "blocking_fault_in"], [asynchronous, blocking], turns, rounds);
    ratios.push(("nowait.async_completion/blocking", asynchronous / blocking, 2.0));
}

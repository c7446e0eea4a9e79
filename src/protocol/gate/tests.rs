//! The gate lets guards in only while it is open, and a drain waits for exactly those that are in.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

fn gates() -> [Gate; 2] {
    [Gate::new(Phase::Open), Gate::with_barriers(Phase::Open, Barriers::Fences)]
}

/// So many rounds, or three under Miri.
fn times(natively: usize) -> std::ops::Range<usize> {
    0..if cfg!(miri) { natively.min(3) } else { natively }
}

#[test]
fn only_an_open_gate_lets_in_and_the_others_say_why() {
    for phase in [Phase::Busy, Phase::Disabled, Phase::Gone] {
        let gate = Gate::new(phase);
        assert_eq!(gate.enter().err(), Some(phase));
        assert_eq!(gate.held_guards(), []);
        gate.set_phase(Phase::Open);
        drop(gate.enter().unwrap());
        gate.close(Patience::Never).unwrap();
    }
}

#[test]
fn a_drain_by_a_guards_own_holder_is_refused_whatever_the_patience() {
    for gate in gates() {
        let _guards = (gate.enter(), gate.enter());
        for patience in [Patience::Forever, Patience::Never] {
            match gate.close(patience) {
                Err(NotDrained::HeldByCaller(own)) => {
                    assert_eq!((own.tid, own.count), (crate::sync::current_tid(), 2));
                }
                other => panic!("not reported as the caller's own: {other:?}"),
            }
        }
    }
}

#[test]
fn a_drain_that_gives_up_names_the_holder_and_its_age_and_one_that_waits_succeeds() {
    for gate in gates() {
        thread::scope(|scope| {
            let (entered, has_entered) = mpsc::channel();
            let (leave, may_leave) = mpsc::channel::<()>();
            let gate = &gate;
            scope.spawn(move || {
                let _guard = gate.enter().unwrap();
                entered.send(crate::sync::current_tid()).unwrap();
                may_leave.recv().unwrap();
            });
            let tid = has_entered.recv().unwrap();
            // Longer on an emulated machine, where a thread may not run for a while.
            let wait = Duration::from_millis(if std::env::var_os("REVOCABLE_VM").is_some() { 2000 } else { 20 });
            match gate.close(Patience::Until(Instant::now() + wait)) {
                Err(NotDrained::Held(held)) => {
                    assert_eq!((held.len(), held[0].tid, held[0].count), (1, tid, 1));
                    // Of the guard's time the gate has seen the wait, but for the moment until it looked at it first.
                    assert!(held[0].held_for_at_least >= wait / 2, "{held:?}");
                }
                other => panic!("drained with a guard alive: {other:?}"),
            }
            leave.send(()).unwrap();
            gate.drain(Patience::Forever).unwrap();
            assert_eq!(gate.held_guards(), []);
        });
    }
}

#[test]
fn threads_that_come_and_go_share_few_places() {
    let gate = Gate::new(Phase::Open);
    for _ in 0..200 {
        thread::scope(|scope| {
            scope.spawn(|| drop(gate.enter().unwrap()));
        });
    }
    assert!(gate.slots.each().count() < 200, "places are not handed on");
    gate.close(Patience::Never).unwrap();
}

/// Enters the gate when its thread's other thread-locals may be gone already.
struct Late(std::cell::Cell<Option<&'static Gate>>);

impl Drop for Late {
    fn drop(&mut self) {
        if let Some(gate) = self.0.get() {
            drop(gate.enter().unwrap());
        }
    }
}

thread_local!(static LATE: Late = const { Late(std::cell::Cell::new(None)) });

#[test]
fn a_thread_can_enter_while_it_ends_in_whatever_order_its_locals_go() {
    for late_first in [true, false] {
        let gate: &'static Gate = Box::leak(Box::new(Gate::new(Phase::Open)));
        let thread = thread::spawn(move || {
            if late_first {
                LATE.with(|late| late.0.set(Some(gate)));
            }
            drop(gate.enter().unwrap());
            LATE.with(|late| late.0.set(Some(gate)));
        });
        thread.join().unwrap();
        assert_eq!(gate.held_guards(), []);
        gate.close(Patience::Never).unwrap();
    }
}

/// Keeps a guard until the end of its thread, after the destructors of all thread-locals that were used later.
struct Kept(
    std::cell::RefCell<Option<Guard<'static>>>,
    std::cell::RefCell<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some((ending, go_on)) = self.1.take() {
            let _ = ending.send(());
            let _ = go_on.recv();
        }
        drop(self.0.take());
    }
}

thread_local!(static KEPT: Kept = const { Kept(std::cell::RefCell::new(None), std::cell::RefCell::new(None)) });

#[test]
fn a_guard_that_its_thread_drops_last_of_all_is_its_own_until_then() {
    for gate in gates() {
        let gate: &'static Gate = Box::leak(Box::new(gate));
        let (ending, is_ending) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        let holder = thread::spawn(move || {
            // Before the gate is entered: destructors run in the opposite order.
            KEPT.with(|kept| *kept.1.borrow_mut() = Some((ending, may_go_on)));
            let guard = gate.enter().unwrap();
            KEPT.with(|kept| *kept.0.borrow_mut() = Some(guard));
            crate::sync::current_tid()
        });
        is_ending.recv().unwrap();
        thread::spawn(move || {
            assert_eq!(gate.held_by_caller(), 0);
            drop(gate.enter().unwrap());
            assert_eq!(gate.held_by_caller(), 0);
            match gate.close(Patience::Never) {
                Err(NotDrained::Held(held)) => assert_eq!(held.len(), 1),
                other => panic!("{other:?}"),
            }
            assert_eq!(gate.enter().err(), Some(Phase::Busy));
            go_on.send(()).unwrap();
            gate.drain(Patience::Forever).unwrap();
        })
        .join()
        .unwrap();
        assert!(holder.join().unwrap() > 0);
        assert_eq!(gate.held_guards(), []);
    }
}

#[test]
fn guards_that_end_with_their_threads_leave_the_gate_balanced() {
    for gate in gates() {
        let gate: &'static Gate = Box::leak(Box::new(gate));
        for _ in times(100) {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    thread::spawn(|| {
                        KEPT.with(|_| ());
                        for _ in times(100) {
                            drop(gate.enter().unwrap());
                        }
                        let guard = gate.enter().unwrap();
                        KEPT.with(|kept| *kept.0.borrow_mut() = Some(guard));
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert_eq!(gate.held_guards(), []);
        }
        gate.close(Patience::Never).unwrap();
    }
}

/// Runs the calling test in a process of its own, and returns false there: a thread of another test that is about to take a
/// number would be seen half-way.
fn is_done_alone() -> bool {
    const ALONE: &str = "REVOCABLE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let test = thread::current().name().expect("a test's thread has its name").to_owned();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args([&test, "--exact", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    true
}

#[test]
fn guards_that_a_thread_leaked_are_never_taken_for_another_threads() {
    if is_done_alone() {
        return;
    }
    for gate in gates() {
        let leaks = || thread::scope(|scope| scope.spawn(|| std::mem::forget(gate.enter().unwrap())).join().unwrap());
        for leaked in 1..4 {
            leaks();
            // Threads that start after that one has ended, each with the lowest free number.
            for _ in 0..4 {
                thread::scope(|scope| {
                    let checks = scope.spawn(|| {
                        assert_eq!(gate.held_by_caller(), 0);
                        let Err(NotDrained::Held(held)) = gate.close(Patience::Never) else { panic!("leaked") };
                        assert!(held.iter().all(|held| held.tid == 0), "{held:?}");
                        assert_eq!(held.iter().map(|held| held.count).sum::<u64>(), leaked);
                        assert_eq!(gate.enter().err(), Some(Phase::Busy), "it holds none, so it is refused");
                        gate.set_phase(Phase::Open);
                        let _own = gate.enter().unwrap();
                        assert_eq!(gate.held_by_caller(), 1);
                        match gate.close(Patience::Forever) {
                            Err(NotDrained::HeldByCaller(own)) => {
                                assert_eq!((own.tid, own.count), (crate::sync::current_tid(), 1));
                            }
                            other => panic!("{other:?}"),
                        }
                        drop(gate.enter().expect("within a guard of its own"));
                        gate.set_phase(Phase::Open);
                    });
                    // A scope does not wait for the very end of its threads, and until then they have their numbers.
                    checks.join().unwrap();
                });
            }
        }
    }
}

/// A thread's number may be another's that has not used the gate: the guards are not said to be that one's.
#[test]
fn leaked_guards_are_not_told_of_a_thread_that_never_used_the_gate() {
    if is_done_alone() {
        return;
    }
    for gate in gates() {
        let other = Gate::new(Phase::Open);
        let (entered, ended) = (Barrier::new(65), Barrier::new(65));
        thread::scope(|scope| scope.spawn(|| std::mem::forget(gate.enter().unwrap())).join().unwrap());
        thread::scope(|scope| {
            // More threads than there were numbers: one of them has that one.
            for _ in 0..64 {
                scope.spawn(|| drop((other.enter().unwrap(), entered.wait(), ended.wait())));
            }
            entered.wait();
            let held: Vec<_> = gate.held_guards().iter().map(|held| (held.tid, held.count)).collect();
            ended.wait();
            assert_eq!(held, [(0, 1)]);
        });
    }
}

#[test]
fn threads_that_enter_last_of_all_hand_their_places_on_too() {
    let gate: &'static Gate = Box::leak(Box::new(Gate::new(Phase::Open)));
    for _ in 0..500 {
        thread::spawn(move || {
            LATE.with(|late| late.0.set(Some(gate)));
            drop(gate.enter().unwrap());
        })
        .join()
        .unwrap();
    }
    assert!(gate.slots.each().count() < 200, "places are not handed on");
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nobody_is_inside_while_the_gate_is_drained() {
    for gate in gates() {
        let (stop, inside) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        if let Ok(_guard) = gate.enter() {
                            inside.fetch_add(1, Ordering::Relaxed);
                            inside.fetch_sub(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let _stop = StopOnDrop(&stop);
            let end = Instant::now() + Duration::from_millis(300);
            while Instant::now() < end {
                gate.close(Patience::Forever).unwrap();
                for _ in 0..50 {
                    assert_eq!(inside.load(Ordering::Relaxed), 0);
                }
                gate.set_phase(Phase::Open);
                thread::yield_now();
            }
        });
    }
}

/// Memory without atomics, which holders of guards read, and which changes while the gate is drained.
#[derive(Default)]
struct Memory(std::cell::UnsafeCell<u64>);

#[expect(unsafe_code, reason = "memory that the gate alone protects")]
// SAFETY: the gate orders all uses. Miri and ThreadSanitizer report one that it does not order.
unsafe impl Sync for Memory {}

#[expect(unsafe_code, reason = "memory that the gate alone protects")]
impl Memory {
    fn read(&self) -> u64 {
        // SAFETY: under a guard; the drainer writes while there is none.
        unsafe { *self.0.get() }
    }

    fn add_one(&self) {
        // SAFETY: the gate is drained; only holders of guards read.
        unsafe { *self.0.get() += 1 }
    }
}

/// Only Miri and ThreadSanitizer see an order that is missing.
#[test]
fn uses_under_a_guard_and_while_the_gate_is_drained_are_ordered() {
    for gate in gates() {
        let (stop, memory) = (AtomicBool::new(false), Memory::default());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        if let Ok(_guard) = gate.enter() {
                            let now = memory.read();
                            assert!(now >= last, "{now} after {last}");
                            last = now;
                        }
                        thread::yield_now();
                    }
                });
            }
            let _stop = StopOnDrop(&stop);
            for _ in times(200) {
                gate.close(Patience::Forever).unwrap();
                memory.add_one();
                gate.set_phase(Phase::Open);
                thread::yield_now();
            }
        });
    }
}

#[test]
fn accesses_turned_away_are_counted_over_all_threads_and_keep_no_drain_waiting() {
    for gate in gates() {
        gate.shut().unwrap();
        let gate = &gate;
        // In turn threads that have a slot and threads that have none; a slot's next owner goes on where the last one stopped.
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for enters in [true, false, true, false] {
                    scope.spawn(move || {
                        (0..500).for_each(|_| gate.turn_away());
                        assert!(!enters || gate.enter().is_err());
                        (0..500).for_each(|_| gate.turn_away());
                    });
                }
            });
        }
        gate.turn_away();
        assert_eq!(gate.turned_away(), 8001);
        gate.drain(Patience::Never).unwrap();
    }
}

//! Model-checked: every token completes exactly once, by a phase of its own time, and its waiter is told.
//!
//! The real queue, list and tokens; the eventfd is a number, and the changes of state are those of a bare gate.

use super::*;
use crate::protocol::fault::NotResolved::{Killed, Sigbus};
use crate::protocol::gate::{Gate, adopt};
use crate::sync::checker::thread::{self, JoinHandle};
use crate::sync::explore::{explore, fails_without};
use crate::sync::{Arc as ModelArc, checker};

const PAGE: usize = 0x3000;

struct World {
    gate: Gate,
    list: Arc<PendingFaults>,
    queue: FaultQueue,
}

impl World {
    fn new(phase: Phase) -> ModelArc<Self> {
        adopt(0);
        let queue = FaultQueue::new(4).unwrap();
        ModelArc::new(Self { gate: Gate::new(phase), list: Arc::default(), queue })
    }

    fn submit(&self, policy: OnDisabled) -> Submitted {
        self.list.submit(PAGE, policy, &self.queue, || self.gate.phase()).unwrap()
    }

    /// As the end of a change of state.
    fn settle(&self, phase: Phase) {
        self.gate.set_phase(phase);
        self.list.settle(|| self.gate.phase());
    }

    /// The queue's completions, once every other thread has ended; their number is what it counts.
    fn completions(&self) -> Vec<Completion> {
        let mut taken = Vec::new();
        loop {
            let waiting = self.queue.shared.completed.lock().len();
            assert_eq!(self.queue.shared.ready.count() as usize, waiting, "the count is not what waits");
            match self.queue.next() {
                Some(completion) => taken.push(completion),
                None => return taken,
            }
        }
    }
}

fn spawn<T: 'static>(world: &ModelArc<World>, run: impl FnOnce(&World) -> T + 'static) -> JoinHandle<T> {
    let world = world.clone();
    thread::spawn(move || {
        adopt(1);
        run(&world)
    })
}

#[test]
fn a_fault_beside_a_change_completes_once() {
    explore(4, || {
        let world = World::new(Phase::Busy);
        let user = spawn(&world, |world| world.submit(OnDisabled::Sigbus));
        world.settle(Phase::Open);
        match user.join().unwrap() {
            Submitted::Ready => assert_eq!(world.completions(), []),
            Submitted::Queued(token) => {
                let completions = world.completions();
                assert_eq!(completions.iter().map(|done| done.result).collect::<Vec<_>>(), [Ok(())], "{token:?}");
                assert_eq!(world.queue.outstanding(), 0);
            }
            Submitted::Pending { .. } => panic!("there is no other"),
        }
    });
}

#[test]
fn a_fault_that_is_cancelled_beside_a_change_completes_once() {
    explore(4, || {
        let world = World::new(Phase::Busy);
        let Submitted::Queued(token) = world.submit(OnDisabled::Sigbus) else { panic!("the region is busy") };
        let user = spawn(&world, move |_| drop(token));
        world.settle(Phase::Open);
        user.join().unwrap();
        let results: Vec<_> = world.completions().into_iter().map(|done| done.result).collect();
        assert!(matches!(results[..], [Ok(()) | Err(Killed)]), "{results:?}");
    });
}

#[test]
fn a_queue_counts_what_it_holds() {
    explore(4, || {
        let world = World::new(Phase::Busy);
        let Submitted::Queued(token) = world.submit(OnDisabled::Sigbus) else { panic!("the region is busy") };
        let taker = spawn(&world, |world| world.queue.next().is_some());
        world.settle(Phase::Disabled);
        let taken = taker.join().unwrap();
        assert_eq!(world.completions().len(), usize::from(!taken), "{token:?}");
    });
}

/// The fault is submitted while the region is being reset, so it must not complete as disabled, as the end of the change
/// before, which comes late, would have it.
#[test]
fn a_fault_is_decided_by_no_phase_from_before_it() {
    explore(4, || {
        let world = World::new(Phase::Disabled);
        let earlier = spawn(&world, |world| world.list.settle(|| world.gate.phase()));
        world.gate.set_phase(Phase::Busy);
        let mine = world.submit(OnDisabled::Sigbus);
        world.settle(Phase::Open);
        earlier.join().unwrap();
        let Submitted::Queued(token) = mine else { panic!("the region is busy") };
        assert_eq!(token.pending.state.lock().result, Some(Ok(())));
    });
}

/// A submission that is referred to an earlier fault has not missed its completion.
#[test]
fn a_repeated_fault_is_not_told_to_wait_for_one_that_is_decided() {
    explore(4, || {
        let world = World::new(Phase::Busy);
        let Submitted::Queued(first) = world.submit(OnDisabled::Sigbus) else { panic!("the region is busy") };
        let user = spawn(&world, move |_| drop(first));
        let taken = world.queue.next();
        let again = world.submit(OnDisabled::Sigbus);
        if let Submitted::Pending { id } = again {
            assert_ne!(taken.map(|done| done.id), Some(id), "its completion was taken already");
        }
        user.join().unwrap();
    });
}

#[test]
fn who_awaits_a_token_is_woken() {
    explore(3, || {
        let world = World::new(Phase::Busy);
        let user = spawn(&world, |world| match world.submit(OnDisabled::Sigbus) {
            Submitted::Queued(token) => checker::future::block_on(token),
            Submitted::Ready => Ok(()),
            Submitted::Pending { .. } => panic!("there is no other"),
        });
        world.settle(Phase::Gone);
        assert_eq!(user.join().unwrap(), Err(Sigbus));
    });
}

/// Each step left out, the model that then fails, and the words for it.
macro_rules! left_out {
    ($($test:ident: $step:ident, $model:ident, $says:literal;)*) => {$(
        #[test]
        #[cfg_attr(miri, ignore = "Miri starts no process")]
        fn $test() {
            fails_without(Mutation::$step, concat!("protocol::async_fault::model::", stringify!($model)), &[$says]);
        }
    )*};
}

left_out! {
    completing_needs_the_second_look: SubmitRecheck, a_fault_beside_a_change_completes_once, "left: []";
    waking_needs_the_second_look: SubmitRecheck, who_awaits_a_token_is_woken, "deadlock";
    completing_once_needs_the_results_check: CompleteTwice, a_fault_that_is_cancelled_beside_a_change_completes_once, "[Ok(()), Err(Killed)]";
    counting_needs_the_queues_lock: CountUnlocked, a_queue_counts_what_it_holds, "the count is not what waits";
    deciding_needs_the_phase_read_under_the_lists_lock: SettleStale, a_fault_is_decided_by_no_phase_from_before_it, "Some(Err(Sigbus))";
    repeating_needs_the_cancelled_off_the_list_first: CancelLate, a_repeated_fault_is_not_told_to_wait_for_one_that_is_decided, "was taken already";
}

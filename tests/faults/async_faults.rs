//! A fault that cannot be resolved now completes later, exactly once, for every kind of waiter.

use crate::support::{self, busy, page_size};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use revocable_mmio::fault::{FaultFlags, IllegalFlags, NotResolved};
use revocable_mmio::{Caller, Completion, FaultQueue, FaultToken, OnDisabled, Region, SubmitError, Submitted};
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::AsFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

/// At least 256 pages, of whatever size.
const LEN: usize = 16 << 20;

fn region() -> Region {
    Region::builder(LEN).build().expect("it builds")
}

fn queue(limit: usize) -> FaultQueue {
    FaultQueue::new(limit).expect("a descriptor is left")
}

fn block() -> Caller<'static> {
    Caller::new(FaultFlags::DEFAULT).on_disabled(OnDisabled::Block)
}

fn queued(submitted: Result<Submitted, SubmitError>) -> FaultToken {
    match submitted {
        Ok(Submitted::Queued(token)) => token,
        other => panic!("not queued: {other:?}"),
    }
}

fn is_readable(queue: &FaultQueue) -> bool {
    let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).expect("it can be polled") == 1
}

fn results(queue: &FaultQueue) -> Vec<(u64, Result<(), NotResolved>)> {
    std::iter::from_fn(|| queue.next()).map(|done| (done.id, done.result)).collect()
}

/// The smallest executor there is.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn an_enabled_regions_fault_is_ready_and_nothing_is_queued() {
    support::start();
    let (region, queue) = (region(), queue(1));
    assert!(matches!(region.fault_async(LEN - 1, FaultFlags::DEFAULT, &queue), Ok(Submitted::Ready)));
    assert_eq!((queue.outstanding(), queue.next()), (0, None));
    assert!(!is_readable(&queue));
}

#[test]
fn a_queued_fault_completes_with_enable_and_the_descriptor_tells() {
    support::start();
    let (region, queue) = (region(), queue(4));
    assert!(region.disable().expect("nothing is in the way"));
    let tokens = [0, 3].map(|page| queued(region.fault_async(page * page_size() + 5, block(), &queue)));
    assert_eq!(queue.outstanding(), 2);
    assert!(!is_readable(&queue) && queue.next().is_none());
    assert!(region.enable().expect("it can be given back"));
    for (token, page) in tokens.iter().zip([0, 3]) {
        assert!(is_readable(&queue), "one completion, one count");
        let done = queue.next().expect("completed");
        assert_eq!((done.id, done.offset, done.result), (token.id(), page * page_size(), Ok(())));
    }
    assert!(!is_readable(&queue) && queue.next().is_none());
    assert_eq!(queue.outstanding(), 0);
    drop(tokens);
    assert_eq!(queue.next(), None, "a decided token that is dropped completes nothing more");
}

#[test]
fn a_busy_regions_fault_completes_with_the_end_of_the_reset() {
    support::start();
    let (region, queue) = (region(), queue(4));
    let token = busy(&region, |_| queued(region.fault_async(0, FaultFlags::NOWAIT, &queue)));
    assert_eq!(results(&queue), [(token.id(), Ok(()))]);
}

#[test]
fn who_does_not_wait_for_a_disabled_region_is_told_so_at_once() {
    support::start();
    let (region, queue) = (region(), queue(4));
    assert!(region.disable().expect("nothing is in the way"));
    let token = queued(region.fault_async(0, FaultFlags::DEFAULT, &queue));
    assert_eq!(results(&queue), [(token.id(), Err(NotResolved::Sigbus))]);
    assert_eq!(block_on(token), Err(NotResolved::Sigbus));
}

#[test]
fn a_fault_that_is_given_up_completes_as_killed_and_once() {
    support::start();
    let (region, queue) = (region(), queue(4));
    assert!(region.disable().expect("nothing is in the way"));
    let cancelled = queued(region.fault_async(0, block(), &queue));
    cancelled.cancel();
    cancelled.cancel();
    let id = cancelled.id();
    drop(cancelled);
    let dropped = queued(region.fault_async(page_size(), block(), &queue)).id();
    assert!(region.enable().expect("it can be given back"));
    assert_eq!(results(&queue), [(id, Err(NotResolved::Killed)), (dropped, Err(NotResolved::Killed))]);
}

#[test]
fn a_region_that_goes_completes_its_faults_with_sigbus() {
    support::start();
    let (region, queue) = (region(), queue(4));
    assert!(region.disable().expect("nothing is in the way"));
    let token = queued(region.fault_async(0, block(), &queue));
    drop(region);
    assert_eq!(results(&queue), [(token.id(), Err(NotResolved::Sigbus))]);
    assert_eq!(block_on(token), Err(NotResolved::Sigbus));
}

#[test]
fn a_repeated_fault_on_a_page_is_not_queued_twice() {
    support::start();
    let (region, mine, other) = (region(), queue(1), queue(1));
    assert!(region.disable().expect("nothing is in the way"));
    let token = queued(region.fault_async(8, block(), &mine));
    match region.fault_async(page_size() - 1, block(), &mine) {
        Ok(Submitted::Pending { id }) => assert_eq!(id, token.id()),
        other => panic!("{other:?}"),
    }
    let theirs = queued(region.fault_async(8, block(), &other));
    assert_ne!(theirs.id(), token.id(), "a fault of another queue is another fault");
    drop(token);
    let again = queued({
        assert_eq!(results(&mine).len(), 1);
        region.fault_async(8, block(), &mine)
    });
    assert!(region.enable().expect("it can be given back"));
    assert_eq!(results(&mine), [(again.id(), Ok(()))]);
    assert_eq!(results(&other), [(theirs.id(), Ok(()))]);
}

#[test]
fn at_the_limit_a_fault_is_refused_until_a_completion_is_taken() {
    support::start();
    let (region, queue) = (region(), queue(2));
    assert!(region.disable().expect("nothing is in the way"));
    let tokens = [0, 1].map(|page| queued(region.fault_async(page * page_size(), block(), &queue)));
    let full = |region: &Region| region.fault_async(2 * page_size(), block(), &queue).map(drop);
    assert_eq!(full(&region), Err(SubmitError::Full { limit: 2 }));
    tokens[0].cancel();
    assert_eq!(full(&region), Err(SubmitError::Full { limit: 2 }), "it is completed, and not taken");
    assert!(queue.next().is_some());
    assert_eq!(full(&region), Ok(()));
}

#[test]
fn faults_that_cannot_be_are_typed_errors() {
    support::start();
    let (region, queue) = (region(), queue(1));
    let outside = region.fault_async(LEN, FaultFlags::DEFAULT, &queue).map(drop);
    assert_eq!(outside, Err(SubmitError::OutOfBounds { offset: LEN, len: LEN }));
    let illegal = region.fault_async(0, FaultFlags::TRIED, &queue).map(drop);
    assert!(matches!(illegal, Err(SubmitError::Flags(IllegalFlags::TriedWithoutRetry { .. }))), "{illegal:?}");
    assert_eq!(queue.outstanding(), 0);
}

#[test]
fn a_token_can_be_awaited() {
    support::start();
    let (region, queue) = (region(), queue(1));
    assert!(region.disable().expect("nothing is in the way"));
    let token = queued(region.fault_async(0, block(), &queue));
    let waiter = thread::spawn(move || block_on(token));
    thread::sleep(Duration::from_millis(30));
    assert!(!waiter.is_finished(), "it does not wait");
    assert!(region.enable().expect("it can be given back"));
    assert_eq!(waiter.join().expect("no panic"), Ok(()));
    assert_eq!(results(&queue).len(), 1, "and the queue has it too");
}

#[test]
fn every_token_completes_exactly_once_beside_changes_and_cancellations() {
    support::start();
    const FAULTS: usize = 3000;
    let (region, queue, stop) = (region(), queue(64), AtomicBool::new(false));
    let (submitted, completed) = thread::scope(|scope| {
        let changer = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert!(region.disable().expect("nothing is in the way"));
                region.reset(|_| thread::yield_now()).expect("nothing is in the way");
                assert!(region.enable().expect("it can be given back"));
            }
        });
        let taker = scope.spawn(|| {
            let mut completed: BTreeMap<u64, Vec<Completion>> = BTreeMap::new();
            let mut take = || {
                let next = queue.next();
                next.map(|done| completed.entry(done.id).or_default().push(done)).is_some()
            };
            while !stop.load(Ordering::Relaxed) {
                if !take() {
                    thread::yield_now();
                }
            }
            while take() {}
            completed
        });
        let mut submitted = Vec::new();
        let mut held = Vec::new();
        // On a busy machine it takes a while until a fault is submitted while the region is disabled.
        let since = std::time::Instant::now();
        for nth in 0.. {
            if nth >= FAULTS && (submitted.len() > 50 || since.elapsed() > support::patience(Duration::from_secs(20))) {
                break;
            }
            let policy = if nth % 3 == 0 { OnDisabled::Sigbus } else { OnDisabled::Block };
            let caller = Caller::new(FaultFlags::DEFAULT).on_disabled(policy);
            match region.fault_async(nth % 200 * page_size(), caller, &queue) {
                Ok(Submitted::Queued(token)) => {
                    submitted.push(token.id());
                    held.push(token);
                }
                Ok(Submitted::Ready | Submitted::Pending { .. }) => {}
                Err(SubmitError::Full { .. }) => thread::yield_now(),
                Err(e) => panic!("{e}"),
            }
            if nth % 7 == 0 {
                held.drain(..held.len() / 2);
            }
        }
        for token in held {
            let _ = block_on(token);
        }
        // Completions may not have been taken yet. The taker takes the rest after it is stopped.
        stop.store(true, Ordering::Relaxed);
        changer.join().expect("no panic");
        (submitted, taker.join().expect("no panic"))
    });
    let mut left: Vec<u64> = results(&queue).into_iter().map(|(id, _)| id).collect();
    left.extend(completed.iter().flat_map(|(id, all)| all.iter().map(|_| *id)));
    left.sort_unstable();
    assert_eq!(left, submitted, "each once");
    assert!(submitted.len() > 10, "the region was always enabled");
    assert_eq!(queue.outstanding(), 0);
    assert!(!is_readable(&queue), "the count is not what the queue holds");
}

//! Asynchronous faults whose wakers panic.

use crate::support;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{Caller, FaultQueue, OnDisabled, Region, Submitted};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("for the test");
    }
}

#[test]
fn a_waker_that_panics_neither_stops_the_change_of_state_nor_loses_other_completions() {
    support::start();
    let region = Region::builder(1 << 20).disabled().build().expect("a region");
    let queue = FaultQueue::new(8).expect("an eventfd");
    let submit = |offset| {
        let caller = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
        match region.fault_async(offset, caller, &queue).expect("room for it") {
            Submitted::Queued(token) => token,
            other => panic!("{other:?}"),
        }
    };
    let mut first = pin!(submit(0));
    let _second = submit(support::page_size());
    let waker = Waker::from(Arc::new(Panics));
    assert_eq!(first.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
    assert!(region.enable().expect("nothing is in the way"));
    assert_eq!([queue.next(), queue.next()].map(|done| done.expect("completed").result), [Ok(()); 2]);
    assert!(region.disable().expect("the change before has ended"));
}

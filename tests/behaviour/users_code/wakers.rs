//! Wakers, which are called in the middle of a change of state.

use super::{LEN, PATIENCE, blocking};
use crate::support;
use crate::support::watchdog::Watchdog;
use revocable_mmio::{FaultQueue, MapOptions, Mapping, Region, ResetGroup, Strategy, Submitted};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

/// A woken waiter may use another member at once, whichever of the members comes first.
#[test]
fn a_waker_of_one_member_of_a_group_can_read_another() {
    struct Reads(Arc<Mapping>, Arc<Mutex<Vec<String>>>);
    impl Wake for Reads {
        fn wake(self: Arc<Self>) {
            self.1.lock().expect("a list").push(format!("{:?}", self.0.read::<u8>(4096)));
        }
    }
    support::start();
    let _watchdog = Watchdog::new("a waker", PATIENCE);
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace, Strategy::Withdraw] {
        let build = |_| Region::builder(LEN).strategy(strategy).build().ok();
        let [Some(one), Some(two)] = [0, 1].map(build) else { continue };
        let regions = [one, two];
        let maps = [0, 1].map(|at: usize| Arc::new(regions[at].map(MapOptions::new()).expect("it maps")));
        let group = ResetGroup::new(&regions);
        group.try_disable().expect("nothing is in the way");
        let queue = FaultQueue::new(8).expect("an eventfd");
        let read = Arc::new(Mutex::new(Vec::new()));
        let tokens = [0, 1].map(|at: usize| {
            let Ok(Submitted::Queued(token)) = regions[at].fault_async(0, blocking(), &queue) else {
                panic!("disabled")
            };
            let mut token = Box::pin(token);
            let waker = Waker::from(Arc::new(Reads(Arc::clone(&maps[1 - at]), Arc::clone(&read))));
            assert!(token.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            token
        });
        group.try_enable().expect("nothing is in the way");
        assert_eq!(*read.lock().expect("a list"), ["Ok(0)"; 2], "{strategy}");
        drop(tokens);
    }
}

//! Memslots that are refused while other threads change the same region, or the same addresses.

use super::{HERE, NOWHERE, THERE, bar, mapped};
use crate::support;
use crate::support::memory_map::Map;
use revocable_mmio::OnDisabled;
use revocable_mmio::memslot::{MemslotError, Memslots, Retention, SetMemslot, SlotMemory};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};

type Call = dyn FnOnce(&SlotMemory) + Send;

/// Calls a closure at its calls, one that it takes out first.
#[derive(Default)]
struct Calls {
    map: Map,
    at_installation: Mutex<Option<Box<Call>>>,
    at_removal: Mutex<Option<Box<Call>>>,
}

impl SetMemslot for Calls {
    // SAFETY: nothing is done with the address.
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
        let call = self.at_installation.lock().expect("no panic").take();
        call.into_iter().for_each(|call| call(memory));
        let there = self.map.slots.lock().expect("no panic").clone();
        let (start, end) = (memory.gpa, memory.gpa + memory.size);
        let overlaps = |other: &SlotMemory| other.gpa < end && start < other.gpa + other.size;
        assert!(!there.iter().any(overlaps), "they overlap: {there:x?} {memory:x?}");
        // SAFETY: as above.
        unsafe { self.map.install(memory) }
    }

    fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
        let call = self.at_removal.lock().expect("no panic").take();
        call.into_iter().for_each(|call| call(memory));
        self.map.remove(memory)
    }
}

/// Runs `meanwhile` in another thread, and does not wait for its end. The thread joins it.
fn in_the_middle(
    meanwhile: impl FnOnce() + Send + 'static,
) -> (impl FnOnce(&SlotMemory) + Send + 'static, mpsc::Receiver<JoinHandle<()>>) {
    let (started, joins) = mpsc::channel();
    let call = move |_: &SlotMemory| {
        started.send(thread::spawn(meanwhile)).expect("the test waits for it");
        support::a_moment();
    };
    (call, joins)
}

#[test]
fn a_removal_that_fails_while_the_region_comes_back_leaves_the_slot_where_it_was() {
    support::start();
    for revoked_first in [false, true] {
        let (vm, bar) = (Arc::new(Calls::default()), Arc::new(bar()));
        let slots = Memslots::new(Arc::clone(&vm));
        let mut slot = slots.add(1, HERE, mapped(&bar, OnDisabled::Sigbus), Retention::Remove).expect("it is free");
        if revoked_first {
            // It stays, though it is not due.
            vm.map.refuses_removals.store(1, Ordering::SeqCst);
            bar.disable().expect("the slot is not what revokes");
            assert_eq!(vm.map.places(), [HERE]);
        }
        let changes = Arc::clone(&bar);
        let (call, joins) = in_the_middle(move || {
            if !revoked_first {
                changes.disable().expect("nothing is in the way");
            }
            changes.enable().expect("it comes back");
        });
        *vm.at_removal.lock().expect("no panic") = Some(Box::new(call));
        vm.map.refuses_removals.store(1, Ordering::SeqCst);
        slot.remove().expect_err("it is refused once");
        joins.recv().expect("it has begun").join().expect("no panic");
        assert_eq!((vm.map.places(), slot.is_installed()), (vec![HERE], true), "still there, and follows");
        bar.disable().expect("nothing is in the way");
        assert_eq!(vm.map.places(), NOWHERE);
        bar.enable().expect("it comes back");
        assert_eq!(vm.map.places(), [HERE]);
        slot.remove().expect("nothing refuses any more");
    }
}

#[test]
fn a_removal_that_panics_is_one_that_failed_and_so_is_a_move() {
    support::start();
    let (vm, bar) = (Arc::new(Calls::default()), bar());
    let slots = Memslots::new(Arc::clone(&vm));
    let mut slot = slots.add(1, HERE, mapped(&bar, OnDisabled::AllOnes), Retention::AllOnes).expect("it is free");
    let panics = || Some(Box::new(|memory: &SlotMemory| assert_eq!(memory.slot, 0, "by design")) as Box<_>);
    *vm.at_removal.lock().expect("no panic") = panics();
    assert!(matches!(slot.remove(), Err(MemslotError::Vm { slot: 1, .. })));
    assert_eq!((vm.map.places(), slot.is_installed()), (vec![HERE], true), "it has not been touched");
    *vm.at_removal.lock().expect("no panic") = panics();
    assert!(slot.move_to(THERE).is_err());
    assert_eq!((vm.map.places(), slot.range().start), (vec![HERE], HERE), "it has not been touched");
    *vm.at_installation.lock().expect("no panic") = Some(Box::new(|memory: &SlotMemory| {
        assert_ne!(memory.gpa, THERE, "by design");
    }));
    // What may have been put there is taken out, which is refused here: nothing is there.
    vm.map.refuses_removals.store(0, Ordering::SeqCst);
    assert!(slot.move_to(THERE).is_err());
    slot.retry().expect("nothing refuses any more");
}

/// Another slot is added at `place` while the first moves from `HERE` to `THERE`, in the middle of `its` call.
fn added_during_a_move(place: u64, refuses: usize) -> (Vec<u64>, Option<u32>) {
    let (vm, bar) = (Arc::new(Calls::default()), bar());
    let slots = Memslots::new(Arc::clone(&vm));
    let slot = slots.add(1, HERE, mapped(&bar, OnDisabled::AllOnes), Retention::AllOnes).expect("it is free");
    let (other, second) = (slots.clone(), mapped(&bar, OnDisabled::AllOnes));
    let (tell, told) = mpsc::channel();
    let (call, joins) = in_the_middle(move || {
        tell.send(other.add(2, place, second, Retention::AllOnes)).expect("the test waits for it");
    });
    *vm.at_removal.lock().expect("no panic") = Some(Box::new(move |memory: &SlotMemory| {
        call(memory);
    }));
    vm.map.refuses.store(0, Ordering::SeqCst);
    let call_refuses = Arc::clone(&vm);
    *vm.at_installation.lock().expect("no panic") = Some(Box::new(move |memory: &SlotMemory| {
        if memory.gpa == THERE && memory.slot == 1 {
            call_refuses.map.refuses.store(refuses, Ordering::SeqCst);
        }
    }));
    let moved = slot.move_to(THERE);
    assert_eq!(moved.is_err(), refuses > 0, "{moved:?}");
    let added = told.recv().expect("it was added, or refused");
    joins.recv().expect("it has begun").join().expect("no panic");
    let in_the_way = match &added {
        Err(MemslotError::Overlap { slot: 2, other, .. }) => Some(*other),
        Err(e) => panic!("{e}"),
        Ok(_) => None,
    };
    (vm.map.places(), in_the_way)
}

#[test]
fn of_two_slots_that_come_to_one_place_at_once_one_is_refused() {
    support::start();
    // Where the first is about to be, and where it may have to go back to.
    assert_eq!(added_during_a_move(THERE, 0), (vec![THERE], Some(1)));
    assert_eq!(added_during_a_move(THERE + super::LEN as u64 / 2, 0), (vec![THERE], Some(1)));
    assert_eq!(added_during_a_move(HERE, 1), (vec![HERE], Some(1)), "it is back");
    // Beside both.
    let (places, in_the_way) = added_during_a_move(THERE + super::LEN as u64, 0);
    assert_eq!((places.len(), in_the_way), (2, None));
}

/// Lets two threads go on at the same moment, as near as can be.
fn together(arrived: &AtomicUsize, round: usize) {
    arrived.fetch_add(1, Ordering::SeqCst);
    for spins in 0_u64.. {
        match arrived.load(Ordering::SeqCst) < 2 * (round + 1) {
            // In case there is one processor only.
            true if spins % 1000 == 999 => thread::yield_now(),
            true => std::hint::spin_loop(),
            false => return,
        }
    }
}

#[test]
fn of_two_slots_that_are_added_at_one_place_at_once_one_is_refused() {
    const ROUNDS: usize = 5000;
    support::start();
    let vm = Arc::new(Calls::default());
    let slots = Memslots::new(Arc::clone(&vm));
    let [starts, added, ends] = [const { AtomicUsize::new(0) }; 3];
    // Of two regions: changes of one come one after the other.
    let adds = |slot: u32| {
        let mapping = mapped(&bar(), OnDisabled::AllOnes);
        let gpa = HERE + u64::from(slot) * 0x1000;
        for round in 0..ROUNDS {
            together(&starts, round);
            (0..round % 20 * slot as usize).for_each(|_| std::hint::spin_loop());
            let done = slots.add(slot, gpa, Arc::clone(&mapping), Retention::AllOnes);
            together(&added, round);
            let there = vm.map.places();
            together(&ends, round);
            assert_eq!(there.len(), 1, "round {round}: {there:x?}");
            assert_eq!(done.is_ok(), there == [gpa], "round {round}: {done:?}");
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| adds(1));
        adds(0);
    });
}

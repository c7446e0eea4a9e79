//! Ioeventfds of a hypervisor that refuses.

use crate::support::{self, forking};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use revocable_mmio::Region;
use revocable_mmio::ioeventfd::{IoEvent, IoEventFdError, IoEventFds, SetIoEventFd, Width};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

const LEN: usize = 0x4000;
const HERE: u64 = 0x10_0000;
const THERE: u64 = 0x20_0000;
const NOWHERE: [u64; 0] = [];

/// Keeps what is registered, and refuses one address.
#[derive(Default)]
struct Vm {
    there: Mutex<Vec<u64>>,
    refuses: Mutex<Option<u64>>,
}

impl Vm {
    fn there(&self) -> Vec<u64> {
        let mut there = self.there.lock().expect("no panic").clone();
        there.sort_unstable();
        there
    }

    fn refuse(&self, gpa: impl Into<Option<u64>>) {
        *self.refuses.lock().expect("no panic") = gpa.into();
    }

    fn refused(&self, event: &IoEvent<'_>) -> io::Result<()> {
        let refuses = *self.refuses.lock().expect("no panic");
        if refuses == Some(event.gpa) { Err(Errno::ENOSPC.into()) } else { Ok(()) }
    }
}

impl SetIoEventFd for Vm {
    fn assign(&self, event: &IoEvent<'_>) -> io::Result<()> {
        self.refused(event)?;
        let mut there = self.there.lock().expect("no panic");
        assert!(!there.contains(&event.gpa), "twice: {event:x?}");
        there.push(event.gpa);
        Ok(())
    }

    fn withdraw(&self, event: &IoEvent<'_>) -> io::Result<()> {
        self.refused(event)?;
        let mut there = self.there.lock().expect("no panic");
        let at = there.iter().position(|gpa| *gpa == event.gpa).expect("it is there");
        there.remove(at);
        Ok(())
    }
}

/// A BAR with doorbells at 0 and 8.
fn doorbells(vm: &Arc<Vm>) -> (Region, IoEventFds, EventFd) {
    let bar = Region::builder(LEN).build().expect("a region");
    let bell = EventFd::new().expect("an eventfd");
    let doorbells = IoEventFds::new(Arc::clone(vm), &bar, HERE).expect("nothing is in the way");
    for offset in [0, 8] {
        doorbells.add(offset, Width::Four, None, bell.as_fd()).expect("it is free");
    }
    assert_eq!(vm.there(), [HERE, HERE + 8]);
    (bar, doorbells, bell)
}

#[test]
fn what_cannot_follow_is_told_and_the_others_do() {
    support::start();
    let vm = Arc::new(Vm::default());
    let (bar, doorbells, _bell) = doorbells(&vm);
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    doorbells.on_error(move |error| {
        assert!(matches!(error, IoEventFdError::Vm { gpa, .. } if *gpa == HERE + 8), "{error}");
        count.fetch_add(1, Ordering::SeqCst);
    });
    vm.refuse(HERE + 8);
    bar.disable().expect("the doorbells are not what revokes");
    assert_eq!((vm.there(), told.load(Ordering::SeqCst)), (vec![HERE + 8], 1), "the other one is withdrawn");
    doorbells.retry().expect_err("it still refuses");
    vm.refuse(None);
    doorbells.retry().expect("it gives it up");
    assert_eq!(vm.there(), NOWHERE);

    vm.refuse(HERE + 8);
    bar.enable().expect("the memory is enabled all the same");
    assert_eq!((vm.there(), told.load(Ordering::SeqCst)), (vec![HERE], 2), "told before enable() returned");
    vm.refuse(None);
    doorbells.retry().expect("there is room now");
    assert_eq!(vm.there(), [HERE, HERE + 8]);
    assert_eq!(doorbells.registered(), 2);
    drop(bar);
    assert_eq!(vm.there(), NOWHERE, "a dropped region rings no more");
}

#[test]
fn a_forked_child_leaves_its_parents_doorbells_alone() {
    support::start();
    let vm = Arc::new(Vm::default());
    let (_bar, doorbells, bell) = doorbells(&vm);
    let mut inherited = Some(doorbells);
    let leaves_them = || {
        let doorbells = inherited.take().expect("inherited");
        let refused = doorbells.move_to(THERE).is_err()
            && doorbells.remove(0, Width::Four, None).is_err()
            && doorbells.add(16, Width::Four, None, bell.as_fd()).is_err();
        drop(doorbells);
        refused && vm.there() == [HERE, HERE + 8]
    };
    assert!(forking::is_fine(leaves_them), "the child has changed them");
    inherited.expect("the child had a copy").move_to(THERE).expect("its own process may");
}

#[test]
fn a_move_that_fails_leaves_all_of_them_where_they_were() {
    support::start();
    let vm = Arc::new(Vm::default());
    let (bar, doorbells, bell) = doorbells(&vm);
    doorbells.move_to(HERE + 8).expect("one's new place is the other's old one");
    assert_eq!(vm.there(), [HERE + 8, HERE + 16]);
    vm.refuse(THERE + 8);
    assert!(matches!(doorbells.move_to(THERE), Err(IoEventFdError::Vm { .. })));
    assert_eq!(vm.there(), [HERE + 8, HERE + 16], "together or not at all");
    assert!(matches!(doorbells.move_to(u64::MAX - 8), Err(IoEventFdError::OutOfRange { .. })));
    let beyond = doorbells.add(LEN as u64 - 2, Width::Four, None, bell.as_fd());
    assert!(matches!(beyond, Err(IoEventFdError::OutOfRange { .. })));
    vm.refuse(HERE + 8 + 64);
    assert!(doorbells.add(64, Width::One, None, bell.as_fd()).is_err());
    vm.refuse(None);
    doorbells.add(64, Width::One, None, bell.as_fd()).expect("nothing was left behind");
    vm.refuse(HERE + 8);
    assert!(doorbells.remove(0, Width::Four, None).is_err());
    vm.refuse(None);
    assert_eq!(vm.there().len(), 3, "it is still there");
    doorbells.remove(0, Width::Four, None).expect("the hypervisor gives it up");
    assert!(matches!(doorbells.remove(0, Width::Four, None), Err(IoEventFdError::NotFound { .. })));
    assert_eq!(vm.there(), [HERE + 16, HERE + 8 + 64]);
    bar.disable().expect("nothing is in the way");
    doorbells.add(0, Width::Four, None, bell.as_fd()).expect("for later");
    assert_eq!(vm.there(), NOWHERE);
    bar.enable().expect("it comes back");
    assert_eq!(vm.there().len(), 3);
    drop(doorbells);
    assert_eq!(vm.there(), NOWHERE);
}

#[test]
fn a_move_that_fails_takes_no_other_threads_move_back() {
    support::start();
    let vm = Arc::new(Vm::default());
    let (_bar, doorbells, _bell) = doorbells(&vm);
    vm.refuse(2 * THERE);
    for round in 0..500 {
        let place = if round % 2 == 0 { THERE } else { HERE };
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                doorbells.move_to(2 * THERE).expect_err("it is refused");
            });
            start.wait();
            doorbells.move_to(place).expect("it is not");
        });
        assert_eq!(vm.there(), [place, place + 8], "round {round}");
    }
}

/// Refuses the next registration.
#[derive(Default)]
struct RefusesOnce {
    refuses: AtomicBool,
    there: AtomicUsize,
}

impl SetIoEventFd for RefusesOnce {
    fn assign(&self, _: &IoEvent<'_>) -> io::Result<()> {
        if self.refuses.swap(false, Ordering::SeqCst) {
            return Err(Errno::ENOSPC.into());
        }
        self.there.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn withdraw(&self, _: &IoEvent<'_>) -> io::Result<()> {
        self.there.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn an_ioeventfd_that_was_refused_is_not_registered_later() {
    support::start();
    let (vm, bar) = (Arc::new(RefusesOnce::default()), Region::builder(LEN).build().expect("a region"));
    let doorbells = IoEventFds::new(Arc::clone(&vm), &bar, HERE).expect("nothing is in the way");
    let (bell, over) = (EventFd::new().expect("an eventfd"), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // It may be the one that is refused.
                    let _ = doorbells.retry();
                }
            });
        }
        for _ in 0..100_000 {
            vm.refuses.store(true, Ordering::SeqCst);
            if doorbells.add(64, Width::Four, None, bell.as_fd()).is_ok() {
                doorbells.remove(64, Width::Four, None).expect("it is there");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(doorbells.registered(), 0);
    assert_eq!(vm.there.load(Ordering::SeqCst), 0, "signals that nobody can end");
}

type Call = dyn FnOnce() -> io::Result<()> + Send;

/// Calls a closure at the next call for an address, before it does what it is asked.
#[derive(Default)]
struct Calls {
    vm: Vm,
    at: Mutex<Option<(u64, Box<Call>)>>,
}

impl Calls {
    fn at(&self, gpa: u64, call: impl FnOnce() -> io::Result<()> + Send + 'static) {
        *self.at.lock().expect("no panic") = Some((gpa, Box::new(call)));
    }

    fn call(&self, event: &IoEvent<'_>) -> io::Result<()> {
        let call = self.at.lock().expect("no panic").take_if(|(gpa, _)| *gpa == event.gpa);
        call.map_or(Ok(()), |(_, call)| call())
    }
}

impl SetIoEventFd for Calls {
    fn assign(&self, event: &IoEvent<'_>) -> io::Result<()> {
        self.call(event)?;
        self.vm.assign(event)
    }

    fn withdraw(&self, event: &IoEvent<'_>) -> io::Result<()> {
        self.call(event)?;
        match self.vm.there().contains(&event.gpa) {
            true => self.vm.withdraw(event),
            // One whose registration has panicked.
            false => Err(Errno::ENOENT.into()),
        }
    }
}

/// As [`doorbells`].
fn calling() -> (Arc<Calls>, Region, Arc<IoEventFds>, EventFd) {
    support::start();
    let (vm, bar) = (Arc::new(Calls::default()), Region::builder(LEN).build().expect("a region"));
    let bell = EventFd::new().expect("an eventfd");
    let doorbells = IoEventFds::new(Arc::clone(&vm), &bar, HERE).expect("nothing is in the way");
    for offset in [0, 8] {
        doorbells.add(offset, Width::Four, None, bell.as_fd()).expect("it is free");
    }
    (vm, bar, Arc::new(doorbells), bell)
}

#[test]
fn a_removal_that_fails_beside_a_retry_leaves_the_ioeventfd_registered() {
    let (vm, _bar, doorbells, _bell) = calling();
    for round in 0..3000 {
        let start = Barrier::new(2);
        vm.at(HERE, || Err(Errno::EBUSY.into()));
        let removed = thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for _ in 0..20 {
                    doorbells.retry().expect("all of them are there");
                }
            });
            start.wait();
            doorbells.remove(0, Width::Four, None)
        });
        assert!(matches!(removed, Err(IoEventFdError::Vm { gpa: HERE, .. })), "{removed:?}");
        assert_eq!((vm.vm.there(), doorbells.registered()), (vec![HERE, HERE + 8], 2), "round {round}");
    }
}

#[test]
fn an_error_is_of_the_ioeventfd_that_was_asked_for() {
    let (vm, bar, doorbells, bell) = calling();
    vm.vm.refuse(HERE + 8);
    bar.disable().expect("the doorbells are not what revokes");
    doorbells.add(16, Width::Four, None, bell.as_fd()).expect("another's refusal was told of then");
    doorbells.remove(0, Width::Four, None).expect("another's refusal was told of then");
    vm.vm.refuse(None);
    bar.enable().expect("it comes back");
    assert_eq!(vm.vm.there(), [HERE + 8, HERE + 16]);
}

#[test]
fn what_is_added_and_removed_inside_the_hypervisors_call_is_done_when_that_returns() {
    let (vm, bar, doorbells, bell) = calling();
    bar.disable().expect("nothing is in the way");
    let inside = Arc::clone(&doorbells);
    vm.at(HERE + 8, move || {
        inside.remove(0, Width::Four, None).expect("it is there");
        inside.add(16, Width::Four, None, bell.as_fd()).expect("it is free");
        let again = inside.remove(0, Width::Four, None);
        assert!(matches!(again, Err(IoEventFdError::NotFound { offset: 0 })), "{again:?}");
        Ok(())
    });
    bar.enable().expect("it comes back");
    assert_eq!((vm.vm.there(), doorbells.registered()), (vec![HERE + 8, HERE + 16], 2), "none is forgotten");
}

#[test]
fn a_hypervisor_that_panics_refuses_and_no_more() {
    let (vm, bar, doorbells, bell) = calling();
    let panics = || panic!("by design");
    vm.at(HERE, panics);
    assert!(matches!(doorbells.remove(0, Width::Four, None), Err(IoEventFdError::Vm { gpa: HERE, .. })));
    assert_eq!(vm.vm.there(), [HERE, HERE + 8], "none of them is withdrawn");
    vm.at(HERE + 16, panics);
    assert!(doorbells.add(16, Width::Four, None, bell.as_fd()).is_err());
    assert_eq!((vm.vm.there(), doorbells.registered()), (vec![HERE, HERE + 8], 2));
    vm.at(HERE, panics);
    bar.disable().expect("the doorbells are not what revokes");
    doorbells.add(16, Width::Four, None, bell.as_fd()).expect("for later");
    assert_eq!(vm.vm.there(), NOWHERE, "none is registered while the region is disabled");
}

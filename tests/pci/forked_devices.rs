//! Loops, queues and DMA spaces that a forked child inherits belong to its parent. The child does no harm with them,
//! and makes its own.
#![expect(unsafe_code, reason = "forks, and maps memory in the child")]

use crate::support;
use crate::support::forking;
use nix::sys::eventfd::EventFd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use revocable_mmio::fault::{FaultFlags, NotResolved};
use revocable_mmio::pci::{
    AddressMap, Bar, BarPlace, DmaAccess, DmaSegment, DmaSpace, IoEventLoop, Iommu, PciDevice, PciError, Space, Width,
};
use revocable_mmio::{Caller, FaultQueue, MapOptions, OnDisabled, PinError, Region, SubmitError, Submitted};
use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

fn device(kicks: Option<&IoEventLoop>) -> PciDevice {
    let builder = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096));
    let builder = kicks.into_iter().fold(builder, |builder, kicks| builder.io_event_loop(kicks.clone()));
    builder.build().expect("a device")
}

/// Signals `event`, and waits for the write that it stands for. Returns false if the write does not come.
fn kicks(device: &PciDevice, event: &EventFd, at: usize) -> bool {
    let owner = device.owner(Space::Bar(0)).expect("memory");
    owner.write(at, 0_u8).expect("memory");
    event.write(1).expect("signalled");
    let since = Instant::now();
    while owner.read::<u8>(at) != Ok(1) {
        if since.elapsed() > Duration::from_secs(3) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

fn event() -> EventFd {
    EventFd::new().expect("an eventfd")
}

#[test]
fn a_child_has_a_loop_of_its_own_and_leaves_its_parents_as_it_is() {
    support::start();
    let parents = device(None);
    let own_loop = IoEventLoop::manual().expect("a loop");
    let manual = device(Some(&own_loop));
    let events = [event(), event(), event()];
    parents.add_ioeventfd(0, 0, Width::One, 1, events[0].as_fd()).expect("an ioeventfd");
    manual.add_ioeventfd(0, 0, Width::One, 1, events[1].as_fd()).expect("an ioeventfd");
    assert!(kicks(&parents, &events[0], 0));
    events[1].write(1).expect("signalled");
    let mut inherited = Some((parents, manual, own_loop));
    let fine = forking::is_fine(|| {
        let (parents, manual, own_loop) = inherited.take().expect("inherited");
        // The parent's events stay the parent's.
        let refused = matches!(own_loop.handle_ready(), Err(PciError::Forked))
            && matches!(parents.add_ioeventfd(0, 8, Width::One, 9, events[2].as_fd()), Err(PciError::Forked))
            && matches!(parents.remove_ioeventfd(0, 0, Width::One, 1), Err(PciError::Forked));
        // With its parent's loop, a device of the child would be served by the parent, or not at all.
        let borrowed = device(Some(&own_loop)).add_ioeventfd(0, 8, Width::One, 9, events[2].as_fd());
        drop((parents, manual, own_loop));
        let own = device(None);
        let own_event = event();
        own.add_ioeventfd(0, 0, Width::One, 1, own_event.as_fd()).expect("the child's own loop");
        let served = kicks(&own, &own_event, 0);
        refused && matches!(borrowed, Err(PciError::Forked)) && served
    });
    assert!(fine);
    let (parents, manual, own_loop) = inherited.expect("still the parent's");
    assert_eq!(own_loop.handle_ready().expect("a loop"), 1, "the child took the event");
    assert_eq!(manual.owner(Space::Bar(0)).expect("memory").read::<u8>(0), Ok(1));
    assert!(kicks(&parents, &events[0], 0), "the child ended the parent's loop, or took its ioeventfd out");
    parents.add_ioeventfd(0, 1, Width::One, 1, events[2].as_fd()).expect("an ioeventfd");
    assert!(kicks(&parents, &events[2], 1));
    assert_eq!(parents.owner(Space::Bar(0)).expect("memory").read::<u8>(8), Ok(0), "written by the child");
}

#[test]
fn a_child_decides_none_of_its_parents_faults() {
    support::start();
    let region = Region::builder(1 << 20).disabled().build().expect("it builds");
    let queue = FaultQueue::new(8).expect("an eventfd");
    let block = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
    let Submitted::Queued(token) = region.fault_async(0, block, &queue).expect("room") else {
        panic!("it is disabled")
    };
    let mut inherited = Some((region, queue, token));
    let fine = forking::is_fine(|| {
        let (region, queue, mut token) = inherited.take().expect("inherited");
        let refused = matches!(region.fault_async(4096, block, &queue), Err(SubmitError::Forked))
            && matches!(region.pin(0..1, FaultFlags::NOWAIT).map(drop), Err(PinError::Forked));
        let given_up = std::pin::Pin::new(&mut token).poll(&mut Context::from_waker(Waker::noop()))
            == Poll::Ready(Err(NotResolved::Killed));
        token.cancel();
        drop(token);
        drop(region);
        let empty = queue.next().is_none();
        drop(queue);
        refused && given_up && empty
    });
    assert!(fine);
    let (region, queue, token) = inherited.expect("still the parent's");
    let mut ready = [nix::poll::PollFd::new(queue.as_fd(), nix::poll::PollFlags::POLLIN)];
    let readable = nix::poll::poll(&mut ready, nix::poll::PollTimeout::ZERO).expect("an eventfd");
    assert_eq!((readable, queue.next()), (0, None), "completed by the child");
    region.enable().expect("nothing is in the way");
    assert_eq!(queue.next().map(|done| (done.id, done.result)), Some((token.id(), Ok(()))));
}

#[test]
fn a_child_reaches_none_of_its_parents_iommu() {
    support::start();
    /// Counts in memory that parent and child share.
    struct Shared(&'static [AtomicU32; 2]);
    impl Iommu for Shared {
        fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
            self.0[0].fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        fn unmap(&self, _: u64, _: usize) {
            self.0[1].fetch_add(1, Ordering::SeqCst);
        }
    }
    let len = NonZeroUsize::new(4096).expect("not 0");
    let flags = MapFlags::MAP_SHARED;
    // SAFETY: replaces nothing.
    let page =
        unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }.expect("a page");
    // SAFETY: mapped for good, zeroed, and used as atomics only.
    let counts: &'static [AtomicU32; 2] = unsafe { page.cast().as_ref() };
    let seen = || [&counts[0], &counts[1]].map(|count| count.load(Ordering::SeqCst));

    let region = Region::builder(1 << 20).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let space = DmaSpace::new(Arc::new(Shared(counts)));
    space.map(1 << 32, &[DmaSegment::device(&mapping, 0..1 << 20)], DmaAccess::Read).expect("enabled");
    // SAFETY: nothing is reached there.
    let plain = unsafe { DmaSegment::plain(page.as_ptr().cast(), 4096) };
    space.map(2 << 32, &[plain], DmaAccess::Read).expect("enabled");
    assert_eq!(seen(), [2, 0]);
    let mut inherited = Some((region, mapping, space));
    let fine = forking::is_fine(|| {
        let (region, mapping, space) = inherited.take().expect("inherited");
        let refused = space.map(3 << 32, &[DmaSegment::device(&mapping, 0..4096)], DmaAccess::Read);
        let unmapped = space.unmap(0, usize::MAX);
        drop((space, mapping, region));
        matches!(refused, Err(PciError::Forked)) && unmapped == 0
    });
    assert!(fine);
    assert_eq!(seen(), [2, 0], "the child called the parent's IOMMU");
    let (region, _mapping, space) = inherited.expect("still the parent's");
    region.disable().expect("nothing is in the way");
    assert_eq!(seen(), [2, 1]);
    region.enable().expect("comes back");
    assert_eq!(space.unmap(0, usize::MAX), (1 << 20) + 4096);
}

#[test]
fn a_child_moves_none_of_its_parents_bars() {
    support::start();
    struct Counts(Arc<AtomicU32>);
    impl AddressMap for Counts {
        fn insert(&self, _: &BarPlace) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
        fn remove(&self, _: &BarPlace) {
            self.0.fetch_add(100, Ordering::SeqCst);
        }
    }
    let calls = Arc::new(AtomicU32::new(0));
    let bar = Bar::memory(4096).at(0xe000_0000);
    let device = PciDevice::builder(1, 2).command(2).bar(0, bar).build().expect("a device");
    let following = device.follow(Arc::new(Counts(Arc::clone(&calls)))).expect("free");
    let mut inherited = Some((device, following));
    let fine = forking::is_fine(|| {
        let (device, following) = inherited.take().expect("inherited");
        let refused = matches!(device.begin_write(4, &[0, 0]), Err(PciError::Forked))
            && matches!(device.follow(Arc::new(Counts(Arc::clone(&calls)))).map(drop), Err(PciError::Forked));
        drop(following);
        drop(device);
        // The child's own count.
        refused && calls.load(Ordering::SeqCst) == 1
    });
    assert!(fine);
    drop(inherited);
    assert_eq!(calls.load(Ordering::SeqCst), 101);
}

/// A lock that another thread of the parent holds at the fork is held for ever in the child.
#[test]
fn a_child_that_is_made_in_the_middle_of_everything_can_drop_it_all() {
    support::start();
    let region = Region::builder(1 << 20).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    struct Agrees;
    impl Iommu for Agrees {
        fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
            Ok(())
        }
        fn unmap(&self, _: u64, _: usize) {}
    }
    let space = Arc::new(DmaSpace::new(Arc::new(Agrees)));
    let queue = FaultQueue::new(8).expect("an eventfd");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let at = (round % 7 + 1) << 32;
                let _ = space.map(at, &[DmaSegment::device(&mapping, 0..4096)], DmaAccess::Read);
                let _ = region.try_disable();
                let block = Caller::new(FaultFlags::WAIT).on_disabled(OnDisabled::Block);
                drop(region.fault_async(0, block, &queue));
                let _ = region.try_enable();
                let pin = region.pin(0..1, FaultFlags::NOWAIT).map(|pin| pin.on_revoke(|| ()));
                drop(pin);
                while queue.next().is_some() {}
                space.unmap(at, 4096);
            }
        });
        let (region, space, queue) = (&region, &space, &queue);
        let fine = (0..100).all(|_| {
            forking::is_fine(|| {
                // SAFETY: the child's copies, here and below; it ends without using them again.
                let region = unsafe { std::ptr::read(region) };
                // SAFETY: as above.
                let space = unsafe { std::ptr::read(space) };
                // SAFETY: as above.
                let queue = unsafe { std::ptr::read(queue) };
                drop((space, queue, region));
                true
            })
        });
        stop.store(true, Ordering::Relaxed);
        assert!(fine, "a child panics, or waits for ever for a lock");
    });
}

#[test]
fn a_child_waits_for_no_write_that_its_parent_has_begun_and_for_no_turn() {
    support::start();
    let (entered, is_entered) = std::sync::mpsc::sync_channel(1);
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let goes = std::sync::Mutex::new(goes);
    let reset = move |_: &PciDevice, _| {
        entered.send(()).map_err(io::Error::other)?;
        let _ = goes.lock().expect("a channel").recv();
        Ok(())
    };
    let device = PciDevice::builder(1, 2).bar(0, Bar::memory(4096)).express(0x50).on_reset(reset).build();
    let device = device.expect("a device");
    let write = device.begin_write(0x58, &[0, 0x80]).expect("it begins");
    is_entered.recv().expect("the reset begins");
    let fine = forking::is_fine(|| {
        let never = revocable_mmio::CancelToken::new();
        let done = write.is_done() && write.wait_unless(&never) && write.wait_timeout(Duration::from_secs(60));
        let forked = |result: Result<(), PciError>| matches!(result, Err(PciError::Forked));
        done && write.result().is_some_and(forked)
            && forked(device.write(Space::Config, 4, &[2, 0][..]).map(drop))
            && forked(device.write_timeout(4, &[2, 0], Duration::from_secs(60)))
            && forked(device.begin_write(4, &[2, 0]).map(drop))
            && forked(device.restore(&device.save()))
            && forked(device.reset())
            && forked(device.enter_low_power())
    });
    assert!(!write.is_done(), "the child has ended it");
    drop(go);
    assert!(write.wait_timeout(Duration::from_secs(20)));
    write.result().expect("done").expect("made");
    assert!(fine);
}

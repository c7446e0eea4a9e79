//! The promises of the device model, one by one. Most are named after a behaviour of vfio-pci, with its own function in
//! brackets. The tests in `tests/vfio` replay recorded behaviour step by step.

mod resets;
mod transfers;

use crate::support;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, PciDevice, Space, Width};
use revocable_mmio::{AccessError, CancelToken, InvalidateNotifier, MapOptions, NotifyError};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const BAR: Space = Space::Bar(0);
const OFF: [u8; 2] = [0, 0];
const ON: [u8; 2] = [2, 0];
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;
const EFAULT: i32 = 14;
const EDEADLK: i32 = 35;

fn device() -> PciDevice {
    PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(8192)).bar(1, Bar::memory(4096)).build().expect("a device")
}

fn command(device: &PciDevice, bytes: [u8; 2]) {
    device.write(Space::Config, 4, &bytes[..]).expect("COMMAND");
}

#[derive(Default)]
struct Log(Mutex<Vec<&'static str>>);

struct Notes(Arc<Log>, [&'static str; 2]);

impl InvalidateNotifier for Notes {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.0.lock().expect("the log").push(self.1[0]);
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.0.0.lock().expect("the log").push(self.1[1]);
        Ok(())
    }
}

/// Calls a function before a revocation.
struct Calls<F: Fn() + Send + Sync>(F);

impl<F: Fn() + Send + Sync> InvalidateNotifier for Calls<F> {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        (self.0)();
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

#[test]
fn all_bars_of_a_device_are_revoked_by_one_bit_and_no_bar_of_another() {
    support::start();
    let (one, other) = (device(), device());
    let maps = [BAR, Space::Bar(1)].map(|bar| one.map(bar, MapOptions::new()).expect("a mapping"));
    let others = other.map(BAR, MapOptions::new()).expect("a mapping");
    command(&one, OFF);
    for map in &maps {
        assert_eq!(map.read::<u32>(0), Err(AccessError::Disabled { offset: 0 }));
    }
    assert_eq!(others.read::<u32>(0), Ok(0));
    command(&one, ON);
    assert!(maps.iter().all(|map| map.read::<u32>(0) == Ok(0)));
}

#[test]
fn the_register_shows_a_revocation_when_it_is_complete() {
    support::start();
    let device = device();
    let (seen, watched) = (Arc::new(AtomicU32::new(0)), device.clone());
    let note = {
        let seen = Arc::clone(&seen);
        move || seen.store(u32::from(watched.command()) + 1, SeqCst)
    };
    let subscription = device.region(BAR).expect("memory").subscribe(0..8192, Arc::new(Calls(note)));
    command(&device, OFF);
    assert_eq!(seen.load(SeqCst), 2 + 1, "still set while the notifiers are told");
    assert_eq!(device.command(), 0);
    drop(subscription);
}

#[test]
fn a_device_state_cannot_be_changed_from_inside_its_own_notifier() {
    support::start();
    let device = device();
    let (errno, inside) = (Arc::new(AtomicU32::new(0)), device.clone());
    let note = {
        let errno = Arc::clone(&errno);
        move || {
            let refused = inside.write(Space::Config, 4, &ON[..]).expect_err("from inside");
            errno.store(refused.errno().unsigned_abs(), SeqCst);
        }
    };
    let _subscription = device.region(BAR).expect("memory").subscribe(0..8192, Arc::new(Calls(note)));
    command(&device, OFF);
    assert_eq!(errno.load(SeqCst), EDEADLK.unsigned_abs());
    assert!(!device.is_memory_enabled());
}

#[test]
fn a_revocation_that_cannot_be_leaves_register_and_bars_as_they_were() {
    support::start();
    let device = device();
    let map = device.map(BAR, MapOptions::new()).expect("a mapping");
    let first = device.map(Space::Bar(1), MapOptions::new()).expect("a mapping");
    let guard = map.try_access().expect("enabled");
    // A change that waited for this thread's own guard would never end.
    let refused = device.write(Space::Config, 4, &OFF[..]).expect_err("a guard is held");
    assert_eq!(refused.errno(), EDEADLK);
    assert_eq!(device.command(), 2);
    assert_eq!((map.read::<u8>(0), first.read::<u8>(0)), (Ok(0), Ok(0)));
    drop(guard);
    command(&device, OFF);
}

#[test]
fn a_caller_that_may_not_wait_is_turned_away_from_a_busy_device_and_one_that_may_be_called_off_is() {
    support::start();
    let device = device();
    let token = CancelToken::new();
    let answers = device.privileged(|device| {
        thread::scope(|scope| {
            let nowait = scope.spawn(|| device.read_with(BAR, 0, &mut [0; 4][..], FaultFlags::NOWAIT));
            let killed = scope.spawn(|| {
                let caller = revocable_mmio::Caller::new(FaultFlags::WAIT).cancel(&token);
                device.write_with(BAR, 0, &[0; 4][..], caller)
            });
            thread::sleep(Duration::from_millis(20));
            token.cancel();
            [nowait, killed].map(|thread| thread.join().expect("a thread").expect_err("busy").errno())
        })
    });
    assert_eq!(answers.expect("no other change"), [EAGAIN, 4]);
}

#[test]
fn a_privileged_access_works_while_memory_is_off_and_zaps_and_tells_nothing() {
    support::start();
    let device = device();
    let map = device.map(BAR, MapOptions::new()).expect("a mapping");
    let log = Arc::new(Log::default());
    let _subscription =
        device.region(BAR).expect("memory").subscribe(0..8192, Arc::new(Notes(Arc::clone(&log), ["off", "on"])));
    let guard = map.try_access().expect("enabled");
    let during = device.privileged(|device| {
        device.owner(BAR).expect("memory").write(0, 7u32).expect("the owner's view");
        map.try_read::<u32>(0)
    });
    drop(guard);
    assert!(matches!(during, Ok(Ok(7) | Err(AccessError::WouldBlock { .. }))), "{during:?}");
    assert!(log.0.lock().expect("the log").is_empty());
    let stats = device.region(BAR).expect("memory").stats();
    assert_eq!((stats.disables, stats.resets), (0, 0));
    command(&device, OFF);
    device.privileged(|device| device.owner(BAR).expect("memory").write(0, 8u32)).expect("allowed").expect("stored");
    assert_eq!(map.read::<u32>(0), Err(AccessError::Disabled { offset: 0 }), "the state is as it was");
    command(&device, ON);
    assert_eq!(map.read::<u32>(0), Ok(8));
}

#[test]
fn a_signalled_ioeventfd_is_served_by_the_callers_own_loop() {
    support::start();
    let kicks = revocable_mmio::pci::IoEventLoop::manual().expect("a loop");
    let builder = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).io_event_loop(kicks.clone());
    let device = builder.build().expect("a device");
    let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    device.add_ioeventfd(0, 8, Width::Two, 0x1_2345, std::os::fd::AsFd::as_fd(&event)).expect("an ioeventfd");
    assert_eq!(kicks.handle_ready().expect("a loop"), 0);
    event.write(1).expect("signalled");
    assert_eq!(kicks.handle_ready().expect("a loop"), 1);
    assert_eq!(kicks.handle_ready().expect("a loop"), 0, "consumed");
    assert_eq!(device.owner(BAR).expect("memory").read::<u64>(8), Ok(0x2345), "two bytes, no more");
}

#[test]
fn a_dropped_device_refuses_for_good_and_stops_its_ioeventfds() {
    support::start();
    let device = device();
    let map = device.map(BAR, MapOptions::new()).expect("a mapping");
    let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    device.add_ioeventfd(0, 0, Width::Four, 1, std::os::fd::AsFd::as_fd(&event)).expect("an ioeventfd");
    drop(device);
    event.write(1).expect("signalled");
    thread::sleep(Duration::from_millis(20));
    assert_eq!(map.read::<u32>(0), Err(AccessError::Gone { offset: 0 }));
}

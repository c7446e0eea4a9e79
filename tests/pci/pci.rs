//! The device model's promises, one by one; most are named for a behaviour of vfio-pci (a function of its own in brackets).
//! What it was seen to do step by step is replayed by `vfio_conformance`.

use crate::support;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, BufferFault, Bus, PciDevice, Sink, Source, Space, Width};
use revocable_mmio::{AccessError, CancelToken, InvalidateNotifier, MapOptions, NotifyError};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
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

/// Calls back when told.
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
    // This thread's own guard would be waited for for ever.
    let refused = device.write(Space::Config, 4, &OFF[..]).expect_err("a guard is held");
    assert_eq!(refused.errno(), EDEADLK);
    assert_eq!(device.command(), 2);
    assert_eq!((map.read::<u8>(0), first.read::<u8>(0)), (Ok(0), Ok(0)));
    drop(guard);
    command(&device, OFF);
}

/// A buffer that does something of its own between two accesses.
struct Hooked<F: Fn(usize)>(usize, F);

impl<F: Fn(usize)> Sink for Hooked<F> {
    fn len(&self) -> usize {
        self.0
    }

    fn put(&mut self, at: usize, _: &[u8]) -> Result<(), BufferFault> {
        (self.1)(at);
        Ok(())
    }
}

impl<F: Fn(usize)> Source for Hooked<F> {
    fn len(&self) -> usize {
        self.0
    }

    fn get(&self, at: usize, into: &mut [u8]) -> Result<(), BufferFault> {
        into.fill(0x5a);
        (self.1)(at);
        Ok(())
    }
}

#[test]
fn no_lock_is_held_while_the_callers_buffer_is_touched() {
    support::start();
    // The buffer revokes the very memory that is transferred: under the read lock it would wait for itself (bc93b9ae0151).
    let device = device();
    let toggle = |_| {
        command(&device, OFF);
        command(&device, ON);
    };
    assert_eq!(device.read(BAR, 0, &mut Hooked(64, toggle)).expect("enabled at each access"), 64);
    assert_eq!(device.write(BAR, 0, &Hooked(64, toggle)).expect("enabled at each access"), 64);
}

#[test]
fn a_transfer_that_a_revocation_cuts_is_eio_and_what_was_written_stays() {
    support::start();
    let device = device();
    let cut = |at| {
        if at == 16 {
            command(&device, OFF);
        }
    };
    let error = device.write(BAR, 0, &Hooked(64, cut)).expect_err("cut at byte 16");
    assert_eq!(error.errno(), EIO);
    let owner = device.owner(BAR).expect("memory");
    assert_eq!(owner.read::<u64>(8), Ok(0x5a5a_5a5a_5a5a_5a5a));
    assert_eq!(owner.read::<u64>(16), Ok(0), "taken from the buffer before the access was refused");
    command(&device, ON);
    assert_eq!(device.read(BAR, 0, &mut Hooked(64, cut)).expect_err("cut").errno(), EIO);
}

#[test]
fn accesses_are_as_wide_as_the_offset_allows() {
    support::start();
    let widths = |at: u64, len| {
        let seen = Mutex::new(Vec::new());
        let sink = Hooked(len, |at| seen.lock().expect("a list").push(at));
        let mut sink = sink;
        device().read(BAR, at, &mut sink).expect("enabled");
        seen.into_inner().expect("a list")
    };
    assert_eq!(widths(0, 16), [0, 8], "two of 8");
    assert_eq!(widths(1, 8), [0, 1, 3, 7], "1, 2, 4, 1");
    assert_eq!(widths(4, 13), [0, 4, 12], "4, 8, 1");
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
fn a_reset_callback_works_by_the_owners_view_and_cannot_wait_for_itself() {
    support::start();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let errors = Arc::clone(&seen);
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).on_reset(move |device, _| {
        let mut errors = errors.lock().expect("a list");
        errors.push(device.read(BAR, 0, &mut [0; 4][..]).expect_err("busy by this very thread").errno());
        errors.push(device.write(Space::Config, 4, &OFF[..]).expect_err("from inside").errno());
        errors.push(device.reset().expect_err("from inside").errno());
        device.owner(BAR).expect("memory").write(0, 9u32).map_err(std::io::Error::other)
    });
    let device = device.build().expect("a device");
    device.reset().expect("a reset");
    assert_eq!(*seen.lock().expect("a list"), [EDEADLK; 3]);
    let map = device.map(BAR, MapOptions::new()).expect("a mapping");
    assert_eq!(map.read::<u32>(0), Ok(9));
}

#[test]
fn configuration_that_is_not_about_memory_is_read_and_written_while_a_reset_runs() {
    support::start();
    let (entered, begun) = mpsc::sync_channel(0);
    let gate = Arc::new(Barrier::new(2));
    let inside = Arc::clone(&gate);
    let slow = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).on_reset(move |_, _| {
        entered.send(()).map_err(std::io::Error::other)?;
        inside.wait();
        Ok(())
    });
    let slow = slow.build().expect("a device");
    thread::scope(|scope| {
        scope.spawn(|| slow.reset().expect("a reset"));
        begun.recv().expect("the reset begins");
        slow.write(Space::Config, 0x3c, &[11u8][..]).expect("the interrupt line");
        let mut line = [0];
        slow.read(Space::Config, 0x3c, &mut line[..]).expect("the interrupt line");
        assert_eq!((line, slow.command()), ([11], 2));
        gate.wait();
    });
}

#[test]
fn a_reset_that_panics_gives_the_memory_back_first() {
    support::start();
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).on_reset(|_, _| panic!("by design"));
    let device = device.build().expect("a device");
    let map = device.map(BAR, MapOptions::new()).expect("a mapping");
    let reset = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.reset()));
    assert!(reset.is_err());
    assert_eq!(map.read::<u32>(0), Ok(0));
    command(&device, OFF);
}

#[test]
fn a_hot_reset_that_meets_a_busy_function_is_undone_in_reverse() {
    support::start();
    let devices: Vec<_> = (0..4).map(|_| device()).collect();
    let log = Arc::new(Log::default());
    let bus = Bus::new(devices.iter().cloned());
    let names = [["-a", "+a"], ["-b", "+b"], ["-c", "+c"], ["-d", "+d"]];
    let subscriptions: Vec<_> = bus
        .functions()
        .iter()
        .zip(names)
        .map(|(device, names)| {
            device.region(BAR).expect("memory").subscribe(0..1, Arc::new(Notes(Arc::clone(&log), names)))
        })
        .collect();
    let maps: Vec<_> = bus.functions().iter().map(|f| f.map(BAR, MapOptions::new()).expect("a mapping")).collect();
    for (busy, map) in maps.iter().enumerate() {
        let pin = bus.functions()[busy].region(BAR).expect("memory").pin(0..1, FaultFlags::NOWAIT).expect("enabled");
        let refused = bus.hot_reset(|_| true, |_| panic!("one is pinned")).expect_err("busy");
        assert_eq!(refused.errno(), EBUSY);
        drop(pin);
        assert_eq!(map.read::<u32>(0), Ok(0));
        assert!(log.0.lock().expect("the log").is_empty(), "told of a reset that came to nothing");
    }
    // One that is pinned once it looked as if nothing was in the way: the last, when the first is told.
    // The order is one that all groups keep to, not the bus's: a reset tells it.
    bus.hot_reset(|_| true, |_| Ok(())).expect("nobody is busy");
    let order = std::mem::take(&mut *log.0.lock().expect("the log"));
    let told_as = |told: &str| names.iter().position(|names| names[0] == told).expect("one of these");
    let (first, last) = (told_as(order[0]), told_as(order[names.len() - 1]));
    let last = bus.functions()[last].clone();
    let pin = Arc::new(Mutex::new(None));
    let pinned = Arc::clone(&pin);
    let pins = move || {
        let taken = last.region(BAR).expect("memory").pin(0..1, FaultFlags::NOWAIT);
        pinned.lock().expect("a pin").get_or_insert(taken.expect("enabled"));
    };
    let pins = bus.functions()[first].region(BAR).expect("memory").subscribe(0..1, Arc::new(Calls(pins)));
    assert_eq!(bus.hot_reset(|_| true, |_| panic!("one is pinned")).expect_err("busy").errno(), EBUSY);
    let told = std::mem::take(&mut *log.0.lock().expect("the log"));
    let (before, after) = told.split_at(told.len() / 2);
    let mirrored: Vec<_> = before.iter().rev().map(|told| told.replace('-', "+")).collect();
    assert_eq!(after, mirrored, "told in reverse that it came to nothing");
    assert!(before.len() > 1 && before.iter().all(|told| told.starts_with('-')));
    drop(pins);
    drop(pin.lock().expect("a pin").take());
    bus.hot_reset(|_| true, |_| Ok(())).expect("nobody is busy");
    drop(subscriptions);
}

#[test]
fn no_functions_mapping_is_reachable_while_the_bus_is_reset_and_none_refuses() {
    support::start();
    let devices: Vec<_> = (0..8).map(|_| device()).collect();
    let maps: Vec<_> = devices.iter().map(|d| d.map(BAR, MapOptions::new()).expect("a mapping")).collect();
    let bus = Bus::new(devices.iter().cloned());
    let (during, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        for map in &maps[..2] {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let before = during.load(SeqCst);
                    map.read::<u32>(0).expect("never refused");
                    assert!(!(before && during.load(SeqCst)), "reached in the middle of a reset");
                }
            });
        }
        for _ in 0..20 {
            let mut done = bus.hot_reset(
                |_| true,
                |_| {
                    during.store(true, SeqCst);
                    let reached = maps.iter().filter(|map| map.try_read::<u32>(0).is_ok()).count();
                    thread::sleep(Duration::from_millis(1));
                    during.store(false, SeqCst);
                    assert_eq!(reached, 0, "half revoked");
                    Ok(())
                },
            );
            if done.as_ref().is_err_and(|e| e.errno() == EBUSY) {
                done = Ok(());
            }
            done.expect("a reset, or busy");
        }
        stop.store(true, SeqCst);
    });
}

#[test]
fn two_buses_that_share_functions_never_wait_for_each_other() {
    support::start();
    let devices: Vec<_> = (0..6).map(|_| device()).collect();
    let buses = [Bus::new(devices[..4].iter().cloned()), Bus::new(devices[2..].iter().cloned())];
    let resets = AtomicU32::new(0);
    thread::scope(|scope| {
        for bus in &buses {
            scope.spawn(|| {
                for _ in 0..300 {
                    match bus.hot_reset(|_| true, |_| Ok(())) {
                        Ok(()) => drop(resets.fetch_add(1, SeqCst)),
                        Err(e) => assert_eq!(e.errno(), EBUSY, "{e}"),
                    }
                }
            });
        }
    });
    assert!(resets.load(SeqCst) > 0);
    for bus in &buses {
        bus.hot_reset(|_| true, |_| Ok(())).expect("nobody is left holding anything");
    }
}

#[test]
fn a_bus_function_in_a_reset_of_its_own_makes_the_bus_busy() {
    support::start();
    let (entered, begun) = mpsc::sync_channel(0);
    let gate = Arc::new(Barrier::new(2));
    let inside = Arc::clone(&gate);
    let slow = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).on_reset(move |_, _| {
        entered.send(()).map_err(std::io::Error::other)?;
        inside.wait();
        Ok(())
    });
    let slow = slow.build().expect("a device");
    let bus = Bus::new([device(), slow.clone()]);
    thread::scope(|scope| {
        scope.spawn(|| slow.reset().expect("a reset"));
        begun.recv().expect("the reset begins");
        assert_eq!(bus.hot_reset(|_| true, |_| Ok(())).expect_err("busy").errno(), EBUSY);
        gate.wait();
    });
    bus.hot_reset(|_| true, |_| Ok(())).expect("it has ended");
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
fn the_msix_table_is_out_of_reach_of_calls_and_ioeventfds() {
    support::start();
    let bar = Bar::memory(4096).exclude(0x10..0x20);
    let device = PciDevice::builder(1, 2).command(2).bar(0, bar).build().expect("a device");
    assert_eq!(device.write(BAR, 8, &[1u8; 32][..]).expect("enabled"), 32);
    let mut bytes = [0; 32];
    device.read(BAR, 8, &mut bytes[..]).expect("enabled");
    assert_eq!((&bytes[..8], &bytes[8..24], &bytes[24..]), (&[1; 8][..], &[0xff; 16][..], &[1; 8][..]));
    assert_eq!(device.owner(BAR).expect("memory").read::<u64>(0x10), Ok(0), "the write was dropped");
    let event = nix::sys::eventfd::EventFd::new().expect("an eventfd");
    for offset in [0xe, 0x10, 0x1c] {
        let refused = device.add_ioeventfd(0, offset, Width::Four, 1, std::os::fd::AsFd::as_fd(&event));
        assert_eq!(refused.expect_err("the table").errno(), 22);
    }
    device.add_ioeventfd(0, 0x20, Width::Four, 1, std::os::fd::AsFd::as_fd(&event)).expect("behind the table");
}

#[test]
fn a_failing_buffer_is_efault_and_revokes_nothing() {
    support::start();
    struct Nowhere;
    impl Source for Nowhere {
        fn len(&self) -> usize {
            2
        }
        fn get(&self, _: usize, _: &mut [u8]) -> Result<(), BufferFault> {
            Err("nowhere".into())
        }
    }
    let device = device();
    assert_eq!(device.write(Space::Config, 4, &Nowhere).expect_err("no buffer").errno(), EFAULT);
    assert_eq!(device.write(BAR, 0, &Nowhere).expect_err("no buffer").errno(), EFAULT);
    assert!(device.is_memory_enabled());
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

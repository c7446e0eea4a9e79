//! Devices: changes of one BAR and of all, ports that panic, loops that share an eventfd.

use super::Counts;
use super::{BAR, IOVA, OFF, ON, PATIENCE};
use crate::support;
use crate::support::waiter::Waiter;
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, DmaAccess, DmaSegment, DmaSpace, IoEventLoop, PciDevice, PortIo, Space, Width};
use revocable_mmio::{InvalidateNotifier, MapOptions, Mapping, NotifyError};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// A thread that turns a device's memory off waits for a guard of one of its BARs, which this thread holds.
#[test]
fn the_holder_of_another_bars_guard_is_told_and_waits_for_nothing() {
    support::start();
    let _watchdog = Watchdog::new("a device that is turned off", PATIENCE);
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).bar(1, Bar::memory(4096));
    let device = device.build().expect("a device");
    // Either BAR may be the one that is closed first.
    let mut told = 0;
    for held in [0, 1] {
        let maps = [held, 1 - held].map(|bar| device.map(Space::Bar(bar), MapOptions::new()).expect("a mapping"));
        let space = DmaSpace::new(Arc::new(Counts::default()));
        let access = maps[0].try_access().expect("enabled");
        let writer = Waiter::default();
        thread::scope(|scope| {
            let (device, writer) = (&device, &writer);
            scope.spawn(move || {
                writer.begins();
                device.write(Space::Config, 4, &OFF[..]).expect("COMMAND")
            });
            writer.until_it_waits();
            told += check(device, &maps, &space, held);
            drop(access);
        });
        assert!(!device.is_memory_enabled());
        device.write(Space::Config, 4, &ON[..]).expect("COMMAND");
    }
    assert!(told >= 7, "{told}");
}

/// Makes every call that would wait for the other BAR, and returns how many were refused.
fn check(device: &PciDevice, maps: &[Mapping; 2], space: &DmaSpace, held: usize) -> usize {
    let other = device.region(Space::Bar(1 - held)).expect("memory");
    let answers = [
        format!("{:?}", maps[1].with_access(|_| ())),
        format!("{:?}", other.pin(0..1, FaultFlags::WAIT).map(drop)),
        format!("{:?}", space.map(IOVA, &[DmaSegment::device(&maps[1], 0..4096)], DmaAccess::Read)),
        format!("{:?}", other.disable().map(|_| other.enable())),
        format!("{:?}", device.write(Space::Config, 4, &ON[..])),
        format!("{:?}", device.enter_low_power()),
        format!("{:?}", device.privileged(|_| ())),
    ];
    space.unmap(0, usize::MAX);
    let told = |text: &&String| text.contains("WouldDeadlock");
    assert!(answers.iter().all(|text| told(&text) || text.starts_with("Ok")), "{answers:?}");
    answers.iter().filter(told).count()
}

/// A thread in the middle of one BAR's change makes calls that wait for the device's change, which waits for the BAR.
#[test]
fn changes_of_a_bar_and_of_its_device_do_not_wait_for_each_other() {
    struct Asks(PciDevice, usize, mpsc::SyncSender<()>, Mutex<mpsc::Sender<[String; 3]>>, Waiter);
    impl InvalidateNotifier for Asks {
        fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
            self.2.send(())?;
            // The device's change waits for this one.
            self.4.until_it_waits();
            let other = self.0.region(Space::Bar(1 - self.1)).expect("memory");
            self.3.lock().expect("the channel").send([
                format!("{:?}", other.disable().map(|_| other.enable())),
                format!("{:?}", self.0.write(Space::Config, 4, &ON[..])),
                format!("{:?}", self.0.privileged(|_| ())),
            ])?;
            Ok(())
        }
        fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
            Ok(())
        }
    }
    support::start();
    let _watchdog = Watchdog::new("a BAR's change and its device's", PATIENCE);
    let mut answers = Vec::new();
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).bar(1, Bar::memory(4096));
    let device = device.build().expect("a device");
    for bar in [0, 1] {
        let region = device.region(Space::Bar(bar)).expect("memory");
        let ((inside, is_inside), (tell, told)) = (mpsc::sync_channel(0), mpsc::channel());
        let writer = Waiter::default();
        let asks = Arc::new(Asks(device.clone(), bar, inside, Mutex::new(tell), writer.clone()));
        let subscription = region.subscribe(0..4096, asks);
        thread::scope(|scope| {
            scope.spawn(|| region.disable().expect("nothing is in the way"));
            is_inside.recv().expect("the BAR's change");
            writer.begins();
            device.write(Space::Config, 4, &OFF[..]).expect("COMMAND");
        });
        answers.extend(told.recv().expect("an answer"));
        drop(subscription);
        device.write(Space::Config, 4, &ON[..]).expect("COMMAND");
    }
    let refused = |text: &&String| text.contains("WouldDeadlock") || text.contains("Reentrant");
    assert!(answers.iter().all(|text| refused(&text) || text.starts_with("Ok")), "{answers:?}");
    // The device's change holds the other BAR in one of the two orders.
    assert_eq!(answers.iter().filter(refused).count(), 5, "{answers:?}");
}

#[test]
fn a_panicking_port_ends_its_own_write_and_no_others() {
    support::start();
    let _watchdog = Watchdog::new("a port that panics", PATIENCE);
    struct Panics;
    impl PortIo for Panics {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {
            panic!("by design")
        }
    }
    let bad = PciDevice::builder(1, 2).bar(0, Bar::io(16, Arc::new(Panics))).build().expect("a device");
    let good = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).build().expect("a device");
    let events = [(); 3].map(|()| nix::sys::eventfd::EventFd::new().expect("an eventfd"));
    bad.add_ioeventfd(0, 0, Width::One, 1, events[0].as_fd()).expect("an ioeventfd");
    good.add_ioeventfd(0, 0, Width::One, 1, events[1].as_fd()).expect("an ioeventfd");
    for _ in 0..3 {
        events[0].write(1).expect("signalled");
        thread::sleep(Duration::from_millis(5));
    }
    let written = |at: usize| good.owner(BAR).expect("memory").read::<u8>(at) == Ok(1);
    events[1].write(1).expect("signalled");
    support::eventually("the other port's write is made", || written(0));
    good.add_ioeventfd(0, 1, Width::One, 1, events[2].as_fd()).expect("an ioeventfd");
    events[2].write(1).expect("signalled");
    support::eventually("a new port's write is made", || written(1));
}

#[test]
fn two_loops_at_one_eventfd_never_wait_for_each_other() {
    support::start();
    let _watchdog = Watchdog::new("two loops", PATIENCE);
    let event = nix::sys::eventfd::EventFd::new().expect("an eventfd, a blocking one");
    let made: Vec<_> = (0..2)
        .map(|_| {
            let kicks = IoEventLoop::manual().expect("a loop");
            let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).io_event_loop(kicks.clone());
            let device = device.build().expect("a device");
            device.add_ioeventfd(0, 0, Width::Four, 1, event.as_fd()).expect("an ioeventfd");
            (kicks, device)
        })
        .collect();
    let both = Barrier::new(2);
    thread::scope(|scope| {
        for (kicks, _) in &made {
            scope.spawn(|| {
                for round in 0..20_000 {
                    if both.wait().is_leader() && round % 2 == 0 {
                        event.write(1).expect("signalled");
                    }
                    both.wait();
                    kicks.handle_ready().expect("a loop");
                }
            });
        }
    });
}

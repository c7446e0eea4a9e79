//! Resets of a function and of a bus.

use super::{BAR, Calls, EBUSY, EDEADLK, Log, Notes, OFF, command, device};
use crate::support;
use revocable_mmio::MapOptions;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{Bar, Bus, PciDevice, ResetKind, Space};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

/// A device whose reset reports that it begins, and then waits at the barrier.
fn slow_device() -> (PciDevice, mpsc::Receiver<()>, Arc<Barrier>) {
    let (entered, begun) = mpsc::sync_channel(0);
    let gate = Arc::new(Barrier::new(2));
    let inside = Arc::clone(&gate);
    let slow = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).on_reset(move |_, _| {
        entered.send(()).map_err(std::io::Error::other)?;
        inside.wait();
        Ok(())
    });
    (slow.build().expect("a device"), begun, gate)
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
    let (slow, begun, gate) = slow_device();
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
    // Now the last function is pinned while the first is told, after all have been seen to be free. All groups lock in
    // one order, which is not the bus's; the notifications of a reset show it.
    bus.hot_reset(|_| true, |_| Ok(())).expect("no function is busy");
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
    bus.hot_reset(|_| true, |_| Ok(())).expect("no function is busy");
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
        bus.hot_reset(|_| true, |_| Ok(())).expect("no guard or pin is held");
    }
}

#[test]
fn a_bus_function_in_a_reset_of_its_own_makes_the_bus_busy() {
    support::start();
    let (slow, begun, gate) = slow_device();
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
fn a_function_is_reset_through_advanced_features_as_through_pci_express() {
    support::start();
    const ADVANCED: u64 = 0x90;
    let describe = || PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(4096)).power(0x40).express(0x50);
    let resets = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&resets);
    let device = describe().advanced_features(0x90).on_reset(move |device, kind| {
        assert_eq!(kind, ResetKind::FunctionLevel);
        count.fetch_add(1, SeqCst);
        device.owner(BAR).expect("memory").write(0, 0u32).map_err(std::io::Error::other)
    });
    let device = device.build().expect("a device");
    let capability = |device: &PciDevice| {
        let mut bytes = [0; 6];
        device.read(Space::Config, ADVANCED, &mut bytes[..]).expect("a capability");
        let mut link = [0];
        device.read(Space::Config, 0x51, &mut link[..]).expect("after PCI Express");
        assert_eq!(u64::from(link[0]), ADVANCED);
        bytes
    };
    // The id, the end of the list, the length, FLR and transactions pending; control and status.
    assert_eq!(capability(&device), [0x13, 0, 6, 3, 0, 0]);
    let map = device.map(BAR, MapOptions::new()).expect("a mapping");
    // In writes of any width that set the bit; with another bit of the register, or without it, nothing is reset.
    for (at, bytes, reset) in [
        (4, &[1u8][..], true),
        (4, &[0xff, 0xff], true),
        (0, &[0xff; 6], true),
        (4, &[0xfe], false),
        (5, &[1], false),
        (3, &[1], false),
    ] {
        map.write(0, 7u32).expect("enabled");
        let (before, zaps) = (resets.load(SeqCst), device.region(BAR).expect("memory").stats().resets);
        device.write(Space::Config, ADVANCED + at, bytes).expect("configuration space");
        assert_eq!(resets.load(SeqCst) - before, u32::from(reset), "{bytes:x?} at {at}");
        assert_eq!(device.region(BAR).expect("memory").stats().resets - zaps, u64::from(reset));
        assert_eq!(map.read::<u32>(0), Ok(if reset { 0 } else { 7 }), "{bytes:x?} at {at}");
        assert_eq!(capability(&device), [0x13, 0, 6, 3, 0, 0], "the bit reads as 0");
    }
    // Out of D3hot too, and off before is off after.
    device.write(Space::Config, 0x44, &[3, 0][..]).expect("D3hot");
    device.write(Space::Config, ADVANCED + 4, &[1][..]).expect("a reset");
    assert_eq!((device.power_state(), map.read::<u32>(0)), (0, Ok(0)));
    device.write(Space::Config, 4, &OFF[..]).expect("off");
    device.write(Space::Config, ADVANCED + 4, &[1][..]).expect("a reset");
    assert!(map.read::<u32>(0).is_err() && device.command() == 0);

    let without = describe().advanced_features(0x90).build().expect("a device");
    assert_eq!(capability(&without), [0x13, 0, 6, 0, 0, 0], "no reset: none is announced");
    without.write(Space::Config, ADVANCED + 4, &[1][..]).expect("and the bit does nothing");
    for at in [0x40, 0x44, 0x88, 0xfc, 0x91] {
        assert!(describe().advanced_features(at).build().is_err(), "{at:#x}");
    }
}

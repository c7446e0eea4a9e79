//! Writes to configuration space that give up, and resets that fail.

mod begun;

use crate::support;
use crate::support::watchdog::Watchdog;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{AddressMap, AfterFailedReset, Bar, BarPlace, Bus, PciBuilder, PciDevice, PciError, Space};
use revocable_mmio::{AccessError, MapOptions, Mapping};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const BAR: Space = Space::Bar(0);
const COMMAND: u64 = 4;
const POWER: u64 = 0x44;
/// Device control.
const CONTROL: u64 = 0x58;
const OFF: (u64, [u8; 2]) = (COMMAND, [0, 0]);
const D3HOT: (u64, [u8; 2]) = (POWER, [3, 0]);
const FLR: (u64, [u8; 2]) = (CONTROL, [0, 0x80]);
/// And bits of the same register that stay.
const FLR_AND_MORE: (u64, [u8; 2]) = (CONTROL, [0xf, 0x80]);
const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;
const PATIENCE: Duration = Duration::from_millis(20);

fn describe() -> PciBuilder {
    support::start();
    PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(8192).at(0xe000_0000)).power(0x40).express(0x50)
}

fn write(device: &PciDevice, (at, bytes): (u64, [u8; 2])) {
    device.write(Space::Config, at, &bytes[..]).expect("a register");
}

fn registers(device: &PciDevice) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    device.read(Space::Config, 0, &mut bytes[..]).expect("configuration space");
    bytes
}

/// Runs `test` while another thread holds a guard of the mapping.
fn while_guarded(mapping: &Mapping, test: impl FnOnce()) {
    let (held, is_held) = mpsc::channel();
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let _guard = mapping.try_access().expect("enabled");
            held.send(()).expect("the test listens");
            let _ = is_done.recv();
        });
        is_held.recv().expect("a guard is held");
        test();
        drop(done);
    });
}

#[test]
fn a_write_that_guards_hold_up_gives_up_in_time_or_at_once_and_has_changed_nothing() {
    let _watchdog = Watchdog::new("writes that give up", Duration::from_secs(30));
    let resets = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&resets);
    let device = describe().on_reset(move |_, _| {
        counts.fetch_add(1, SeqCst);
        Ok(())
    });
    let device = device.build().expect("a device");
    let mapping = device.map(BAR, MapOptions::new()).expect("it maps");
    let pin = device.region(BAR).expect("memory").pin(0..1, FaultFlags::NOWAIT).expect("enabled");
    let before = registers(&device);
    while_guarded(&mapping, || {
        for (at, bytes) in [OFF, D3HOT, FLR, FLR_AND_MORE] {
            let since = Instant::now();
            let refused = device.write_timeout(at, &bytes, PATIENCE).expect_err("held");
            assert_eq!(refused.errno(), EBUSY, "{refused}");
            assert!(since.elapsed() >= PATIENCE && refused.to_string().contains("guard"), "{refused}");
            let refused = device.write_with(Space::Config, at, &bytes[..], FaultFlags::NOWAIT).expect_err("held");
            assert_eq!(refused.errno(), EAGAIN, "{refused}");
            assert_eq!(registers(&device), before);
            assert_eq!(mapping.read::<u8>(0), Ok(0));
        }
        assert_eq!(device.reset_timeout(PATIENCE).expect_err("held").errno(), EBUSY);
    });
    drop(pin);
    assert_eq!(resets.load(SeqCst), 0);
    // And with nothing in the way.
    device.write_timeout(FLR_AND_MORE.0, &FLR_AND_MORE.1, PATIENCE).expect("a reset");
    assert_eq!(registers(&device)[0x58..0x5a], [0xf, 0]);
    device.reset_timeout(PATIENCE).expect("a reset");
    assert_eq!(resets.load(SeqCst), 2);
    let refused = device.write_with(Space::Config, FLR.0, &FLR.1[..], FaultFlags::NOWAIT).expect_err("a reset waits");
    assert_eq!(refused.errno(), EAGAIN);
    device.write_with(Space::Config, OFF.0, &OFF.1[..], FaultFlags::NOWAIT).expect("nothing is in the way");
    assert_eq!(mapping.read::<u8>(0), Err(AccessError::Disabled { offset: 0 }));
}

#[test]
fn a_write_that_another_threads_reset_holds_up_gives_up() {
    let _watchdog = Watchdog::new("a reset that takes long", Duration::from_secs(30));
    let (entered, is_entered) = mpsc::sync_channel(0);
    let (go, goes) = mpsc::channel::<()>();
    let goes = std::sync::Mutex::new(goes);
    let device = describe().on_reset(move |_, _| {
        entered.send(()).map_err(io::Error::other)?;
        let _ = goes.lock().expect("a channel").recv();
        Ok(())
    });
    let device = device.build().expect("a device");
    thread::scope(|scope| {
        scope.spawn(|| device.reset().expect("a reset"));
        is_entered.recv().expect("it begins");
        let nowait = device.write_with(Space::Config, OFF.0, &OFF.1[..], FaultFlags::NOWAIT).expect_err("a reset");
        let timed = device.write_timeout(OFF.0, &OFF.1, PATIENCE).expect_err("a reset");
        assert_eq!([nowait.errno(), timed.errno()], [EAGAIN, EBUSY]);
        assert_eq!(device.command(), 2);
        drop(go);
    });
    assert!(device.is_memory_enabled());
}

/// Counts the places that are there.
#[derive(Default)]
struct Places(AtomicU32);

impl AddressMap for Places {
    fn insert(&self, _: &BarPlace) -> io::Result<()> {
        self.0.fetch_add(1, SeqCst);
        Ok(())
    }
    fn remove(&self, _: &BarPlace) {
        self.0.fetch_sub(1, SeqCst);
    }
}

type Reset = fn(&PciDevice) -> Result<(), PciError>;

fn ways() -> [Reset; 3] {
    [
        |device| device.reset(),
        |device| device.write(Space::Config, FLR.0, &FLR.1[..]).map(drop),
        |device| Bus::new([device.clone()]).hot_reset(|_| true, |_| Err(io::Error::from_raw_os_error(EIO))),
    ]
}

#[test]
fn a_failed_reset_says_so_and_leaves_the_device_as_it_was_or_revoked_if_asked() {
    for (keeps, d3hot, reset) in [false, true]
        .into_iter()
        .flat_map(|keeps| [false, true].map(|d3hot| (keeps, d3hot)))
        .flat_map(|(keeps, d3hot)| ways().map(|way| (keeps, d3hot, way)))
    {
        let fails = Arc::new(AtomicBool::new(true));
        let failing = Arc::clone(&fails);
        let builder = describe().on_reset(move |_, _| match failing.load(SeqCst) {
            true => Err(io::Error::from_raw_os_error(EIO)),
            false => Ok(()),
        });
        let builder = if keeps { builder.revoked_after_failed_reset() } else { builder };
        let device = builder.build().expect("a device");
        let places = Arc::new(Places::default());
        let _following = device.follow(Arc::clone(&places) as _).expect("free");
        let mapping = device.map(BAR, MapOptions::new()).expect("it maps");
        if d3hot {
            write(&device, D3HOT);
        }
        let before = (registers(&device), device.is_memory_enabled());
        let error = reset(&device).expect_err("it fails");
        let after = if keeps { AfterFailedReset::Revoked } else { AfterFailedReset::AsBefore };
        assert!(matches!(&error, PciError::Reset { now, .. } if *now == after), "{error}");
        assert_eq!((error.errno(), device.has_failed()), (EIO, keeps));
        let enabled = !keeps && !d3hot;
        assert_eq!((registers(&device), device.is_memory_enabled()), (before.0, enabled), "{keeps} {d3hot}");
        assert_eq!(mapping.read::<u8>(0).is_ok(), enabled);
        assert_eq!(device.read(BAR, 0, &mut [0][..]).map_err(|e| e.errno()), if enabled { Ok(1) } else { Err(EIO) });
        assert_eq!(places.0.load(SeqCst), u32::from(enabled));
        if keeps {
            // No register gives it back.
            write(&device, (POWER, [0, 0]));
            write(&device, OFF);
            write(&device, (COMMAND, [2, 0]));
            assert!(mapping.read::<u8>(0).is_err() && !device.is_memory_enabled());
        }
        fails.store(false, SeqCst);
        device.reset().expect("a reset");
        assert_eq!((device.power_state(), device.has_failed(), mapping.read::<u8>(0)), (0, false, Ok(0)));
        assert_eq!(places.0.load(SeqCst), 1);
    }
}

#[test]
fn a_reset_that_panics_has_failed() {
    let device = describe().on_reset(|_, _| panic!("by design")).revoked_after_failed_reset();
    let device = device.build().expect("a device");
    let places = Arc::new(Places::default());
    let _following = device.follow(Arc::clone(&places) as _).expect("free");
    let reset = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.reset()));
    assert!(reset.is_err() && device.has_failed() && !device.is_memory_enabled());
    assert_eq!(places.0.load(SeqCst), 0);
}

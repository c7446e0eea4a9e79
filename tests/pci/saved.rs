//! The state of a device, saved in any moment and restored into another. (The random histories of tests/random migrate
//! too.)

mod begun;

use crate::support;
use crate::support::watchdog::Watchdog;
use revocable_mmio::pci::{AddressMap, Bar, BarPlace, DeviceState, PciBuilder, PciDevice, PciError, Space};
use revocable_mmio::{AccessError, MapOptions};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const BAR: Space = Space::Bar(0);
const LONG: Duration = Duration::from_secs(20);
const EINVAL: i32 = 22;

fn describe() -> PciBuilder {
    support::start();
    PciDevice::builder(1, 2)
        .bar(0, Bar::memory(0x4000).wide())
        .bar(2, Bar::memory(0x1000))
        .rom(&[0x55, 0xaa])
        .power(0x40)
        .express(0x50)
}

fn build() -> PciDevice {
    describe().on_reset(|_, _| Ok(())).build().expect("a device")
}

fn write(device: &PciDevice, at: u64, value: u32) {
    device.write(Space::Config, at, &value.to_le_bytes()[..]).expect("a register");
}

fn command(device: &PciDevice, command: u16) {
    device.write(Space::Config, 4, &command.to_le_bytes()[..]).expect("COMMAND");
}

/// The places that are there.
#[derive(Default)]
struct Places(Mutex<Vec<u64>>);

impl AddressMap for Places {
    fn insert(&self, place: &BarPlace) -> io::Result<()> {
        if place.address == 0xbad0_0000 {
            return Err(io::Error::from_raw_os_error(17));
        }
        self.0.lock().expect("a list").push(place.address);
        Ok(())
    }
    fn remove(&self, place: &BarPlace) {
        self.0.lock().expect("a list").retain(|address| *address != place.address);
    }
}

impl Places {
    fn now(&self) -> Vec<u64> {
        self.0.lock().expect("a list").clone()
    }
}

/// By way of bytes.
fn state(device: &PciDevice) -> DeviceState {
    let state = device.save();
    let read = DeviceState::from_bytes(&state.to_bytes()).expect("its own bytes");
    assert_eq!(read, state);
    read
}

#[test]
fn a_bar_in_the_middle_of_a_probe_or_a_move_arrives_in_the_middle_of_it() {
    let source = build();
    write(&source, 0x10, 0xe000_0000);
    write(&source, 0x14, 1);
    command(&source, 2);
    // With memory on, a size probe whose restoring writes come after the migration.
    write(&source, 0x10, u32::MAX);
    write(&source, 0x14, u32::MAX);
    // And a move in pieces.
    write(&source, 0x18, 0xe800_0000);
    source.write(Space::Config, 0x18, &[0, 0][..]).expect("half of a half");
    let destination = build();
    let places = Arc::new(Places::default());
    let _following = destination.follow(Arc::clone(&places) as _).expect("nothing is decoded");
    destination.restore(&state(&source)).expect("its own kind");
    assert_eq!(destination.save(), source.save());
    assert_eq!(places.now(), [0x1_e000_0000, 0xe800_0000]);
    write(&destination, 0x10, 0xe000_0000);
    write(&destination, 0x14, 1);
    assert_eq!(places.now(), [0x1_e000_0000, 0xe800_0000], "restored, and nothing has moved");
    destination.write(Space::Config, 0x1a, &[0, 0xd0][..]).expect("the other half of it");
    assert_eq!(places.now(), [0x1_e000_0000, 0xd000_0000]);

    // With memory off, a move that is pending.
    command(&source, 0);
    write(&source, 0x10, 0xf000_0000);
    write(&source, 0x14, 2);
    let destination = build();
    let places = Arc::new(Places::default());
    let _following = destination.follow(Arc::clone(&places) as _).expect("nothing is decoded");
    destination.restore(&state(&source)).expect("its own kind");
    assert_eq!(places.now(), [0; 0]);
    command(&destination, 2);
    assert_eq!(places.now()[0], 0x2_f000_0000);
}

#[test]
fn power_states_and_failures_arrive_and_a_device_in_any_state_takes_them_on() {
    let fails = Arc::new(AtomicBool::new(false));
    let build = || {
        let fails = Arc::clone(&fails);
        let reset = move |_: &PciDevice, _| if fails.load(SeqCst) { Err(io::Error::other("no")) } else { Ok(()) };
        describe().on_reset(reset).revoked_after_failed_reset().build().expect("a device")
    };
    let states: [fn(&PciDevice); 6] = [
        |_| {},
        |device| command(device, 2),
        |device| {
            command(device, 2);
            device.write(Space::Config, 0x44, &[3][..]).map(drop).expect("D3hot");
        },
        |device| {
            command(device, 2);
            device.enter_low_power().expect("not yet");
        },
        |device| {
            device.enter_low_power().expect("not yet");
            device.write(Space::Config, 0x44, &[3][..]).map(drop).expect("D3hot");
        },
        |device| {
            command(device, 2);
            device.reset().expect_err("it fails");
        },
    ];
    for (from, to) in (0..states.len()).flat_map(|from| (0..states.len()).map(move |to| (from, to))) {
        fails.store(true, SeqCst);
        let (source, destination) = (build(), build());
        write(&source, 0x18, 0xe000_0000);
        states[from](&source);
        states[to](&destination);
        let mapping = destination.map(BAR, MapOptions::new()).expect("it maps");
        destination.restore(&state(&source)).expect("its own kind");
        assert_eq!(destination.save(), source.save(), "{from} into {to}");
        let about = |device: &PciDevice| {
            let call = device.read(BAR, 0, &mut [0; 4][..]).map_err(|e| e.errno());
            let place = device.place(Space::Bar(2)).map(|place| place.address);
            (device.is_memory_enabled(), device.is_low_power(), device.power_state(), device.has_failed(), call, place)
        };
        assert_eq!(about(&destination), about(&source), "{from} into {to}");
        assert_eq!(mapping.read::<u8>(0).is_ok(), source.is_memory_enabled(), "{from} into {to}");
        // From here on they are alike.
        fails.store(false, SeqCst);
        for device in [&source, &destination] {
            device.exit_low_power().expect("nothing is in the way");
            device.reset().expect("a reset");
            command(device, 2);
        }
        assert_eq!(about(&destination), about(&source), "{from} into {to}");
        assert_eq!(mapping.read::<u8>(0), Ok(0));
    }
}

#[test]
fn a_write_that_is_stuck_is_saved_without_waiting_and_begun_again() {
    let _watchdog = Watchdog::new("saving", Duration::from_secs(60));
    let (entered, is_entered) = mpsc::sync_channel(1);
    let (go, goes) = mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let source = describe().on_reset(move |_, _| {
        entered.send(()).map_err(io::Error::other)?;
        let _ = goes.lock().expect("a channel").recv();
        Ok(())
    });
    let source = source.build().expect("a device");
    command(&source, 2);
    let writes = [source.begin_write(0x58, &[0, 0x80]), source.begin_write(4, &[4, 0])].map(|w| w.expect("it begins"));
    is_entered.recv().expect("the reset begins");
    let state = state(&source);
    let resets = Arc::new(AtomicBool::new(false));
    let reset = Arc::clone(&resets);
    let destination = describe().on_reset(move |_, _| {
        reset.store(true, SeqCst);
        Ok(())
    });
    let destination = destination.build().expect("a device");
    destination.restore(&state).expect("its own kind");
    let last = destination.begin_write(0x3c, &[1]).expect("it begins");
    assert!(last.wait_timeout(LONG));
    assert!(resets.load(SeqCst), "the reset is made here");
    assert_eq!((destination.command(), source.command()), (4, 2));
    drop(go);
    assert!(writes.iter().all(|write| write.wait_timeout(LONG)));
}

#[test]
fn a_place_that_is_taken_at_the_destination_is_an_error_with_all_else_restored() {
    let source = build();
    write(&source, 0x10, 0xe000_0000);
    write(&source, 0x18, 0xbad0_0000);
    command(&source, 2);
    let destination = build();
    let places = Arc::new(Places::default());
    let _following = destination.follow(Arc::clone(&places) as _).expect("nothing is decoded");
    let error = destination.restore(&state(&source)).expect_err("taken");
    assert!(matches!(&error, PciError::Place { place, .. } if place.space == Space::Bar(2)), "{error}");
    assert_eq!((places.now(), destination.command()), (vec![0xe000_0000], 2));
    assert!(destination.is_memory_enabled());
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let source = build();
    write(&source, 0x10, 0xe000_0000);
    command(&source, 2);
    let state = state(&source);
    let others = [
        PciDevice::builder(1, 3).bar(0, Bar::memory(0x4000).wide()).bar(2, Bar::memory(0x1000)).rom(&[0x55, 0xaa]),
        PciDevice::builder(1, 2).bar(0, Bar::memory(0x8000).wide()).bar(2, Bar::memory(0x1000)).rom(&[0x55, 0xaa]),
        PciDevice::builder(1, 2).bar(0, Bar::memory(0x4000).wide()).rom(&[0x55, 0xaa]),
        describe().extended(),
    ];
    let kinds = others.map(|builder| builder.power(0x40).express(0x50).on_reset(|_, _| Ok(())));
    for other in kinds {
        let other = other.build().expect("a device");
        let before = other.save();
        let refused = other.restore(&state).expect_err("another kind");
        assert_eq!(refused.errno(), EINVAL, "{refused}");
        assert_eq!(other.save(), before);
    }
}

/// Bytes from anywhere give an error, or a state that is a device's.
#[test]
fn bytes_that_were_tampered_with_do_no_harm() {
    let source = build();
    write(&source, 0x10, 0xe000_0000);
    command(&source, 2);
    write(&source, 0x14, u32::MAX);
    let good = source.save().to_bytes();
    for len in 0..good.len() {
        let refused = DeviceState::from_bytes(&good[..len]).expect_err("cut short");
        assert_eq!(refused.errno(), EINVAL);
    }
    assert!(DeviceState::from_bytes(&[&good[..], &[0]].concat()).is_err(), "too long");
    let mut accepted = 0;
    for at in 0..good.len() {
        for flip in [1, 0x10, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            let destination = build();
            let mapping = destination.map(BAR, MapOptions::new()).expect("it maps");
            let Ok(state) = DeviceState::from_bytes(&bytes) else { continue };
            let before = destination.save();
            match destination.restore(&state) {
                Err(e) => {
                    assert_eq!(e.errno(), EINVAL, "{e}");
                    assert_eq!(destination.save(), before);
                }
                Ok(()) => {
                    accepted += 1;
                    let refused = Err(AccessError::Disabled { offset: 0 });
                    assert_eq!(mapping.read::<u8>(0), if destination.is_memory_enabled() { Ok(0) } else { refused });
                    // What a guest cannot write it does not find changed.
                    let mut ids = [0; 4];
                    destination.read(Space::Config, 0, &mut ids[..]).expect("configuration space");
                    assert_eq!(ids, [1, 0, 2, 0]);
                }
            }
        }
    }
    assert!(accepted > 0, "some bits are the guest's to change");
}

#[test]
fn a_state_with_a_begun_write_that_no_device_could_begin_changes_nothing() {
    let source = build();
    write(&source, 0x10, 0xe000_0000);
    command(&source, 2);
    let good = source.save().to_bytes();
    // The length of the list comes last. Each write is its place, its length and its bytes.
    let (head, none) = good.split_at(good.len() - 8);
    assert_eq!(none, [0; 8]);
    for at in [255, 256, u64::MAX - 1, u64::MAX] {
        let job = [at.to_le_bytes(), 2_u64.to_le_bytes()].concat();
        let list = [&job[..], &[0, 0]].concat();
        let bytes = [head, &(list.len() as u64).to_le_bytes(), &list].concat();
        let state = DeviceState::from_bytes(&bytes).expect("whole");
        let destination = build();
        let before = destination.save();
        let refused = destination.restore(&state).expect_err("outside of configuration space");
        assert_eq!(refused.errno(), EINVAL, "{at:#x}: {refused}");
        assert_eq!(destination.save(), before, "{at:#x}");
    }
}

#[test]
fn a_failed_resets_state_that_cannot_be_restored_is_not_half_restored() {
    let build = || describe().revoked_after_failed_reset().on_reset(|_, _| Err(io::Error::other("no"))).build();
    let (source, destination) = (build().expect("a device"), build().expect("a device"));
    command(&source, 2);
    command(&destination, 2);
    source.reset().expect_err("it fails");
    let (state, before) = (state(&source), destination.save());
    assert!(source.has_failed() && state != before);
    let mapping = destination.map(BAR, MapOptions::new()).expect("it maps");
    let guard = mapping.try_access().expect("enabled");
    destination.restore(&state).expect_err("this thread's guard would be waited for");
    assert_eq!((destination.save(), mapping.read::<u8>(0)), (before, Ok(0)));
    drop(guard);
    destination.restore(&state).expect("nothing is in the way");
    assert!(destination.has_failed() && mapping.read::<u8>(0).is_err());
}

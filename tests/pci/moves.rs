//! BARs that move: what follows a device through the guest's address space is told of every place, in time, and of nothing
//! else.

mod refused;
mod sizing;

use crate::support;
use revocable_mmio::pci::{AddressMap, Bar, BarPlace, Following, PciDevice, PortIo, Space};
use revocable_mmio::{AccessError, MapOptions, Mapping};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

const COMMAND: u64 = 4;
const POWER: u64 = 0x44;
const BAR0: u64 = 0x10;
const BAR2: u64 = 0x18;
const BAR4: u64 = 0x20;
const ROM: u64 = 0x30;
const SIZE: u64 = 0x4000;
const A: u64 = 0xe000_0000;
const B: u64 = 0xe800_0000;
const HIGH: u64 = 0x1_e000_0000;

struct Ports;

impl PortIo for Ports {
    fn read(&self, _: u64, into: &mut [u8]) {
        into.fill(0);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}

/// An address space that says what it is told, and can refuse.
#[derive(Default)]
struct Guest {
    log: Mutex<Vec<String>>,
    places: Mutex<Vec<BarPlace>>,
    /// Addresses that are taken.
    taken: Mutex<Vec<u64>>,
}

impl AddressMap for Guest {
    fn insert(&self, place: &BarPlace) -> io::Result<()> {
        if self.taken.lock().expect("a list").contains(&place.address) {
            return Err(io::Error::from_raw_os_error(17));
        }
        let mut places = self.places.lock().expect("a list");
        let overlaps = |other: &BarPlace| {
            other.kind.is_memory() == place.kind.is_memory()
                && place.address < other.address + other.size
                && other.address < place.address + place.size
        };
        assert!(!places.iter().any(overlaps), "{place} collides in {places:?}");
        places.push(*place);
        self.log.lock().expect("a list").push(format!("+{:?} {:#x}", place.space, place.address));
        Ok(())
    }

    fn remove(&self, place: &BarPlace) {
        let mut places = self.places.lock().expect("a list");
        let at = places.iter().position(|known| known == place).expect("was inserted");
        places.remove(at);
        self.log.lock().expect("a list").push(format!("-{:?} {:#x}", place.space, place.address));
    }
}

impl Guest {
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().expect("a list"))
    }
}

/// Two memory BARs, one of them 64 bits wide, ports and a ROM.
fn device() -> (PciDevice, Arc<Guest>, Following) {
    support::start();
    let device = PciDevice::builder(1, 2)
        .bar(0, Bar::memory(SIZE))
        .bar(2, Bar::memory(SIZE).wide())
        .bar(4, Bar::io(64, Arc::new(Ports)))
        .rom(&[0x55, 0xaa])
        .power(0x40)
        .express(0x50)
        .on_reset(|_, _| Ok(()))
        .build()
        .expect("a device");
    let guest = Arc::new(Guest::default());
    let following = device.follow(Arc::clone(&guest) as _).expect("nothing is decoded yet");
    (device, guest, following)
}

fn write(device: &PciDevice, at: u64, value: u32) {
    device.write(Space::Config, at, &value.to_le_bytes()[..]).expect("a register");
}

fn command(device: &PciDevice, command: u16) {
    device.write(Space::Config, COMMAND, &command.to_le_bytes()[..]).expect("COMMAND");
}

fn dword(device: &PciDevice, at: u64) -> u32 {
    let mut bytes = [0; 4];
    device.read(Space::Config, at, &mut bytes[..]).expect("configuration space");
    u32::from_le_bytes(bytes)
}

#[test]
fn places_are_left_when_the_memory_is_gone_and_entered_before_it_is_back() {
    /// Looks at the memory whenever it is told.
    struct Looks(Mutex<Option<(Arc<PciDevice>, Arc<Mapping>)>>, Mutex<Vec<(char, u64, bool, u16)>>);
    impl Looks {
        fn look(&self, what: char, place: &BarPlace) {
            let guard = self.0.lock().expect("a device");
            let (device, mapping) = guard.as_ref().expect("a device");
            let there = match mapping.read::<u32>(0) {
                Ok(_) => true,
                Err(AccessError::Disabled { .. }) => false,
                Err(e) => panic!("{e}"),
            };
            self.1.lock().expect("a list").push((what, place.address, there, device.command()));
        }
    }
    impl AddressMap for Looks {
        fn insert(&self, place: &BarPlace) -> io::Result<()> {
            self.look('+', place);
            Ok(())
        }
        fn remove(&self, place: &BarPlace) {
            self.look('-', place);
        }
    }
    support::start();
    let device = PciDevice::builder(1, 2).bar(0, Bar::memory(SIZE)).power(0x40).build().expect("a device");
    let mapping = Arc::new(device.map(Space::Bar(0), MapOptions::new()).expect("it maps"));
    let looks = Arc::new(Looks(Mutex::new(Some((Arc::new(device.clone()), mapping))), Mutex::default()));
    let following = device.follow(Arc::clone(&looks) as _).expect("nothing is decoded");
    let seen = || std::mem::take(&mut *looks.1.lock().expect("a list"));
    write(&device, BAR0, 0xe000_0000);
    assert_eq!(seen(), [], "memory is off");
    command(&device, 2);
    assert_eq!(seen(), [('+', A, false, 2)], "the register says so, then the place, then the memory");
    command(&device, 0);
    assert_eq!(seen(), [('-', A, false, 2)], "the memory goes, then the place, then the register says so");
    write(&device, BAR0, 0xe800_0000);
    command(&device, 6);
    assert_eq!(seen(), [('+', B, false, 6)]);
    device.write(Space::Config, POWER, &[3, 0][..]).expect("PMCSR");
    assert_eq!(seen(), [('-', B, false, 6)], "D3hot");
    device.write(Space::Config, POWER, &[0, 0][..]).expect("PMCSR");
    assert_eq!(seen(), [('+', B, false, 6)]);
    // Memory that is on stays on while it moves.
    write(&device, BAR0, 0xe000_0000);
    assert_eq!(seen(), [('-', B, true, 6), ('+', A, true, 6)]);
    device.enter_low_power().expect("not yet");
    device.exit_low_power().expect("was in it");
    assert_eq!(seen(), [], "low power moves nothing");
    drop(following);
    assert_eq!(seen(), [('-', A, true, 6)]);
    looks.0.lock().expect("a device").take();
}

#[test]
fn all_bars_of_one_memory_cycle_move_with_it_even_to_each_others_places() {
    let (device, guest, _following) = device();
    write(&device, BAR0, 0xe000_0000);
    write(&device, BAR2, 0xe800_0000);
    write(&device, ROM, 0xfe00_0001);
    write(&device, BAR4, 0xc000);
    command(&device, 3);
    assert_eq!(guest.told(), ["+Bar(0) 0xe0000000", "+Bar(2) 0xe8000000", "+Bar(4) 0xc000", "+Rom 0xfe000000"]);
    assert_eq!(device.place(Space::Bar(2)).map(|place| (place.address, place.size)), Some((B, SIZE)));
    command(&device, 1);
    assert_eq!(guest.told(), ["-Rom 0xfe000000", "-Bar(2) 0xe8000000", "-Bar(0) 0xe0000000"], "the ports stay");
    write(&device, BAR0, 0xe800_0000);
    write(&device, BAR2 + 4, 1);
    write(&device, BAR2, 0xe000_0000);
    write(&device, BAR2 + 4, 0);
    assert_eq!(guest.told(), [""; 0], "memory is off");
    command(&device, 3);
    assert_eq!(guest.told(), ["+Bar(0) 0xe8000000", "+Bar(2) 0xe0000000", "+Rom 0xfe000000"]);
    // The ROM's own bit, and the ports' of COMMAND.
    write(&device, ROM, 0xfe00_0000);
    command(&device, 2);
    assert_eq!(guest.told(), ["-Rom 0xfe000000", "-Bar(4) 0xc000"]);
}

#[test]
fn a_register_that_holds_no_address_decodes_nothing() {
    let (device, guest, _following) = device();
    command(&device, 3);
    assert_eq!(guest.told(), [""; 0], "all registers hold 0");
    // A size probe that was left in the register, as memory goes on.
    command(&device, 0);
    write(&device, BAR0, 0xffff_ffff);
    write(&device, BAR2 + 4, 0xffff_ffff);
    command(&device, 2);
    assert_eq!(guest.told(), [""; 0]);
    assert!(device.is_memory_enabled(), "for calls and mappings it is on");
    write(&device, BAR0, 0xe000_0000);
    assert_eq!(guest.told(), ["+Bar(0) 0xe0000000"]);
}

#[test]
fn a_map_that_comes_later_is_told_of_what_is_there_and_one_that_goes_leaves_nothing() {
    support::start();
    let build = || {
        let bars = |builder: revocable_mmio::pci::PciBuilder| {
            builder.bar(0, Bar::memory(SIZE).at(A)).bar(2, Bar::memory(SIZE).wide().at(HIGH))
        };
        bars(PciDevice::builder(1, 2).command(2)).build().expect("a device")
    };
    let device = build();
    let guest = Arc::new(Guest::default());
    let following = device.follow(Arc::clone(&guest) as _).expect("free");
    assert_eq!(guest.told(), ["+Bar(0) 0xe0000000", "+Bar(2) 0x1e0000000"]);
    drop(following);
    assert_eq!(guest.told(), ["-Bar(2) 0x1e0000000", "-Bar(0) 0xe0000000"]);
    write(&device, BAR0, 0xe800_0000);
    assert_eq!(guest.told(), [""; 0]);

    // The device's end is its places' end, and its memory's before that.
    struct Checks(Mapping, AtomicBool);
    impl AddressMap for Checks {
        fn insert(&self, _: &BarPlace) -> io::Result<()> {
            Ok(())
        }
        fn remove(&self, _: &BarPlace) {
            self.1.store(matches!(self.0.read::<u8>(0), Err(AccessError::Gone { .. })), SeqCst);
        }
    }
    let mapping = device.map(Space::Bar(0), MapOptions::new()).expect("it maps");
    let checks = Arc::new(Checks(mapping, AtomicBool::new(false)));
    let following = device.follow(Arc::clone(&checks) as _).expect("free");
    drop(device);
    assert!(checks.1.load(SeqCst), "the place was left before the memory was gone, or not at all");
    drop(following);
    for (bar, address) in
        [(Bar::memory(SIZE), A + 0x1000), (Bar::memory(SIZE), 1 << 32), (Bar::io(64, Arc::new(Ports)), 32)]
    {
        let refused = PciDevice::builder(1, 2).bar(0, bar.at(address)).build().expect_err("no such address");
        assert!(refused.to_string().contains("multiple of the size"), "{refused}");
    }
}

#[test]
fn whatever_is_written_meanwhile_the_place_is_the_registers() {
    let (device, guest, _following) = device();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..500 {
                command(&device, 2);
                command(&device, 0);
            }
        });
        for (at, addresses) in [(BAR0, [0xe000_0000, 0xe100_0000]), (BAR2, [0xe800_0000, 0xe900_0000])] {
            let device = &device;
            scope.spawn(move || {
                for round in 0..3000 {
                    write(device, at, 0xffff_ffff);
                    write(device, at, addresses[round % 2]);
                }
            });
        }
    });
    command(&device, 2);
    let mut places: Vec<_> = guest.places.lock().expect("a list").iter().map(|place| place.address).collect();
    places.sort_unstable();
    let mut registers = [BAR0, BAR2].map(|at| u64::from(dword(&device, at) & !0xf));
    registers.sort_unstable();
    assert_eq!(places, registers);
}

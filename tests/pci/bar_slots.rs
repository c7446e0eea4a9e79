//! Memslots that follow a BAR: in the guest's memory map where the BAR is decoded, and nowhere else.
#![expect(unsafe_code, reason = "a virtual machine's map takes addresses")]

use crate::support;
use revocable_mmio::memslot::{Memslots, Retention, SetMemslot, SlotMemory};
use revocable_mmio::pci::{AddressMap, Bar, BarPlace, BarSlots, PciDevice, Space};
use revocable_mmio::{MapOptions, OnDisabled};
use std::io;
use std::sync::{Arc, Mutex};

const BAR0: u64 = 0x10;
const COMMAND: u64 = 4;
const A: u32 = 0xe000_0000;
const B: u32 = 0xe800_0000;
const SIZE: u64 = 0x4000;

/// A guest's memory map: which slot is at which address. It can refuse an address.
#[derive(Default)]
struct Vm {
    map: Mutex<Vec<(u32, u64)>>,
    refused: Mutex<Option<u64>>,
}

impl Vm {
    fn map(&self) -> Vec<(u32, u64)> {
        let mut map = self.map.lock().expect("a list").clone();
        map.sort_unstable();
        map
    }
}

impl SetMemslot for Vm {
    unsafe fn install(&self, memory: &SlotMemory) -> io::Result<()> {
        if *self.refused.lock().expect("an address") == Some(memory.gpa) {
            return Err(io::Error::from_raw_os_error(17));
        }
        let mut map = self.map.lock().expect("a list");
        assert!(map.iter().all(|(_, at)| *at != memory.gpa), "two slots at {:#x}", memory.gpa);
        map.push((memory.slot, memory.gpa));
        Ok(())
    }

    fn remove(&self, memory: &SlotMemory) -> io::Result<()> {
        let mut map = self.map.lock().expect("a list");
        let before = map.len();
        map.retain(|there| *there != (memory.slot, memory.gpa));
        assert_eq!(map.len() + 1, before, "{memory:?} is not there");
        Ok(())
    }
}

fn device(
    slots: impl FnOnce(BarSlots, &PciDevice) -> BarSlots,
) -> (PciDevice, Arc<Vm>, revocable_mmio::pci::Following) {
    support::start();
    let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(SIZE)).build().expect("a device");
    let vm = Arc::new(Vm::default());
    let bar = slots(BarSlots::new(Space::Bar(0), Memslots::new(Arc::clone(&vm))), &nic);
    let following = nic.follow(Arc::new(bar)).expect("nothing is decoded yet");
    (nic, vm, following)
}

/// Two halves of the BAR, each with a slot of its own.
fn halves(bar: BarSlots, nic: &PciDevice) -> BarSlots {
    let half = usize::try_from(SIZE / 2).expect("small");
    [0, 1].into_iter().fold(bar, |bar, index| {
        let options = MapOptions::new().offset(index * half).len(half).on_disabled(OnDisabled::AllOnes);
        let mapping = Arc::new(nic.map(Space::Bar(0), options).expect("a mapping"));
        bar.memslot(u32::try_from(index).expect("small"), mapping, Retention::AllOnes)
    })
}

fn write(nic: &PciDevice, at: u64, bytes: &[u8]) -> Result<usize, revocable_mmio::pci::PciError> {
    nic.write(Space::Config, at, bytes)
}

fn at(base: u32) -> Vec<(u32, u64)> {
    vec![(0, base.into()), (1, u64::from(base) + SIZE / 2)]
}

#[test]
fn memslots_are_where_the_bar_is_decoded_and_nowhere_else() {
    let (nic, vm, following) = device(halves);
    write(&nic, BAR0, &A.to_le_bytes()).expect("an address");
    assert_eq!(vm.map(), [], "memory is off");
    write(&nic, COMMAND, &[2, 0]).expect("on");
    assert_eq!(vm.map(), at(A));
    write(&nic, BAR0, &u32::MAX.to_le_bytes()).expect("a size probe");
    assert_eq!(vm.map(), at(A));
    write(&nic, BAR0, &B.to_le_bytes()).expect("moved while on");
    assert_eq!(vm.map(), at(B));
    write(&nic, COMMAND, &[0, 0]).expect("off");
    assert_eq!(vm.map(), []);
    write(&nic, COMMAND, &[2, 0]).expect("on");
    assert_eq!(vm.map(), at(B));
    drop(following);
    assert_eq!(vm.map(), []);
}

#[test]
fn memslots_that_stay_are_at_the_last_place_while_memory_is_off() {
    let (nic, vm, _following) = device(|bar, nic| halves(bar, nic).stays_while_off());
    write(&nic, BAR0, &A.to_le_bytes()).expect("an address");
    write(&nic, COMMAND, &[2, 0]).expect("on");
    write(&nic, COMMAND, &[0, 0]).expect("off");
    assert_eq!(vm.map(), at(A), "ones for every instruction");
    write(&nic, BAR0, &B.to_le_bytes()).expect("another address");
    assert_eq!(vm.map(), at(A), "it is decoded nowhere yet");
    write(&nic, COMMAND, &[2, 0]).expect("on");
    assert_eq!(vm.map(), at(B));
}

#[test]
fn a_place_that_the_virtual_machine_refuses_leaves_no_slot_anywhere() {
    for stays in [false, true] {
        let (nic, vm, _following) =
            device(|bar, nic| if stays { halves(bar, nic).stays_while_off() } else { halves(bar, nic) });
        write(&nic, BAR0, &A.to_le_bytes()).expect("an address");
        write(&nic, COMMAND, &[2, 0]).expect("on");
        // The second half's place.
        *vm.refused.lock().expect("an address") = Some(u64::from(B) + SIZE / 2);
        write(&nic, BAR0, &B.to_le_bytes()).expect_err("the move is refused, and the old place given up");
        assert_eq!(vm.map(), [], "stays: {stays}");
        *vm.refused.lock().expect("an address") = None;
        nic.retry_places().expect("it can be there now");
        assert_eq!(vm.map(), at(B), "stays: {stays}");
    }
}

/// Memory is off, and the slots are where it was.
fn staying() -> (PciDevice, Arc<Vm>, revocable_mmio::pci::Following) {
    let (nic, vm, following) = device(|bar, nic| halves(bar, nic).stays_while_off());
    write(&nic, BAR0, &A.to_le_bytes()).expect("an address");
    write(&nic, COMMAND, &[2, 0]).expect("on");
    write(&nic, COMMAND, &[0, 0]).expect("off");
    assert_eq!(vm.map(), at(A));
    (nic, vm, following)
}

#[test]
fn memslots_that_stayed_are_gone_when_memory_comes_back_with_the_bar_nowhere() {
    // No address, and a size probe that was not ended.
    for nowhere in [0, u32::MAX] {
        let (nic, vm, _following) = staying();
        write(&nic, BAR0, &nowhere.to_le_bytes()).expect("no address");
        write(&nic, COMMAND, &[2, 0]).expect("on");
        assert_eq!(nic.place(Space::Bar(0)), None);
        assert_eq!(vm.map(), [], "the BAR is decoded nowhere: {nowhere:#x}");
    }
}

/// Refuses every place.
struct Refusing;

impl AddressMap for Refusing {
    fn insert(&self, _: &BarPlace) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(17))
    }

    fn remove(&self, _: &BarPlace) {}
}

#[test]
fn memslots_that_stayed_are_gone_when_another_map_refuses_the_place_and_memory_comes_back() {
    let (nic, vm, _following) = staying();
    let _refusing = nic.follow(Arc::new(Refusing)).expect("nothing is decoded");
    write(&nic, COMMAND, &[2, 0]).expect_err("a place that is refused");
    assert_eq!(nic.place(Space::Bar(0)), None);
    assert_eq!(vm.map(), [], "the BAR is decoded nowhere");
}

#[test]
fn memslots_that_stayed_are_gone_when_the_map_no_longer_follows() {
    support::start();
    let nic = PciDevice::builder(0x8086, 0x10d3).bar(0, Bar::memory(SIZE)).build().expect("a device");
    let vm = Arc::new(Vm::default());
    let slots = BarSlots::new(Space::Bar(0), Memslots::new(Arc::clone(&vm)));
    let bar = Arc::new(halves(slots, &nic).stays_while_off());
    let following = nic.follow(Arc::clone(&bar) as _).expect("nothing is decoded yet");
    write(&nic, BAR0, &A.to_le_bytes()).expect("an address");
    write(&nic, COMMAND, &[2, 0]).expect("on");
    write(&nic, COMMAND, &[0, 0]).expect("off");
    drop(following);
    assert_eq!(vm.map(), [], "nobody tells it where the BAR is");
    drop(bar);
}

//! A BAR of areas in a guest's memory map: memslots without an exit, and exits that the BAR answers.

use super::guest::{BAR, BAR_LEN, Guest, Mode, Word, code, kvm_or_skip};
use crate::support;
use kvm_ioctls::{VcpuExit, VmFd};
use revocable_mmio::bar::{Areas, Bar, DeviceIo};
use revocable_mmio::kvm::{ExitHandler, Handled, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, Region};
use std::sync::Arc;

struct Vectors;

impl DeviceIo for Vectors {
    fn read(&self, _: u64, into: &mut [u8]) {
        into.fill(5);
    }
    fn write(&self, _: u64, _: &[u8]) {}
}

/// A load of the guest's at an offset of the BAR, and how often it exited.
fn load(guest: &mut Guest, exits: &mut ExitHandler, areas: &Areas, at: u32) -> (u32, u32) {
    guest.ram.set(Word::AT, at);
    let mut count = 0;
    loop {
        match exits.handle(guest.vcpu.run()).expect("every exit is handled") {
            Handled::Reenter => count += 1,
            Handled::Other(Ok(VcpuExit::MmioRead(gpa, data))) => {
                areas.read(gpa - BAR, data).unwrap_or_else(|_| data.fill(0xff));
                count += 1;
            }
            Handled::Other(Ok(VcpuExit::IoOut(0x10 | 0x11, _))) => return (guest.ram.get(Word::VALUE), count),
            other => panic!("unexpected: {other:?}"),
        }
    }
}

#[test]
fn blobs_are_memory_while_they_are_there_and_the_rest_exits() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let mut guest = Guest::new(&kvm, Mode::Real, code::LOADS_16);
    guest.ram.set(Word::COUNT, 1);
    let slots: Memslots = Memslots::new(Arc::<VmFd>::clone(&guest.vm));
    let mut exits = ExitHandler::new(slots.clone(), WhenDisabled::UnsupportedRequest, CancelToken::new());
    let bar = Bar::builder(BAR_LEN as u64).memslots(&slots, 4..8, Retention::AllOnes);
    let bar = bar.trap(0x1010..0x1020, Arc::new(Vectors)).area(0, Region::builder(0x4000)).build().expect("a BAR");
    let areas = bar.areas().clone();
    areas.move_to(Some(BAR)).expect("the slots are free");
    for at in [0, 0x1000, 0x2000] {
        areas.write(at, &[1, 0, 0, 0]).expect("it is enabled");
    }

    let mut at = |at| load(&mut guest, &mut exits, &areas, at);
    assert_eq!((at(0), at(0x2000)), ((1, 0), (1, 0)), "memory, without an exit");
    assert_eq!(at(0x1000), (1, 1), "beside the table, in its page: an exit, and the area's memory");
    assert_eq!(at(0x1010), (0x0505_0505, 1), "the table");
    assert_eq!(at(0x8000), (u32::MAX, 1), "nothing is there");

    for _ in 0..3 {
        let blob = areas.insert(0x8000, Region::builder(0x4000)).expect("it is free");
        blob.region().owner().write(0, 7_u32).expect("memory");
        assert_eq!(at(0x8000), (7, 0));
        bar.disable().expect("nothing is in the way");
        assert_eq!((at(0), at(0x8000)), ((u32::MAX, 0), (u32::MAX, 0)), "ones, without an exit");
        assert_eq!((at(0x1000), at(0x1010)), ((u32::MAX, 1), (u32::MAX, 1)), "refused");
        let second = areas.insert(0xc000, Region::builder(0x4000)).expect("in any state");
        second.region().owner().write(0, 9_u32).expect("memory");
        assert_eq!(at(0xc000), (u32::MAX, 0));
        bar.enable().expect("it comes back");
        assert_eq!((at(0x8000), at(0xc000)), ((7, 0), (9, 0)));
        drop((blob, second));
        assert_eq!((at(0x8000), at(0xc000)), ((u32::MAX, 1), (u32::MAX, 1)), "they are gone");
    }
}

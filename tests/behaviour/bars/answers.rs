//! What answers at an offset.

use super::{LEN, PAGE, Registers, SIZE, byte, in_map, memory, offset};
use crate::support;
use revocable_mmio::bar::{Bar, BarError, DeviceIo};
use revocable_mmio::memslot::Retention;
use revocable_mmio::{AccessError, Backing, BuildError, Region};
use std::os::fd::AsFd;
use std::sync::Arc;

#[test]
fn a_table_of_any_alignment_is_the_devices_and_the_rest_of_its_pages_is_memory() {
    support::start();
    let (bar, map) = in_map(Retention::AllOnes);
    let table = Arc::new(Registers::default());
    let bar = bar.area(0, memory()).trap(0x1ff8..0x2010, Arc::clone(&table) as _).build().expect("a BAR");
    let areas = bar.areas();
    areas.move_to(Some(0x10_0000)).expect("nothing is there");
    assert_eq!(map.places(), [0x10_0000, 0x10_3000], "without the pages of the table");

    // One transfer over all three: memory, the table, memory.
    areas.write(0x1ff4, &[7; 0x20]).expect("it is enabled");
    let written = table.written.lock().expect("no panic").clone();
    let places: Vec<_> = written.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
    assert_eq!(places, [(0x1ff8, 8), (0x2000, 8), (0x2008, 8)]);
    assert!(written.iter().all(|(_, bytes)| bytes.iter().all(|byte| *byte == 7)));
    let mut back = [0; 0x20];
    areas.read(0x1ff4, &mut back).expect("it is enabled");
    assert_eq!((back[..4].to_vec(), back[0x1c..].to_vec()), (vec![7; 4], vec![7; 4]), "memory on both sides");
    assert_eq!((back[4], back[12], back[20]), (0x78, 0, 8), "the table in between");
    // The table hides the memory below it.
    let mut whole = bar.areas().insert(PAGE * 8, memory()).expect("it is free");
    whole.remove().expect("nothing keeps it");
    bar.disable().expect("nothing is in the way");
    for at in [0x1ff4, 0x1ff8, 0x2010, SIZE - 1] {
        assert_eq!(byte(areas, at), Err(AccessError::Disabled { offset: offset(at) }), "{at:#x}");
    }
    assert_eq!(areas.write(0x1ff8, &[0]), Err(AccessError::Disabled { offset: 0x1ff8 }));
    assert_eq!(table.written.lock().expect("no panic").len(), 3, "the device hears nothing of it");
}

#[test]
fn accesses_are_as_wide_as_alignment_and_borders_allow() {
    support::start();
    let all = Arc::new(Registers::default());
    let bar = Bar::builder(0x23).trap(0..0x13, Arc::clone(&all) as _).rest(Arc::clone(&all) as _).build();
    let bar = bar.expect("a BAR of any size");
    bar.areas().read(1, &mut [0; 0x22]).expect("it is enabled");
    let read = all.read.lock().expect("no panic").clone();
    assert_eq!(read, [(1, 1), (2, 2), (4, 4), (8, 8), (16, 2), (18, 1), (19, 1), (20, 4), (24, 8), (32, 2), (34, 1)]);
    let beyond = bar.areas().read(0x20, &mut [0; 4]);
    assert_eq!(beyond, Err(AccessError::OutOfBounds { offset: 0x20, size: 4, len: 0x23 }));
    assert!(bar.areas().write(u64::MAX, &[0; 4]).is_err());
}

#[test]
fn a_bar_smaller_than_a_page_has_a_page_and_no_memslot() {
    support::start();
    let (_, map) = in_map(Retention::AllOnes);
    let slots = revocable_mmio::memslot::Memslots::new(Arc::clone(&map));
    let bar = Bar::builder(0x100).memslots(&slots, 0..4, Retention::AllOnes).area(0, Region::builder(0x1000));
    let bar = bar.build().expect("a BAR of 256 bytes");
    assert_eq!(bar.areas().ranges(), std::iter::once(0..0x100).collect::<Vec<_>>());
    bar.areas().move_to(Some(0xe000_0100)).expect("no slot has to be aligned");
    assert_eq!(map.places(), [] as [u64; 0], "the rest of the page is not the BAR's");
    bar.areas().write(0xfc, &[1, 2, 3, 4]).expect("the last register");
    assert_eq!(byte(bar.areas(), 0xff), Ok(4));
    assert!(bar.areas().read(0x100, &mut [0]).is_err());
    let later = bar.areas().insert(0, Region::builder(0x2000));
    assert!(matches!(later, Err(BarError::OutOfRange { .. })), "{later:?}");
}

#[test]
fn what_no_area_has_reads_ones_and_drops_stores() {
    support::start();
    let bar = Bar::builder(SIZE).build().expect("a BAR without any area");
    bar.areas().write(0x8000, &[0; 16]).expect("dropped");
    let mut value = [0; 16];
    bar.areas().read(0x8000, &mut value).expect("ones");
    assert_eq!(value, [0xff; 16]);
    bar.disable().expect("nothing is in the way");
    assert_eq!(byte(bar.areas(), 0), Err(AccessError::Disabled { offset: 0 }), "it has a state all the same");
}

#[test]
fn a_device_that_panics_answers_ones() {
    struct Panics;
    impl DeviceIo for Panics {
        fn read(&self, _: u64, _: &mut [u8]) {
            panic!("by the test");
        }
        fn write(&self, _: u64, _: &[u8]) {
            panic!("by the test");
        }
    }
    support::start();
    let bar = Bar::builder(16).rest(Arc::new(Panics)).build().expect("a BAR");
    assert_eq!(byte(bar.areas(), 3), Ok(0xff));
    bar.areas().write(3, &[1]).expect("it counts as made");
}

#[test]
fn a_store_to_read_only_memory_is_dropped() {
    support::start();
    let bar = Bar::builder(SIZE).area(0, memory().read_only()).build().expect("a BAR");
    bar.areas().write(8, &[7; 4]).expect("dropped");
    assert_eq!(byte(bar.areas(), 8), Ok(0));
}

#[test]
fn wrong_places_are_refused_and_nothing_is_changed() {
    support::start();
    let bar = Bar::builder(0x5800).area(0x1000, memory()).build().expect("a BAR");
    let refused = |at, len| bar.areas().insert(at, Region::builder(len)).expect_err("it is wrong");
    assert!(matches!(refused(0x800, 0x1000), BarError::Unaligned { offset: 0x800, .. }));
    assert!(matches!(refused(0, 0x2000), BarError::Overlap { other, .. } if other == (0x1000..0x5000)));
    assert!(matches!(refused(0x4000, 0x1000), BarError::Overlap { .. }));
    assert!(matches!(refused(0x5000, 0x2000), BarError::OutOfRange { size: 0x5800, .. }));
    assert!(matches!(refused(0x6000, 0x1000), BarError::OutOfRange { .. }));
    assert!(matches!(refused(u64::MAX - 0xfff, 0x1000), BarError::OutOfRange { .. }));
    assert!(matches!(refused(0, 0), BarError::OutOfRange { .. }));
    assert!(matches!(refused(0, 100), BarError::Build(BuildError::Unaligned { .. })));
    assert_eq!(bar.areas().ranges(), std::iter::once(0x1000..0x5000).collect::<Vec<_>>());
    let last = bar.areas().insert(0x5000, Region::builder(0x1000)).expect("the last page ends after the BAR");
    assert_eq!(last.range(), 0x5000..0x5800);
    for (size, ok) in [(0, false), (1, true), (1 << 63, true), ((1 << 63) + 1, false), (u64::MAX, false)] {
        assert_eq!(Bar::builder(size).build().is_ok(), ok, "{size:#x}");
    }
    let inverted = std::ops::Range { start: 8, end: 4 };
    for trap in [0..0, inverted, 0xff..0x101] {
        let bar = Bar::builder(0x100).trap(trap.clone(), Arc::new(Registers::default())).build();
        assert!(matches!(bar, Err(BarError::OutOfRange { .. })), "{trap:?}");
    }
}

#[test]
fn two_areas_of_one_file_are_the_same_memory_and_a_file_that_ends_is_an_error() {
    support::start();
    let file = std::fs::File::from(
        nix::sys::memfd::memfd_create("blobs", nix::sys::memfd::MFdFlags::empty()).expect("a memfd"),
    );
    file.set_len(LEN as u64 + PAGE).expect("it grows");
    let blob = |at| memory().backing(Backing::file(file.as_fd(), at).expect("a duplicate"));
    let bar = Bar::builder(SIZE).area(0, blob(0)).build().expect("a BAR");
    let second = bar.areas().insert(0x8000, blob(PAGE)).expect("the file is long enough");
    bar.areas().write(PAGE, &[9]).expect("it is enabled");
    assert_eq!(byte(bar.areas(), 0x8000), Ok(9));
    let third = bar.areas().insert(0x1_0000, blob(2 * PAGE));
    assert!(matches!(third, Err(BarError::Build(BuildError::FileTooShort { .. }))), "{third:?}");
    file.set_len(PAGE).expect("it shrinks");
    assert_eq!(byte(bar.areas(), 0x8000), Err(AccessError::NoMemory { offset: 0x8000 }));
    drop(second);
    assert_eq!(byte(bar.areas(), 0x8000), Ok(0xff));
}

//! Several mappings of a real BAR, parts of it, and parts with rights of their own.

use crate::rig::{BAR, LEN, MEMORY, NIC, faults, rig};
use crate::support::{addr, raw, release};
use nix::errno::Errno;
use revocable_mmio::vfio::{RegionFlags, RegionInfo, VfioBar, VfioError};
use revocable_mmio::{AccessError, MapError, MapOptions, Prot};
use std::os::fd::AsFd;

#[test]
fn rights_of_a_part_stay_through_revocations_of_both_kinds() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.fill(0, 0x11, 0x4000).expect("on");
    mapping.protect(0x1000..0x2000, Prot::Read).expect("a part for loads");
    mapping.protect(0x2000..0x3000, Prot::None).expect("a part for nothing");
    for round in 0..6 {
        let check = || {
            assert_eq!(mapping.read::<u8>(0x0fff), Ok(0x11), "round {round}");
            assert_eq!(mapping.write(0x0fff, 0x11_u8), Ok(()), "round {round}");
            assert_eq!(mapping.read::<u8>(0x1000), Ok(0x11), "round {round}");
            let protected = AccessError::Protected { offset: 0x1000 };
            assert_eq!(mapping.write(0x1000, 1_u8), Err(protected), "round {round}");
            let protected = AccessError::Protected { offset: 0x2000 };
            assert_eq!(mapping.read::<u8>(0x2000), Err(protected), "round {round}");
            assert_eq!(mapping.try_read::<u8>(0x2000), Err(protected), "round {round}");
            assert_eq!(mapping.read::<u8>(0x3000), Ok(0x11), "round {round}");
            assert!(raw::load(at(&mapping, 0x2000), 1).expect_err("no rights").is_segv(), "round {round}");
        };
        check();
        match round % 3 {
            0 => {
                region.disable().expect("disable");
                // The whole range refuses: no part of it is live, whatever its rights.
                for at in [0, 0x1000, 0x3000, LEN - 8] {
                    assert_eq!(mapping.read::<u64>(at), Err(AccessError::Disabled { offset: at }));
                }
                region.enable().expect("enable");
            }
            1 => {
                opened.turn(false);
                for at in [0, 0x1000, 0x3000, LEN - 8] {
                    assert_eq!(mapping.read::<u64>(at), Err(AccessError::Disabled { offset: at }));
                }
                opened.turn(true);
            }
            _ => region.reset(|_| opened.device.reset().map(drop)).map(drop).expect("reset"),
        }
        assert_eq!(region.stats().degraded, 0);
    }
}

fn at(mapping: &revocable_mmio::Mapping, offset: usize) -> *const u8 {
    mapping.as_ptr().wrapping_add(offset)
}

/// What took a page from under a real BAR once: mprotect and munmap of a part, by other code.
#[test]
fn what_other_code_does_to_a_part_ends_with_the_next_change() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.fill(0, 0x22, LEN).expect("on");
    for hole in [false, true] {
        let page = addr(&mapping) + 0x20_3000;
        match hole {
            true => raw::unmap(page, 4096),
            false => raw::protect(page, 4096, nix::libc::PROT_READ),
        }
        .expect("the range is the process's");
        region.disable().expect("disable");
        for at in [0, 0x20_2000, 0x20_3000, 0x20_4000, LEN - 8] {
            assert_eq!(mapping.read::<u64>(at), Err(AccessError::Disabled { offset: at }), "hole: {hole}");
        }
        region.enable().expect("enable");
        for at in [0, 0x20_2000, 0x20_3000, 0x20_4000, LEN - 8] {
            assert_eq!(mapping.read::<u64>(at), Ok(0x2222_2222_2222_2222), "hole: {hole}");
            assert_eq!(mapping.write(at, 0x2222_2222_2222_2222_u64), Ok(()), "hole: {hole}");
        }
    }
}

#[test]
fn all_mappings_and_parts_of_a_bar_go_and_come_together() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let whole = region.map(MapOptions::new()).expect("all of it");
    let part = region.map(MapOptions::new().offset(0x40_0000).len(0x1000)).expect("a page");
    let loads = region.map(MapOptions::new().offset(0x1000).read_only()).expect("all but a page, for loads");
    whole.write(0x40_0008, 0xa5_u64).expect("on");
    whole.write(0x1008, 0xb6_u64).expect("on");
    for ours in [true, false, true, false] {
        assert_eq!((part.read::<u64>(8), loads.read::<u64>(8)), (Ok(0xa5), Ok(0xb6)));
        assert_eq!(loads.write(8, 0_u64), Err(AccessError::ReadOnly { offset: 8 }));
        assert_eq!(part.write(16, 0x77_u64), Ok(()));
        assert_eq!(whole.read::<u64>(0x40_0010), Ok(0x77), "the same memory");
        if ours {
            region.disable().map(drop).expect("disable")
        } else {
            opened.turn(false)
        }
        for mapping in [&whole, &part, &loads] {
            assert_eq!(mapping.read::<u64>(8), Err(AccessError::Disabled { offset: 8 }));
        }
        let late = region.map(MapOptions::new().offset(0x2000)).expect("mapped meanwhile");
        assert_eq!(late.read::<u64>(8), Err(AccessError::Disabled { offset: 8 }));
        if ours {
            region.enable().map(drop).expect("enable")
        } else {
            opened.turn(true)
        }
        late.read::<u64>(8).expect("it came with the others");
    }
}

#[test]
fn a_bar_of_256_bytes_has_a_page_and_is_revoked_with_it() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(0);
    assert_eq!(bar.size(), 256);
    let region = bar.region().expect("one region");
    assert_eq!(bar.areas()[0].range(), 0..256);
    assert_eq!(region.len(), 4096);
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.write(0, 0_u32).expect("the interrupt mask");
    for ours in [true, false] {
        if ours {
            region.disable().map(drop).expect("disable")
        } else {
            opened.turn(false)
        }
        for at in [0, 0xfc, 0x100, 0xffc] {
            assert_eq!(mapping.read::<u32>(at), Err(AccessError::Disabled { offset: at }), "the page's rest too");
        }
        if ours {
            region.enable().map(drop).expect("enable")
        } else {
            opened.turn(true)
        }
        mapping.read::<u32>(0xfc).expect("it is back");
    }
}

/// No device of the machine has areas; the kernel maps any part of this BAR, so a description of parts will do.
#[test]
fn areas_of_a_bar_are_regions_that_go_and_come_together() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let info = RegionInfo::ask(opened.device.as_fd(), BAR).expect("it has one");
    let whole = opened.bar(BAR);
    let whole = whole.region().expect("one region").map(MapOptions::new()).expect("a mapping");
    for at in (0..LEN).step_by(4096) {
        whole.write(at, at as u64).expect("on");
    }
    let areas = [0x40_0000..0x80_0000, 0..0x1800, 0x1800..0x3800];
    let info = RegionInfo::new(info.offset(), info.size(), info.flags()).with_areas(areas);
    let bar = VfioBar::builder(info).memory_bit(opened.device.memory_bit().clone());
    let bar = bar.build(opened.device.as_fd()).expect("areas that can be mapped");
    assert!(bar.region().is_none(), "not the whole");
    let ranges: Vec<_> = bar.areas().iter().map(|area| area.range()).collect();
    assert_eq!(ranges, [0..0x1000, 0x2000..0x3000, 0x40_0000..0x80_0000], "whole pages");
    let mappings: Vec<_> =
        bar.areas().iter().map(|area| area.region().map(MapOptions::new()).expect("a mapping")).collect();
    for ours in [true, false, true] {
        for (mapping, range) in mappings.iter().zip(&ranges) {
            assert_eq!(mapping.len() as u64, range.end - range.start);
            assert_eq!(mapping.read::<u64>(0), Ok(range.start));
            let last = mapping.len() - 4096;
            assert_eq!(mapping.read::<u64>(last), Ok(range.start + last as u64));
        }
        if ours {
            bar.group().disable().map(drop).expect("disable")
        } else {
            opened.turn(false)
        }
        for mapping in &mappings {
            assert_eq!(mapping.read::<u64>(0), Err(AccessError::Disabled { offset: 0 }));
        }
        if ours { bar.group().enable().map(drop).expect("enable") } else { opened.turn(true) }
    }
}

#[test]
fn a_bar_that_is_said_not_to_be_written_is_read() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let info = RegionInfo::ask(opened.device.as_fd(), BAR).expect("it has one");
    let writer = opened.bar(BAR);
    let writer = writer.region().expect("one region").map(MapOptions::new()).expect("a mapping");
    writer.write(8, 7_u64).expect("on");
    let info = RegionInfo::new(info.offset(), info.size(), RegionFlags::READ | RegionFlags::MMAP);
    let bar = VfioBar::builder(info).build(opened.device.as_fd()).expect("a BAR");
    let region = bar.region().expect("one region");
    assert!(!region.is_writable());
    assert!(matches!(region.map(MapOptions::new()), Err(MapError::ReadOnly)));
    let mapping = region.map(MapOptions::new().read_only()).expect("a mapping");
    for _ in 0..2 {
        assert_eq!(mapping.read::<u64>(8), Ok(7));
        assert_eq!(mapping.write(8, 1_u64), Err(AccessError::ReadOnly { offset: 8 }));
        assert_eq!(region.owner().write(8, 1_u64), Err(AccessError::ReadOnly { offset: 8 }));
        region.disable().expect("disable");
        assert_eq!(mapping.read::<u64>(8), Err(AccessError::Disabled { offset: 8 }));
        region.enable().expect("enable");
    }
    assert_eq!(writer.read::<u64>(8), Ok(7));
}

#[test]
fn ports_and_roms_are_not_mapped_and_a_table_of_vectors_is() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(NIC);
    for (index, what) in [(2, "I/O ports"), (6, "the ROM")] {
        let refused = opened.device.bar(index).expect("there is one").build(opened.device.as_fd());
        assert!(matches!(refused, Err(VfioError::NotMappable { .. })), "{what}: {refused:?}");
    }
    let gone = opened.device.bar(5).expect("the kernel describes it").build(opened.device.as_fd());
    assert!(matches!(gone, Err(VfioError::NotMappable { size: 0 })), "{gone:?}");
    let none = opened.device.bar(100).map(drop);
    assert!(matches!(&none, Err(VfioError::Sys(e)) if e.errno == Errno::EINVAL), "{none:?}");
    // Since Linux 4.16 the table of MSI-X vectors can be mapped with the rest.
    assert!(opened.bar(3).region().is_some());
}

#[test]
fn huge_entries_of_a_devices_memory_stay() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    for round in 0..3 {
        let before = faults();
        for at in (0..LEN).step_by(4096) {
            mapping.read::<u8>(at).expect("on");
        }
        let taken = faults() - before;
        // 6.1 fills the whole mapping at the first fault, later kernels 2 MiB.
        let most = if release() < (6, 2) { 1 } else { 8 };
        assert_eq!(taken, most, "round {round}: faults for 16 MiB");
        region.disable().expect("disable");
        region.enable().expect("enable");
    }
}

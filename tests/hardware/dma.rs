//! DMA through the machine's IOMMU: by a device into a region's memory and into a BAR, and refused after a revocation.

use crate::rig::{BAR, EDU, HostIommu, LEN, MEMORY, Opened, rig};
use crate::support::{addr, eventually, release};
use nix::errno::Errno;
use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, PciError};
use revocable_mmio::vfio::{VfioBar, VfioDevice};
use revocable_mmio::{MapOptions, Mapping, OnRevoke, Prot, Region, RevokeError, Strategy};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The device's registers and its own buffer, as it sees it.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const DMA: usize = 0x98;
const BUFFER: u64 = 0x4_0000;

/// A device that copies between its buffer and the addresses that the IOMMU gives it.
pub(crate) struct Edu {
    _bar: VfioBar,
    registers: Mapping,
}

impl Edu {
    pub(crate) fn new(opened: &Opened) -> Self {
        Self::of(&opened.device)
    }

    pub(crate) fn of(device: &VfioDevice) -> Self {
        // Bus master and memory.
        device.write_config(4, &6_u16.to_le_bytes()).expect("configuration space");
        let bar = device.bar(0).expect("its registers").build(device.as_fd()).expect("they can be mapped");
        let registers = bar.region().expect("one region").map(MapOptions::new()).expect("a mapping");
        Self { _bar: bar, registers }
    }

    fn copy(&self, source: u64, destination: u64, command: u64) {
        self.registers.write(SOURCE, source).expect("on");
        self.registers.write(DESTINATION, destination).expect("on");
        self.registers.write(COUNT, 8_u64).expect("on");
        self.registers.write(DMA, 1 | command).expect("on");
        eventually("the DMA ends", || self.registers.read::<u64>(DMA).expect("on") & 1 == 0);
    }

    /// Loads 8 bytes into the buffer.
    pub(crate) fn load(&self, iova: u64) {
        self.copy(iova, BUFFER, 0);
    }

    /// Stores the buffer's 8 bytes.
    pub(crate) fn store(&self, iova: u64) {
        self.copy(BUFFER, iova, 2);
    }
}

pub(crate) const IOVA: u64 = 0x10_0000;
/// Always mapped, for what the device stores and loads.
pub(crate) const PLAIN: u64 = 0x80_0000;

/// What is revoked, and how it is looked at from the side.
enum Memory {
    Region(Region),
    Bar(VfioBar),
}

impl Memory {
    fn region(&self) -> &Region {
        match self {
            Memory::Region(region) => region,
            Memory::Bar(bar) => bar.region().expect("one region"),
        }
    }
}

/// A device's store reaches the memory exactly if it is not revoked, and so does its load.
fn follows(edu: &Edu, memory: &Memory, space: &DmaSpace, plain: &Mapping, look: impl Fn() -> u64, put: impl Fn(u64)) {
    let region = memory.region();
    let mapping = region.map(MapOptions::new().len(1 << 16)).expect("a mapping");
    space.map(IOVA, &[DmaSegment::device(&mapping, 0..1 << 16)], DmaAccess::ReadWrite).expect("it is mapped");
    let carried = |value: u64| {
        plain.write(0, value).expect("plain");
        edu.load(PLAIN);
        edu.store(IOVA + 0x208);
    };
    put(0);
    for round in 1..4_u64 {
        carried(round);
        assert_eq!(look(), round, "DMA into {}", region.name());
        put(0x600 + round);
        edu.load(IOVA + 0x208);
        edu.store(PLAIN + 8);
        assert_eq!(plain.read::<u64>(8), Ok(0x600 + round), "DMA from it");
        region.disable().expect("disable");
        carried(0xbad);
        assert_eq!(look(), 0x600 + round, "the IOMMU lets nothing through");
        let refused = space.map_now(IOVA + (1 << 20), &[DmaSegment::device(&mapping, 0..4096)], DmaAccess::Read);
        assert!(matches!(refused, Err(PciError::Dma { .. })), "{refused:?}");
        region.enable().expect("enable");
        assert_eq!(look(), 0x600 + round, "nothing came through meanwhile");
        // Over a reset it is taken out and put back.
        region.reset(|_| carried(0xbad)).expect("reset");
        assert_eq!(look(), 0x600 + round, "nothing came through a reset");
    }
    carried(0x99);
    assert_eq!(look(), 0x99);
    assert_eq!(space.unmap(IOVA, 1 << 16), 1 << 16);
    carried(0xbad);
    assert_eq!(look(), 0x99, "unmapped");
    assert_eq!(region.stats().notifier_errors, 0);
}

/// Plain memory that stays in the IOMMU.
pub(crate) fn plain() -> (Region, Mapping) {
    let region = Region::builder(4096).strategy(Strategy::Replace).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    (region, mapping)
}

#[test]
fn dma_by_a_device_follows_the_revocation_of_a_regions_memory_and_of_a_bar() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(EDU);
    let other = rig.open(MEMORY);
    other.turn(true);
    let edu = Edu::new(&opened);
    let space = DmaSpace::new(Arc::new(rig.iommu()));
    let (_region, plain) = plain();
    space.map(PLAIN, &[DmaSegment::device(&plain, 0..4096)], DmaAccess::ReadWrite).expect("it is mapped");

    for strategy in [Strategy::Detach, Strategy::Replace, Strategy::Zap, Strategy::Withdraw] {
        let memory = Region::builder(1 << 16).name(strategy.to_string()).strategy(strategy).build().expect("a region");
        let memory = Memory::Region(memory);
        let owner = memory.region().owner();
        let look = || owner.read::<u64>(0x208).expect("the owner's view");
        follows(&edu, &memory, &space, &plain, look, |value| owner.write(0x208, value).expect("the owner's view"));
    }
    if !rig.maps_bars() {
        return; // What becomes of a BAR: crate::iommufd
    }
    // From one device to the other, whose BAR is in the IOMMU as long as its region is enabled.
    for on_revoke in [OnRevoke::Keep, OnRevoke::Drop] {
        let bar = other.device.bar(BAR).expect("it has one").on_revoke(on_revoke);
        let bar = bar.build(other.device.as_fd()).expect("a BAR");
        let reads = other.bar(BAR);
        let side = reads.region().expect("one region").map(MapOptions::new()).expect("a mapping");
        if on_revoke == OnRevoke::Drop {
            // Once: `enable()` would need the device again.
            let region = bar.region().expect("one region");
            let mapping = region.map(MapOptions::new().len(4096)).expect("a mapping");
            space.map(IOVA, &[DmaSegment::device(&mapping, 0..4096)], DmaAccess::ReadWrite).expect("it is mapped");
            plain.write(0, 0x71_u64).expect("plain");
            edu.load(PLAIN);
            edu.store(IOVA + 0x208);
            assert_eq!(side.read::<u64>(0x208), Ok(0x71));
            region.disable().expect("disable");
            plain.write(0, 0xbad_u64).expect("plain");
            edu.load(PLAIN);
            edu.store(IOVA + 0x208);
            assert_eq!(side.read::<u64>(0x208), Ok(0x71), "the IOMMU lets nothing through");
            bar.supply(other.device.as_fd()).expect("it had none");
            region.enable().expect("enable");
            edu.store(IOVA + 0x208);
            assert_eq!(side.read::<u64>(0x208), Ok(0xbad), "mapped again");
            assert_eq!(space.unmap(IOVA, 4096), 4096);
            continue;
        }
        let memory = Memory::Bar(bar);
        let look = || side.read::<u64>(0x208).expect("a BAR of its own");
        follows(&edu, &memory, &space, &plain, look, |value| side.write(0x208, value).expect("on"));
    }
}

/// Section m of what the driver was seen to do: the kernel maps a BAR for DMA while it is on.
#[test]
fn a_bar_is_mapped_for_dma_while_its_device_is_on() {
    let Some(rig) = rig() else { return };
    require!(rig.maps_bars(), "an iommufd maps no BAR: the tests of iommufd.rs say what becomes of one", could: false);
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let iommu = Arc::new(rig.iommu());
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    let whole = [DmaSegment::device(&mapping, 0..LEN)];

    opened.turn(false);
    let refused = space.map(IOVA, &whole, DmaAccess::ReadWrite);
    assert!(matches!(refused, Err(PciError::Dma { .. })), "{refused:?}");
    assert_eq!(iommu.map_at(IOVA, addr(&mapping), 4096, DmaAccess::Read), Err(Errno::EFAULT), "and by hand");
    assert_eq!(iommu.unmap_at(IOVA, LEN), iommu.nothing(), "nothing is left behind");
    opened.turn(true);
    space.map(IOVA, &whole, DmaAccess::ReadWrite).expect("on");
    // The kernel tells nothing: the mapping stays in the IOMMU, and can be unmapped.
    opened.turn(false);
    assert_eq!(space.unmap(IOVA, LEN), LEN);
    opened.turn(true);

    // Enabled while the device is off: it is not in the IOMMU, which is an error, and comes with the next enable().
    space.map(IOVA, &whole, DmaAccess::ReadWrite).expect("on");
    region.disable().expect("disable");
    opened.turn(false);
    let told = region.enable().expect_err("it could not follow");
    assert!(matches!(told, RevokeError::NotRestored { .. }) && region.is_enabled(), "{told:?}");
    assert_eq!(iommu.unmap_at(IOVA, LEN), iommu.nothing(), "not there");
    opened.turn(true);
    region.disable().expect("disable");
    region.enable().expect("enable");
    assert_eq!(iommu.map_at(IOVA, addr(&mapping), 4096, DmaAccess::Read), Err(Errno::EEXIST), "there");
    assert_eq!(space.unmap(IOVA, LEN), LEN);

    rights(&iommu, &space, &mapping);
}

/// A part without any, and one for loads.
fn rights(iommu: &HostIommu, space: &DmaSpace, mapping: &Mapping) {
    mapping.protect(0..4096, Prot::None).expect("rights");
    mapping.protect(4096..8192, Prot::Read).expect("rights");
    for (at, access, errno) in [
        (0, DmaAccess::Read, Some(Errno::EFAULT)),
        (4096, DmaAccess::ReadWrite, Some(Errno::EFAULT)),
        (4096, DmaAccess::Read, None),
        (8192, DmaAccess::ReadWrite, None),
    ] {
        let segment = [DmaSegment::device(mapping, at..at + 4096)];
        let mapped = space.map(IOVA, &segment, access);
        assert_eq!(mapped.is_err(), errno.is_some(), "{at:#x} {access:?}: {mapped:?}");
        let by_hand = iommu.map_at(PLAIN, addr(mapping) + at, 4096, access);
        // 6.1 looks at the page-table entry, and not at whether it may be used: it maps a page without rights that was
        // touched before. The crate does not.
        if errno.is_none() || at != 0 || release() > (6, 1) {
            assert_eq!(by_hand.err(), errno, "the kernel says the same of {at:#x} {access:?}");
        }
        space.unmap(IOVA, 4096);
        assert_eq!(iommu.unmap_at(PLAIN, 4096), if by_hand.is_ok() { Ok(4096) } else { iommu.nothing() });
    }
}

#[test]
fn rights_of_a_part_are_those_of_dma_into_it() {
    let Some(rig) = rig() else { return };
    // Without a device, an iommufd pins nothing and looks at nothing.
    let _device = rig.open(EDU);
    let iommu = Arc::new(rig.iommu());
    let region = Region::builder(1 << 16).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    rights(&iommu, &DmaSpace::new(Arc::clone(&iommu) as _), &mapping);
}

#[test]
fn what_a_device_stores_after_a_revocation_does_not_arrive() {
    let Some(rig) = rig() else { return };
    let opened = rig.open(EDU);
    let edu = Edu::new(&opened);
    let space = DmaSpace::new(Arc::new(rig.iommu()));
    let region = Region::builder(1 << 16).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    space.map(IOVA, &[DmaSegment::device(&mapping, 0..1 << 16)], DmaAccess::ReadWrite).expect("it is mapped");
    const STORED: u64 = 0xbad;
    mapping.write(0, STORED).expect("enabled");
    edu.load(IOVA);
    let mut arrived = 0;
    thread::scope(|scope| {
        let stores = scope.spawn(|| {
            for _ in 0..6 {
                edu.store(IOVA);
            }
        });
        for round in 0..20_u64 {
            arrived += u32::from(mapping.read::<u64>(0) == Ok(STORED));
            region.disable().expect("disable");
            // The device's DMA, 100 ms after its command, falls into this as often as not.
            region.owner().write(0, round).expect("the owner's view");
            thread::sleep(Duration::from_millis(20));
            assert_eq!(region.owner().read::<u64>(0), Ok(round));
            region.enable().expect("enable");
            thread::sleep(Duration::from_millis(10));
        }
        stores.join().expect("no panic");
    });
    println!("of 6 stores, {arrived} were seen to arrive while the region was enabled");
    edu.store(IOVA);
    assert_eq!(mapping.read::<u64>(0), Ok(STORED), "and the next does");
}

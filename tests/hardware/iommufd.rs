//! What devices by group and container cannot show: a device that is bound and not attached, several I/O address spaces, and
//! BARs, which an iommufd does not map.
//!
//! Linux 6.12: `pfn_reader_user_pin` pins by `pin_user_pages_remote`, which gives EFAULT for device memory, and only if a
//! device is attached (`iopt_fill_domains_pages`).

use crate::dma::{Edu, IOVA, PLAIN, plain};
use crate::ioas::{Ioas, Iommufd, detach};
use crate::rig::{BAR, EDU, HostIommu, LEN, MEMORY, NIC, Opened, Rig, bind, rig};
use crate::support::{AtTheEnd, addr};
use nix::errno::Errno;
use nix::libc;
use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, PciError, Space, WhyUnmapped};
use revocable_mmio::vfio::VfioDevice;
use revocable_mmio::{MapOptions, Mapping, Region, RevokeError};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

fn is_fault(e: &std::io::Error) -> bool {
    e.raw_os_error() == Some(libc::EFAULT)
}

/// A region of plain memory whose pages say which they are.
fn numbered() -> (Region, Mapping) {
    let region = Region::builder(1 << 16).build().expect("a region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    for page in 0..16 {
        mapping.write(page * 4096, page as u64).expect("enabled");
    }
    (region, mapping)
}

#[test]
fn a_bar_is_refused_as_the_iommus_error_and_nothing_of_it_is_left() {
    let Some(rig) = rig() else { return };
    let Some((_, ioas)) = rig.iommufd() else { return };
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let iommu = Arc::new(rig.iommu());
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    let mapping = region.map(MapOptions::new()).expect("a mapping");
    mapping.write(8, 0x51_u64).expect("on");
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    let whole = [DmaSegment::device(&mapping, 0..LEN)];
    let (memory, of_memory) = numbered();

    // By hand, through the container's interface, and by the space, alone or behind memory that can be mapped.
    assert_eq!(iommu.map_at(IOVA, addr(&mapping), 4096, DmaAccess::Read), Err(Errno::EFAULT));
    assert_eq!(ioas.map_as_container(IOVA, addr(&mapping), 4096), Err(Errno::EFAULT));
    let both = [DmaSegment::device(&of_memory, 0..1 << 16), DmaSegment::device(&mapping, 0..4096)];
    for (segments, at) in [(&whole[..], IOVA), (&both[..], IOVA + (1 << 16))] {
        for refused in [space.map(IOVA, segments, DmaAccess::ReadWrite), space.map_now(IOVA, segments, DmaAccess::Read)]
        {
            assert!(
                matches!(&refused, Err(PciError::Iommu { iova, source, .. }) if *iova == at && is_fault(source)),
                "{refused:?}"
            );
        }
        assert_eq!(iommu.unmap_at(IOVA, LEN), iommu.nothing(), "nothing is left behind");
        assert!(space.unmapped().is_empty() && space.unmap(IOVA, LEN) == 0);
    }
    // The regions know nothing of it any more, and the addresses are free.
    for region in [region, &memory] {
        region.disable().expect("nothing is in the way");
        region.enable().expect("nothing is to be put back");
        assert_eq!(region.stats().notifier_errors, 0);
    }
    space.map(IOVA, &both[..1], DmaAccess::ReadWrite).expect("memory");
    assert_eq!(space.unmap(IOVA, LEN), 1 << 16);

    // Mapped while it is revoked: enabled, and not in the IOMMU, which `enable()` says, and so does the space.
    region.disable().expect("disable");
    let refused = space.map_now(IOVA, &whole, DmaAccess::ReadWrite);
    assert!(matches!(refused, Err(PciError::Dma { .. })), "{refused:?}");
    space.map(IOVA, &whole, DmaAccess::ReadWrite).expect("with the next enable()");
    for _ in 0..2 {
        assert!(matches!(space.unmapped()[..], [ref part] if matches!(part.why, WhyUnmapped::Revoked)));
        let told = region.enable().expect_err("it could not follow");
        assert!(matches!(told, RevokeError::NotRestored { .. }) && region.is_enabled(), "{told:?}");
        assert_eq!(mapping.read::<u64>(8), Ok(0x51), "the memory is back all the same");
        let unmapped = space.unmapped();
        assert!(
            matches!(&unmapped[..], [part] if matches!(&part.why, WhyUnmapped::Refused(e) if is_fault(e))),
            "{unmapped:?}"
        );
        assert!(matches!(space.retry(), Err(PciError::Iommu { .. })));
        assert_eq!(iommu.unmap_at(IOVA, LEN), iommu.nothing(), "not there");
        region.disable().expect("there is nothing to take out");
    }
    assert_eq!(space.unmap(IOVA, LEN), LEN);
    assert!(region.enable().expect("it belongs to no space any more"));
}

/// A peer's BAR is to be reached by DMA, and the IOMMU will not have it: for the guest, the device is on all the same.
#[test]
fn a_device_whose_bar_is_followed_is_on_and_the_write_says_that_no_dma_reaches_it() {
    let Some(rig) = rig() else { return };
    if rig.iommufd().is_none() {
        return;
    }
    let opened = rig.open(MEMORY);
    let model = opened.device.pci().expect("it is described").build().expect("it is made");
    let bar = Space::Bar(BAR as usize);
    let iommu = Arc::new(rig.iommu());
    let space = Arc::new(DmaSpace::new(Arc::clone(&iommu) as _));
    let mapping = model.map(bar, MapOptions::new()).expect("a mapping");
    let command = |value: u16| model.write(Space::Config, 4, &value.to_le_bytes()[..]);
    command(0).expect("off");
    model.write(Space::Config, 0x18, &0x4000_0000_u64.to_le_bytes()[..]).expect("its address");
    let followed = model.map(bar, MapOptions::new()).expect("a mapping");
    let following = space.follow_bar(&model, bar, followed, DmaAccess::ReadWrite).expect("it is off");
    for _ in 0..3 {
        let told = command(2).expect_err("it could not follow");
        assert!(
            matches!(&told, PciError::Revoke(e) if matches!(e.source, RevokeError::NotRestored { .. })),
            "{told:?}"
        );
        assert_eq!(told.errno(), libc::EFAULT);
        assert!(opened.device.is_memory_enabled() && model.region(bar).is_some_and(|region| region.is_enabled()));
        mapping.write(8, 0x71_u64).expect("on");
        assert!(matches!(&space.unmapped()[..], [part] if part.iova == 0x4000_0000 && part.len == LEN));
        assert_eq!(iommu.unmap_at(0x4000_0000, LEN), iommu.nothing(), "not there");
        command(0).expect("off");
        assert!(mapping.read::<u64>(8).is_err() && space.unmapped().is_empty());
    }
    // A VMM that does not ask for it has no error.
    drop(following);
    command(2).expect("on");
    assert_eq!(mapping.read::<u64>(8), Ok(0x71));
}

/// A device, bound and not attached.
fn unattached(iommufd: &Iommufd, device: &str) -> VfioDevice {
    bind(device);
    VfioDevice::new(iommufd.bind(device).0).expect("a PCI device")
}

#[test]
fn a_device_that_is_bound_and_not_attached_has_its_bars_and_reaches_nothing() {
    let Some(rig) = rig() else { return };
    let Some((iommufd, _)) = rig.iommufd() else { return };
    let device = unattached(iommufd, EDU);
    let edu = Edu::of(&device);
    let ioas = iommufd.ioas();
    let iommu = Arc::new(HostIommu::Ioas(ioas.clone()));
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    let (region, mapping) = numbered();
    let (_plain_region, plain) = plain();
    let whole = [DmaSegment::device(&mapping, 0..1 << 16)];
    space.map(PLAIN, &[DmaSegment::device(&plain, 0..4096)], DmaAccess::ReadWrite).expect("it is mapped");
    space.map(IOVA, &whole, DmaAccess::ReadWrite).expect("it is mapped");
    let carried = |value: u64| {
        plain.write(0, value).expect("plain");
        edu.load(PLAIN);
        edu.store(IOVA + 8);
        region.owner().read::<u64>(8).expect("the owner's view")
    };
    let before = carried(0x11);
    assert_ne!(before, 0x11, "it reaches nothing");

    // The BAR of another, which only the attaching looks at: refused as a whole, and the device stays as it was.
    let other = rig.open(MEMORY);
    other.turn(true);
    let bar = other.bar(BAR);
    let of_bar = bar.region().expect("one region").map(MapOptions::new()).expect("a mapping");
    let beyond = IOVA + (1 << 20);
    space.map(beyond, &[DmaSegment::device(&of_bar, 0..4096)], DmaAccess::Read).expect("it pins nothing");
    assert!(space.unmapped().is_empty(), "the IOMMU has not refused it");
    assert_eq!(ioas.attach(device.as_fd()), Err(Errno::EFAULT));
    assert_eq!(carried(0x22), before);
    assert_eq!(space.unmap(beyond, 4096), 4096);

    // Taken out before it is attached, attached, and detached again.
    region.disable().expect("disable");
    ioas.attach(device.as_fd()).expect("memory alone");
    assert_eq!(carried(0x33), before, "revoked before the device could reach it");
    region.enable().expect("enable");
    assert_eq!(carried(0x44), 0x44);
    assert_eq!(ioas.destroy(), Err(Errno::EBUSY), "it is in use");
    detach(device.as_fd()).expect("it is attached");
    assert_eq!(carried(0x55), 0x44, "it reaches nothing");
    region.disable().expect("disable");
    region.enable().expect("enable");
    assert_eq!(region.stats().notifier_errors, 0);
    // A BAR that is in the address space when its region is revoked is taken out like any other.
    space.map(beyond, &[DmaSegment::device(&of_bar, 0..4096)], DmaAccess::Read).expect("it pins nothing");
    bar.group().disable().expect("disable");
    assert_eq!(iommu.unmap_at(beyond, 4096), iommu.nothing(), "taken out");
    ioas.attach(device.as_fd()).expect("without the BAR");
    let told = bar.group().enable().expect_err("it could not follow");
    assert!(matches!(told.source, RevokeError::NotRestored { .. }), "{told:?}");
    drop(space);
    drop(device);
}

/// The address spaces of the next test: both have the plain memory, and each its own part of the region at `IOVA`.
fn space(iommu: HostIommu, mapping: &Mapping, at: usize, plain: &Mapping) -> DmaSpace {
    let space = DmaSpace::new(Arc::new(iommu));
    space.map(PLAIN, &[DmaSegment::device(plain, 0..4096)], DmaAccess::ReadWrite).expect("it is mapped");
    space.map(IOVA, &[DmaSegment::device(mapping, at..at + 4096)], DmaAccess::ReadWrite).expect("it is mapped");
    space
}

/// A device, and a second address space to move it to.
struct Moved {
    opened: Opened,
    edu: Edu,
    second: Ioas,
    _plain: Region,
    plain: Mapping,
}

impl Moved {
    fn new(rig: &Rig, iommufd: &Iommufd) -> Self {
        let opened = rig.open(EDU);
        let (_plain, plain) = plain();
        Self { edu: Edu::new(&opened), opened, second: iommufd.ioas(), _plain, plain }
    }
}

#[test]
fn a_device_is_moved_to_another_address_space_while_a_region_is_revoked() {
    let Some(rig) = rig() else { return };
    let Some((iommufd, first)) = rig.iommufd() else { return };
    let (region, mapping) = numbered();
    let Moved { opened, edu, second, plain, _plain } = Moved::new(&rig, iommufd);
    let of_first = space(rig.iommu(), &mapping, 0, &plain);
    let of_second = space(HostIommu::Ioas(second.clone()), &mapping, 0x8000, &plain);
    let parts = || [0, 0x8000].map(|at| region.owner().read::<u64>(at).expect("the owner's view"));
    let carry = |value: u64| {
        plain.write(0, value).expect("plain");
        edu.load(PLAIN);
        edu.store(IOVA);
    };
    let (mut value, mut expected) = (0x100, parts());
    assert_eq!(expected, [0, 8]);
    for round in 0..6 {
        let (here, next) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let ioas = [first, &second][next];
        let mut carried = |into: Option<usize>, what: &str| {
            value += 1;
            carry(value);
            if let Some(into) = into {
                expected[into] = value;
            }
            assert_eq!(parts(), expected, "round {round}: {what}");
        };
        carried(Some(here), "into the part of its address space");
        // Revoked, moved, given back: nothing arrives before the last.
        region.disable().expect("disable");
        carried(None, "revoked");
        ioas.attach(opened.device.as_fd()).expect("it is moved");
        carried(None, "moved while it is revoked");
        region.enable().expect("enable");
        carried(Some(next), "into the other part");
        // Moved while it is enabled, revoked in the other address space, moved back before it is given back.
        [first, &second][here].attach(opened.device.as_fd()).expect("it is moved");
        carried(Some(here), "moved while it is there");
        region.disable().expect("disable");
        carried(None, "revoked");
        ioas.attach(opened.device.as_fd()).expect("it is moved");
        carried(None, "moved again");
        region.enable().expect("enable");
        carried(Some(next), "there again");
    }
    assert_eq!(region.stats().notifier_errors, 0);
    // The device is in the first. What is done with the second is nothing to it.
    drop(of_second);
    second.destroy().expect("it is not in use");
    carry(0x777);
    assert_eq!(parts(), [0x777, expected[1]]);
    drop(of_first);
    carry(0xbad);
    assert_eq!(parts(), [0x777, expected[1]]);
}

/// The kernel fills an address space's page tables as a device comes, beside what the crate maps and unmaps there.
#[test]
fn moves_beside_revocations_let_nothing_through() {
    let Some(rig) = rig() else { return };
    let Some((iommufd, first)) = rig.iommufd() else { return };
    let (region, mapping) = numbered();
    let Moved { opened, edu, second, plain, _plain } = Moved::new(&rig, iommufd);
    let _spaces = [rig.iommu(), HostIommu::Ioas(second.clone())].map(|iommu| space(iommu, &mapping, 0, &plain));
    let stop = AtomicBool::new(false);
    let moves = AtomicU64::new(0);
    plain.write(0, 0xbad_u64).expect("plain");
    edu.load(PLAIN);
    thread::scope(|scope| {
        let _stop = AtTheEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for ioas in [&second, first] {
                    ioas.attach(opened.device.as_fd()).expect("it is moved");
                    moves.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 0..10_u64 {
            for _ in 0..50 {
                region.disable().expect("disable");
                region.enable().expect("everything is put back");
            }
            region.disable().expect("disable");
            region.owner().write(0, round).expect("the owner's view");
            assert_eq!(store(&edu, &region), round, "nothing arrives");
            region.enable().expect("everything is put back");
        }
    });
    println!("{} moves beside 510 revocations", moves.into_inner());
    assert_eq!(store(&edu, &region), 0xbad, "it arrives again");
    assert_eq!(region.stats().notifier_errors, 0);
}

/// A device's DMA into a region's first page, and what it has then.
fn store(edu: &Edu, region: &Region) -> u64 {
    edu.store(IOVA);
    region.owner().read::<u64>(0).expect("the owner's view")
}

/// A device in an address space of an iommufd of its own.
fn attached() -> (Iommufd, Ioas, VfioDevice) {
    let iommufd = Iommufd::open();
    let ioas = iommufd.ioas();
    let device = unattached(&iommufd, EDU);
    ioas.attach(device.as_fd()).expect("it is attached");
    (iommufd, ioas, device)
}

#[test]
fn a_space_keeps_its_iommufd_and_a_device_what_a_closed_one_has_mapped() {
    let Some(rig) = rig() else { return };
    if rig.iommufd().is_none() {
        return;
    }
    let (region, mapping) = numbered();
    region.owner().write(0, 0xa5_u64).expect("the owner's view");

    // By a space: it has a descriptor of the iommufd through its `Iommu`, and goes on when all others are closed.
    let (iommufd, ioas, device) = attached();
    let edu = Edu::of(&device);
    let space = DmaSpace::new(Arc::new(HostIommu::Ioas(ioas.clone())));
    drop((iommufd, ioas));
    space.map(IOVA, &[DmaSegment::device(&mapping, 0..4096)], DmaAccess::ReadWrite).expect("it is mapped");
    edu.load(IOVA);
    region.owner().write(0, 1_u64).expect("the owner's view");
    assert_eq!(store(&edu, &region), 0xa5);
    region.owner().write(0, 2_u64).expect("the owner's view");
    region.disable().expect("disable");
    assert_eq!(store(&edu, &region), 2, "taken out");
    region.enable().expect("enable");
    assert_eq!(store(&edu, &region), 0xa5, "and put back");
    drop(space);
    region.owner().write(0, 3_u64).expect("the owner's view");
    assert_eq!(store(&edu, &region), 3, "dropped");
    drop((edu, device));

    // By hand: the device keeps what is mapped, and nothing can take it out but the device's end.
    let (iommufd, ioas, device) = attached();
    let edu = Edu::of(&device);
    ioas.map_at(IOVA, addr(&mapping), 4096, DmaAccess::ReadWrite).expect("it is mapped");
    edu.load(IOVA);
    drop((ioas, iommufd));
    region.owner().write(0, 4_u64).expect("the owner's view");
    assert_eq!(store(&edu, &region), 3, "its buffer has what it was before");
    drop((edu, device));
    let again = rig.open(EDU);
    region.owner().write(0, 5_u64).expect("the owner's view");
    assert_eq!(store(&Edu::new(&again), &region), 5, "gone with the device");
}

#[test]
fn addresses_of_interrupts_are_refused_before_anything_is_mapped() {
    let Some(rig) = rig() else { return };
    if rig.iommufd().is_none() {
        return;
    }
    let _device = rig.open(NIC);
    let space = DmaSpace::new(Arc::new(rig.iommu()));
    let (_region, mapping) = numbered();
    let segment = [DmaSegment::device(&mapping, 0..0x2000)];
    for iova in [0xfedf_f000, 0xfee0_0000, 0xfeef_f000] {
        let refused = space.map(iova, &segment, DmaAccess::Read);
        assert!(matches!(refused, Err(PciError::Iova { .. })), "{iova:#x}: {refused:?}");
    }
    for iova in [0xfedf_e000, 0xfef0_0000] {
        space.map(iova, &segment, DmaAccess::Read).expect("beside them");
    }
}

//! What an IOMMU refuses: when memory comes back, and before anything is asked of it.

use super::*;
use revocable_mmio::{ResetGroup, RevokeError};

type Way = (&'static str, fn(&World) -> Option<i32>);

/// Everything by which memory comes back, and the errno of its error.
fn ways() -> Vec<Way> {
    fn errno(error: &RevokeError) -> i32 {
        match error {
            RevokeError::NotRestored { source } => source.downcast_ref::<PciError>().expect("DMA's").errno(),
            e => panic!("{e}"),
        }
    }
    vec![
        ("enable", |world| {
            world.region.disable().expect("nothing is in the way");
            world.region.enable().err().map(|e| errno(&e))
        }),
        ("try_enable", |world| {
            world.region.try_disable().expect("nothing is in the way");
            world.region.try_enable().err().map(|e| errno(&e))
        }),
        ("a reset", |world| world.region.reset(|_| ()).err().map(|e| errno(&e))),
        ("a group's enable", |world| {
            let group = ResetGroup::new([&world.region, &world.other]);
            group.disable().expect("nothing is in the way");
            group.enable().err().map(|e| errno(&e.source))
        }),
    ]
}

struct World {
    region: Region,
    other: Region,
}

#[test]
fn what_does_not_come_back_is_an_error_of_the_enable_is_listed_and_can_be_tried_again() {
    let (space, table) = space(Table::default());
    let (region, mapping) = region();
    let other = Region::builder(LEN).build().expect("it builds");
    let world = World { region, other };
    space.map(A, &[DmaSegment::device(&mapping, 0..PAGE)], DmaAccess::Read).expect("enabled");
    space.map(B, &[whole(&mapping)], DmaAccess::Read).expect("enabled");
    for (way, bring_back) in ways() {
        table.refuse(&[A]);
        assert_eq!(bring_back(&world), Some(ENOSPC), "{way}");
        assert!(world.region.is_enabled() && mapping.read::<u8>(0) == Ok(0), "{way}: the memory is back");
        assert_eq!((table.mapped(), reasons(&space)), (vec![B], vec![(A, "ENOSPC")]), "{way}");
        assert_eq!(space.retry().expect_err("again").errno(), ENOSPC, "{way}");
        // It can be unmapped and mapped like any other.
        table.refuse(&[]);
        match way {
            "a reset" => {
                assert_eq!(space.unmap(A, PAGE), PAGE);
                space.map(A, &[DmaSegment::device(&mapping, 0..PAGE)], DmaAccess::Read).expect("free");
            }
            _ => space.retry().expect("free"),
        }
        assert_eq!((table.mapped(), reasons(&space)), (vec![A, B], vec![]), "{way}");
        assert_eq!(bring_back(&world), None, "{way}: an error is told once");
    }
}

#[test]
fn a_guests_write_that_brings_memory_back_has_the_iommus_error() {
    let (space, table) = space(Table::default());
    let device = PciDevice::builder(1, 2).command(2).bar(0, Bar::memory(LEN as u64)).power(0x40).express(0x50);
    let device = device.on_reset(|_, _| Ok(())).build().expect("a device");
    let mapping = device.map(BAR, MapOptions::new()).expect("it maps");
    space.map(A, &[whole(&mapping)], DmaAccess::Read).expect("enabled");
    let ways: [(u64, &[u8], &[u8]); 2] = [(4, &[0, 0], &[2, 0]), (0x44, &[3, 0], &[0, 0])];
    for (at, off, on) in ways {
        device.write(Space::Config, at, off).expect("off");
        table.refuse(&[A]);
        assert_eq!(device.write(Space::Config, at, on).expect_err("refused").errno(), ENOSPC);
        assert!(device.is_memory_enabled() && mapping.read::<u8>(0) == Ok(0));
        assert_eq!(reasons(&space), [(A, "ENOSPC")]);
        table.refuse(&[]);
        space.retry().expect("free");
    }
    table.refuse(&[A]);
    assert_eq!(device.reset().expect_err("refused").errno(), ENOSPC);
    let write = device.begin_write(4, &[0, 0]).expect("it begins");
    assert!(write.wait_timeout(Duration::from_secs(20)));
    let write = device.begin_write(4, &[2, 0]).expect("it begins");
    assert!(write.wait_timeout(Duration::from_secs(20)));
    assert_eq!(write.result().expect("done").expect_err("refused").errno(), ENOSPC);
    assert_eq!(device.command(), 2);
}

#[test]
fn addresses_that_an_iommu_does_not_have_are_refused_before_it_is_asked() {
    const MSI: u64 = 0xfee0_0000;
    let top = (1 << 39) - 1;
    let (space, table) = space(Table { ranges: vec![0..=MSI - 1, MSI + 0x10_0000..=top], ..Table::default() });
    let map = |iova: u64, len: usize| space.map(iova, &[plain(len)], DmaAccess::Read).map_err(|e| e.errno());
    for (iova, len) in [
        (MSI, PAGE),
        (MSI - 0x1000, 2 * PAGE),
        (MSI + 0xf_f000, 2 * PAGE),
        (top + 1, PAGE),
        (top - 0xfff, 2 * PAGE),
        (u64::MAX - 0xfff, PAGE),
        (u64::MAX - 0xfff, 2 * PAGE),
        (0x800, PAGE),
    ] {
        assert_eq!(map(iova, len), Err(EINVAL), "{iova:#x}, {len:#x}");
    }
    for (iova, len) in [(MSI - 0x1000, PAGE), (MSI + 0x10_0000, PAGE), (top - 0xfff, PAGE)] {
        assert_eq!(map(iova, len), Ok(()), "{iova:#x}, {len:#x}");
    }
    assert_eq!(table.mapped().len(), 3);
    assert_eq!(reasons(&space), []);
    // An IOMMU with larger pages than the process.
    let (space, table) = super::space(Table { page: 16 * PAGE, ..Table::default() });
    let map = |iova: u64, len: usize| space.map(iova, &[plain(len)], DmaAccess::Read).map_err(|e| e.errno());
    assert_eq!([map(0x1000, 16 * PAGE), map(0x1_0000, PAGE)], [Err(EINVAL); 2]);
    assert_eq!(map(0x1_0000, 32 * PAGE), Ok(()));
    assert_eq!(table.mapped(), [0x1_0000]);
}

#[test]
fn a_write_that_makes_a_bus_master_gives_up_in_time_and_has_changed_nothing() {
    const LONG: Duration = Duration::from_secs(10);
    let _watchdog = Watchdog::new("a busy region", Duration::from_secs(60));
    let (space, table) = space(Table::default());
    let (other, mapping) = region();
    let device = PciDevice::builder(1, 2).bar(0, Bar::memory(0x4000)).bus_master(Arc::clone(&space)).build();
    let device = device.expect("a device");
    let bar = device.map(BAR, MapOptions::new()).expect("it maps");
    command(&device, 2).expect("memory on");
    space.map(A, &[whole(&mapping)], DmaAccess::ReadWrite).expect("it is free");
    space.map(B, &[whole(&bar)], DmaAccess::ReadWrite).expect("it is free");
    let (other, (busy, is_busy)) = (&other, std::sync::mpsc::channel());
    let (end, ends) = std::sync::mpsc::channel::<()>();
    thread::scope(|scope| {
        let reset = scope.spawn(move || {
            other.reset(|_| {
                busy.send(()).expect("the test waits for it");
                let _ = ends.recv_timeout(LONG);
            })
        });
        is_busy.recv().expect("the reset begins");
        // With memory on as before, and together with memory off.
        for both in [[6_u8, 0], [4, 0]] {
            let since = std::time::Instant::now();
            let gave_up = device.write_timeout(4, &both, Duration::from_millis(20)).expect_err("the region is busy");
            assert!(since.elapsed() < LONG / 2, "{:?}", since.elapsed());
            assert_eq!(gave_up.errno(), libc::EBUSY, "{gave_up}");
            assert_eq!(device.command(), 2);
            assert_eq!(bar.read::<u8>(0), Ok(0), "memory is on");
            assert_eq!((table.mapped(), reasons(&space)), (NONE.to_vec(), vec![(A, "no master"), (B, "no master")]));
        }
        drop(end);
        reset.join().expect("no panic").expect("the reset ends");
    });
    device.write_timeout(4, &[6, 0], LONG).expect("nothing is busy");
    assert_eq!((table.mapped(), device.command()), (vec![A, B], 6));
}

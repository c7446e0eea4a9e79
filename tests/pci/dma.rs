//! DMA that is accountable: what is mapped is in the IOMMU, or is listed with the reason why it is not.

mod refused;

use crate::support;
use crate::support::watchdog::Watchdog;
use nix::libc;
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::pci::{
    Bar, Command, DmaAccess, DmaSegment, DmaSpace, Iommu, PciDevice, PciError, Space, WhyUnmapped,
};
use revocable_mmio::{MapOptions, Mapping, Region};
use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const BAR: Space = Space::Bar(0);
const PAGE: usize = 4096;
const LEN: usize = 4 * PAGE;
const A: u64 = 0xe000_0000;
const B: u64 = 0xe800_0000;
const ENOSPC: i32 = 28;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;
const NONE: [u64; 0] = [];

/// An IOMMU that knows its mappings, checks each call against them, and refuses some addresses.
struct Table {
    maps: Mutex<BTreeMap<u64, usize>>,
    refuses: Mutex<Vec<u64>>,
    ranges: Vec<RangeInclusive<u64>>,
    page: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self { maps: Mutex::default(), refuses: Mutex::default(), ranges: vec![0..=u64::MAX], page: PAGE }
    }
}

impl Iommu for Table {
    fn map(&self, iova: u64, _: *mut u8, len: usize, _: DmaAccess) -> io::Result<()> {
        if self.refuses.lock().expect("a list").contains(&iova) {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        let before = self.maps.lock().expect("a table").insert(iova, len);
        assert!(before.is_none(), "mapped twice");
        Ok(())
    }

    fn unmap(&self, iova: u64, len: usize) {
        assert_eq!(self.maps.lock().expect("a table").remove(&iova), Some(len), "unmapped what was not mapped");
    }

    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        self.ranges.clone()
    }

    fn page_size(&self) -> usize {
        self.page
    }
}

impl Table {
    fn mapped(&self) -> Vec<u64> {
        self.maps.lock().expect("a table").keys().copied().collect()
    }

    fn refuse(&self, iova: &[u64]) {
        *self.refuses.lock().expect("a list") = iova.to_vec();
    }
}

fn space(table: Table) -> (Arc<DmaSpace>, Arc<Table>) {
    support::start();
    let table = Arc::new(table);
    (Arc::new(DmaSpace::new(Arc::clone(&table) as _)), table)
}

fn region() -> (Region, Mapping) {
    let region = Region::builder(LEN).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    (region, mapping)
}

fn whole(mapping: &Mapping) -> DmaSegment<'_> {
    DmaSegment::device(mapping, 0..LEN)
}

/// Memory for an IOMMU that only records addresses.
fn plain(len: usize) -> DmaSegment<'static> {
    #[expect(unsafe_code, reason = "memory that nothing reaches")]
    // SAFETY: the table only records addresses.
    unsafe {
        DmaSegment::plain(std::ptr::without_provenance_mut(0x10000), len)
    }
}

fn command(device: &PciDevice, command: u16) -> Result<usize, PciError> {
    device.write(Space::Config, 4, &command.to_le_bytes()[..])
}

fn reasons(space: &DmaSpace) -> Vec<(u64, &'static str)> {
    let why = |why: &WhyUnmapped| match why {
        WhyUnmapped::Revoked => "revoked",
        WhyUnmapped::NoBusMaster => "no master",
        WhyUnmapped::Refused(e) if e.raw_os_error() == Some(ENOSPC) => "ENOSPC",
        _ => "?",
    };
    space.unmapped().iter().map(|range| (range.iova, why(&range.why))).collect()
}

#[test]
fn memory_that_is_revoked_when_it_is_mapped_is_there_once_it_is_back() {
    let (space, table) = space(Table::default());
    let (region, mapping) = region();
    region.disable().expect("nothing is in the way");
    let refused = space.map_now(A, &[whole(&mapping)], DmaAccess::ReadWrite).expect_err("revoked");
    assert_eq!(refused.errno(), EFAULT);
    space.map(A, &[plain(PAGE), whole(&mapping)], DmaAccess::ReadWrite).expect("accepted");
    assert_eq!((table.mapped(), reasons(&space)), (vec![A], vec![(A + 0x1000, "revoked")]));
    assert_eq!(space.map(A, &[plain(PAGE)], DmaAccess::Read).expect_err("taken").errno(), 17);
    for _ in 0..2 {
        region.enable().expect("nothing is in the way");
        assert_eq!((table.mapped(), reasons(&space)), (vec![A, A + 0x1000], vec![]));
        region.disable().expect("nothing is in the way");
        assert_eq!(table.mapped(), [A]);
    }
    assert_eq!(space.unmap(A, LEN + PAGE), LEN + PAGE, "in any state");
    region.enable().expect("nothing is in the way");
    assert_eq!(table.mapped(), NONE);
}

#[test]
fn no_dma_reaches_anything_while_the_device_is_no_bus_master() {
    /// Notes what PCI_COMMAND says when it is called.
    struct Watches(Arc<Table>, Mutex<Option<PciDevice>>, Mutex<Vec<(char, u16)>>);
    impl Watches {
        fn note(&self, what: char) {
            if let Some(device) = &*self.1.lock().expect("a device") {
                self.2.lock().expect("a list").push((what, device.command()));
            }
        }
    }
    impl Iommu for Watches {
        fn map(&self, iova: u64, addr: *mut u8, len: usize, access: DmaAccess) -> io::Result<()> {
            self.note('+');
            self.0.map(iova, addr, len, access)
        }
        fn unmap(&self, iova: u64, len: usize) {
            self.note('-');
            self.0.unmap(iova, len);
        }
    }
    support::start();
    let table = Arc::new(Table::default());
    let watches = Arc::new(Watches(Arc::clone(&table), Mutex::default(), Mutex::default()));
    let space = Arc::new(DmaSpace::new(Arc::clone(&watches) as _));
    let (region, mapping) = region();
    let device = PciDevice::builder(1, 2).bar(0, Bar::memory(4096)).bus_master(Arc::clone(&space)).build();
    let device = device.expect("a device");
    *watches.1.lock().expect("a device") = Some(device.clone());
    let noted = || std::mem::take(&mut *watches.2.lock().expect("a list"));

    space.map(A, &[plain(PAGE)], DmaAccess::Read).expect("accepted");
    space.map(B, &[whole(&mapping)], DmaAccess::Read).expect("accepted");
    assert_eq!((table.mapped(), noted()), (vec![], vec![]));
    assert_eq!(reasons(&space), [(A, "no master"), (B, "no master")]);
    // Mapping memory waits for regions that are busy, so a caller that must not wait does not begin it.
    let nowait = device.write_with(Space::Config, 4, &4_u16.to_le_bytes()[..], FaultFlags::NOWAIT);
    assert_eq!(nowait.map_err(|e| e.errno()), Err(libc::EAGAIN));
    assert_eq!((device.command(), table.mapped()), (0, vec![]));
    command(&device, 4).expect("a master");
    assert_eq!((table.mapped(), noted()), (vec![A, B], vec![('+', 4), ('+', 4)]));
    // Memory that comes back meanwhile does not.
    command(&device, 2).expect("none");
    assert_eq!((table.mapped(), noted()), (vec![], vec![('-', 4), ('-', 4)]), "before the register says so");
    region.disable().expect("nothing is in the way");
    region.enable().expect("nothing is in the way");
    assert_eq!(table.mapped(), NONE);
    region.disable().expect("nothing is in the way");
    command(&device, 6).expect("a master");
    assert_eq!((table.mapped(), reasons(&space)), (vec![A], vec![(B, "revoked")]));
    region.enable().expect("nothing is in the way");
    assert_eq!(table.mapped(), [A, B]);
    noted();

    // Refused, the bit is set all the same.
    command(&device, 0).expect("none");
    table.refuse(&[A]);
    let refused = command(&device, 4).expect_err("one is refused");
    assert_eq!((refused.errno(), device.command(), table.mapped()), (ENOSPC, 4, vec![B]));
    assert_eq!(reasons(&space), [(A, "ENOSPC")]);
    assert_eq!(space.retry().expect_err("again").errno(), ENOSPC);
    table.refuse(&[]);
    space.retry().expect("free");
    assert_eq!((table.mapped(), reasons(&space)), (vec![A, B], vec![]));
    assert_eq!(space.unmap(0, usize::MAX), PAGE + LEN);
    watches.1.lock().expect("a device").take();
}

#[test]
fn whatever_comes_together_the_iommu_has_what_the_states_say() {
    let _watchdog = Watchdog::new("DMA in all states", Duration::from_secs(60));
    let (space, table) = space(Table::default());
    let (region, mapping) = region();
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..400 {
                space.set_bus_master(round % 2 == 0).expect("nothing is refused");
            }
        });
        scope.spawn(|| {
            for _ in 0..400 {
                region.disable().expect("nothing is in the way");
                region.enable().expect("nothing is in the way");
            }
        });
        for slot in 1..3u64 {
            let (space, mapping) = (&space, &mapping);
            scope.spawn(move || {
                for _ in 0..400 {
                    let segments = [whole(mapping), plain(PAGE)];
                    space.map(slot << 32, &segments, DmaAccess::Read).expect("free");
                    assert_eq!(space.unmap(slot << 32, LEN + PAGE), LEN + PAGE);
                }
                space.map(slot << 32, &[whole(mapping)], DmaAccess::Read).expect("free");
            });
        }
    });
    assert_eq!(table.mapped(), NONE, "the last word was: no bus master");
    space.set_bus_master(true).expect("nothing is refused");
    assert_eq!(table.mapped(), [1 << 32, 2 << 32]);
    region.disable().expect("nothing is in the way");
    assert_eq!(table.mapped(), NONE);
}

#[test]
fn a_bar_that_peers_reach_is_mapped_where_it_is_decoded() {
    let (space, table) = space(Table { ranges: vec![0..=(1 << 39) - 1], ..Table::default() });
    let device = PciDevice::builder(1, 2).bar(0, Bar::memory(LEN as u64).wide()).bar(2, Bar::memory(16));
    let device = device.build().expect("a device");
    let map = |bar| device.map(bar, MapOptions::new()).expect("it maps");
    let write = |at: u64, value: u32| device.write(Space::Config, at, &value.to_le_bytes()[..]);
    let following = space.follow_bar(&device, BAR, map(BAR), DmaAccess::ReadWrite).expect("not decoded yet");
    for (bar, mapping) in [(Space::Bar(2), map(Space::Bar(2))), (BAR, map(Space::Bar(2)))] {
        let refused =
            space.follow_bar(&device, bar, mapping, DmaAccess::Read).expect_err("not whole pages, or another's");
        assert_eq!(refused.errno(), EINVAL);
    }
    write(0x10, 0xe000_0000).expect("off");
    command(&device, 2).expect("memory on");
    assert_eq!(table.mapped(), [A]);
    write(0x10, 0xffff_ffff).expect("a size probe");
    write(0x10, 0xe800_0000).expect("a move");
    assert_eq!(table.mapped(), [B]);
    command(&device, 0).expect("memory off");
    assert_eq!((table.mapped(), reasons(&space)), (vec![], vec![]), "not even in waiting");
    // Beyond the IOMMU's 39 bits.
    write(0x14, 0x100).expect("off");
    let refused = command(&device, 2).expect_err("too wide");
    assert!(matches!(&refused, PciError::Place { .. }) && refused.to_string().contains("address ranges"), "{refused}");
    assert!(device.is_memory_enabled());
    write(0x14, 1).expect("within");
    assert_eq!(table.mapped(), [0x1_e800_0000]);
    // The IOMMU's own error, when the memory comes back.
    command(&device, 0).expect("memory off");
    table.refuse(&[0x1_e800_0000]);
    let refused = command(&device, 2).expect_err("ENOSPC");
    assert_eq!((refused.errno(), reasons(&space)), (ENOSPC, vec![(0x1_e800_0000, "ENOSPC")]));
    drop(following);
    assert_eq!(reasons(&space), []);
}

#[test]
fn changes_of_the_command_register_are_told_with_what_they_were_before() {
    support::start();
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&told);
    let device = PciDevice::builder(1, 2).bar(0, Bar::memory(4096)).on_command(move |before, after| {
        log.lock().expect("a list").push((before, after));
        assert!(!after.contains(Command::SERR), "by design");
    });
    let device = device.build().expect("a device");
    for value in [4, 4, 0x407, 0x507, 0xffff, 3] {
        command(&device, value).expect("COMMAND");
    }
    device.write(Space::Config, 5, &[4][..]).expect("its upper byte");
    let bits = Command::from_bits_retain;
    let expected = [(0, 4), (4, 0x407), (0x407, 0x507), (0x507, 3), (3, 0x403)].map(|(a, b)| (bits(a), bits(b)));
    assert_eq!(*told.lock().expect("a list"), expected);
}

#[test]
fn a_device_that_ceases_to_be_a_bus_master_while_something_is_mapped_does_not_keep_it() {
    /// Ends the bus mastering in the middle of a call.
    struct Ends(Arc<Table>, Mutex<Option<Arc<DmaSpace>>>);
    impl Iommu for Ends {
        fn map(&self, iova: u64, addr: *mut u8, len: usize, access: DmaAccess) -> io::Result<()> {
            if let Some(space) = self.1.lock().expect("a space").take() {
                space.set_bus_master(false).expect("nothing is refused");
            }
            self.0.map(iova, addr, len, access)
        }
        fn unmap(&self, iova: u64, len: usize) {
            self.0.unmap(iova, len);
        }
    }
    support::start();
    let ends = Arc::new(Ends(Arc::default(), Mutex::default()));
    let space = Arc::new(DmaSpace::new(Arc::clone(&ends) as _));
    *ends.1.lock().expect("a space") = Some(Arc::clone(&space));
    let (_region, mapping) = region();
    space.map(A, &[whole(&mapping), plain(PAGE)], DmaAccess::Read).expect("accepted");
    assert_eq!(ends.0.mapped(), NONE);
    assert_eq!(reasons(&space), [(A, "no master"), (A + LEN as u64, "no master")]);
    space.set_bus_master(true).expect("nothing is refused");
    assert_eq!(ends.0.mapped(), [A, A + LEN as u64]);
}

#[test]
fn memory_that_comes_back_while_it_is_mapped_is_mapped() {
    let _watchdog = Watchdog::new("mapping while memory comes back", Duration::from_secs(120));
    let (space, table) = space(Table::default());
    let (region, mapping) = region();
    for round in 0..10_000_u32 {
        region.disable().expect("nothing is in the way");
        let barrier = std::sync::Barrier::new(2);
        thread::scope(|scope| {
            let mapped = scope.spawn(|| {
                barrier.wait();
                for _ in 0..round % 64 {
                    std::hint::spin_loop();
                }
                space.map(A, &[whole(&mapping)], DmaAccess::Read)
            });
            barrier.wait();
            region.enable().expect("nothing is in the way");
            mapped.join().expect("no panic").expect("accepted");
        });
        assert_eq!((table.mapped(), reasons(&space)), (vec![A], vec![]), "round {round}");
        assert_eq!(space.unmap(A, LEN), LEN);
    }
}

//! DMA mappings of BARs (section m).

use crate::devices::*;
use crate::suite::Suite;
use crate::support::raw::{load, store};
use crate::syscalls::faults;
use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, Iommu};
use revocable_mmio::{MapOptions, Mapping, Prot};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

/// An IOMMU that records its mappings, and checks each call against them.
#[derive(Default)]
struct Remembers(Mutex<BTreeMap<u64, usize>>);

impl Iommu for Remembers {
    fn map(&self, iova: u64, _: *mut u8, len: usize, _: DmaAccess) -> io::Result<()> {
        let before = self.0.lock().expect("a lock").insert(iova, len);
        assert!(before.is_none(), "mapped twice");
        Ok(())
    }

    fn unmap(&self, iova: u64, len: usize) {
        assert_eq!(self.0.lock().expect("a lock").remove(&iova), Some(len), "unmapped what was not mapped");
    }
}

const IOVA: u64 = 1 << 32;

pub(crate) fn dma(s: &mut Suite) {
    s.section("m");
    let device = ivshmem(s);
    let mapping = map(&device, BAR2);
    let iommu = Arc::new(Remembers::default());
    let space = DmaSpace::new(Arc::clone(&iommu) as _);
    let reached = || iommu.0.lock().expect("a lock").values().sum::<usize>();
    let part = |mapping: &Mapping, len: usize, access| {
        zero(space.map_now(IOVA, &[DmaSegment::device(mapping, 0..len)], access))
    };
    let unmap = |len| format!("0 (unmapped {:#x})", space.unmap(IOVA, len));
    use DmaAccess::{Read, ReadWrite};

    s.row("on, never touched: MAP_DMA 4096", part(&mapping, 4096, ReadWrite));
    let before = faults().0;
    load(mapping.as_ptr(), 8).expect("enabled");
    let row = "on, never touched: MAP_DMA 4096 › minor faults of the next load (did MAP_DMA fault it in)";
    s.row(row, (faults().0 - before).to_string());
    s.more("the same address again", part(&mapping, 4096, ReadWrite), "-1 EEXIST");
    s.row("on, never touched: MAP_DMA 4096 › UNMAP", unmap(4096));
    store(mapping.as_ptr(), 8, 1).expect("enabled");
    s.row("on, touched: MAP_DMA whole 16 MiB", part(&mapping, BIG, ReadWrite));
    let written = off(&device);
    let refused = short(load(mapping.as_ptr(), 8).expect_err("off"));
    s.row("on, touched: MAP_DMA whole 16 MiB › off: rc of the COMMAND write", format!("{written}; load {refused}"));
    s.more("off: what the IOMMU still reaches", reached().to_string(), "0");
    on(&device);
    s.more("on again: what the IOMMU reaches", format!("{:#x}", reached()), "0x1000000");
    off(&device);
    s.row("on, touched: MAP_DMA whole 16 MiB › UNMAP while off", unmap(BIG));
    s.row("off: MAP_DMA 4096", part(&mapping, 4096, ReadWrite));
    s.row("off: MAP_DMA whole", part(&mapping, BIG, ReadWrite));
    s.row("off: MAP_DMA read-only", part(&mapping, 4096, Read));
    s.row("off: MAP_DMA read-only › after the failure: UNMAP of that iova", unmap(4096));
    on(&device);
    s.more("on: what the failed ones left behind", reached().to_string(), "0");
    s.row("on again: MAP_DMA 4096", part(&mapping, 4096, ReadWrite));
    unmap(4096);
    let read_only = device.map(BAR2, MapOptions::new().read_only()).expect("a mapping");
    let read = part(&read_only, 4096, Read);
    unmap(4096);
    let both = format!("{read} / {}", part(&read_only, 4096, ReadWrite));
    s.row("PROT_READ mapping: MAP_DMA read / read+write", both);
    mapping.protect(0..4096, Prot::None).expect("a part without rights");
    s.row("PROT_NONE mapping: MAP_DMA", part(&mapping, 4096, Read));
    mapping.protect(0..4096, Prot::ReadWrite).expect("its rights again");

    let mut ordinary = vec![0u64; 1536];
    let addr = ordinary.as_mut_ptr().cast::<u8>().map_addr(|addr| addr.next_multiple_of(4096));
    #[expect(unsafe_code, reason = "memory for an IOMMU that only remembers")]
    // SAFETY: no access is made there.
    let plain = unsafe { DmaSegment::plain(addr, 8192) };
    let mixed = [plain.clone(), DmaSegment::device(&mapping, 0..8192)];
    s.row("on: MAP_DMA over [anon 2 pages, BAR 2 pages]", zero(space.map(IOVA, &mixed, ReadWrite)));
    space.unmap(IOVA, 16384);
    off(&device);
    s.row("off: the same", zero(space.map_now(IOVA, &mixed, ReadWrite)));
    let row = "off: the same › then MAP_DMA of the anon pages at that iova (nothing left behind)";
    s.row(row, zero(space.map_now(IOVA, &[plain], ReadWrite)));
    space.unmap(IOVA, 8192);
    s.more("nothing is mapped at the end", reached().to_string(), "0");
    on(&device);
}

//! G1 for a mapping whose owner has dropped it while it was mapped for DMA.

use crate::support::matrix::STRATEGIES;
use crate::support::raw;
use crate::support::{self, child};
use nix::errno::Errno;
use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, Iommu};
use revocable_mmio::{MapOptions, Region};
use std::io;
use std::sync::Arc;

struct Agrees;

impl Iommu for Agrees {
    fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> io::Result<()> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: usize) {}
}

const IOVA: u64 = 1 << 32;
const LEN: usize = 64 << 10;

#[test]
fn what_dma_keeps_of_a_dropped_mapping_is_revoked_with_its_region() {
    support::start();
    child::alone(|| {
        for strategy in STRATEGIES {
            let Ok(region) = Region::builder(LEN).strategy(strategy).build() else {
                support::skip(&format!("no {strategy}"), support::at_its_best());
                continue;
            };
            let space = DmaSpace::new(Arc::new(Agrees));
            let mapping = region.map(MapOptions::new()).expect("it maps");
            let at = mapping.as_ptr().expose_provenance();
            let segment = DmaSegment::device(&mapping, 0..LEN);
            space.map(IOVA, &[segment], DmaAccess::ReadWrite).expect("enabled");
            drop(mapping);
            for _ in 0..2 {
                assert_eq!(raw::write_from(at, LEN), Ok(LEN), "{strategy}: the IOMMU was told that it stays");
                region.disable().expect("nothing is in the way");
                assert_eq!(raw::write_from(at, LEN), Err(Errno::EFAULT), "{strategy}: reached after disable()");
                region.enable().expect("comes back");
            }
            drop(region);
            assert_eq!(raw::write_from(at, LEN), Err(Errno::EFAULT), "{strategy}: reached after the region");
            assert_eq!(raw::map_if_free(at, LEN), Err(Errno::EEXIST), "{strategy}: the range is free");
            assert_eq!(space.unmap(IOVA, LEN), LEN);
            assert_eq!(raw::map_if_free(at, LEN), Ok(()), "{strategy}: the range is still reserved after its last use");
            raw::unmap(at, LEN).expect("just mapped");
        }
    })
    .well();
}

//! A BAR that other devices reach by DMA (peer-to-peer), at the address where it is decoded.

use super::address_map::AddressMap;
use super::decode::BarPlace;
use super::dma::DmaSpace;
use super::dma_segment::{DmaAccess, DmaSegment};
use super::error::PciError;
use super::following::Following;
use super::space::Space;
use super::state::PciDevice;
use crate::region::core::RegionCore;
use crate::region::mapping::Mapping;
use std::io;
use std::sync::Arc;

/// A mapping of a BAR, or of an area, which is mapped in the space wherever the BAR is decoded.
struct Peer {
    dma: Arc<DmaSpace>,
    bar: Space,
    /// Where in the BAR it is.
    at: u64,
    mapping: Mapping,
    access: DmaAccess,
}

impl DmaSpace {
    /// Lets the devices of this I/O address space reach a BAR of `device`, through `mapping` (of the whole BAR, or of a whole
    /// [area](super::Bar::areas)), at the guest physical address at which it is decoded. Stop following before the area is
    /// removed. The mapping in the IOMMU follows the BAR: it moves when the BAR moves, and
    /// is there only while the memory is.
    ///
    /// ```
    /// use revocable_mmio::MapOptions;
    /// use revocable_mmio::pci::{Bar, DmaAccess, DmaSpace, Following, Iommu, PciDevice, Space};
    /// use std::sync::Arc;
    /// # struct Agrees;
    /// # impl Iommu for Agrees {
    /// #     fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> std::io::Result<()> { Ok(()) }
    /// #     fn unmap(&self, _: u64, _: usize) {}
    /// # }
    /// # let iommu = Arc::new(Agrees);
    ///
    /// let gpu = PciDevice::builder(0x10de, 0x2330).bar(0, Bar::memory(2 << 20)).build()?;
    /// let mapping = gpu.map(Space::Bar(0), MapOptions::new())?;
    /// let nics = Arc::new(DmaSpace::new(iommu)); // the I/O addresses of the NICs
    /// let _following: Following = nics.follow_bar(&gpu, Space::Bar(0), mapping, DmaAccess::ReadWrite)?;
    /// gpu.write(Space::Config, 0x10, &0xe000_0000_u32.to_le_bytes()[..])?;
    /// gpu.write(Space::Config, 4, &[2, 0][..])?; // memory on: the NICs reach it at 0xe000_0000
    /// assert_eq!(nics.unmap(0xe000_0000, 2 << 20), 2 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The mapping is not one of the whole BAR, or of an area (EINVAL), or the place where the BAR is decoded now cannot be mapped
    /// ([`PciError::Place`]). Later, the error is that of the write that moves the BAR, or enables its memory.
    pub fn follow_bar(
        self: &Arc<Self>,
        device: &PciDevice,
        bar: Space,
        mapping: Mapping,
        access: DmaAccess,
    ) -> Result<Following, PciError> {
        let is_whole = |region: &RegionCore, size: u64| {
            std::ptr::eq(region, &*mapping.served.region) && mapping.offset() == 0 && mapping.len() as u64 == size
        };
        let at = match (device.region(bar), device.areas(bar)) {
            (Some(region), _) => is_whole(&region.shared, device.info(bar).size).then_some(0),
            (None, Some(areas)) => areas.shared.find(|range, region| is_whole(region, range.end - range.start)),
            (None, None) => None,
        };
        let why = "give a mapping of a whole memory BAR or area, of whole pages";
        let at = at.ok_or(PciError::NoSuchSpace { space: bar, why })?;
        device.follow(Arc::new(Peer { dma: Arc::clone(self), bar, at, mapping, access }))
    }
}

impl Peer {
    fn address(&self, place: &BarPlace) -> u64 {
        // A BAR that would not end in its space is decoded nowhere.
        place.address.saturating_add(self.at)
    }
}

impl AddressMap for Peer {
    fn insert(&self, place: &BarPlace) -> io::Result<()> {
        if place.space != self.bar {
            return Ok(());
        }
        let segment = DmaSegment::device(&self.mapping, 0..self.mapping.len());
        self.dma.map(self.address(place), &[segment], self.access).map_err(|e| match e {
            PciError::Iommu { source, .. } => source,
            e => io::Error::other(e),
        })
    }

    fn remove(&self, place: &BarPlace) {
        if place.space == self.bar {
            self.dma.unmap(self.address(place), self.mapping.len());
        }
    }
}

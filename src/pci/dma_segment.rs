//! The memory that a device may reach by DMA, and the interface to an IOMMU.

use super::error::PciError;
use crate::region::mapping::Mapping;

use crate::sys::page_size;
use std::io;
use std::ops::{Range, RangeInclusive};

/// What a device may do with memory that is mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaAccess {
    /// Read it.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// Puts mappings into hardware: `VFIO_IOMMU_MAP_DMA`, iommufd, a software IOMMU.
///
/// It is called without any lock of the crate, by the thread that maps, unmaps, revokes or gives back; a panic is a
/// failure. Inside a call, a request to the memory's region that would wait for the call's own end returns
/// [`Reentrant`](PciError::Reentrant).
///
/// An iommufd refuses the addresses of a real device's BAR, and refuses nothing while no device is attached: the guide has
/// [what differs from type1](crate::guide::dma#containers-and-iommufd).
pub trait Iommu: Send + Sync {
    /// From its return on, `iova..iova + len` reaches the memory at `addr`, which is there and stays until
    /// [`unmap`](Self::unmap).
    ///
    /// # Errors
    /// Nothing is mapped.
    fn map(&self, iova: u64, addr: *mut u8, len: usize, access: DmaAccess) -> io::Result<()>;

    /// From its return on, nothing reaches memory through these addresses.
    fn unmap(&self, iova: u64, len: usize);

    /// The I/O addresses that can be mapped: `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`, which leaves out what is wider than the
    /// IOMMU's addresses, and the addresses of interrupts. A mapping outside of a range is refused before anything is mapped.
    /// Default: all.
    fn ranges(&self) -> Vec<RangeInclusive<u64>> {
        vec![0..=u64::MAX]
    }

    /// The smallest page of the IOMMU, in bytes: I/O addresses and lengths are multiples of it, and of the page size of the
    /// process. Default: that page size.
    fn page_size(&self) -> usize {
        page_size()
    }
}

/// A piece of memory to map for DMA.
#[derive(Clone, Debug)]
pub struct DmaSegment<'a>(pub(super) SegmentKind<'a>);

#[derive(Clone, Debug)]
pub(super) enum SegmentKind<'a> {
    Plain { addr: *mut u8, len: usize },
    Device { mapping: &'a Mapping, range: Range<usize> },
}

impl<'a> DmaSegment<'a> {
    /// A part of a BAR's mapping, as offsets in the mapping, in bytes: whole pages. If the mapping is dropped before this
    /// is unmapped, the range stays, and is revoked and given back with the region.
    pub fn device(mapping: &'a Mapping, range: Range<usize>) -> Self {
        Self(SegmentKind::Device { mapping, range })
    }

    /// Memory that is never revoked: `len` bytes from `addr` on, whole pages.
    ///
    /// ```
    /// # #![allow(unsafe_code)]
    /// # use revocable_mmio::pci::Iommu;
    /// use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace};
    /// use vm_memory::{GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};
    /// # struct Agrees;
    /// # impl Iommu for Agrees {
    /// #     fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> std::io::Result<()> { Ok(()) }
    /// #     fn unmap(&self, _: u64, _: usize) {}
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let iommu = std::sync::Arc::new(Agrees);
    /// let ram = GuestRegionMmap::<()>::from_range(GuestAddress(0), 64 << 10, None)?;
    /// let space = DmaSpace::new(iommu);
    /// // SAFETY: the guest's RAM, which no reference points into. It is mapped until after `space` is dropped.
    /// let segment = unsafe { DmaSegment::plain(ram.get_host_address(MemoryRegionAddress(0))?, 64 << 10) };
    /// space.map(0, &[segment], DmaAccess::ReadWrite)?;
    /// drop(space);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Safety
    /// As long as it is mapped in a [`DmaSpace`](super::DmaSpace), devices read it at any time, and write it if they are
    /// allowed to. Until it is unmapped it must be the caller's own memory, stay mapped, and have no reference to it that
    /// such accesses would break.
    #[expect(unsafe_code, reason = "UNSAFETY: what an IOMMU is told to reach is the caller's promise")]
    pub unsafe fn plain(addr: *mut u8, len: usize) -> Self {
        Self(SegmentKind::Plain { addr, len })
    }

    pub(super) fn len(&self) -> usize {
        match &self.0 {
            SegmentKind::Plain { len, .. } => *len,
            SegmentKind::Device { range, .. } => range.len(),
        }
    }

    /// Checks that it is whole pages, and inside its mapping.
    pub(super) fn check(&self, access: DmaAccess) -> Result<(), PciError> {
        let page = page_size();
        let (addr, start, len) = match &self.0 {
            SegmentKind::Plain { addr, len } => (addr.addr(), addr.addr(), *len),
            SegmentKind::Device { mapping, range } => {
                (mapping.as_ptr().addr().wrapping_add(range.start), range.start, range.len())
            }
        };
        let bad = |why| Err(PciError::Dma { addr, why });
        if len == 0 || start % page != 0 || len % page != 0 || addr.checked_add(len).is_none() {
            return bad("a segment is whole pages, one at least");
        }
        if let SegmentKind::Device { mapping, range } = &self.0 {
            if range.end > mapping.len() {
                return bad("the segment is not inside of its mapping");
            }
            if access == DmaAccess::ReadWrite && !mapping.is_writable() {
                return bad("the mapping is read-only: map it for DMA with DmaAccess::Read");
            }
        }
        Ok(())
    }
}

//! Guest memory of which a part is revocable.

use super::guarded::{Guarded, GuardedSlice};
use super::region::RevocableRegion;
use ::vm_memory::bitmap::BS;
use ::vm_memory::guest_memory::Result;
use ::vm_memory::{
    AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestUsize,
    MemoryRegionAddress, ReadVolatile, VolatileSlice, WriteVolatile,
};
use std::sync::atomic::Ordering;

/// Ordinary guest memory or a revocable region: the region type of a collection that has both.
///
/// ```
/// use revocable_mmio::vm_memory::{AnyRegion, Recoverable, RevocableRegion};
/// use revocable_mmio::{MapOptions, Region};
/// use std::sync::Arc;
/// use vm_memory::{Bytes, GuestAddress, GuestRegionCollection, GuestRegionMmap};
///
/// let bar = Region::builder(64 << 10).build()?;
/// let bar_memory = RevocableRegion::new(GuestAddress(0x1_0000), Arc::new(bar.map(MapOptions::new())?))?;
/// let ram = GuestRegionMmap::<()>::from_range(GuestAddress(0), 64 << 10, None)?;
/// let memory = GuestRegionCollection::from_regions(vec![AnyRegion::Ram(ram), AnyRegion::Revocable(bar_memory)])?;
///
/// memory.write_slice(&[7; 16], GuestAddress(0xfff8))?; // across the border
/// bar.disable()?;
/// assert_eq!(memory.read_obj::<u64>(GuestAddress(0xfff8))?, u64::from_ne_bytes([7; 8]));
/// assert!(memory.read_obj::<u64>(GuestAddress(0x1_0000)).is_err());
/// assert!(Recoverable(&memory).write_slice(&[0; 16], GuestAddress(0xfff8)).is_err(), "not as a whole");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub enum AnyRegion<R: GuestMemoryRegion> {
    /// Memory that is always there, of any backend.
    Ram(R),
    /// Memory that can be revoked.
    Revocable(RevocableRegion<R::B>),
}

macro_rules! either {
    ($self:expr, $region:ident => $do:expr) => {
        match $self {
            AnyRegion::Ram($region) => $do,
            AnyRegion::Revocable($region) => $do,
        }
    };
}

impl<R: GuestMemoryRegion> GuestMemoryRegion for AnyRegion<R> {
    type B = Guarded<R::B>;

    fn len(&self) -> GuestUsize {
        either!(self, region => region.len())
    }

    fn start_addr(&self) -> GuestAddress {
        either!(self, region => region.start_addr())
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        match self {
            AnyRegion::Ram(region) => GuardedSlice::new(region.bitmap(), None),
            AnyRegion::Revocable(region) => region.bitmap(),
        }
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        either!(self, region => region.get_host_address(addr))
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        either!(self, region => region.file_offset())
    }

    #[expect(unsafe_code, reason = "UNSAFETY: a slice with another bitmap")]
    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        match self {
            AnyRegion::Ram(region) => {
                let slice = region.get_slice(offset, count)?;
                let bitmap = GuardedSlice::new(slice.bitmap().clone(), None);
                // SAFETY: the bytes and the lifetime are those of the region's own slice.
                Ok(unsafe { VolatileSlice::with_bitmap(slice.ptr_guard_mut().as_ptr(), slice.len(), bitmap, None) })
            }
            AnyRegion::Revocable(region) => region.get_slice(offset, count),
        }
    }

    fn is_hugetlbfs(&self) -> Option<bool> {
        either!(self, region => region.is_hugetlbfs())
    }
}

impl<R: GuestMemoryRegion> Bytes<MemoryRegionAddress> for AnyRegion<R> {
    type E = GuestMemoryError;

    fn write(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<usize> {
        either!(self, region => region.write(buf, addr))
    }

    fn read(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<usize> {
        either!(self, region => region.read(buf, addr))
    }

    fn write_slice(&self, buf: &[u8], addr: MemoryRegionAddress) -> Result<()> {
        either!(self, region => region.write_slice(buf, addr))
    }

    fn read_slice(&self, buf: &mut [u8], addr: MemoryRegionAddress) -> Result<()> {
        either!(self, region => region.read_slice(buf, addr))
    }

    fn read_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<usize> {
        either!(self, region => region.read_volatile_from(addr, src, count))
    }

    fn read_exact_volatile_from<F: ReadVolatile>(
        &self,
        addr: MemoryRegionAddress,
        src: &mut F,
        count: usize,
    ) -> Result<()> {
        either!(self, region => region.read_exact_volatile_from(addr, src, count))
    }

    fn write_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<usize> {
        either!(self, region => region.write_volatile_to(addr, dst, count))
    }

    fn write_all_volatile_to<F: WriteVolatile>(
        &self,
        addr: MemoryRegionAddress,
        dst: &mut F,
        count: usize,
    ) -> Result<()> {
        either!(self, region => region.write_all_volatile_to(addr, dst, count))
    }

    fn store<T: AtomicAccess>(&self, val: T, addr: MemoryRegionAddress, order: Ordering) -> Result<()> {
        either!(self, region => region.store(val, addr, order))
    }

    fn load<T: AtomicAccess>(&self, addr: MemoryRegionAddress, order: Ordering) -> Result<T> {
        either!(self, region => region.load(addr, order))
    }
}

//! A mapping at an address of the guest.

use super::guarded::{Guarded, GuardedSlice};
use super::refusal::refused;
use crate::protocol::policy::OnDisabled;
use crate::region::mapping::Mapping;
use ::vm_memory::bitmap::{BS, Bitmap};
use ::vm_memory::guest_memory::Result;
use ::vm_memory::{
    Address, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestUsize, MemoryRegionAddress, VolatileSlice,
};
use std::sync::Arc;

/// A [`Mapping`] as a region of guest memory, with a bitmap of the bytes that were written through it.
///
/// ```
/// use revocable_mmio::vm_memory::{RegionError, RevocableRegion};
/// use revocable_mmio::{MapOptions, Region};
/// use std::num::NonZeroUsize;
/// use std::sync::Arc;
/// use vm_memory::bitmap::{AtomicBitmap, Bitmap};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion, MemoryRegionAddress};
///
/// let bar = Region::builder(64 << 10).build()?;
/// let mapping = Arc::new(bar.map(MapOptions::new())?);
/// let bitmap = AtomicBitmap::new(64 << 10, NonZeroUsize::new(4096).ok_or("no page")?);
/// let region = RevocableRegion::with_bitmap(GuestAddress(0xe000_0000), Arc::clone(&mapping), bitmap)?;
/// region.write_obj(7_u32, MemoryRegionAddress(0x2000))?;
/// assert!(GuestMemoryRegion::bitmap(&region).dirty_at(0x2000));
/// assert_eq!(region.mapping().read::<u32>(0x2000)?, 7);
///
/// bar.disable()?;
/// assert!(region.get_slice(MemoryRegionAddress(0), 4).is_err());
/// let too_high = RevocableRegion::new(GuestAddress(u64::MAX - 4095), mapping);
/// assert!(matches!(too_high, Err(RegionError::TooHigh { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RevocableRegion<B = ()> {
    start: GuestAddress,
    pub(super) mapping: Arc<Mapping>,
    pub(super) bitmap: Guarded<B>,
}

/// A mapping and a guest address that do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The region would reach beyond the last guest address.
    #[error("{len:#x} bytes at guest address {start:#x} reach beyond the last address")]
    TooHigh {
        /// The guest address.
        start: u64,
        /// The mapping's length, in bytes.
        len: usize,
    },
}

impl RevocableRegion {
    /// `mapping` at guest address `start`, without dirty tracking.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn new(start: GuestAddress, mapping: Arc<Mapping>) -> std::result::Result<Self, RegionError> {
        Self::with_bitmap(start, mapping, ())
    }
}

impl<B> RevocableRegion<B> {
    /// `mapping` at guest address `start`; bytes that are written through it are marked in `bitmap`.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn with_bitmap(
        start: GuestAddress,
        mapping: Arc<Mapping>,
        bitmap: B,
    ) -> std::result::Result<Self, RegionError> {
        let len = mapping.len();
        match start.checked_add(len as u64) {
            Some(_) => Ok(Self { start, mapping, bitmap: Guarded(bitmap) }),
            None => Err(RegionError::TooHigh { start: start.raw_value(), len }),
        }
    }

    /// The mapping.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The address of `count` bytes from `at` on, if accesses by address are no signal while the region is enabled: the
    /// mapping is for them, writable, and no other process can cut its file off.
    fn by_address(&self, at: MemoryRegionAddress, count: usize) -> Result<*mut u8> {
        let len = self.mapping.len();
        let offset = usize::try_from(at.raw_value()).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        if offset.checked_add(count).is_none_or(|end| end > len) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let served = &self.mapping.served;
        let can_be_cut = served.region.window.as_ref().is_some_and(|window| window.can_be_cut());
        // In a mapping for accessors only, other code's faults are not resolved.
        let own = matches!(served.view.spec.server, crate::view::Server::Own(_)) || served.view.spec.accessors_only;
        if !self.mapping.is_writable() || can_be_cut || own {
            return Err(GuestMemoryError::HostAddressNotAvailable);
        }
        Ok(self.mapping.as_ptr().wrapping_add(offset))
    }
}

impl<B: Bitmap> GuestMemoryRegion for RevocableRegion<B> {
    type B = Guarded<B>;

    fn len(&self) -> GuestUsize {
        self.mapping.len() as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, Guarded<B>> {
        self.bitmap.slice_at(0)
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        // It outlives any guard, and only all-ones is never a signal.
        match self.mapping.on_disabled() {
            OnDisabled::AllOnes => self.by_address(addr, 1),
            OnDisabled::Sigbus | OnDisabled::Block => Err(GuestMemoryError::HostAddressNotAvailable),
        }
    }

    #[expect(unsafe_code, reason = "UNSAFETY: a slice of the mapping, for volatile accesses")]
    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, BS<'_, Guarded<B>>>> {
        let start = self.by_address(offset, count)?;
        let at = usize::try_from(offset.raw_value()).unwrap_or(0);
        let guard = self.mapping.access().map_err(refused)?;
        let bitmap = GuardedSlice::new(self.bitmap.0.slice_at(at), Some(guard));
        // SAFETY: `count` bytes inside the mapping, which lives as long as `self` and always has something mapped in its
        // range: the region's memory as long as the slice, or one made of it, has the guard. A guest, a device and other
        // processes write it at any time; a VolatileSlice is made for that, and `Mapping` gives out no references.
        Ok(unsafe { VolatileSlice::with_bitmap(start, count, bitmap, None) })
    }

    fn is_hugetlbfs(&self) -> Option<bool> {
        Some(self.mapping.served.region.kind == crate::region::backing::BackingKind::Hugetlb)
    }
}

//! DMA mappings of BARs: what vfio's type1 IOMMU driver does with the patch series, over regions.
//!
//! Mapping a range for DMA faults it in. With type1, mappings of a BAR stay in the IOMMU when the memory goes; a [`DmaSpace`]
//! takes them out before the revocation and puts them back afterwards, as one of the region's notifiers. While the memory is
//! revoked, type1 refuses to map it; a `DmaSpace` can do that too ([`DmaSpace::map_now`]), or map it once the memory is back.
//! It can be unmapped in any state.

use super::dma_part::{DmaPart, Gate, Memory, Revoked};
use super::dma_segment::{DmaAccess, DmaSegment, Iommu, SegmentKind};
use super::error::PciError;
use crate::region::placed::Placed;
use crate::region::subscription::Subscription;
use crate::sync::inside::Mutex;
use crate::sync::wait::Patience;
use crate::sys::identity::Identity;
use crate::sys::page_size;
use crate::users::{Theirs, guarded};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;

/// An I/O address space whose mappings follow the revocation of their memory.
///
/// It belongs to the process that made it: a forked child cannot change it, and dropping it there reaches no IOMMU.
///
/// ```
/// # #![allow(unsafe_code)]
/// use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, Iommu, Unmapped, WhyUnmapped};
/// use revocable_mmio::{MapOptions, Region};
///
/// /// 39 bits of I/O addresses, with pages of 4 KiB.
/// struct Vtd;
///
/// impl Iommu for Vtd {
///     fn map(&self, iova: u64, addr: *mut u8, len: usize, _: DmaAccess) -> std::io::Result<()> {
///         Ok(println!("{iova:#x}: {len:#x} bytes at {addr:?}"))
///     }
///     fn unmap(&self, iova: u64, len: usize) {
///         println!("{iova:#x}: {len:#x} bytes are out of reach");
///     }
///     fn ranges(&self) -> Vec<std::ops::RangeInclusive<u64>> {
///         vec![0..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1] // without the interrupts
///     }
///     fn page_size(&self) -> usize {
///         4096
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let space = std::sync::Arc::new(DmaSpace::new(std::sync::Arc::new(Vtd)));
/// let bar = Region::builder(64 << 10).disabled().build()?;
/// let mapping = bar.map(MapOptions::new())?;
/// let segments = [DmaSegment::device(&mapping, 0..64 << 10)];
/// assert!(space.map_now(0xe000_0000, &segments, DmaAccess::ReadWrite).is_err(), "revoked");
/// space.map(0xe000_0000, &segments, DmaAccess::ReadWrite)?; // mapped with `enable()`
/// assert!(matches!(space.unmapped()[..], [Unmapped { why: WhyUnmapped::Revoked, .. }]));
/// bar.enable()?;
/// assert!(space.unmapped().is_empty());
/// space.set_bus_master(false)?; // as `PciBuilder::bus_master` does it
/// space.set_bus_master(true)?;
/// space.retry()?; // what the IOMMU has refused
/// assert_eq!(space.unmap(0xe000_0000, 64 << 10), 64 << 10);
/// # Ok(())
/// # }
/// ```
pub struct DmaSpace {
    iommu: Theirs<dyn Iommu>,
    /// By first I/O address. Locked for single looks and changes only: neither the IOMMU nor a region is called under it.
    maps: Mutex<BTreeMap<u64, Taken>>,
    pub(super) gate: Arc<Gate>,
    pub(super) process: Identity,
}

/// A range of I/O addresses.
struct Taken {
    /// The last address.
    last: u64,
    /// The segments mapped there; `None` while a thread maps or unmaps them.
    entries: Option<Vec<DmaEntry>>,
}

/// One segment, mapped as long as it lives.
struct DmaEntry {
    part: Arc<DmaPart>,
    _subscription: Option<Subscription>,
    /// The process that mapped it.
    process: Identity,
}

/// A part of a [`DmaSpace`] that is not in the IOMMU.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Unmapped {
    /// The first I/O address.
    pub iova: u64,
    /// In bytes.
    pub len: usize,
    /// Why.
    pub why: WhyUnmapped,
}

/// Why a part of a [`DmaSpace`] is not in the IOMMU.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum WhyUnmapped {
    /// Its memory is revoked.
    Revoked,
    /// Its device is no bus master.
    NoBusMaster,
    /// The IOMMU has refused it, or its memory could not be faulted in: [`DmaSpace::retry`] tries again.
    Refused(Arc<io::Error>),
}

impl DmaSpace {
    /// An empty I/O address space.
    pub fn new(iommu: Arc<dyn Iommu>) -> Self {
        Self {
            iommu: Theirs::new(iommu),
            maps: Mutex::new(BTreeMap::new()),
            gate: Arc::new(Gate::new()),
            process: Identity::current(),
        }
    }

    /// Maps the segments, one after the other from `iova` on, or none of them. A segment whose memory is revoked now is
    /// mapped when the memory is back: with `enable()`, which then has the error if that fails.
    ///
    /// # Blocking
    /// Waits while a region is busy; does not wait while it is disabled.
    ///
    /// # Errors
    /// EFAULT for memory that may not be written, or is not whole pages. EINVAL or EEXIST for the I/O addresses: not whole
    /// pages, not in one of the IOMMU's [ranges](Iommu::ranges), or taken (also while another thread maps or unmaps them).
    /// The IOMMU's own error ([`PciError::Iommu`]), such as an iommufd's for a BAR of a real device. EDEADLK from inside a
    /// change of the region, or with a guard that a change waits for. EPERM in a forked child.
    pub fn map(&self, iova: u64, segments: &[DmaSegment<'_>], access: DmaAccess) -> Result<(), PciError> {
        self.map_as(iova, segments, access, Revoked::Later)
    }

    /// [`map`](Self::map) that refuses memory that is revoked now (EFAULT), as vfio's type1 driver does.
    ///
    /// # Errors
    /// As `map`.
    pub fn map_now(&self, iova: u64, segments: &[DmaSegment<'_>], access: DmaAccess) -> Result<(), PciError> {
        self.map_as(iova, segments, access, Revoked::Refuse)
    }

    fn map_as(
        &self,
        iova: u64,
        segments: &[DmaSegment<'_>],
        access: DmaAccess,
        revoked: Revoked,
    ) -> Result<(), PciError> {
        if !self.process.is_current() {
            return Err(PciError::Forked);
        }
        for segment in segments {
            segment.check(access)?;
        }
        let len = segments.iter().try_fold(0usize, |sum, segment| sum.checked_add(segment.len()));
        let wrong = |why| PciError::Iova { iova, len: len.unwrap_or(usize::MAX), why };
        let page = guarded(|| self.iommu.page_size()).unwrap_or(0).max(page_size());
        let whole = |at: u64| at % page as u64 == 0;
        if len == Some(0) || !whole(iova) || segments.iter().any(|segment| !whole(segment.len() as u64)) {
            return Err(wrong("give a segment at least, and whole pages of the IOMMU's"));
        }
        // The last address, not the one after it: the last page can be mapped too.
        let last = len.and_then(|len| iova.checked_add(len as u64 - 1)).ok_or(wrong("the range wraps around"))?;
        let ranges = guarded(|| self.iommu.ranges()).unwrap_or_default();
        if !ranges.iter().any(|range| range.contains(&iova) && range.contains(&last)) {
            return Err(wrong("not inside one of the IOMMU's address ranges"));
        }
        let reserved = self.reserve(iova, last)?;
        let mut entries = Vec::with_capacity(segments.len());
        let mut at = iova;
        for segment in segments {
            // If this fails, the entries so far are unmapped as they are dropped, before their addresses are free again.
            entries.push(self.enter(at, segment, access, revoked)?);
            // The end of the last one may be 2^64.
            at = at.wrapping_add(segment.len() as u64);
        }
        let parts: Vec<_> = entries.iter().map(|entry: &DmaEntry| Arc::clone(&entry.part)).collect();
        reserved.fill(entries);
        // The gate may have moved before they could be seen there.
        let mut late = parts.iter().filter(|part| part.placed.now().is_there() != part.gate.is_open());
        late.try_for_each(|part| part.settle(Revoked::Later, Patience::Forever)).inspect_err(|_| {
            self.unmap(iova, len.unwrap_or(0));
        })
    }

    /// Unmaps every mapping that lies in the range as a whole, and returns how many bytes those were. Mappings that another
    /// thread is making or unmapping at the same time are not included.
    pub fn unmap(&self, iova: u64, len: usize) -> usize {
        if !self.process.is_current() || len == 0 {
            return 0;
        }
        let last = iova.saturating_add(len as u64 - 1);
        let mut removed = Vec::new();
        let mut bytes = 0;
        for (at, taken) in self.maps.lock().range_mut(iova..=last).filter(|(_, taken)| taken.last <= last) {
            if let Some(entries) = taken.entries.take() {
                bytes += entries.iter().map(|entry| entry.part.len()).sum::<usize>();
                removed.push((Reserved { space: self, iova: *at }, entries));
            }
        }
        for (reserved, entries) in removed {
            drop(entries);
            // Only now can the addresses be mapped again.
            drop(reserved);
        }
        bytes
    }

    /// What is mapped here and not in the IOMMU now, in the order of the addresses.
    ///
    /// ```
    /// use revocable_mmio::pci::{DmaAccess, DmaSegment, DmaSpace, Iommu, WhyUnmapped};
    /// use revocable_mmio::{MapOptions, Region};
    /// # struct Agrees;
    /// # impl Iommu for Agrees {
    /// #     fn map(&self, _: u64, _: *mut u8, _: usize, _: DmaAccess) -> std::io::Result<()> { Ok(()) }
    /// #     fn unmap(&self, _: u64, _: usize) {}
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let iommu = std::sync::Arc::new(Agrees);
    /// let bar = Region::builder(64 << 10).disabled().build()?;
    /// let mapping = bar.map(MapOptions::new())?;
    /// let space = DmaSpace::new(iommu);
    /// space.map(0xe000_0000, &[DmaSegment::device(&mapping, 0..64 << 10)], DmaAccess::ReadWrite)?;
    /// assert!(matches!(space.unmapped()[0].why, WhyUnmapped::Revoked));
    /// bar.enable()?;
    /// assert!(space.unmapped().is_empty());
    /// # Ok(())
    /// # }
    /// ```
    pub fn unmapped(&self) -> Vec<Unmapped> {
        self.parts().iter().filter_map(|part| self.why(part)).collect()
    }

    /// Tries once more to put into the IOMMU what it has [refused](WhyUnmapped::Refused).
    ///
    /// # Blocking
    /// As [`map`](Self::map).
    ///
    /// # Errors
    /// The first that is refused again; the others are mapped all the same.
    pub fn retry(&self) -> Result<(), PciError> {
        let refused = |part: &DmaPart| matches!(self.why(part), Some(Unmapped { why: WhyUnmapped::Refused(_), .. }));
        self.settle(refused, Patience::Forever)
    }

    pub(super) fn settle(&self, which: impl Fn(&DmaPart) -> bool, patience: Patience) -> Result<(), PciError> {
        if !self.process.is_current() {
            return Err(PciError::Forked);
        }
        let mut settled = Ok(());
        for part in self.parts().iter().filter(|part| which(part)) {
            settled = settled.and(part.settle(Revoked::Later, patience));
        }
        settled
    }

    fn parts(&self) -> Vec<Arc<DmaPart>> {
        if !self.process.is_current() {
            return Vec::new();
        }
        let maps = self.maps.lock();
        let entries = maps.values().filter_map(|taken| taken.entries.as_ref()).flatten();
        entries.map(|entry| Arc::clone(&entry.part)).collect()
    }

    fn why(&self, part: &DmaPart) -> Option<Unmapped> {
        let place = part.placed.now();
        let refused = part.refused.lock().clone();
        let why = match refused {
            _ if place.is_there() || place.gone => return None,
            _ if !self.gate.is_open() => WhyUnmapped::NoBusMaster,
            _ if place.revoked => WhyUnmapped::Revoked,
            Some(error) => WhyUnmapped::Refused(error),
            // It is on its way.
            None => return None,
        };
        Some(Unmapped { iova: part.iova, len: part.len(), why })
    }

    fn reserve(&self, iova: u64, last: u64) -> Result<Reserved<'_>, PciError> {
        let mut maps = self.maps.lock();
        if maps.range(..=last).next_back().is_some_and(|(_, taken)| taken.last >= iova) {
            return Err(PciError::IovaTaken { iova });
        }
        maps.insert(iova, Taken { last, entries: None });
        Ok(Reserved { space: self, iova })
    }

    fn enter(
        &self,
        iova: u64,
        segment: &DmaSegment<'_>,
        access: DmaAccess,
        revoked: Revoked,
    ) -> Result<DmaEntry, PciError> {
        let memory = match &segment.0 {
            SegmentKind::Plain { addr, len } => Memory::Plain { addr: AtomicPtr::new(*addr), len: *len },
            SegmentKind::Device { mapping, range } => {
                Memory::Device { mapping: Arc::clone(&mapping.listed), range: range.clone() }
            }
        };
        let part = Arc::new(DmaPart {
            iommu: self.iommu.clone(),
            memory,
            iova,
            access,
            gate: Arc::clone(&self.gate),
            placed: Placed::default(),
            refused: Default::default(),
        });
        let subscription = match &segment.0 {
            SegmentKind::Plain { .. } => None,
            SegmentKind::Device { mapping, range } => {
                let in_region = mapping.offset() + range.start..mapping.offset() + range.end;
                // The subscription comes first: no revocation is missed from here on. If a step fails, the entry undoes it
                // all.
                let subscription = Subscription::new(&mapping.served.region, in_region, Arc::clone(&part) as _);
                // Asked while nothing else changes the part: that the memory is back is told after this, or is in the
                // answer.
                let _ = part.change(|place| place.revoked |= subscription.is_revoked());
                Some(subscription)
            }
        };
        let entry = DmaEntry { part, _subscription: subscription, process: self.process };
        entry.part.settle(revoked, Patience::Forever)?;
        Ok(entry)
    }
}

/// I/O addresses at which nothing else can be mapped until this is dropped.
struct Reserved<'a> {
    space: &'a DmaSpace,
    iova: u64,
}

impl Reserved<'_> {
    fn fill(self, entries: Vec<DmaEntry>) {
        if let Some(taken) = self.space.maps.lock().get_mut(&self.iova) {
            taken.entries = Some(entries);
        }
        std::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let taken = self.space.maps.lock().remove(&self.iova);
        drop(taken);
    }
}

impl Drop for DmaEntry {
    fn drop(&mut self) {
        // In a child, the IOMMU is the parent's, and so are the mappings in it. After this a notification finds nothing to do.
        if self.process.is_current() {
            self.part.end();
        }
    }
}

impl Drop for DmaSpace {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // Another thread of the parent's may have been changing the map when the child was made: it is not fit to be dropped.
            std::mem::forget(std::mem::take(self.maps.get_mut()));
        }
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.maps.try_lock().map(|maps| Vec::from_iter(maps.iter().map(|(iova, of)| (*iova, of.last))));
        let Some(shown) = shown else { return f.write_str("DmaSpace { .. }") };
        f.debug_map().entries(shown).finish()
    }
}

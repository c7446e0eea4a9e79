//! DMA mappings of BARs: what vfio's type1 IOMMU driver does with the patch series, over regions.
//!
//! Mapping a range for DMA faults it in. While the memory is revoked the mapping is refused, and nothing is left behind.
//! With type1, mappings of a BAR stay in the IOMMU when the memory goes; a [`DmaSpace`] takes them out before the
//! revocation and puts them back afterwards, as one of the region's notifiers. It can be unmapped in any state.

use super::dma_part::DmaPart;
use super::dma_segment::{DmaAccess, DmaSegment, Iommu, SegmentKind};
use super::error::PciError;
use crate::region::placed::Placed;
use crate::region::subscription::Subscription;
use crate::sync::inside::Mutex;
use crate::sys::identity::Identity;
use crate::sys::page_size;
use crate::users::{Theirs, guarded};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

/// An I/O address space whose mappings follow the revocation of their memory.
///
/// It belongs to the process that made it: a forked child cannot change it, and dropping it there reaches no IOMMU.
pub struct DmaSpace {
    iommu: Theirs<dyn Iommu>,
    /// By first I/O address. Locked for single looks and changes only: neither the IOMMU nor a region is called under it.
    maps: Mutex<BTreeMap<u64, Taken>>,
    process: Identity,
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
    kind: EntryKind,
    /// The process that mapped it.
    process: Identity,
}

enum EntryKind {
    Plain { iommu: Theirs<dyn Iommu>, iova: u64, len: usize },
    Device { part: Arc<DmaPart>, _subscription: Subscription },
}

impl DmaSpace {
    /// An empty I/O address space.
    pub fn new(iommu: Arc<dyn Iommu>) -> Self {
        Self { iommu: Theirs::new(iommu), maps: Mutex::new(BTreeMap::new()), process: Identity::current() }
    }

    /// Maps the segments, one after the other from `iova` on, or none of them.
    ///
    /// # Blocking
    /// Waits while a region is busy; does not wait while it is disabled.
    ///
    /// # Errors
    /// EFAULT for memory that is revoked, may not be written, or is not whole pages. EINVAL or EEXIST for the I/O addresses
    /// (they are also taken while another thread maps or unmaps them). The IOMMU's own error. EDEADLK from inside a change
    /// of the region, or with a guard that a change waits for. EPERM in a forked child.
    pub fn map(&self, iova: u64, segments: &[DmaSegment<'_>], access: DmaAccess) -> Result<(), PciError> {
        if !self.process.is_current() {
            return Err(PciError::Forked);
        }
        for segment in segments {
            segment.check(access)?;
        }
        let len = segments.iter().try_fold(0usize, |sum, segment| sum.checked_add(segment.len()));
        let wrong = |why| PciError::Iova { iova, len: len.unwrap_or(usize::MAX), why };
        if len == Some(0) || iova % page_size() as u64 != 0 {
            return Err(wrong("give a segment at least, at a page's beginning"));
        }
        // The last address, not the one after it: the last page can be mapped too.
        let last = len.and_then(|len| iova.checked_add(len as u64 - 1)).ok_or(wrong("the range wraps around"))?;
        let reserved = self.reserve(iova, last)?;
        let mut entries = Vec::with_capacity(segments.len());
        let mut at = iova;
        for segment in segments {
            // If this fails, the entries so far are unmapped as they are dropped, before their addresses are free again.
            entries.push(self.enter(at, segment, access)?);
            // The end of the last one may be 2^64.
            at = at.wrapping_add(segment.len() as u64);
        }
        reserved.fill(entries);
        Ok(())
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
                bytes += entries.iter().map(DmaEntry::len).sum::<usize>();
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

    fn reserve(&self, iova: u64, last: u64) -> Result<Reserved<'_>, PciError> {
        let mut maps = self.maps.lock();
        if maps.range(..=last).next_back().is_some_and(|(_, taken)| taken.last >= iova) {
            return Err(PciError::IovaTaken { iova });
        }
        maps.insert(iova, Taken { last, entries: None });
        Ok(Reserved { space: self, iova })
    }

    fn enter(&self, iova: u64, segment: &DmaSegment<'_>, access: DmaAccess) -> Result<DmaEntry, PciError> {
        let iommu = self.iommu.clone();
        let process = self.process;
        match &segment.0 {
            SegmentKind::Plain { addr, len } => {
                let mapped = guarded(|| iommu.map(iova, *addr, *len, access));
                let refused = |source| PciError::Iommu { iova, len: *len, source };
                // After a panic the mapping may be there all the same: dropping the entry takes it out.
                let entry = DmaEntry { kind: EntryKind::Plain { iommu, iova, len: *len }, process };
                match mapped {
                    Some(Ok(())) => Ok(entry),
                    Some(Err(source)) => {
                        entry.forget();
                        Err(refused(source))
                    }
                    None => Err(refused(io::Error::other("it panicked"))),
                }
            }
            SegmentKind::Device { mapping, range } => {
                let part = Arc::new(DmaPart {
                    iommu,
                    mapping: Arc::clone(&mapping.listed),
                    iova,
                    range: range.clone(),
                    access,
                    placed: Placed::default(),
                });
                let in_region = mapping.offset() + range.start..mapping.offset() + range.end;
                // The subscription comes first: no revocation is missed from here on. If a step fails, the entry undoes it all.
                let subscription = Subscription::new(&mapping.served.region, in_region.clone(), Arc::clone(&part) as _);
                let revoked = subscription.is_revoked();
                let _ = part.change(|place| place.revoked |= revoked);
                let entry = DmaEntry {
                    kind: EntryKind::Device { part: Arc::clone(&part), _subscription: subscription },
                    process,
                };
                part.map_when_free(&mapping.served.region, in_region)?;
                Ok(entry)
            }
        }
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

impl DmaEntry {
    fn len(&self) -> usize {
        match &self.kind {
            EntryKind::Plain { len, .. } => *len,
            EntryKind::Device { part, .. } => part.range.len(),
        }
    }

    /// Drops the entry without unmapping: nothing is mapped.
    fn forget(mut self) {
        if let EntryKind::Plain { len, .. } = &mut self.kind {
            *len = 0;
        }
    }
}

impl Drop for DmaEntry {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // The IOMMU is the parent's, and so are the mappings in it.
            return;
        }
        match &self.kind {
            EntryKind::Plain { len: 0, .. } => {}
            EntryKind::Plain { iommu, iova, len } => drop(guarded(|| iommu.unmap(*iova, *len))),
            EntryKind::Device { part, .. } => {
                // From here on a notification finds nothing to do. An IOMMU that panics has at least been called.
                let _ = part.change(|place| {
                    place.gone = true;
                    place.wanted = false;
                });
            }
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
        let Some(maps) = self.maps.try_lock() else { return f.write_str("DmaSpace { .. }") };
        f.debug_map().entries(maps.iter().map(|(iova, taken)| (iova, taken.last))).finish()
    }
}

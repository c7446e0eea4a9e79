//! DMA mappings of BARs: what vfio's type1 IOMMU driver does with the patch series, over regions.
//!
//! Mapping a range for DMA faults it in; while the memory is revoked it is refused, and nothing is left behind. Unlike
//! type1, whose mappings of a BAR stay in the IOMMU when the memory goes, a [`DmaSpace`] takes them out of it before the
//! revocation and puts them back after: it is one of the region's notifiers. It can be unmapped in any state.

use super::error::PciError;
use crate::protocol::Protocol;
use crate::protocol::caller::Caller;
use crate::protocol::fault::FaultFlags;
use crate::raw;
use crate::region::core::RegionCore;
use crate::region::error::PinError;
use crate::region::mapping::{Listed, Mapping};
use crate::region::notify::{InvalidateNotifier, NotifyError};
use crate::region::placed::{Placed, Refused};
use crate::region::subscription::Subscription;
use crate::sync::inside::Mutex;
use crate::sys::identity::Identity;
use crate::sys::map::{self, Advice, Prot};
use crate::sys::{AddrRange, SysError, page_size};
use crate::users::{Theirs, guarded};
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What a device may do with memory that is mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaAccess {
    /// Read it.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// What puts mappings into hardware: `VFIO_IOMMU_MAP_DMA`, iommufd, a software IOMMU.
///
/// Called without any lock of the crate, by the thread that maps, unmaps, revokes or gives back; a panic is a failure. From inside
/// of a call nothing can be had of the region that the memory is of that would have to wait for the call's own end: it says
/// [`Reentrant`](PciError::Reentrant).
pub trait Iommu: Send + Sync {
    /// From now on `iova..iova + len` reaches the memory at `addr`, which is there and will stay until
    /// [`unmap`](Self::unmap).
    ///
    /// # Errors
    /// Nothing is mapped.
    fn map(&self, iova: u64, addr: *mut u8, len: usize, access: DmaAccess) -> io::Result<()>;

    /// From its return on, nothing reaches memory through these addresses.
    fn unmap(&self, iova: u64, len: usize);
}

/// A piece of memory to map for DMA.
#[derive(Clone, Debug)]
pub struct DmaSegment<'a>(SegmentKind<'a>);

#[derive(Clone, Debug)]
enum SegmentKind<'a> {
    Plain { addr: *mut u8, len: usize },
    Device { mapping: &'a Mapping, range: Range<usize> },
}

impl<'a> DmaSegment<'a> {
    /// A part of a BAR's mapping, as offsets in the mapping, in bytes: whole pages. Its range stays, revoked and given back with the
    /// region, if the mapping is dropped before this is unmapped.
    pub fn device(mapping: &'a Mapping, range: Range<usize>) -> Self {
        Self(SegmentKind::Device { mapping, range })
    }

    /// Memory that is never revoked: `len` bytes from `addr` on, whole pages.
    ///
    /// # Safety
    /// As long as it is mapped in a [`DmaSpace`], devices read it, and write it where they are allowed to, at any time. So until
    /// it is unmapped it is memory of the caller's that stays mapped, and that nothing has a reference to which that breaks.
    #[expect(unsafe_code, reason = "UNSAFETY: what an IOMMU is told to reach is the caller's promise")]
    pub unsafe fn plain(addr: *mut u8, len: usize) -> Self {
        Self(SegmentKind::Plain { addr, len })
    }

    fn len(&self) -> usize {
        match &self.0 {
            SegmentKind::Plain { len, .. } => *len,
            SegmentKind::Device { range, .. } => range.len(),
        }
    }

    /// Is it made of whole pages, and inside of what it is a part of?
    fn check(&self, access: DmaAccess) -> Result<(), PciError> {
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

/// An I/O address space whose mappings follow the revocation of the memory behind them.
///
/// It belongs to the process that made it: a forked child changes nothing by it, and its drop there reaches no IOMMU.
pub struct DmaSpace {
    iommu: Theirs<dyn Iommu>,
    /// By first I/O address. Held for looks and changes of its own only: neither the IOMMU nor a region is called under it.
    maps: Mutex<BTreeMap<u64, Taken>>,
    process: Identity,
}

/// A range of I/O addresses.
struct Taken {
    /// The last of them.
    last: u64,
    /// What is mapped there; `None` while a thread maps or unmaps it.
    entries: Option<Vec<DmaEntry>>,
}

/// One segment, mapped as long as it lives.
struct DmaEntry {
    kind: EntryKind,
    /// Whose it is.
    process: Identity,
}

enum EntryKind {
    Plain { iommu: Theirs<dyn Iommu>, iova: u64, len: usize },
    Device { part: Arc<DmaPart>, _subscription: Subscription },
}

/// A segment of revocable memory.
struct DmaPart {
    iommu: Theirs<dyn Iommu>,
    mapping: Arc<Listed>,
    iova: u64,
    /// In the mapping.
    range: Range<usize>,
    access: DmaAccess,
    /// In the IOMMU.
    placed: Placed,
}

/// Why a segment is not in the IOMMU.
#[derive(Debug, thiserror::Error)]
enum NotMapped {
    #[error("it cannot be faulted in: {0}")]
    Fault(#[from] SysError),
    #[error("the IOMMU refuses: {0}")]
    Iommu(io::Error),
}

impl DmaSpace {
    /// An empty I/O address space.
    pub fn new(iommu: Arc<dyn Iommu>) -> Self {
        Self { iommu: Theirs::new(iommu), maps: Mutex::new(BTreeMap::new()), process: Identity::current() }
    }

    /// Maps the segments, one after the other from `iova` on, or none of them.
    ///
    /// # Blocking
    /// While a region is busy; not while it is disabled.
    ///
    /// # Errors
    /// EFAULT for memory that is revoked, that may not be written or is not whole pages; EINVAL, EEXIST for the I/O addresses
    /// (taken also while another thread maps or unmaps them); what the IOMMU answered; EDEADLK from inside a change of the
    /// region, or with a guard that one waits for; EPERM in a forked child.
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
            // Whatever fails, the entries so far are unmapped as they are dropped, before their addresses are free again.
            entries.push(self.enter(at, segment, access)?);
            // The end of the last one may be 2^64.
            at = at.wrapping_add(segment.len() as u64);
        }
        reserved.fill(entries);
        Ok(())
    }

    /// Unmaps every mapping that lies in the range as a whole; says how many bytes those were. What another thread is mapping or
    /// unmapping meanwhile is not among them.
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
            // Only now may they be mapped again.
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
                // After a panic it may be there all the same: dropping the entry takes it out.
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
                // First the subscription: no revocation is missed from here on. Whatever fails, the entry undoes it.
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

/// I/O addresses that nothing else can be mapped at; free again when it is dropped.
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

impl DmaPart {
    fn protocol(&self) -> &Protocol {
        &self.mapping.served.region.protocol
    }

    /// Maps unless the memory is revoked; waits while it is busy.
    fn map_when_free(&self, region: &Arc<RegionCore>, in_region: Range<usize>) -> Result<(), PciError> {
        let protocol = self.protocol();
        let addr = self.addr().addr();
        let bad = |why| PciError::Dma { addr, why };
        if protocol.is_changed_by_caller() {
            return Err(PciError::Reentrant);
        }
        let own_guards = protocol.gate.held_by_caller() > 0;
        loop {
            let pin = region.pin(in_region.clone(), &Caller::new(FaultFlags::WAIT)).map_err(|e| match e {
                PinError::Disabled => bad("its memory is revoked"),
                PinError::Reentrant => PciError::Reentrant,
                PinError::WouldDeadlock => PciError::WouldDeadlock,
                PinError::Forked => PciError::Forked,
                PinError::NoMemory(source) => source.into(),
                _ => bad("it cannot be pinned"),
            });
            let pin = pin?;
            // No revocation completes while the guard lives, so what is faulted in stays. And as it is this thread's: what the
            // IOMMU asks of the region does not wait for a revocation that waits for this.
            let Ok(_guard) = protocol.gate.enter() else { continue };
            drop(pin);
            let mapped = self.change(|place| place.wanted = !place.revoked && !place.gone);
            let there = self.placed.now().is_there();
            match mapped {
                Ok(_) if there => return Ok(()),
                Ok(_) => {}
                Err(Refused::By(NotMapped::Fault(_))) => return Err(bad("it cannot be faulted in")),
                Err(Refused::By(NotMapped::Iommu(source))) => return Err(self.refused(source)),
                Err(Refused::Panicked) => return Err(self.refused(io::Error::other("it panicked"))),
            }
            // A revocation has been announced and is about to shut the gate: whatever comes of it is waited for.
            if own_guards {
                return Err(PciError::WouldDeadlock);
            }
            drop(_guard);
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn refused(&self, source: io::Error) -> PciError {
        PciError::Iommu { iova: self.iova, len: self.range.len(), source }
    }

    fn addr(&self) -> *mut u8 {
        self.mapping.served.view.range.as_ptr().wrapping_add(self.range.start)
    }

    fn change(&self, wish: impl FnOnce(&mut crate::region::placed::Place)) -> Result<bool, Refused<NotMapped>> {
        let _inside = self.protocol().inside();
        self.placed.change(wish, |there| {
            if !there {
                self.iommu.unmap(self.iova, self.range.len());
                return Ok(());
            }
            self.fault_in()?;
            self.iommu.map(self.iova, self.addr(), self.range.len(), self.access).map_err(NotMapped::Iommu)
        })
    }

    /// Has every page of the range mapped (`follow_fault_pfn`). The region is enabled, and stays so meanwhile.
    fn fault_in(&self) -> Result<(), SysError> {
        let served = &self.mapping.served;
        let part = AddrRange::new(served.view.range.addr + self.range.start, self.range.len());
        let needed = match self.access {
            DmaAccess::Read => Prot::Read,
            DmaAccess::ReadWrite => Prot::ReadWrite,
        };
        // A page that is made present has no more rights by that: the IOMMU would refuse, or not look.
        if !served.view.allows(part, needed) {
            return Err(SysError::new("mmap", Errno::EFAULT));
        }
        match served.view.spec.server.uffd() {
            Some(uffd) => {
                let mut at = self.range.start;
                while at < self.range.end {
                    served.map_pages(uffd, at)?;
                    at += served.region.page;
                }
                Ok(())
            }
            _ => self.touch(),
        }
    }

    /// Device files know no populating advice: a load from each page does as well.
    #[expect(unsafe_code, reason = "UNSAFETY: populates and loads from a part of the view's own range")]
    fn touch(&self) -> Result<(), SysError> {
        let range = AddrRange::new(self.mapping.served.view.range.addr + self.range.start, self.range.len());
        let advice = match self.access {
            DmaAccess::Read => Advice::PopulateRead,
            DmaAccess::ReadWrite => Advice::PopulateWrite,
        };
        // SAFETY: populating changes no content, and the range is the view's own, which `mapping` keeps.
        match unsafe { map::advise(range, advice) } {
            Err(e) if e.errno == Errno::EINVAL => {}
            other => return other,
        }
        for at in (0..range.len).step_by(self.mapping.served.region.page) {
            // SAFETY: inside the view's own range; whoever writes there meanwhile, the value is not used.
            let loaded = unsafe { raw::load::<u8>(range.as_ptr().wrapping_add(at)) };
            loaded.map_err(|_| SysError::new("mmap", Errno::EFAULT))?;
        }
        Ok(())
    }
}

impl InvalidateNotifier for DmaPart {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.change(|place| {
            place.revoked = true;
            place.wanted = false;
        })?;
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.change(|place| {
            place.revoked = false;
            place.wanted = !place.gone;
        })?;
        Ok(())
    }
}

impl DmaEntry {
    fn len(&self) -> usize {
        match &self.kind {
            EntryKind::Plain { len, .. } => *len,
            EntryKind::Device { part, .. } => part.range.len(),
        }
    }

    /// Nothing is mapped: there is nothing to be unmapped.
    fn forget(mut self) {
        if let EntryKind::Plain { len, .. } = &mut self.kind {
            *len = 0;
        }
    }
}

impl Drop for DmaEntry {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // The IOMMU is the parent's, and so is what is mapped there.
            return;
        }
        match &self.kind {
            EntryKind::Plain { len: 0, .. } => {}
            EntryKind::Plain { iommu, iova, len } => drop(guarded(|| iommu.unmap(*iova, *len))),
            EntryKind::Device { part, .. } => {
                // From here on a notification finds nothing to do. An IOMMU that panics has been told.
                let _ = part.change(|place| {
                    place.gone = true;
                    place.wanted = false;
                });
            }
        }
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(maps) = self.maps.try_lock() else { return f.write_str("DmaSpace { .. }") };
        f.debug_map().entries(maps.iter().map(|(iova, taken)| (iova, taken.last))).finish()
    }
}

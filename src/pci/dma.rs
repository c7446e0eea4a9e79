//! DMA mappings of BARs: what vfio's type1 IOMMU driver does with the patch series, over regions.
//!
//! Mapping a range for DMA faults it in; while the memory is revoked it is refused, and nothing is left behind. Unlike
//! type1, whose mappings of a BAR stay in the IOMMU when the memory goes, a [`DmaSpace`] takes them out of it before the
//! revocation and puts them back after: it is one of the region's notifiers. It can be unmapped in any state.

use super::error::PciError;
use crate::access::raw;
use crate::error::PinError;
use crate::fault::FaultFlags;
use crate::mapping::{Listed, Mapping};
use crate::notify::{InvalidateNotifier, NotifyError, Subscription};
use crate::region::Region;
use crate::sys::map::{self, Advice, Prot};
use crate::sys::{AddrRange, SysError, page_size};
use nix::errno::Errno;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What a device may do with memory that is mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaAccess {
    /// Read it.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// What puts mappings into hardware: `VFIO_IOMMU_MAP_DMA`, iommufd, a software IOMMU.
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
pub enum DmaSegment<'a> {
    /// Memory that is never revoked.
    Plain {
        /// Its first byte. Only handed on to the [`Iommu`].
        addr: *mut u8,
        /// In bytes.
        len: usize,
    },
    /// A part of a BAR's mapping, as offsets in the mapping.
    Device {
        /// The mapping. Its range stays, revoked and given back with the region, if it is dropped before this is unmapped.
        mapping: &'a Mapping,
        /// The region that it maps.
        region: &'a Region,
        /// In bytes.
        range: Range<usize>,
    },
}

impl DmaSegment<'_> {
    fn len(&self) -> usize {
        match self {
            DmaSegment::Plain { len, .. } => *len,
            DmaSegment::Device { range, .. } => range.len(),
        }
    }
}

/// An I/O address space whose mappings follow the revocation of the memory behind them.
pub struct DmaSpace {
    iommu: Arc<dyn Iommu>,
    /// By first I/O address: the length, and what holds it.
    maps: Mutex<BTreeMap<u64, (usize, Vec<Entry>)>>,
}

/// One segment, mapped as long as it lives.
enum Entry {
    Plain { iommu: Arc<dyn Iommu>, iova: u64, len: usize },
    Device { part: Arc<Part>, _subscription: Subscription },
}

/// A segment of revocable memory.
struct Part {
    iommu: Arc<dyn Iommu>,
    mapping: Arc<Listed>,
    iova: u64,
    /// In the mapping.
    range: Range<usize>,
    access: DmaAccess,
    there: Mutex<There>,
}

struct There {
    /// A revocation has been announced and not been taken back: nothing may be mapped.
    revoked: bool,
    mapped: bool,
    /// Unmapped for good.
    gone: bool,
}

impl DmaSpace {
    /// An empty I/O address space.
    pub fn new(iommu: Arc<dyn Iommu>) -> Self {
        Self { iommu, maps: Mutex::new(BTreeMap::new()) }
    }

    /// Maps the segments, one after the other from `iova` on, or none of them.
    ///
    /// # Blocking
    /// While a region is busy; not while it is disabled.
    ///
    /// # Errors
    /// EFAULT for memory that is revoked, or that may not be written; EINVAL, EEXIST for the I/O addresses.
    pub fn map(&self, iova: u64, segments: &[DmaSegment<'_>], access: DmaAccess) -> Result<(), PciError> {
        let len: usize = segments.iter().map(DmaSegment::len).sum();
        let wrong = |why| PciError::Iova { iova, len, why };
        let page = page_size();
        if len == 0 || iova % page as u64 != 0 || segments.iter().any(|s| s.len() % page != 0) {
            return Err(wrong("is empty, or not made of whole pages"));
        }
        let end = iova.checked_add(len as u64).ok_or(wrong("wraps around"))?;
        let mut maps = self.maps.lock();
        if maps.range(..end).next_back().is_some_and(|(at, (len, _))| at + *len as u64 > iova) {
            return Err(PciError::IovaTaken { iova });
        }
        let mut entries = Vec::with_capacity(segments.len());
        let mut at = iova;
        for segment in segments {
            // Whatever fails, the entries so far are unmapped as they are dropped.
            entries.push(self.enter(at, segment, access)?);
            at += segment.len() as u64;
        }
        maps.insert(iova, (len, entries));
        Ok(())
    }

    /// Unmaps every mapping that lies in the range as a whole; says how many bytes those were.
    pub fn unmap(&self, iova: u64, len: usize) -> usize {
        let end = iova.saturating_add(len as u64);
        let mut maps = self.maps.lock();
        let inside: Vec<u64> =
            maps.range(iova..end).filter(|(at, (len, _))| **at + *len as u64 <= end).map(|(at, _)| *at).collect();
        let removed: Vec<_> = inside.iter().filter_map(|at| maps.remove(at)).collect();
        removed.iter().map(|(len, _)| len).sum()
    }

    fn enter(&self, iova: u64, segment: &DmaSegment<'_>, access: DmaAccess) -> Result<Entry, PciError> {
        let iommu = Arc::clone(&self.iommu);
        match segment {
            DmaSegment::Plain { addr, len } => {
                let refused = |_| PciError::Dma { addr: addr.addr(), why: "the IOMMU refuses" };
                iommu.map(iova, *addr, *len, access).map_err(refused)?;
                Ok(Entry::Plain { iommu, iova, len: *len })
            }
            DmaSegment::Device { mapping, region, range } => {
                let addr = mapping.as_ptr().addr() + range.start;
                let bad = |why| PciError::Dma { addr, why };
                if range.end > mapping.len() || !Arc::ptr_eq(&mapping.served.region, &region.shared) {
                    return Err(bad("not in the mapping, or not of the region"));
                }
                if access == DmaAccess::ReadWrite && !mapping.is_writable() {
                    return Err(bad("the mapping is read-only"));
                }
                let part = Arc::new(Part {
                    iommu,
                    mapping: Arc::clone(&mapping.listed),
                    iova,
                    range: range.clone(),
                    access,
                    there: Mutex::new(There { revoked: false, mapped: false, gone: false }),
                });
                let in_region = mapping.offset() + range.start..mapping.offset() + range.end;
                // First the subscription: no revocation is missed from here on. Whatever fails, the entry undoes it.
                let subscription = region.subscribe(in_region.clone(), Arc::clone(&part) as _);
                let mut there = part.there.lock();
                there.revoked |= subscription.is_revoked();
                drop(there);
                let entry = Entry::Device { part: Arc::clone(&part), _subscription: subscription };
                part.map_when_free(region, in_region).map_err(bad)?;
                Ok(entry)
            }
        }
    }
}

impl Part {
    /// Maps unless the memory is revoked; waits while it is busy.
    fn map_when_free(&self, region: &Region, in_region: Range<usize>) -> Result<(), &'static str> {
        if region.shared.protocol.is_changed_by_caller() {
            return Err("called from inside a notifier or reset callback of the region");
        }
        loop {
            // No revocation completes while the pin lives, so what is faulted in stays.
            let pin = match region.pin(in_region.clone(), FaultFlags::WAIT) {
                Ok(pin) => pin,
                Err(PinError::Disabled) => return Err("its memory is revoked"),
                Err(_) => return Err("it cannot be faulted in"),
            };
            let mut there = self.there.lock();
            if there.mapped {
                return Ok(());
            }
            if !there.revoked {
                return self.map(&mut there).map_err(|_| "it cannot be faulted in, or the IOMMU refuses");
            }
            // A revocation has been announced and is about to shut the gate: whatever comes of it is waited for.
            drop(there);
            drop(pin);
            std::thread::yield_now();
        }
    }

    fn map(&self, there: &mut There) -> Result<(), NotifyError> {
        self.fault_in()?;
        let addr = self.mapping.served.view.range.as_ptr().wrapping_add(self.range.start);
        self.iommu.map(self.iova, addr, self.range.len(), self.access)?;
        there.mapped = true;
        Ok(())
    }

    fn unmap(&self, there: &mut There) {
        if std::mem::take(&mut there.mapped) {
            self.iommu.unmap(self.iova, self.range.len());
        }
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
        if !served.view.allows_all(part, needed) {
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
            let loaded = self.mapping.served.recovering(|| unsafe { raw::load::<u8>(range.as_ptr().wrapping_add(at)) });
            loaded.map_err(|_| SysError::new("mmap", Errno::EFAULT))?;
        }
        Ok(())
    }
}

impl InvalidateNotifier for Part {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        let mut there = self.there.lock();
        there.revoked = true;
        self.unmap(&mut there);
        Ok(())
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        let mut there = self.there.lock();
        there.revoked = false;
        if there.mapped || there.gone { Ok(()) } else { self.map(&mut there) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        match self {
            Entry::Plain { iommu, iova, len } => iommu.unmap(*iova, *len),
            Entry::Device { part, .. } => {
                let mut there = part.there.lock();
                // From here on a notification finds nothing to do.
                there.gone = true;
                part.unmap(&mut there);
            }
        }
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let maps = self.maps.lock();
        f.debug_map().entries(maps.iter().map(|(iova, (len, _))| (iova, len))).finish()
    }
}

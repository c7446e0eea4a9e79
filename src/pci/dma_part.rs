//! A segment, which is in the IOMMU as long as its memory is there and its device is a bus master.

use super::dma_segment::{DmaAccess, Iommu};
use super::error::PciError;
use crate::protocol::caller::Caller;
use crate::protocol::fault::FaultFlags;
use crate::raw;
use crate::region::error::PinError;
use crate::region::mapping::Listed;
use crate::region::notify::{InvalidateNotifier, NotifyError};
use crate::region::offsets::InMapping;
use crate::region::placed::{Place, Placed, Refused};
use crate::sync::inside::Mutex;
use crate::sync::wait::Patience;
use crate::sys::SysError;
use crate::sys::map::{self, Advice, Prot};
use crate::users::Theirs;
use nix::errno::Errno;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::{Duration, Instant};

/// Whether the mappings of a space are in the IOMMU at all: the bus-master bit of the device whose space it is.
pub(super) struct Gate(AtomicBool);

impl Gate {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The parts are asked to [look](DmaPart::settle) afterwards. One that has looked before and not seen this has put
    /// itself in place, or taken itself out, by then.
    pub(super) fn set(&self, open: bool) {
        self.0.store(open, Ordering::Release);
    }
}

/// The memory of a segment.
pub(super) enum Memory {
    Plain {
        addr: AtomicPtr<u8>,
        len: usize,
    },
    Device {
        mapping: Arc<Listed>,
        /// Offsets in the mapping.
        range: Range<usize>,
    },
}

/// A segment, which is in the IOMMU as long as its memory is there and the gate is open.
pub(super) struct DmaPart {
    pub(super) iommu: Theirs<dyn Iommu>,
    pub(super) memory: Memory,
    pub(super) iova: u64,
    pub(super) access: DmaAccess,
    pub(super) gate: Arc<Gate>,
    /// Whether it is in the IOMMU.
    pub(super) placed: Placed,
    /// Why it is not, although its memory is there.
    pub(super) refused: Mutex<Option<Arc<io::Error>>>,
}

/// Why a segment is not in the IOMMU.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotMapped {
    #[error("it cannot be faulted in: {0}")]
    Fault(#[from] SysError),
    #[error("the IOMMU refuses: {0}")]
    Iommu(io::Error),
}

/// What becomes of a segment whose memory is revoked when it is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Revoked {
    /// It is mapped when the memory is back.
    Later,
    /// It is refused.
    Refuse,
}

impl DmaPart {
    /// Puts the segment into the IOMMU if it is to be there, or takes it out. Waits while the memory is busy.
    ///
    /// # Errors
    /// [`PciError::Busy`] if that takes longer than `patience`.
    pub(super) fn settle(&self, revoked: Revoked, patience: Patience) -> Result<(), PciError> {
        match &self.memory {
            Memory::Device { mapping, range } if self.gate.is_open() => {
                self.map_when_free(mapping, range, revoked, patience)
            }
            Memory::Plain { .. } | Memory::Device { .. } => {
                self.change(|place| place.wanted = self.is_wanted(*place)).map_err(|e| self.error(e)).map(drop)
            }
        }
    }

    fn is_wanted(&self, place: Place) -> bool {
        !place.revoked && !place.gone && self.gate.is_open()
    }

    /// Takes it out for good. An IOMMU that panics has at least been called.
    pub(super) fn end(&self) {
        let _ = self.change(|place| {
            place.gone = true;
            place.wanted = false;
        });
    }

    /// Maps unless the memory is revoked; waits while it is busy.
    fn map_when_free(
        &self,
        mapping: &Listed,
        range: &Range<usize>,
        revoked: Revoked,
        patience: Patience,
    ) -> Result<(), PciError> {
        let protocol = &mapping.served.region.protocol;
        let bad = |why| PciError::Dma { addr: self.addr().addr(), why };
        if protocol.is_changed_by_caller() {
            return Err(PciError::Reentrant);
        }
        let own_guards = protocol.gate.held_by_caller() > 0;
        let offset = mapping.served.offset.0;
        let in_region = offset + range.start..offset + range.end;
        loop {
            let region = &mapping.served.region;
            let flags = if patience == Patience::Forever { FaultFlags::WAIT } else { FaultFlags::NOWAIT };
            let pin = match region.pin_elsewhere(in_region.clone(), &Caller::new(flags)) {
                Err(PinError::WouldBlock) => {
                    if own_guards {
                        return Err(PciError::WouldDeadlock);
                    }
                    wait_a_little(patience, &region.name)?;
                    continue;
                }
                // But no `enable()` follows where the device has turned its memory off by itself.
                Err(PinError::Disabled) if revoked == Revoked::Later && !region.is_off() => return Ok(()),
                pin => pin.map_err(|e| match e {
                    PinError::Disabled => bad("its memory is revoked"),
                    PinError::Reentrant => PciError::Reentrant,
                    PinError::WouldDeadlock => PciError::WouldDeadlock,
                    PinError::Forked => PciError::Forked,
                    PinError::NoMemory(source) => source.into(),
                    _ => bad("it cannot be pinned"),
                })?,
            };
            // No revocation completes while the guard lives, so the pages that are faulted in stay. The guard is this
            // thread's, so what the IOMMU asks of the region does not wait for a revocation that waits for this guard.
            let Ok(_guard) = protocol.gate.enter() else { continue };
            drop(pin);
            self.change(|place| place.wanted = self.is_wanted(*place)).map_err(|e| self.error(e))?;
            if self.placed.now().is_there() || !self.gate.is_open() {
                return Ok(());
            }
            // A revocation has been announced and is about to shut the gate: wait for its outcome.
            if own_guards {
                return Err(PciError::WouldDeadlock);
            }
            drop(_guard);
            wait_a_little(patience, &region.name)?;
        }
    }

    fn error(&self, refused: Refused<NotMapped>) -> PciError {
        let of_iommu = |source| PciError::Iommu { iova: self.iova, len: self.len(), source };
        match refused {
            Refused::By(NotMapped::Fault(_)) => {
                PciError::Dma { addr: self.addr().addr(), why: "it cannot be faulted in" }
            }
            Refused::By(NotMapped::Iommu(source)) => of_iommu(source),
            Refused::Panicked => of_iommu(io::Error::other("it panicked")),
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.memory {
            Memory::Plain { len, .. } => *len,
            Memory::Device { range, .. } => range.len(),
        }
    }

    pub(super) fn addr(&self) -> *mut u8 {
        match &self.memory {
            Memory::Plain { addr, .. } => addr.load(Ordering::Relaxed),
            Memory::Device { mapping, range } => mapping.served.view.range.as_ptr().wrapping_add(range.start),
        }
    }

    pub(super) fn change(&self, wish: impl FnOnce(&mut Place)) -> Result<bool, Refused<NotMapped>> {
        let _inside = match &self.memory {
            Memory::Plain { .. } => None,
            Memory::Device { mapping, .. } => Some(mapping.served.region.protocol.inside()),
        };
        let changed = self.placed.change(wish, |there| {
            if !there {
                self.iommu.unmap(self.iova, self.len());
                return Ok(());
            }
            if let Memory::Device { mapping, range } = &self.memory {
                self.fault_in(mapping, range)?;
            }
            self.iommu.map(self.iova, self.addr(), self.len(), self.access).map_err(NotMapped::Iommu)
        });
        let why = match &changed {
            Ok(_) => None,
            Err(Refused::By(NotMapped::Iommu(e))) => Some(match e.raw_os_error() {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::Error::new(e.kind(), e.to_string()),
            }),
            Err(other) => Some(io::Error::other(other.to_string())),
        };
        *self.refused.lock() = why.map(Arc::new);
        changed
    }

    /// Makes every page of the range present (`follow_fault_pfn`). The region is enabled, and stays so meanwhile.
    fn fault_in(&self, mapping: &Listed, range: &Range<usize>) -> Result<(), SysError> {
        let served = &mapping.served;
        let part = served.view.range.part(range.start, range.len());
        let needed = match self.access {
            DmaAccess::Read => Prot::Read,
            DmaAccess::ReadWrite => Prot::ReadWrite,
        };
        // Making a page present gives it no more rights: the IOMMU would refuse it, or not check.
        if !served.view.allows(part, needed) {
            return Err(SysError::new("mmap", Errno::EFAULT));
        }
        for at in range.clone().step_by(served.region.page) {
            match served.fault_in(InMapping(at)) {
                Some(faulted) => faulted?,
                None => return self.touch(mapping, range),
            }
        }
        Ok(())
    }

    /// Device files do not know the populating advice: there, loads from each page fault it in.
    #[expect(unsafe_code, reason = "UNSAFETY: populates and loads from a part of the view's own range")]
    fn touch(&self, mapping: &Listed, range: &Range<usize>) -> Result<(), SysError> {
        let range = mapping.served.view.range.part(range.start, range.len());
        let advice = match self.access {
            DmaAccess::Read => Advice::PopulateRead,
            DmaAccess::ReadWrite => Advice::PopulateWrite,
        };
        // SAFETY: populating changes no content, and the range is the view's own, which `mapping` keeps.
        match unsafe { map::advise(range, advice) } {
            Err(e) if e.errno == Errno::EINVAL => {}
            other => return other,
        }
        for at in (0..range.len).step_by(mapping.served.region.page) {
            // SAFETY: inside the view's own range. A device, a guest and other processes may write there meanwhile; the
            // value is not used.
            let loaded = unsafe { raw::load::<u8>(range.as_ptr().wrapping_add(at)) };
            loaded.map_err(|_| SysError::new("mmap", Errno::EFAULT))?;
        }
        Ok(())
    }
}

/// # Errors
/// [`PciError::Busy`] at the end of the patience.
fn wait_a_little(patience: Patience, name: &str) -> Result<(), PciError> {
    match patience {
        Patience::Until(deadline) if Instant::now() < deadline => {}
        Patience::Forever => {}
        Patience::Until(_) | Patience::Never => return Err(PciError::Busy { name: name.to_owned() }),
    }
    std::thread::sleep(Duration::from_micros(50));
    Ok(())
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
        let restored = self.change(|place| {
            place.revoked = false;
            place.wanted = self.is_wanted(*place);
        });
        let Err(refused) = restored else { return Ok(()) };
        if let Memory::Device { mapping, .. } = &self.memory {
            // For the caller of `enable()`.
            mapping.served.region.not_restored.report(Box::new(self.error(refused)));
        }
        Err("a DMA mapping was not restored".into())
    }
}

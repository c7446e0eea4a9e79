//! A segment of revocable memory, which is in the IOMMU as long as the memory is there.

use super::dma_segment::{DmaAccess, Iommu};
use super::error::PciError;
use crate::protocol::Protocol;
use crate::protocol::caller::Caller;
use crate::protocol::fault::FaultFlags;
use crate::raw;
use crate::region::core::RegionCore;
use crate::region::error::PinError;
use crate::region::mapping::Listed;
use crate::region::notify::{InvalidateNotifier, NotifyError};
use crate::region::offsets::InMapping;
use crate::region::placed::{Placed, Refused};
use crate::sys::SysError;
use crate::sys::map::{self, Advice, Prot};
use crate::users::Theirs;
use nix::errno::Errno;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A segment of revocable memory.
pub(super) struct DmaPart {
    pub(super) iommu: Theirs<dyn Iommu>,
    pub(super) mapping: Arc<Listed>,
    pub(super) iova: u64,
    /// Offsets in the mapping.
    pub(super) range: Range<usize>,
    pub(super) access: DmaAccess,
    /// Whether it is in the IOMMU.
    pub(super) placed: Placed,
}

/// Why a segment is not in the IOMMU.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotMapped {
    #[error("it cannot be faulted in: {0}")]
    Fault(#[from] SysError),
    #[error("the IOMMU refuses: {0}")]
    Iommu(io::Error),
}

impl DmaPart {
    fn protocol(&self) -> &Protocol {
        &self.mapping.served.region.protocol
    }

    /// Maps unless the memory is revoked; waits while it is busy.
    pub(super) fn map_when_free(&self, region: &Arc<RegionCore>, in_region: Range<usize>) -> Result<(), PciError> {
        let protocol = self.protocol();
        let addr = self.addr().addr();
        let bad = |why| PciError::Dma { addr, why };
        if protocol.is_changed_by_caller() {
            return Err(PciError::Reentrant);
        }
        let own_guards = protocol.gate.held_by_caller() > 0;
        loop {
            let pin = region.pin_elsewhere(in_region.clone(), &Caller::new(FaultFlags::WAIT)).map_err(|e| match e {
                PinError::Disabled => bad("its memory is revoked"),
                PinError::Reentrant => PciError::Reentrant,
                PinError::WouldDeadlock => PciError::WouldDeadlock,
                PinError::Forked => PciError::Forked,
                PinError::NoMemory(source) => source.into(),
                _ => bad("it cannot be pinned"),
            });
            let pin = pin?;
            // No revocation completes while the guard lives, so the pages that are faulted in stay. The guard is this
            // thread's, so what the IOMMU asks of the region does not wait for a revocation that waits for this guard.
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
            // A revocation has been announced and is about to shut the gate: wait for its outcome.
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

    pub(super) fn change(
        &self,
        wish: impl FnOnce(&mut crate::region::placed::Place),
    ) -> Result<bool, Refused<NotMapped>> {
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

    /// Makes every page of the range present (`follow_fault_pfn`). The region is enabled, and stays so meanwhile.
    fn fault_in(&self) -> Result<(), SysError> {
        let served = &self.mapping.served;
        let part = served.view.range.part(self.range.start, self.range.len());
        let needed = match self.access {
            DmaAccess::Read => Prot::Read,
            DmaAccess::ReadWrite => Prot::ReadWrite,
        };
        // Making a page present gives it no more rights: the IOMMU would refuse it, or not check.
        if !served.view.allows(part, needed) {
            return Err(SysError::new("mmap", Errno::EFAULT));
        }
        for at in self.range.clone().step_by(served.region.page) {
            match served.fault_in(InMapping(at)) {
                Some(faulted) => faulted?,
                None => return self.touch(),
            }
        }
        Ok(())
    }

    /// Device files do not know the populating advice: there, loads from each page fault it in.
    #[expect(unsafe_code, reason = "UNSAFETY: populates and loads from a part of the view's own range")]
    fn touch(&self) -> Result<(), SysError> {
        let range = self.mapping.served.view.range.part(self.range.start, self.range.len());
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
            // SAFETY: inside the view's own range. A device, a guest and other processes may write there meanwhile; the
            // value is not used.
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

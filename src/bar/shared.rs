//! A BAR, as all that know it share it.

use super::area_core::AreaCore;
use super::device_io::{DeviceIo, Trap};
use super::error::BarError;
use super::guest::Guest;
use super::pieces;
use crate::protocol::error::RevokeError;
use crate::protocol::gate::Phase;
use crate::protocol::{Changes, Failed, State, WaitFor};
use crate::region::core::RegionCore;
use crate::region::shared::RegionShared;
use crate::region::{Region, RegionBuilder};
use crate::sync::inside::Mutex;
use crate::sys::page_size;
use crate::users::Theirs;
use crate::users::turn::Turn;
use std::ops::Range;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the handles of a BAR share.
pub(crate) struct Shared {
    pub(super) name: String,
    pub(super) size: u64,
    /// A region that is no area's. Its state is the BAR's, and its memory lock that of what no area has.
    pub(crate) anchor: Region,
    pub(super) turn: Turn,
    /// The BAR is gone, and so is every area.
    pub(super) ended: AtomicBool,
    /// In order. Changed by the holder of the turn.
    pub(super) list: Mutex<Vec<Arc<AreaCore>>>,
    /// Regions of areas that are removed, which end when their guards and pins are gone.
    pub(super) ending: Mutex<Vec<Arc<RegionShared>>>,
    /// In order, and apart.
    pub(super) traps: Vec<Trap>,
    pub(super) rest: Option<Theirs<dyn DeviceIo>>,
    pub(super) guest: Option<Guest>,
}

impl Shared {
    pub(crate) fn is_inherited(&self) -> bool {
        self.anchor.shared.protocol.is_inherited()
    }

    /// The caller has the turn, or is making the BAR.
    pub(super) fn insert(&self, offset: u64, region: RegionBuilder) -> Result<Arc<AreaCore>, BarError> {
        let page = page_size() as u64;
        let size = self.size;
        if offset % page != 0 {
            return Err(BarError::Unaligned { offset, page });
        }
        let end = offset.checked_add(region.len() as u64);
        let last = size.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        let range = offset..end.unwrap_or(u64::MAX).min(size);
        if range.is_empty() || end.is_none_or(|end| end > last) {
            return Err(BarError::OutOfRange { range: offset..end.unwrap_or(u64::MAX), size });
        }
        if let Some(other) = self.list.lock().iter().find(|area| overlap(&area.range, &range)) {
            return Err(BarError::Overlap { range, other: other.range.clone() });
        }
        if self.ended.load(Ordering::Relaxed) {
            return Err(RevokeError::Gone.into());
        }
        let region = region.starting(self.anchor.is_enabled()).build()?;
        let core = Arc::new(AreaCore { range, region, leaving: AtomicBool::new(false), pieces: Mutex::default() });
        if let Some(guest) = &self.guest {
            let traps = self.traps.iter().map(|trap| &trap.range);
            guest.put_in(&core, &pieces::mappable(&core.range, traps, page))?;
        }
        let mut list = self.list.lock();
        let at = list.partition_point(|area| area.range.start < core.range.start);
        list.insert(at, Arc::clone(&core));
        Ok(core)
    }

    /// True if an area is to be removed, or the guest's slots are to be taken out.
    pub(super) fn has_marks(&self) -> bool {
        let leaving = self.list.lock().iter().any(|area| self.is_leaving(area));
        leaving || self.guest.as_ref().is_some_and(Guest::is_leaving)
    }

    /// The caller has the turn.
    pub(super) fn carry_out_marks(&self) {
        let areas = self.areas_now();
        if let Some(guest) = &self.guest {
            guest.leave_if_marked(&areas);
        }
        for area in areas.iter().filter(|area| self.is_leaving(area)) {
            if let Some(guest) = &self.guest {
                guest.give_up(area);
            }
            self.forget(area);
        }
    }

    /// None in a forked child: another thread of the parent's may have had the lock when the child was made.
    pub(super) fn areas_now(&self) -> Vec<Arc<AreaCore>> {
        if self.is_inherited() { Vec::new() } else { self.list.lock().clone() }
    }

    /// Where the first area is that `is` says of.
    pub(crate) fn find(&self, is: impl Fn(&Range<u64>, &RegionCore) -> bool) -> Option<u64> {
        let areas = self.areas_now();
        areas.iter().find(|area| is(&area.range, &area.region.shared)).map(|area| area.range.start)
    }

    /// What changes with the BAR's state, in the order in which all groups and devices take regions.
    pub(crate) fn members(&self) -> Vec<Arc<RegionShared>> {
        let mut members = vec![Arc::clone(&self.anchor.shared)];
        members.extend(self.areas_now().iter().map(|area| Arc::clone(&area.region.shared)));
        crate::region::group::in_order(&mut members);
        members
    }

    /// An area that the guest no longer has: its memory goes, once it has no guards and pins.
    pub(super) fn forget(&self, area: &Arc<AreaCore>) {
        self.list.lock().retain(|known| !Arc::ptr_eq(known, area));
        area.region.end();
        if area.region.shared.protocol.phase() != Phase::Gone {
            self.ending.lock().push(Arc::clone(&area.region.shared));
        }
    }

    /// Ends the regions of areas that were removed while they had guards or pins: a change that revokes memory waits for
    /// these too. The caller has the turn.
    pub(crate) fn end_removed(&self, wait: WaitFor) -> Result<(), Failed<Arc<RegionShared>>> {
        let ending = self.ending.lock().clone();
        for region in &ending {
            match Changes::make(slice::from_ref(region), State::Gone, wait) {
                Ok(_) | Err(Failed { source: RevokeError::Gone, .. }) => {}
                Err(failed) => return Err(failed),
            }
            let gone = {
                let mut ending = self.ending.lock();
                let at = ending.iter().position(|known| Arc::ptr_eq(known, region));
                at.map(|at| ending.swap_remove(at))
            };
            drop(gone);
        }
        Ok(())
    }

    fn is_leaving(&self, area: &AreaCore) -> bool {
        self.ended.load(Ordering::Relaxed) || area.leaving.load(Ordering::Relaxed)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.is_inherited() {
            // A forked child's: another thread of the parent's may have been changing the list when the child was made.
            std::mem::forget(std::mem::take(self.list.get_mut()));
            std::mem::forget(std::mem::take(self.ending.get_mut()));
            std::mem::forget(self.guest.take());
        }
    }
}

pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

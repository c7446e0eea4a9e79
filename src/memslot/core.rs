//! The part of a memslot that follows its region's state.
//!
//! UNSAFETY: hands the mapping's address to the virtual machine; see `SlotCore::put`.
#![expect(unsafe_code, reason = "the virtual machine keeps the address that it is given")]

use super::error::MemslotError;
use super::retention::Retention;
use super::stats::SlotCounters;
use super::vm::{SetMemslot, SlotMemory};
use crate::monitor::Monitor;
use crate::protocol::Protocol;
use crate::protocol::error::RevokeError;
use crate::protocol::gate::Phase;
use crate::protocol::policy::OnDisabled;
use crate::region::mapping::Mapping;
use crate::region::notify::{InvalidateNotifier, NotifyError};
use crate::region::placed::{Place, Placed, Refused};
use crate::stats::count;
use crate::sys::{SysError, may_fail, thread};
use crate::users::{Calling, Theirs, guarded};
use nix::errno::Errno;
use parking_lot::Mutex;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// The other memslots of the virtual machine.
pub(super) trait Neighbours: Send + Sync {
    /// Reserves the first of these ranges for a slot's installation, and the others with it. In one step with the look
    /// whether another slot is installed there or has reserved it: of two that overlap, one is refused.
    ///
    /// # Errors
    /// The number of the slot that is in the way.
    fn reserve(&self, core: &SlotCore, ranges: Vec<Range<u64>>) -> Result<(), u32>;
    /// The number of a slot that is gone is free.
    fn forget(&self, gone: &Arc<SlotCore>);
    /// Tells the user that a change of a region's state could not be followed.
    fn tell(&self, error: &MemslotError);
}

/// The name of the call in errors.
const CALL: &str = "SetMemslot";
const PANICKED: SysError = SysError { call: CALL, errno: Errno::EIO };

/// Checks a slot's guest address.
pub(super) fn is_slot_address(gpa: u64, mapping: &Mapping) -> Result<(), MemslotError> {
    let page = mapping.served.region.page;
    match gpa % page as u64 == 0 && gpa.checked_add(mapping.len() as u64).is_some() {
        true => Ok(()),
        false => Err(MemslotError::Unaligned { gpa, page }),
    }
}

/// How the slot is to be when it is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) gpa: u64,
    pub(super) log_dirty: bool,
}

/// The part that a memslot, its set and its region's notifications share.
pub(super) struct SlotCore {
    vm: Theirs<dyn SetMemslot>,
    set: Weak<dyn Neighbours>,
    pub(super) slot: u32,
    pub(super) mapping: Arc<Mapping>,
    retention: Retention,
    wish: Mutex<Wish>,
    /// As it was installed, while it is.
    installed: Mutex<Option<SlotMemory>>,
    /// Where it is about to be installed, and where it may have to go back to. Written under the set's lock, and by the
    /// thread whose change it is.
    reserved: Mutex<Vec<Range<u64>>>,
    /// Whether it is in the guest's memory map, and who changes that.
    placed: Placed,
    pub(super) log_lost: AtomicBool,
    pub(super) counters: SlotCounters,
}

impl SlotCore {
    pub(super) fn new(
        vm: Theirs<dyn SetMemslot>,
        set: Weak<dyn Neighbours>,
        slot: u32,
        gpa: u64,
        mapping: Arc<Mapping>,
        retention: Retention,
    ) -> Self {
        let wish = Mutex::new(Wish { gpa, log_dirty: false });
        let (placed, log_lost) = (Placed::default(), AtomicBool::new(false));
        let (installed, reserved, counters) = (Mutex::default(), Mutex::default(), SlotCounters::default());
        Self { vm, set, slot, mapping, retention, wish, installed, reserved, placed, log_lost, counters }
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.installed().unwrap_or_else(|| self.as_wished()).range()
    }

    pub(super) fn installed(&self) -> Option<SlotMemory> {
        *self.installed.lock()
    }

    /// True if it is installed in the range, or is about to be.
    pub(super) fn takes(&self, range: &Range<u64>) -> bool {
        let overlaps = |own: &Range<u64>| own.start < range.end && range.start < own.end;
        self.reserved.lock().iter().any(overlaps) || self.installed().is_some_and(|there| overlaps(&there.range()))
    }

    /// For the set, under its lock.
    pub(super) fn set_reserved(&self, ranges: Vec<Range<u64>>) {
        *self.reserved.lock() = ranges;
    }

    pub(super) fn is_there(&self) -> bool {
        self.placed.now().is_there()
    }

    fn as_wished(&self) -> SlotMemory {
        let Wish { gpa, log_dirty } = *self.wish.lock();
        SlotMemory {
            slot: self.slot,
            gpa,
            size: self.mapping.len() as u64,
            host: self.mapping.as_ptr().expose_provenance() as u64,
            read_only: !self.mapping.is_writable(),
            log_dirty,
        }
    }

    pub(super) fn is_due(&self, place: &Place) -> bool {
        !place.gone && !place.leaving && (!place.revoked || self.retention != Retention::Remove)
    }

    /// Its beginning, in step with its region's state.
    pub(super) fn start(&self, revoked: bool) -> Result<(), MemslotError> {
        // A slot that is not due is tried all the same, so that an error reaches the caller of `add`.
        self.change(|place| place.wanted = true)?;
        let settled = self.change(|place| {
            place.revoked = revoked;
            place.wanted = self.is_due(place);
        });
        settled.map(drop)
    }

    /// Changes the slot as `wish` says; true if there was anything to do.
    pub(super) fn change(&self, wish: impl FnOnce(&mut Place)) -> Result<bool, MemslotError> {
        if self.protocol().is_inherited() {
            // The memory map is the parent's, and another of its threads may have been changing this.
            return Err(RevokeError::Forked.into());
        }
        let _inside = self.protocol().inside();
        let changed = self.placed.change_as(wish, |wanted| {
            let tried = *self.wish.lock();
            let answer = self.aside(|| if wanted { self.install() } else { self.uninstall() });
            if answer.is_err() {
                self.take_back(tried);
            }
            (self.installed().is_some(), answer)
        });
        changed.map_err(|refused| match refused {
            Refused::By(source) => source,
            Refused::Panicked => self.refused(PANICKED),
        })
    }

    /// Changes how the slot is. If that fails it stays as it is installed.
    pub(super) fn change_anew(&self, change: impl FnOnce(&mut Wish)) -> Result<(), MemslotError> {
        let changed = self.change(|place| {
            change(&mut self.wish.lock());
            place.anew = true;
        });
        changed.map(drop)
    }

    /// What was tried and refused is wished no longer. Called before another thread can make a wish; the user's code may
    /// have made one meanwhile, which stays.
    fn take_back(&self, tried: Wish) {
        let Some(SlotMemory { gpa, log_dirty, .. }) = self.installed() else { return };
        let mut wish = self.wish.lock();
        if *wish == tried {
            *wish = Wish { gpa, log_dirty };
        }
    }

    fn refused(&self, source: SysError) -> MemslotError {
        MemslotError::Vm { slot: self.slot, gpa: self.wish.lock().gpa, source }
    }

    fn install(&self) -> Result<(), MemslotError> {
        let wished = self.as_wished();
        let earlier = self.installed();
        if earlier == Some(wished) {
            return Ok(());
        }
        let ranges = [Some(wished), earlier].into_iter().flatten().map(|memory| memory.range()).collect();
        if let Some(Err(other)) = self.set.upgrade().map(|set| set.reserve(self, ranges)) {
            return Err(MemslotError::Overlap { slot: self.slot, gpa: wished.gpa, other });
        }
        let moved = match earlier.is_none() || self.vm.changes_in_place() {
            true => self.put(wished),
            false => self.uninstall().and_then(|()| self.put(wished)),
        };
        if moved.is_err() && self.installed().is_none() {
            let _ = earlier.map(|earlier| self.put(earlier));
        }
        self.reserved.lock().clear();
        moved
    }

    fn put(&self, memory: SlotMemory) -> Result<(), MemslotError> {
        may_fail(CALL).map_err(|e| self.refused(e))?;
        // Before the call: a guest's access may exit before it returns.
        let earlier = self.installed.lock().replace(memory);
        // SAFETY: the mapping lives as long as this core, which every `Memslot` takes out before it goes (or leaks it). The
        // device, other mappings of the region and other processes reach the memory too, by accesses that expect other
        // writers: the crate has no references to region memory.
        let Some(done) = guarded(|| unsafe { self.vm.install(&memory) }) else {
            // It may be there all the same, and counts as there unless the virtual machine takes it out.
            let _ = self.uninstall();
            return Err(self.refused(PANICKED));
        };
        done.inspect_err(|_| *self.installed.lock() = earlier).map_err(|e| self.refused(errno(&e)))?;
        count(&self.counters.installs);
        Ok(())
    }

    fn uninstall(&self) -> Result<(), MemslotError> {
        let Some(memory) = self.installed() else { return Ok(()) };
        may_fail(CALL).map_err(|e| self.refused(e))?;
        let removed = guarded(|| self.vm.remove(&memory));
        removed.ok_or(PANICKED).and_then(|done| done.map_err(|e| errno(&e))).map_err(|e| self.refused(e))?;
        *self.installed.lock() = None;
        if memory.log_dirty {
            self.log_lost.store(true, Ordering::Release);
        }
        count(&self.counters.removals);
        Ok(())
    }

    /// Runs a change of the memory map, in another thread if need be. The virtual machine waits for every vCPU that is
    /// inside a page fault. If an event loop resolves those faults, this very thread may run it: so another thread waits
    /// for the virtual machine, while this one goes on resolving.
    fn aside(&self, change: impl FnOnce() -> Result<(), MemslotError> + Send) -> Result<(), MemslotError> {
        let region = &self.mapping.served.region;
        if !region.monitor.as_ref().is_some_and(Monitor::help) {
            return change();
        }
        // The helper thread acts for this one, and counts as inside of the calls that this one is in: of the region and the
        // slot, and of the BAR, say, whose area it is.
        let calls = Calling::all();
        let run = move || {
            let _inside = Calling::resumed(calls);
            change()
        };
        let help = || {
            region.monitor.as_ref().map(Monitor::help);
        };
        thread::beside("mmio-memslot", run, help).map_err(|e| self.refused(e))?
    }

    pub(super) fn protocol(&self) -> &Protocol {
        &self.mapping.served.region.protocol
    }

    /// True if all-ones memory stands in it while its region is disabled.
    pub(super) fn has_ones(&self) -> bool {
        self.is_there() && self.mapping.on_disabled() == OnDisabled::AllOnes
    }

    /// True if the region is enabled and its device has turned the memory off by itself. No notification tells when it is
    /// back.
    pub(super) fn is_turned_off(&self) -> bool {
        self.protocol().phase() == Phase::Open && self.mapping.served.region.is_off()
    }

    /// An access has found the memory of such a device on: its slot comes back. If that is refused, the next access tries
    /// again.
    pub(super) fn bring_back(&self) {
        if self.mapping.served.region.memory_enabled.is_some() && !self.is_there() {
            let _ = self.degraded(self.change(|place| place.wanted = self.is_due(place)));
        }
    }

    /// Takes the slot of a revoked region out, or of a device that is off, so that the next access has an address.
    pub(super) fn withdraw_for_address(&self) -> Result<bool, MemslotError> {
        // Revoked by a change that told a reset, or just now: the notification may still be on its way.
        let revoked = self.protocol().phase() != Phase::Open;
        let off = self.is_turned_off();
        if self.change(|place| place.wanted &= !(place.revoked && revoked || off))? {
            count(&self.counters.withdrawn);
        }
        Ok(true)
    }

    /// Puts the slot of a revoked region back, if all-ones memory stands in it: the guest's instruction then needs no
    /// emulation. False if there is other memory in it, or none.
    pub(super) fn put_back(&self) -> Result<bool, MemslotError> {
        if self.mapping.on_disabled() != OnDisabled::AllOnes || self.is_turned_off() {
            return Ok(false);
        }
        self.change(|place| place.wanted = !place.gone && !place.leaving).map(|_| true)
    }

    /// A change of the region's state could not be followed.
    fn degraded(&self, changed: Result<bool, MemslotError>) -> Result<(), NotifyError> {
        let Err(error) = changed else { return Ok(()) };
        count(&self.counters.degraded);
        event!(WARN, slot = self.slot, %error, "memslot degraded");
        if let Some(set) = self.set.upgrade() {
            set.tell(&error);
        }
        Err(error.into())
    }
}

fn errno(error: &std::io::Error) -> SysError {
    SysError::new(CALL, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

impl InvalidateNotifier for SlotCore {
    fn before_revoke(&self, _range: Range<usize>) -> Result<(), NotifyError> {
        // If it is refused the slot stays, as with Keep: the mapping itself refuses as well.
        self.degraded(self.change(|place| {
            place.revoked = true;
            place.wanted &= self.is_due(place);
        }))
    }

    fn before_reset(&self, _range: Range<usize>) -> Result<(), NotifyError> {
        // The slot stays: accesses wait in the mapping, whatever instruction makes them.
        Ok(())
    }

    fn stays_revoked(&self, range: Range<usize>) -> Result<(), NotifyError> {
        self.before_revoke(range)
    }

    fn after_restore(&self, _range: Range<usize>) -> Result<(), NotifyError> {
        // If it is refused, accesses exit with their address, and the exit handler makes them.
        self.degraded(self.change(|place| {
            place.revoked = false;
            place.wanted = self.is_due(place);
        }))
    }
}

impl fmt::Debug for SlotCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memslot")
            .field("slot", &self.slot)
            .field("gpa", &format_args!("{:#x?}", self.range()))
            .field("retention", &self.retention)
            .field("installed", &self.is_there())
            .finish_non_exhaustive()
    }
}

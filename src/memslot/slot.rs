//! A memslot: a mapping in the guest's physical address space, in step with its region's state.

use super::core::{Neighbours, SlotCore, is_slot_address};
use super::error::MemslotError;
use super::stats::MemslotStats;
use crate::region::subscription::Subscription;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A mapping in the guest's physical address space. Dropping it takes the memslot out.
///
/// ```
/// use revocable_mmio::memslot::{MemslotStats, Memslots, Retention};
/// # use revocable_mmio::memslot::{SetMemslot, SlotMemory};
/// use revocable_mmio::{MapOptions, OnDisabled, Region};
/// use std::sync::Arc;
/// # struct Vm;
/// # #[allow(unsafe_code)]
/// # impl SetMemslot for Vm {
/// #     unsafe fn install(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// #     fn remove(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bar = Region::builder(64 << 10).build()?;
/// let mapping = Arc::new(bar.map(MapOptions::new().on_disabled(OnDisabled::AllOnes))?);
/// let mut slot = Memslots::new(Arc::new(Vm)).add(1, 0xe000_0000, mapping, Retention::Remove)?;
/// slot.log_dirty(true)?; // a live migration begins
/// bar.disable()?;
/// assert!(!slot.is_installed());
/// assert!(slot.take_log_lost(), "any page may have been stored to");
///
/// slot.move_to(0xe800_0000)?; // the guest has written the BAR's address
/// bar.enable()?;
/// if !slot.is_installed() {
///     slot.retry()?; // the hypervisor had refused it
/// }
/// assert_eq!((slot.slot(), slot.range()), (1, 0xe800_0000..0xe801_0000));
///
/// let MemslotStats { installs, removals, .. } = slot.stats();
/// assert_eq!(installs, removals + 1);
/// slot.remove()?; // what dropping it does, with the error
/// # Ok(())
/// # }
/// ```
#[must_use = "dropped at once, the memslot is taken out at once"]
pub struct Memslot {
    set: Arc<dyn Neighbours>,
    core: Arc<SlotCore>,
    subscription: Option<Subscription>,
}

impl Memslot {
    pub(super) fn new(set: Arc<dyn Neighbours>, core: Arc<SlotCore>) -> Self {
        Self { set, core, subscription: None }
    }

    pub(super) fn follow(&mut self, subscription: Subscription) {
        self.subscription = Some(subscription);
    }

    /// What `Debug` shows, for a list of slots that is locked: see there.
    pub(crate) fn shown(&self) -> impl fmt::Debug + 'static {
        Arc::clone(&self.core)
    }

    /// The memslot's number.
    pub fn slot(&self) -> u32 {
        self.core.slot
    }

    /// The guest physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.core.range()
    }

    /// True if it is in the guest's memory map now.
    pub fn is_installed(&self) -> bool {
        self.core.is_there()
    }

    /// Moves the memslot to another guest physical address, in any state of its region: a guest has written the BAR's
    /// address. A slot that is not installed now is put there when its region is enabled, and only then it is known whether
    /// another is in the way.
    ///
    /// # Blocking
    /// Waits for another change of the same memslot.
    ///
    /// # Errors
    /// [`MemslotError::Unaligned`]; [`MemslotError::Overlap`] and [`MemslotError::Vm`] if it is installed and cannot move.
    /// It then stays where it was. Where the virtual machine cannot [move slots in
    /// place](super::SetMemslot::changes_in_place) and refuses to take it back, it is not installed, as
    /// [`is_installed`](Self::is_installed) says, and [`retry`](Self::retry) tries again.
    pub fn move_to(&self, gpa: u64) -> Result<(), MemslotError> {
        is_slot_address(gpa, &self.core.mapping)?;
        self.core.change_anew(|wish| wish.gpa = gpa)
    }

    /// Switches the log of the pages that the guest stores to, for live migration. The log is kept while the slot stays
    /// installed; each time that the slot is taken out it is lost: see [`take_log_lost`](Self::take_log_lost).
    ///
    /// # Errors
    /// [`MemslotError::Vm`]: it is as before.
    pub fn log_dirty(&self, on: bool) -> Result<(), MemslotError> {
        self.core.change_anew(|wish| wish.log_dirty = on)
    }

    /// True if the dirty log was lost since the last call: any page may have been stored to. Never with
    /// [`Retention::AllOnes`](super::Retention::AllOnes) and [`Retention::Keep`](super::Retention::Keep), unless an exit or a move had the slot taken out.
    pub fn take_log_lost(&self) -> bool {
        // AcqRel: pairs with the store after a removal, so that what the guest stored before it is seen.
        self.core.log_lost.swap(false, Ordering::AcqRel)
    }

    /// Installs the slot or takes it out, as its region's state requires, after that has failed.
    ///
    /// # Errors
    /// [`MemslotError::Overlap`], [`MemslotError::Vm`]: it is as before.
    pub fn retry(&self) -> Result<(), MemslotError> {
        self.core.change(|place| place.wanted = self.core.is_due(place)).map(drop)
    }

    /// Takes the memslot out for good. `self` can be dropped then, and the mapping used otherwise. Idempotent. Called from
    /// inside the virtual machine's own call for this slot, it is carried out when that returns.
    ///
    /// # Errors
    /// [`MemslotError::Vm`]: the slot is still there, and follows its region's state. Dropping it tries once more; if that
    /// fails too, the mapping is never unmapped.
    pub fn remove(&mut self) -> Result<(), MemslotError> {
        self.core.change(|place| {
            place.leaving = true;
            place.wanted = false;
        })?;
        if self.core.installed().is_some() {
            // Called from inside the virtual machine's own call: the slot goes when that has returned, or stays.
            return Ok(());
        }
        self.subscription = None;
        self.set.forget(&self.core);
        Ok(())
    }

    /// Counters.
    pub fn stats(&self) -> MemslotStats {
        self.core.counters.read()
    }
}

impl Drop for Memslot {
    fn drop(&mut self) {
        if self.core.protocol().is_inherited() {
            return;
        }
        let _ = self.core.change(|place| {
            place.gone = true;
            place.wanted = false;
        });
        // No notification puts it back: it is gone. One may take out what was refused to go.
        self.subscription = None;
        self.set.forget(&self.core);
        // Not `is_installed`, which is false while a call that this thread is in puts it there.
        if self.core.installed().is_some() {
            // The guest still reaches this address range: nothing else may ever be mapped there.
            std::mem::forget(Arc::clone(&self.core.mapping));
        }
    }
}

impl fmt::Debug for Memslot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}

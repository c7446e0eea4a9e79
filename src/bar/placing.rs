//! Where a guest has a BAR.

use super::areas::Areas;
use super::error::BarError;
use super::guest::Guest;
use super::turn::AreasTurn;
use crate::protocol::error::RevokeError;
use crate::sync::wait::Patience;
use crate::users::Calling;

impl Areas {
    /// The guest has the BAR at this guest physical address from now on, or nowhere: the memslots of every area are put
    /// there, moved or taken out, and those of areas that come later are put there. A BAR without
    /// [memslots](super::BarBuilder::memslots) has none to be moved. In a [`PciDevice`](crate::pci::PciDevice)
    /// [`BarSlots`](crate::pci::BarSlots) calls this.
    ///
    /// ```
    /// use revocable_mmio::Region;
    /// use revocable_mmio::bar::Bar;
    /// use revocable_mmio::memslot::{Memslots, Retention};
    /// # use revocable_mmio::memslot::{SetMemslot, SlotMemory};
    /// # use std::sync::Arc;
    /// # struct Vm;
    /// # #[allow(unsafe_code)]
    /// # impl SetMemslot for Vm {
    /// #     unsafe fn install(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
    /// #     fn remove(&self, _: &SlotMemory) -> std::io::Result<()> { Ok(()) }
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let slots = Memslots::new(Arc::new(Vm)); // with feature `kvm` a `kvm_ioctls::VmFd`
    /// let bar = Bar::builder(1 << 20).memslots(&slots, 8..16, Retention::AllOnes).build()?;
    /// bar.areas().move_to(Some(0xe000_0000))?;
    /// let _blob = bar.areas().insert(0x1_0000, Region::builder(0x4000))?; // a memslot at 0xe001_0000
    /// bar.areas().log_dirty(true)?; // a live migration begins
    /// bar.areas().move_to(Some(0xe800_0000))?;
    /// assert_eq!(bar.areas().guest_address(), Some(0xe800_0000));
    /// if bar.areas().take_log_lost() {
    ///     println!("this hypervisor takes a slot out to move it: any page may have been stored to");
    /// }
    /// bar.areas().retry_memslots()?; // after `Memslots::on_error` told that one could not follow
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Blocking
    /// Waits for a change of the BAR that another thread is making, but for one that this thread makes it does not.
    ///
    /// # Errors
    /// The BAR is nowhere then: see [`BarError::Memslot`]. `None` has no errors: where it cannot wait, the slots are taken out
    /// at the end of the change that is under way; a slot that cannot be taken out keeps its number and its address range.
    pub fn move_to(&self, gpa: Option<u64>) -> Result<(), BarError> {
        let shared = &*self.shared;
        let Some(guest) = &shared.guest else { return Ok(()) };
        let turn = self.turn_or_own(guest);
        match (gpa, turn) {
            (Some(base), turn) => {
                let _turn = turn?;
                guest.put_at(&shared.areas_now(), base, shared.size)
            }
            (None, Ok(_turn)) => {
                guest.take_all_out(&shared.areas_now());
                Ok(())
            }
            (None, Err(RevokeError::Forked)) => Ok(()),
            (None, Err(_)) => {
                guest.mark_leaving();
                shared.settle();
                Ok(())
            }
        }
    }

    /// Where the guest has the BAR.
    pub fn guest_address(&self) -> Option<u64> {
        self.shared.guest.as_ref().and_then(Guest::base)
    }

    /// Switches the log of the pages that the guest stores to, of all memslots and of those that come; see
    /// [`Memslot::log_dirty`](crate::memslot::Memslot::log_dirty).
    ///
    /// # Errors
    /// [`BarError::Memslot`]: it is as before.
    pub fn log_dirty(&self, on: bool) -> Result<(), BarError> {
        let shared = &*self.shared;
        let Some(guest) = &shared.guest else { return Ok(()) };
        let _turn = self.turn_or_own(guest)?;
        guest.log_dirty(&shared.areas_now(), on)
    }

    /// True if the dirty log of a memslot was lost since the last call: any page of the BAR may have been stored to. Areas
    /// that were removed count too.
    pub fn take_log_lost(&self) -> bool {
        let Some(guest) = &self.shared.guest else { return false };
        guest.take_log_lost(&self.shared.areas_now())
    }

    /// Tries once more to install memslots that could not follow the BAR's state
    /// ([`Memslots::on_error`](crate::memslot::Memslots::on_error)).
    ///
    /// # Errors
    /// The first that is refused again; the others are tried all the same.
    pub fn retry_memslots(&self) -> Result<(), BarError> {
        let shared = &*self.shared;
        let Some(guest) = &shared.guest else { return Ok(()) };
        let _turn = self.turn_or_own(guest)?;
        guest.retry(&shared.areas_now())
    }

    /// The turn, unless this thread has it already: it is changing the device, which moves the BAR.
    fn turn_or_own(&self, guest: &Guest) -> Result<Option<AreasTurn<'_>>, RevokeError> {
        if Calling::is_in(guest) {
            return Err(RevokeError::Reentrant);
        }
        if self.shared.turn.is_caller() && !self.shared.is_inherited() {
            return Ok(None);
        }
        self.shared.take_turn(Patience::Forever).map(Some)
    }
}

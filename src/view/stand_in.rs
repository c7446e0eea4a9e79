//! Stand-ins: private memory in which faults wait, moved over a range.
//!
//! A stand-in is made at another address, registered there with the userfaultfd of a [`WaitingRoom`], and moved over the
//! range in one step, so that no access ever finds it unregistered. Nothing of the region is in it: if its userfaultfd is
//! closed, empty private memory is left.

use super::{Content, Standing, View, ranges, release};
use crate::monitor::waiting_room::{WaitingRoom, Waits};
use crate::sys::map::{self, Advice, Prot};
use crate::sys::{AddrRange, SysError, page_size};
use std::sync::Arc;

impl View {
    /// Makes faults wait from now on.
    pub(super) fn stand_in(&self, standing: &mut Standing, waits: Waits) -> Result<(), SysError> {
        let room = WaitingRoom::get(waits)?;
        if !crate::sys::left_out("stand-in") {
            let staging = ranges::reserve(self.range.len, page_size())?;
            let staged = self.stage_stand_in(staging, &room);
            let moved =
                staged.and_then(|()| self.replace(standing, self.range, || room.move_over(staging, self.range)));
            if moved.is_err() {
                release(staging);
            }
            // A thread that still uses a pointer to what was mapped there before may wait at that address, and neither
            // mremap nor munmap wakes it: it faults again.
            room.wake(staging);
            moved?;
        }
        standing.content = Content::StandIn(waits);
        // If the userfaultfd was closed meanwhile, its registrations are gone: nothing can be reached, but nothing waits.
        let open = room.check(self.range);
        standing.waiting.retain(|known| !Arc::ptr_eq(known, &room));
        standing.waiting.push(room);
        open
    }

    #[expect(unsafe_code, reason = "UNSAFETY: changes a range that only the caller knows")]
    fn stage_stand_in(&self, staging: AddrRange, room: &WaitingRoom) -> Result<(), SysError> {
        for advice in [Advice::DontFork, Advice::DontDump] {
            // SAFETY: a reservation that only the caller knows; neither advice drops pages.
            unsafe { map::advise(staging, advice) }?;
        }
        room.register(staging)?;
        // Accessible only now: in a process that locks its memory (mlockall) the kernel fills in accessible pages at once,
        // and no access would wait at those.
        let prot = if self.spec.prot == Prot::None { Prot::Read } else { self.spec.prot };
        // SAFETY: as above.
        unsafe { map::protect(staging, prot) }
    }
}

//! The handle of an area.

use super::area_core::AreaCore;
use super::error::BarError;
use super::shared::Shared;
use crate::region::Region;
use crate::sync::wait::Patience;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// An area of a BAR. Dropping it removes it: its memslots are taken out, and its memory goes for good, as with a dropped
/// [`Region`]: guards and pins keep what they promise, and a later change that revokes the BAR waits for them.
///
/// Dropping it does not wait for a change of the BAR: if another thread is making one, or this one is in a callback of one, the
/// area is removed at its end. It waits for the hypervisor's own call for one of its memslots, if another thread is in that.
/// [`remove`](Self::remove) waits for changes too.
///
/// ```
/// use revocable_mmio::Region;
/// use revocable_mmio::bar::{Area, Bar};
///
/// let bar = Bar::builder(1 << 20).name("gpu BAR2").build()?;
/// let mut blob: Area = bar.areas().insert(0x1_0000, Region::builder(0x4000))?;
/// assert_eq!((blob.range(), blob.region().is_enabled()), (0x1_0000..0x1_4000, true));
/// blob.region().owner().write(0, 7_u32)?;
/// let mut value = [0; 4];
/// bar.areas().read(0x1_0000, &mut value)?;
/// assert_eq!(value, [7, 0, 0, 0]);
///
/// blob.remove()?; // what dropping it does, with the error
/// bar.areas().read(0x1_0000, &mut value)?;
/// assert_eq!(value, [0xff; 4], "nothing is there");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "dropped at once, the area is removed at once"]
pub struct Area {
    bar: Arc<Shared>,
    core: Arc<AreaCore>,
}

impl Area {
    pub(super) fn new(bar: Arc<Shared>, core: Arc<AreaCore>) -> Self {
        Self { bar, core }
    }

    /// Which bytes of the BAR it has.
    pub fn range(&self) -> Range<u64> {
        self.core.range.clone()
    }

    /// Its memory: to map it, pin it, subscribe to it. The BAR changes its state; the caller must not.
    pub fn region(&self) -> &Region {
        &self.core.region
    }

    /// Removes it. Idempotent.
    ///
    /// # Blocking
    /// Waits for a change of the BAR that another thread is making.
    ///
    /// # Errors
    /// [`BarError::Memslot`]: a memslot cannot be taken out. The area stays, without those of its memslots that were; guest
    /// accesses there exit, and [`Areas::read`](super::Areas::read) makes them. Dropping it removes it all the same; a memslot that cannot be
    /// taken out then keeps its number and its address range for good. [`BarError::State`] as for [`Areas::insert`](super::Areas::insert).
    pub fn remove(&mut self) -> Result<(), BarError> {
        let shared = &self.bar;
        let _turn = shared.take_turn(Patience::Forever)?;
        if let Some(guest) = &shared.guest {
            guest.take_out(&self.core)?;
        }
        shared.forget(&self.core);
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let shared = &self.bar;
        if shared.is_inherited() {
            return;
        }
        self.core.leaving.store(true, Ordering::Relaxed);
        // Its region does not end here: a change that is under way counts on its members.
        shared.settle();
    }
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Area")
            .field("range", &format_args!("{:#x?}", self.core.range))
            .field("region", &self.core.region)
            .finish()
    }
}

//! Pins: a promise that pages stay reachable by address, for DMA. A revocation tells their holders, then waits for them.
//!
//! The order is that of a revoked dma-buf (`vfio_pci_dma_buf_move`): new pins are refused, every holder is told, and the
//! last pin is waited for. After the region is enabled again, all of it can be repeated.

use super::Region;
use super::core::RegionCore;
use super::error::PinError;
use super::offsets::InRegion;
use crate::protocol::caller::Caller;
use crate::protocol::fault::NotResolved;
use crate::sys::SysError;
use crate::users::Theirs;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Keeps pages reachable by address until it is dropped; see [`Region::pin`], and the guide's page on
/// [DMA](crate::guide::dma).
///
/// While it lives, `disable()` waits, `try_disable()` returns `Busy`, and `disable_timeout()` gives up.
///
/// ```
/// use revocable_mmio::PinError;
/// use revocable_mmio::fault::FaultFlags;
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let pin = region.pin(0x10..0x20, FaultFlags::WAIT | FaultFlags::WRITE)?;
/// assert_eq!(pin.range(), 0..region.page_size()); // rounded out to pages
/// // SAFETY: the page is pinned, and no Rust reference to it exists.
/// unsafe { pin.as_ptr().write_volatile(7) }; // as DMA would
/// assert!(region.try_disable().is_err()); // busy
/// assert!(!pin.is_wanted_back()); // no revocation waits for it
///
/// drop(pin);
/// region.disable()?;
/// assert!(matches!(region.pin(0..4096, FaultFlags::WAIT), Err(PinError::Disabled)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Signal safety
/// Pinning and dropping a pin are not for signal handlers.
#[must_use = "a pin that is dropped at once pins nothing"]
pub struct Pin {
    region: Arc<RegionCore>,
    range: Range<usize>,
    holder: Option<u64>,
}

impl Pin {
    /// The address of the pages, in the owner's view. It is valid, and backed by the same pages, as long as the pin lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.owner.as_ptr().wrapping_add(self.range.start)
    }

    /// The pinned bytes, as offsets in the region.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// True if a revocation has begun that waits for this pin.
    pub fn is_wanted_back(&self) -> bool {
        self.region.protocol.phase() == crate::protocol::gate::Phase::Busy
    }

    /// Calls `told`, in the revoking thread, each time a revocation begins to wait for pins. `told` should stop the DMA and
    /// have the pin dropped, at once or soon, from any thread; it must not change the region's state.
    ///
    /// ```
    /// use revocable_mmio::fault::FaultFlags;
    /// use std::sync::{Arc, Mutex};
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let held = Arc::new(Mutex::new(None));
    /// let dma = Arc::clone(&held);
    /// let pin = region.pin(0..4096, FaultFlags::WAIT)?.on_revoke(move || drop(dma.lock().unwrap().take()));
    /// *held.lock().unwrap() = Some(pin);
    ///
    /// region.disable()?; // tells the holder, who stops the DMA and drops the pin, and goes on
    /// assert!(held.lock().unwrap().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn on_revoke(mut self, told: impl Fn() + Send + Sync + 'static) -> Self {
        let id = self.region.pinned.add(Theirs::new(Arc::new(told)));
        let earlier = self.holder.replace(id).and_then(|earlier| self.region.pinned.remove(earlier));
        drop(earlier);
        self
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.region.protocol.is_inherited() {
            // A forked child's: nothing waits for it, and the table's lock may be held for ever.
            return;
        }
        let told = self.holder.and_then(|id| self.region.pinned.remove(id));
        self.region.protocol.unpin();
        drop(told);
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin").field("region", &self.region.name).field("range", &self.range).finish_non_exhaustive()
    }
}

impl Region {
    /// Pins the pages of `range` (offsets in bytes, rounded out to pages), as get_user_pages does: faults them in, and
    /// keeps the region from being revoked while the pin lives.
    ///
    /// # Blocking
    /// As the flags say, while the region is busy (and while it is disabled, with
    /// [`OnDisabled::Block`](crate::OnDisabled)). With `RETRY_NOWAIT` it returns [`PinError::WouldBlock`] at once, and
    /// queues nothing. Under a guard of the region it does not wait either.
    ///
    /// A thread that holds a pin and waits here for another one waits for the revocation, which waits for its first pin:
    /// drop that one when told ([`Pin::on_revoke`]), or ask with `RETRY_NOWAIT`. Under a guard of another region that is
    /// being revoked together with this one (another BAR of the device) it is an error, because that revocation waits for
    /// the guard.
    ///
    /// # Errors
    /// Nothing is pinned.
    /// * [`PinError::Disabled`]: pin it after `enable()`. [`PinError::WouldBlock`]: busy, and the flags forbid
    ///   waiting.
    /// * [`PinError::OutOfRange`], [`PinError::Flags`]: the caller's mistake.
    /// * [`PinError::Cancelled`]: the caller's token was cancelled during the wait.
    /// * [`PinError::NoMemory`]: the file has no page there and gives none.
    /// * [`PinError::Reentrant`], [`PinError::WouldDeadlock`]: the wait would not end; pin later, or drop the guard.
    /// * [`PinError::Forked`]: the region is the parent's.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn pin<'a>(&self, range: Range<usize>, caller: impl Into<Caller<'a>>) -> Result<Pin, PinError> {
        self.shared.core.pin(range, &caller.into())
    }
}

impl RegionCore {
    /// See [`Region::pin`].
    pub(crate) fn pin(self: &Arc<Self>, range: Range<usize>, caller: &Caller<'_>) -> Result<Pin, PinError> {
        self.pin_with(range, caller, |pages| self.owner.populate(InRegion(pages.start), pages.len()))
    }

    /// A pin whose pages are needed in a mapping only: they are faulted in there, and may have no address in an owner's
    /// view.
    pub(crate) fn pin_elsewhere(self: &Arc<Self>, range: Range<usize>, caller: &Caller<'_>) -> Result<Pin, PinError> {
        self.pin_with(range, caller, |pages| match self.owner.is_empty() {
            true => Ok(()),
            false => self.owner.populate(InRegion(pages.start), pages.len()),
        })
    }

    fn pin_with(
        self: &Arc<Self>,
        range: Range<usize>,
        caller: &Caller<'_>,
        populate: impl Fn(&Range<usize>) -> Result<(), SysError>,
    ) -> Result<Pin, PinError> {
        if self.protocol.is_inherited() {
            return Err(PinError::Forked);
        }
        let (len, page) = (self.len, self.page);
        if range.start >= range.end || range.end > len {
            return Err(PinError::OutOfRange { start: range.start, end: range.end, len });
        }
        let start = range.start / page * page;
        let pages = start..range.end.next_multiple_of(page);
        let pinned = self.protocol.on_behalf(caller, || {
            // Counted first: from here on the pages stay. While a revocation drains, no pin is counted.
            self.protocol.pin().then(|| {
                let pin = Pin { region: Arc::clone(self), range: pages.clone(), holder: None };
                populate(&pages).map(|()| pin)
            })
        });
        match pinned {
            // What the device does later is not the region's to prevent.
            Ok(_) if self.is_off() => Err(PinError::Disabled),
            Ok(Ok(pin)) => Ok(pin),
            Ok(Err(e)) => Err(PinError::NoMemory(e)),
            Err(NotResolved::WouldBlock) => Err(PinError::WouldBlock),
            Err(NotResolved::WouldDeadlock) => Err(PinError::WouldDeadlock),
            Err(NotResolved::Sigbus) => Err(PinError::Disabled),
            Err(NotResolved::Killed) => Err(PinError::Cancelled),
            Err(NotResolved::Reentrant) => Err(PinError::Reentrant),
            Err(NotResolved::Illegal(flags)) => Err(PinError::Flags(flags)),
        }
    }
}

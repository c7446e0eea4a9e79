//! Subscriptions of notifiers to regions.

use super::Region;
use super::core::RegionCore;
use super::notify::{InvalidateNotifier, Subscriber};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A notifier's subscription to a region. Once this is dropped, the notifier is told nothing more.
///
/// Dropping it waits for a call of the notifier that another thread is making. Inside any notifier it does not wait: two
/// threads in each other's notifiers would wait for each other.
///
/// ```
/// use revocable_mmio::{InvalidateNotifier, NotifyError};
/// use std::ops::Range;
/// use std::sync::Arc;
///
/// struct Log;
/// impl InvalidateNotifier for Log {
///     fn before_revoke(&self, range: Range<usize>) -> Result<(), NotifyError> {
///         println!("{range:?} goes away");
///         Ok(())
///     }
///     fn after_restore(&self, range: Range<usize>) -> Result<(), NotifyError> {
///         println!("{range:?} is back");
///         Ok(())
///     }
/// }
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// let subscription = region.subscribe(0..4096, Arc::new(Log));
/// assert_eq!(subscription.range(), 0..4096);
/// region.disable()?;
/// assert!(subscription.is_revoked());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "a subscription that is dropped at once hears nothing"]
pub struct Subscription {
    region: Arc<RegionCore>,
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    pub(crate) fn new(region: &Arc<RegionCore>, range: Range<usize>, notifier: Arc<dyn InvalidateNotifier>) -> Self {
        let end = range.end.min(region.len);
        let range = range.start.min(end)..end;
        let subscriber = region.notifiers.add(range, notifier);
        Self { region: Arc::clone(region), subscriber }
    }

    /// The range that was subscribed to: offsets in the region, in bytes.
    pub fn range(&self) -> Range<usize> {
        self.subscriber.range.clone()
    }

    /// True if the last that the notifier was told of is a revocation. Asked right after subscribing, it says which of the
    /// two calls will come first.
    pub fn is_revoked(&self) -> bool {
        self.subscriber.revoked.load(Ordering::Relaxed)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.region.protocol.is_inherited() {
            // A forked child's: no change of state tells it anything, and its locks may be held for ever.
            return;
        }
        self.region.notifiers.remove(&self.subscriber);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("region", &self.region.name)
            .field("range", &self.subscriber.range)
            .field("revoked", &self.is_revoked())
            .finish_non_exhaustive()
    }
}

impl Region {
    /// Tells `notifier` of every revocation of `range` (offsets in bytes, cut to the region's length) and of its end, until
    /// the returned subscription is dropped. Regions are revoked whole; the range is passed on to the notifier, so that it
    /// knows which memory is meant.
    ///
    /// ```
    /// # use revocable_mmio::{InvalidateNotifier, NotifyError};
    /// # struct Memslot;
    /// # impl InvalidateNotifier for Memslot {
    /// #     fn before_revoke(&self, _: std::ops::Range<usize>) -> Result<(), NotifyError> { Ok(()) }
    /// #     fn after_restore(&self, _: std::ops::Range<usize>) -> Result<(), NotifyError> { Ok(()) }
    /// # }
    /// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
    /// let memslot = std::sync::Arc::new(Memslot); // implements InvalidateNotifier
    /// let told = region.subscribe(0..region.len(), memslot);
    /// region.disable()?; // before_revoke() comes first, then the mappings go
    /// region.enable()?; // the mappings come back, then after_restore()
    /// drop(told); // and no more
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn subscribe(&self, range: Range<usize>, notifier: Arc<dyn InvalidateNotifier>) -> Subscription {
        Subscription::new(&self.shared.core, range, notifier)
    }
}

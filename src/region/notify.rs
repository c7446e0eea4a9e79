//! Invalidation notifiers: code that keeps region memory reachable by other ways than a mapping is told of a revocation
//! before it happens, and of its end afterwards.
//!
//! The order is the kernel's (`mmu_notifier`, `dma_buf_invalidate_mappings`): memslots and IOMMUs are told first, then new
//! guards and pins are refused and the old ones are waited for, then the mappings are zapped. On the way back the mappings
//! come first. Subscribers are told in the order in which they subscribed, and in reverse on the way back.
//!
//! Each subscriber is told strictly in turn: revoked, restored, revoked. A subscriber to a region that is not reachable is
//! told of its restoration first. A revocation that fails after it was announced is taken back with
//! [`after_restore`](InvalidateNotifier::after_restore).
//!
//! A reset counts as a revocation, unless the subscriber tells the two apart
//! ([`before_reset`](InvalidateNotifier::before_reset)).

use crate::protocol::Told;
use crate::stats::count;
use crate::sync::inside::{self, Mutex};
use crate::users::{Calling, Theirs, discard, guarded};
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The error of a notifier. It is counted in [`RegionStats`](crate::RegionStats) and does not stop a revocation.
pub type NotifyError = Box<dyn Error + Send + Sync>;

/// Is told of revocations; see [`Region::subscribe`](crate::Region::subscribe).
///
/// Both methods run in the thread that changes the region's state. They must not change the state of that region
/// ([`RevokeError::Reentrant`](crate::RevokeError::Reentrant)), nor wait for another thread that does. Errors and panics
/// are counted and go no further: whatever a notifier does, the region is revoked as requested.
///
/// ```
/// use revocable_mmio::{InvalidateNotifier, NotifyError};
/// use std::ops::Range;
///
/// /// A BAR that an IOMMU maps for another device's DMA.
/// struct PeerToPeer {
///     iova: u64,
/// }
///
/// impl InvalidateNotifier for PeerToPeer {
///     fn before_revoke(&self, range: Range<usize>) -> Result<(), NotifyError> {
///         iommu_unmap(self.iova + range.start as u64, range.len())?; // must be done when this returns
///         Ok(())
///     }
///
///     fn after_restore(&self, range: Range<usize>) -> Result<(), NotifyError> {
///         iommu_map(self.iova + range.start as u64, range.len())?; // an error is counted, and stops nothing
///         Ok(())
///     }
///
///     fn before_reset(&self, range: Range<usize>) -> Result<(), NotifyError> {
///         self.before_revoke(range) // as by default: DMA must not reach a device under reset
///     }
///
///     fn stays_revoked(&self, _: Range<usize>) -> Result<(), NotifyError> {
///         Ok(println!("out of the IOMMU until enable()"))
///     }
/// }
/// # fn iommu_unmap(_: u64, _: usize) -> Result<(), std::io::Error> { Ok(()) }
/// # fn iommu_map(_: u64, _: usize) -> Result<(), std::io::Error> { Ok(()) }
/// # let region = revocable_mmio::Region::builder(4096).build()?;
/// # let _told = region.subscribe(0..4096, std::sync::Arc::new(PeerToPeer { iova: 0 }));
/// # region.disable()?;
/// # assert_eq!(region.stats().notifier_errors, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait InvalidateNotifier: Send + Sync {
    /// The memory of `range` (offsets in the region, in bytes) is about to go away. It is still reachable, and the state is
    /// as before. Once this returns, nothing may reach the memory by the subscriber's own ways.
    ///
    /// # Errors
    /// The error is counted.
    fn before_revoke(&self, range: Range<usize>) -> Result<(), NotifyError>;

    /// The memory of `range` is reachable again, through the same mappings.
    ///
    /// # Errors
    /// The error is counted.
    fn after_restore(&self, range: Range<usize>) -> Result<(), NotifyError>;

    /// As [`before_revoke`](Self::before_revoke), for a change after which the memory is expected back: a reset, or a
    /// write to a device's configuration space whose outcome is not known yet. Accesses wait meanwhile, and none is refused.
    /// By default it is told as a revocation.
    ///
    /// # Errors
    /// The error is counted.
    fn before_reset(&self, range: Range<usize>) -> Result<(), NotifyError> {
        self.before_revoke(range)
    }

    /// The change that was told with [`before_reset`](Self::before_reset) has ended, and the memory of `range` does not
    /// come back with it: the region is disabled. It is not reachable any more. By default nothing is done.
    ///
    /// # Errors
    /// The error is counted.
    fn stays_revoked(&self, _range: Range<usize>) -> Result<(), NotifyError> {
        Ok(())
    }
}

/// The subscribers of a region.
pub(crate) struct Notifiers {
    list: Mutex<List>,
    pub(crate) errors: AtomicU64,
    pub(crate) panics: AtomicU64,
}

struct List {
    /// True if subscribers were last told of a revocation.
    revoked: bool,
    subscribers: Vec<Arc<Subscriber>>,
}

/// A notifier that has subscribed.
pub(super) struct Subscriber {
    notifier: Theirs<dyn InvalidateNotifier>,
    pub(super) range: Range<usize>,
    /// Held while the subscriber is being told, so that unsubscribing waits for that (and for nothing else: see
    /// `Subscription`).
    calling: parking_lot::Mutex<()>,
    gone: AtomicBool,
    pub(super) revoked: AtomicBool,
    /// What it was last told is `before_reset`. Relaxed: only the thread that changes the region's state uses it.
    undecided: AtomicBool,
}

impl Notifiers {
    pub(crate) fn new(enabled: bool) -> Self {
        let list = List { revoked: !enabled, subscribers: Vec::new() };
        Self { list: Mutex::new(list), errors: AtomicU64::new(0), panics: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, range: Range<usize>, notifier: Arc<dyn InvalidateNotifier>) -> Arc<Subscriber> {
        let mut list = self.list.lock();
        let subscriber = Arc::new(Subscriber {
            notifier: Theirs::new(notifier),
            range,
            calling: parking_lot::Mutex::new(()),
            gone: AtomicBool::new(false),
            revoked: AtomicBool::new(list.revoked),
            undecided: AtomicBool::new(false),
        });
        list.subscribers.push(Arc::clone(&subscriber));
        subscriber
    }

    /// When this returns, the subscriber is told nothing more. The exception is a call that another thread is making while
    /// this thread is in a notifier itself.
    pub(super) fn remove(&self, subscriber: &Arc<Subscriber>) {
        // The caller holds it too: nothing of the user's is dropped under the list's lock.
        self.list.lock().subscribers.retain(|known| !Arc::ptr_eq(known, subscriber));
        subscriber.gone.store(true, Ordering::Relaxed);
        if !Calling::is_any() {
            // A changer may wait for this thread to release it.
            let _inside = inside::enter();
            drop(subscriber.calling.lock());
        }
    }

    pub(crate) fn before_revoke(&self, told: Told) {
        for subscriber in self.turn(true) {
            subscriber.undecided.store(told == Told::Undecided, Ordering::Relaxed);
            self.tell(&subscriber, |notifier, range| match told {
                Told::Revoked => notifier.before_revoke(range),
                Told::Undecided => notifier.before_reset(range),
            });
        }
    }

    pub(crate) fn after_restore(&self) {
        for subscriber in self.turn(false).into_iter().rev() {
            subscriber.undecided.store(false, Ordering::Relaxed);
            self.tell(&subscriber, InvalidateNotifier::after_restore);
        }
    }

    pub(crate) fn stays_revoked(&self) {
        let undecided = |s: &&Arc<Subscriber>| s.undecided.swap(false, Ordering::Relaxed);
        let turn: Vec<_> = self.list.lock().subscribers.iter().filter(undecided).cloned().collect();
        for subscriber in turn {
            self.tell(&subscriber, InvalidateNotifier::stays_revoked);
        }
    }

    /// The subscribers whose turn it is. They are told after the list's lock is released: they may subscribe others.
    fn turn(&self, revoked: bool) -> Vec<Arc<Subscriber>> {
        let mut list = self.list.lock();
        list.revoked = revoked;
        // Relaxed: changed under the list's lock by the only thread that changes the region's state.
        let waiting = |s: &&Arc<Subscriber>| s.revoked.load(Ordering::Relaxed) != revoked;
        let turn: Vec<_> = list.subscribers.iter().filter(waiting).cloned().collect();
        for subscriber in &turn {
            subscriber.revoked.store(revoked, Ordering::Relaxed);
        }
        turn
    }

    fn tell(
        &self,
        subscriber: &Subscriber,
        what: impl FnOnce(&(dyn InvalidateNotifier + 'static), Range<usize>) -> Result<(), NotifyError>,
    ) {
        let _calling = subscriber.calling.lock();
        // Relaxed: the unsubscribing thread sets it, then waits for the lock just taken, or does not wait at all.
        if subscriber.gone.load(Ordering::Relaxed) {
            return;
        }
        let _inside = Calling::of(subscriber);
        let range = subscriber.range.clone();
        let told = guarded(|| what(&*subscriber.notifier, range));
        match told {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                count(&self.errors);
                discard(error);
            }
            None => count(&self.panics),
        }
    }
}

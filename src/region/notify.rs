//! Invalidation notifiers: who keeps region memory reachable by other ways than a mapping hears of a revocation before
//! it happens, and of its end after it.
//!
//! The order is the kernel's (`mmu_notifier`, `dma_buf_invalidate_mappings`): memslots and IOMMUs are told first, then
//! no new guards and pins come in and the old ones are waited for, then the mappings are zapped. On the way back the
//! mappings come first. Subscribers are told in the order in which they subscribed, and in reverse on the way back.
//!
//! Each subscriber hears strictly in turn, revoked, restored, revoked; one that subscribes to a region that is not
//! reachable hears of its restoration first. A revocation that fails after it was announced is taken back with
//! [`after_restore`](InvalidateNotifier::after_restore).

use crate::region::{Region, RegionShared};
use crate::stats::count;
use crate::sync::inside::{self, Mutex};
use crate::users::{Inside, Theirs, discard, guarded};
use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a notifier may fail with; counted in [`RegionStats`](crate::RegionStats), and no reason to stop a revocation.
pub type NotifyError = Box<dyn Error + Send + Sync>;

/// Hears of revocations; see [`Region::subscribe`].
///
/// Both methods run in the thread that changes the region's state. They must not change the state of that region
/// ([`RevokeError::Reentrant`](crate::RevokeError::Reentrant)), nor wait for another thread that does. Errors and panics
/// are counted and go no further: whatever a notifier does, the region is revoked when it was asked to be.
pub trait InvalidateNotifier: Send + Sync {
    /// The memory of `range` (offsets in the region, in bytes) is about to go away. It is still reachable, and the state
    /// is as before. When this returns, nothing must reach the memory by the subscriber's own ways.
    ///
    /// # Errors
    /// Counted.
    fn before_revoke(&self, range: Range<usize>) -> Result<(), NotifyError>;

    /// The memory of `range` is reachable again, through the same mappings.
    ///
    /// # Errors
    /// Counted.
    fn after_restore(&self, range: Range<usize>) -> Result<(), NotifyError>;
}

/// The subscribers of a region.
pub(crate) struct Notifiers {
    list: Mutex<List>,
    pub(crate) errors: AtomicU64,
    pub(crate) panics: AtomicU64,
}

struct List {
    /// Was the last thing that subscribers were to hear a revocation?
    revoked: bool,
    subscribers: Vec<Arc<Subscriber>>,
}

struct Subscriber {
    notifier: Theirs<dyn InvalidateNotifier>,
    range: Range<usize>,
    /// Held while it is being told, so that unsubscribing waits for that (and for nothing else: see `Subscription`).
    calling: parking_lot::Mutex<()>,
    gone: AtomicBool,
    revoked: AtomicBool,
}

impl Notifiers {
    pub(crate) fn new(enabled: bool) -> Self {
        let list = List { revoked: !enabled, subscribers: Vec::new() };
        Self { list: Mutex::new(list), errors: AtomicU64::new(0), panics: AtomicU64::new(0) }
    }

    pub(crate) fn before_revoke(&self) {
        for subscriber in self.turn(true) {
            self.tell(&subscriber, true);
        }
    }

    pub(crate) fn after_restore(&self) {
        for subscriber in self.turn(false).into_iter().rev() {
            self.tell(&subscriber, false);
        }
    }

    /// Whose turn it is. No lock of the list is held while they are told: they may subscribe others.
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

    fn tell(&self, subscriber: &Subscriber, revoked: bool) {
        let _calling = subscriber.calling.lock();
        // Relaxed: the unsubscribing thread sets it, then waits for the lock just taken, or does not wait.
        if subscriber.gone.load(Ordering::Relaxed) {
            return;
        }
        let _inside = Inside::of(subscriber);
        let range = subscriber.range.clone();
        let told = guarded(|| match revoked {
            true => subscriber.notifier.before_revoke(range),
            false => subscriber.notifier.after_restore(range),
        });
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

/// A notifier's place at a region; it hears nothing more once this is dropped.
///
/// Dropping it waits for a call of the notifier that another thread is making. From inside a notifier, whosever, it does not: two
/// threads in each other's notifiers would wait for each other.
#[must_use = "a subscription that is dropped at once hears nothing"]
pub struct Subscription {
    region: Arc<RegionShared>,
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    pub(crate) fn new(region: &Arc<RegionShared>, range: Range<usize>, notifier: Arc<dyn InvalidateNotifier>) -> Self {
        let end = range.end.min(region.len);
        let range = range.start.min(end)..end;
        let mut list = region.notifiers.list.lock();
        let subscriber = Arc::new(Subscriber {
            notifier: Theirs::new(notifier),
            range,
            calling: parking_lot::Mutex::new(()),
            gone: AtomicBool::new(false),
            revoked: AtomicBool::new(list.revoked),
        });
        list.subscribers.push(Arc::clone(&subscriber));
        drop(list);
        Self { region: Arc::clone(region), subscriber }
    }

    /// What it is about: offsets in the region, in bytes.
    pub fn range(&self) -> Range<usize> {
        self.subscriber.range.clone()
    }

    /// Is its memory not reachable, as far as the notifier has heard? Asked right after subscribing, it says which of
    /// the two it will hear first.
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
        // `self` has it too: nothing of the user's is dropped under the list's lock.
        self.region.notifiers.list.lock().subscribers.retain(|s| !Arc::ptr_eq(s, &self.subscriber));
        self.subscriber.gone.store(true, Ordering::Relaxed);
        if !Inside::is_any() {
            // A changer may wait for this thread to let go of it.
            let _inside = inside::enter();
            drop(self.subscriber.calling.lock());
        }
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
    /// Has `notifier` told of every revocation of `range` (offsets in bytes, cut to the region's length) and of its end,
    /// until the answer is dropped. Regions are revoked whole; the range is what the notifier is told, and remembers
    /// what it is about.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn subscribe(&self, range: Range<usize>, notifier: Arc<dyn InvalidateNotifier>) -> Subscription {
        Subscription::new(&self.shared, range, notifier)
    }
}

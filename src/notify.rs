//! Invalidation notifiers: those who keep a region's memory reachable by ways of their own (memslots, IOMMUs) are told
//! before it goes away and after it is back.

use crate::region::{Region, RegionShared};
use parking_lot::Mutex;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

/// Who is told when a region's memory goes away and comes back; see [`Region::subscribe`].
///
/// Both are called on the thread that changes the region's state, one at a time, while no other change is under way.
/// Neither may change the state of the same region ([`RevokeError::Reentrant`](crate::RevokeError::Reentrant)).
pub trait InvalidateNotifier: Send + Sync {
    /// The memory of `range` (bytes of the region) is about to be revoked. It is still reachable, faults in it are
    /// still resolved. When this returns, nothing that the notifier answers for reaches it any more.
    fn before_revoke(&self, range: Range<usize>);

    /// The memory of `range` is reachable again.
    fn after_restore(&self, range: Range<usize>);
}

struct Entry {
    range: Range<usize>,
    /// Locked while a call is under way; `None` once unsubscribed.
    notifier: Mutex<Option<Arc<dyn InvalidateNotifier>>>,
}

/// A region's notifiers, in the order in which they subscribed.
#[derive(Default)]
pub(crate) struct Notifiers(Mutex<Vec<Arc<Entry>>>);

impl Notifiers {
    pub(crate) fn before_revoke(&self) {
        // Called without the list's lock: a notifier may subscribe another.
        let entries = self.0.lock().clone();
        for entry in entries {
            entry.tell(|notifier, range| notifier.before_revoke(range));
        }
    }

    pub(crate) fn after_restore(&self) {
        let entries = self.0.lock().clone();
        for entry in entries.into_iter().rev() {
            entry.tell(|notifier, range| notifier.after_restore(range));
        }
    }
}

impl Entry {
    fn tell(&self, call: impl FnOnce(&dyn InvalidateNotifier, Range<usize>)) {
        if let Some(notifier) = &*self.notifier.lock() {
            // A panic must not leave the rest untold, nor the region half revoked.
            let _ = catch_unwind(AssertUnwindSafe(|| call(&**notifier, self.range.clone())));
        }
    }
}

/// Keeps a notifier subscribed. Dropping it waits for a call that is under way.
#[must_use = "dropped at once, it unsubscribes at once"]
pub struct Subscription {
    region: Weak<RegionShared>,
    entry: Arc<Entry>,
}

impl Subscription {
    pub(crate) fn new(region: &Arc<RegionShared>, range: Range<usize>, notifier: Arc<dyn InvalidateNotifier>) -> Self {
        let entry = Arc::new(Entry { range, notifier: Mutex::new(Some(notifier)) });
        region.notifiers.0.lock().push(Arc::clone(&entry));
        Self { region: Arc::downgrade(region), entry }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(region) = self.region.upgrade() {
            region.notifiers.0.lock().retain(|entry| !Arc::ptr_eq(entry, &self.entry));
        }
        *self.entry.notifier.lock() = None;
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("range", &self.entry.range).finish_non_exhaustive()
    }
}

impl Region {
    /// Has `notifier` told whenever the memory of `range` (bytes of the region) goes away and comes back, until the
    /// subscription is dropped.
    pub fn subscribe(&self, range: Range<usize>, notifier: Arc<dyn InvalidateNotifier>) -> Subscription {
        Subscription::new(&self.shared, range, notifier)
    }
}

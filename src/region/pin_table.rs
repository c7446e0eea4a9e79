//! Who holds pins and wants to be told of revocations.

use crate::sync::inside::Mutex;
use crate::users::{Theirs, guarded};

pub(super) type Told = Theirs<dyn Fn() + Send + Sync>;

/// The holders of pins that want to be told.
#[derive(Default)]
pub(crate) struct PinTable {
    holders: Mutex<PinHolders>,
}

#[derive(Default)]
struct PinHolders {
    next: u64,
    told: Vec<(u64, Told)>,
}

impl PinTable {
    /// Tells every holder. None of the table's locks is held meanwhile: a holder may drop its pin at once.
    pub(crate) fn tell(&self) {
        let told: Vec<Told> = self.holders.lock().told.iter().map(|(_, told)| told.clone()).collect();
        for holder in told {
            // A holder's panic is its own; the revocation goes on, and waits for the pin all the same.
            let _ = guarded(&*holder);
        }
    }

    pub(super) fn add(&self, told: Told) -> u64 {
        let mut holders = self.holders.lock();
        holders.next += 1;
        let id = holders.next;
        holders.told.push((id, told));
        id
    }

    /// What the holder handed in, to be dropped when no lock is held and the pin has ended: it may drop other pins, and
    /// change the region's state.
    #[must_use]
    pub(super) fn remove(&self, id: u64) -> Option<Told> {
        let mut holders = self.holders.lock();
        let at = holders.told.iter().position(|(known, _)| *known == id)?;
        Some(holders.told.remove(at).1)
    }
}

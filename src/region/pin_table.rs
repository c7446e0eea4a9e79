//! The holders of pins that are told of revocations.

use crate::sync::inside::Mutex;
use crate::users::{Theirs, guarded};

pub(super) type Told = Theirs<dyn Fn() + Send + Sync>;

/// The callbacks of the holders of pins.
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
    /// Tells every holder. The table's lock is not held meanwhile: a holder may drop its pin at once.
    pub(crate) fn tell(&self) {
        let told: Vec<Told> = self.holders.lock().told.iter().map(|(_, told)| told.clone()).collect();
        for holder in told {
            // A panic of a holder does not stop the revocation, which waits for the pin all the same.
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

    /// Returns the holder's callback. The caller drops it once no lock is held and the pin has ended: its destructor may
    /// drop other pins, and change the region's state.
    #[must_use]
    pub(super) fn remove(&self, id: u64) -> Option<Told> {
        let mut holders = self.holders.lock();
        let at = holders.told.iter().position(|(known, _)| *known == id)?;
        Some(holders.told.remove(at).1)
    }
}

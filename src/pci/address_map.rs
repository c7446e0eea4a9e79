//! What follows a device's BARs through the guest's address space: memslots, an MMIO bus, an IOMMU.

use super::decode::{BarPlace, Decoder, SLOTS, slot_of};
use super::error::PciError;
use crate::sync::inside::Mutex;
use crate::sys::identity::Identity;
use crate::users::{Theirs, guarded};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Is told where a device's BARs are decoded; see [`PciDevice::follow`](super::PciDevice::follow).
///
/// The calls are made by the thread that writes the register, one at a time for a device, without any lock of the crate.
/// From inside one, the device's registers cannot be written ([`PciError::Reentrant`]). Every place that was inserted is
/// removed before the BAR is inserted at another.
pub trait AddressMap: Send + Sync {
    /// The BAR is decoded there from now on. If the device's memory comes back with the same change, this is before.
    ///
    /// # Errors
    /// Nothing is there. The BAR is decoded nowhere, for no other map either, until it moves again or
    /// [`PciDevice::retry_places`](super::PciDevice::retry_places) succeeds. A panic counts as an error.
    fn insert(&self, place: &BarPlace) -> io::Result<()>;

    /// The BAR is no longer decoded there. If the device's memory goes with the same change, this is after it is gone.
    fn remove(&self, place: &BarPlace);

    /// For a map that leaves something at a place that was removed: it goes now, unless the BAR was inserted since. The
    /// device's memory is about to come back, or the map follows no longer.
    fn settle(&self) {}
}

/// The maps that follow a device, in the order in which they began to. They are the process's that made the device.
pub(super) struct Followers {
    list: Mutex<Vec<Arc<Follower>>>,
    process: Identity,
}

pub(super) struct Follower {
    map: Theirs<dyn AddressMap>,
    /// What it has. Changed by the holder of the device's turn only, and at the end.
    places: Mutex<[Option<BarPlace>; SLOTS]>,
    gone: AtomicBool,
}

impl Default for Followers {
    fn default() -> Self {
        Self { list: Mutex::default(), process: Identity::current() }
    }
}

impl Followers {
    /// False in a forked child: the maps are its parent's.
    pub(super) fn are_of_this_process(&self) -> bool {
        self.process.is_current()
    }

    /// Adds a map, with the places as they are now, or does not. The caller has the turn.
    pub(super) fn add(&self, map: Arc<dyn AddressMap>, now: &Decoder) -> Result<Arc<Follower>, PciError> {
        let follower =
            Arc::new(Follower { map: Theirs::new(map), places: Mutex::default(), gone: AtomicBool::new(false) });
        for place in now.places() {
            follower.insert(&place).inspect_err(|_| follower.leave())?;
        }
        self.list.lock().push(Arc::clone(&follower));
        Ok(follower)
    }

    pub(super) fn forget(&self, follower: &Arc<Follower>) {
        // The caller has it too: nothing of the user's is dropped under the lock.
        self.list.lock().retain(|known| !Arc::ptr_eq(known, follower));
    }

    /// Inserts a place everywhere, or nowhere.
    pub(super) fn insert(&self, place: &BarPlace) -> Result<(), PciError> {
        let followers = self.list.lock().clone();
        for (at, follower) in followers.iter().enumerate() {
            follower.insert(place).inspect_err(|_| {
                followers[..at].iter().rev().for_each(|before| before.remove(place));
            })?;
        }
        Ok(())
    }

    pub(super) fn remove(&self, place: &BarPlace) {
        let followers = self.list.lock().clone();
        followers.iter().rev().for_each(|follower| follower.remove(place));
    }

    /// Memory is about to come back: nothing is to be reached but at the places that were inserted.
    pub(super) fn settle(&self) {
        let followers = self.list.lock().clone();
        followers.iter().rev().for_each(|follower| follower.settle());
    }
}

impl Drop for Followers {
    /// The device is gone, and its memory was before this.
    fn drop(&mut self) {
        let followers = std::mem::take(self.list.get_mut());
        if !self.process.is_current() {
            // Another thread of the parent's may have been changing the list when the child was made: it is not fit to be
            // dropped.
            std::mem::forget(followers);
            return;
        }
        followers.iter().rev().for_each(|follower| follower.leave());
    }
}

impl Follower {
    fn insert(&self, place: &BarPlace) -> Result<(), PciError> {
        if self.gone.load(Ordering::Acquire) {
            return Ok(());
        }
        let refused = |source| PciError::Place { place: *place, source };
        match guarded(|| self.map.insert(place)) {
            Some(Ok(())) => {
                self.set(place, Some(*place));
                // It stopped following meanwhile: in that very call, or by a thread that could not wait for its end.
                if self.gone.load(Ordering::Acquire) {
                    self.remove(place);
                    self.settle();
                }
                Ok(())
            }
            Some(Err(source)) => Err(refused(source)),
            None => {
                // It may be there all the same.
                let _ = guarded(|| self.map.remove(place));
                Err(refused(io::Error::other("it panicked")))
            }
        }
    }

    /// Removes the place if it is there.
    fn remove(&self, place: &BarPlace) {
        if self.set(place, None) == Some(*place) {
            let _ = guarded(|| self.map.remove(place));
        }
    }

    fn settle(&self) {
        let _ = guarded(|| self.map.settle());
    }

    fn set(&self, place: &BarPlace, to: Option<BarPlace>) -> Option<BarPlace> {
        let mut places = self.places.lock();
        slot_of(place.space).and_then(|slot| std::mem::replace(&mut places[slot], to))
    }

    /// Removes every place, for good.
    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        let places = std::mem::take(&mut *self.places.lock());
        for place in places.iter().flatten().rev() {
            let _ = guarded(|| self.map.remove(place));
        }
        self.settle();
    }
}

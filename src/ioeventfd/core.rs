//! The part of a BAR's ioeventfds that follows its region's state.

use super::error::IoEventFdError;
use super::vm::{IoEvent, SetIoEventFd, Width};
use crate::protocol::error::RevokeError;
use crate::region::core::RegionCore;
use crate::region::notify::{InvalidateNotifier, NotifyError};
use crate::region::placed::{Place, Placed, Refused};
use crate::sys::{SysError, may_fail};
use crate::users::{Theirs, guarded};
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CALL: &str = "SetIoEventFd";

pub(super) type OnError = dyn Fn(&IoEventFdError) + Send + Sync;

/// One ioeventfd.
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) width: Width,
    pub(super) value: Option<u64>,
    pub(super) eventfd: OwnedFd,
    /// Where it is registered. Changed by the one thread at a time that `Placed` lets change anything.
    pub(super) at: Mutex<Option<u64>>,
    pub(super) gone: AtomicBool,
}

impl Entry {
    fn at(&self, gpa: u64) -> IoEvent<'_> {
        IoEvent { gpa, width: self.width, value: self.value, eventfd: self.eventfd.as_fd() }
    }
}

pub(super) struct Core {
    pub(super) vm: Theirs<dyn SetIoEventFd>,
    pub(super) region: Arc<RegionCore>,
    /// Where they are wished.
    pub(super) gpa: Mutex<u64>,
    /// The last place that was not refused.
    accepted: Mutex<u64>,
    pub(super) list: Mutex<Vec<Arc<Entry>>>,
    pub(super) on_error: RwLock<Option<Theirs<OnError>>>,
    placed: Placed,
}

impl Core {
    pub(super) fn new(vm: Theirs<dyn SetIoEventFd>, region: Arc<RegionCore>, gpa: u64) -> Self {
        let (list, on_error, placed) = (Mutex::default(), RwLock::default(), Placed::default());
        Self { vm, region, gpa: Mutex::new(gpa), accepted: Mutex::new(gpa), list, on_error, placed }
    }

    /// # Errors
    /// In a forked child: the ioeventfds are its parent's, and another thread there may have been changing them.
    pub(super) fn own(&self) -> Result<(), IoEventFdError> {
        if self.region.protocol.is_inherited() { Err(RevokeError::Forked.into()) } else { Ok(()) }
    }

    /// Makes a wish, and registers and withdraws until everything is as wished, as far as possible.
    ///
    /// # Errors
    /// The first refusal.
    pub(super) fn change(&self, wish: impl FnOnce(&mut Place)) -> Result<(), IoEventFdError> {
        self.own()?;
        let _inside = self.region.protocol.inside();
        // What was refused is not tried again by itself: as far as possible it is as wanted.
        let changed = self.placed.change_as(wish, |wanted| (wanted, self.settle_or_stay(wanted)));
        changed.map(drop).map_err(|refused| match refused {
            Refused::By(error) => error,
            Refused::Panicked => IoEventFdError::Vm { gpa: *self.gpa.lock(), source: SysError::new(CALL, Errno::EIO) },
        })
    }

    /// [`change`](Self::change) with everything looked at again.
    pub(super) fn change_anew(&self, wish: impl FnOnce()) -> Result<(), IoEventFdError> {
        self.change(|place| {
            wish();
            place.anew = true;
        })
    }

    /// Tries again what was refused.
    pub(super) fn settle_again(&self) -> Result<(), IoEventFdError> {
        self.change_anew(|| ())
    }

    /// If a place is refused, all of them go back to the one before. No other thread can make a wish meanwhile; the user's
    /// code may have made one, which stays.
    fn settle_or_stay(&self, wanted: bool) -> Result<(), IoEventFdError> {
        let tried = *self.gpa.lock();
        let accepted = *self.accepted.lock();
        let settled = self.settle(wanted, tried);
        if settled.is_ok() {
            *self.accepted.lock() = tried;
        } else if tried != accepted {
            let mut gpa = self.gpa.lock();
            if *gpa == tried {
                *gpa = accepted;
            }
            drop(gpa);
            let _ = self.settle(wanted, accepted);
        }
        settled
    }

    fn settle(&self, wanted: bool, gpa: u64) -> Result<(), IoEventFdError> {
        let entries = self.list.lock().clone();
        let mut first = Ok(());
        let wished = |entry: &Entry| (wanted && !entry.gone.load(Ordering::Relaxed)).then(|| gpa + entry.offset);
        // All that goes before all that comes: with a BAR that moves a little, one's new place is another's old one.
        for entry in &entries {
            let there = *entry.at.lock();
            if let Some(there) = there.filter(|there| wished(entry) != Some(*there)) {
                let withdrawn = self.vm.withdraw(&entry.at(there)).map(|()| *entry.at.lock() = None);
                first = first.and(withdrawn.map_err(|e| refused(there, &e)));
            }
        }
        for entry in &entries {
            let there = *entry.at.lock();
            if let (None, Some(wished)) = (there, wished(entry)) {
                let tried = may_fail(CALL).map_err(|source| IoEventFdError::Vm { gpa: wished, source });
                let assigned = tried.and_then(|()| self.vm.assign(&entry.at(wished)).map_err(|e| refused(wished, &e)));
                first = first.and(assigned.map(|()| *entry.at.lock() = Some(wished)));
            }
        }
        first
    }

    fn follow(&self, revoked: bool) -> Result<(), NotifyError> {
        let followed = self.change(|place| {
            place.revoked = revoked;
            place.wanted = !revoked && !place.gone;
        });
        followed.map_err(|error| {
            let told = self.on_error.read().clone();
            if let Some(told) = told {
                let _ = guarded(|| told(&error));
            }
            error.into()
        })
    }
}

fn refused(gpa: u64, error: &std::io::Error) -> IoEventFdError {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    IoEventFdError::Vm { gpa, source: SysError::new(CALL, errno) }
}

impl InvalidateNotifier for Core {
    fn before_revoke(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.follow(true)
    }

    fn before_reset(&self, _: Range<usize>) -> Result<(), NotifyError> {
        // A signal is kept by the eventfd, for the device to see after the reset.
        Ok(())
    }

    fn stays_revoked(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.follow(true)
    }

    fn after_restore(&self, _: Range<usize>) -> Result<(), NotifyError> {
        self.follow(false)
    }
}

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
use std::cell::RefCell;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CALL: &str = "SetIoEventFd";
const PANICKED: SysError = SysError { call: CALL, errno: Errno::EIO };

pub(super) type OnError = dyn Fn(&IoEventFdError) + Send + Sync;

/// An ioeventfd that the hypervisor refused to register or to withdraw.
pub(super) type Refusal = (Arc<Entry>, IoEventFdError);

/// One ioeventfd.
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) width: Width,
    pub(super) value: Option<u64>,
    pub(super) eventfd: OwnedFd,
    /// Where it is registered. Changed by the one thread at a time that `Placed` lets change anything.
    at: Mutex<Option<u64>>,
    /// It is being added: if it is refused, it is gone.
    trial: AtomicBool,
    /// It is to be withdrawn for good. Ends if that is refused; else the entry leaves the list when it is withdrawn.
    gone: AtomicBool,
}

impl Entry {
    pub(super) fn new(offset: u64, width: Width, value: Option<u64>, eventfd: OwnedFd) -> Arc<Self> {
        let (at, trial, gone) = (Mutex::new(None), AtomicBool::new(true), AtomicBool::new(false));
        Arc::new(Self { offset, width, value, eventfd, at, trial, gone })
    }

    pub(super) fn is_registered(&self) -> bool {
        self.at.lock().is_some()
    }

    /// Relaxed, here and below: these are changed and read by the one thread at a time that `Placed` lets change anything.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// From now on it stays if it is refused, to be tried again. True if it has not been tried yet.
    pub(super) fn end_trial(&self) -> bool {
        self.trial.swap(false, Ordering::Relaxed)
    }

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

    /// Makes a wish, and registers and withdraws until everything is as wished, as far as possible. Returns what the
    /// hypervisor refused, each with its ioeventfd; the first is the first refusal.
    ///
    /// # Errors
    /// In a forked child.
    pub(super) fn change(&self, wish: impl FnOnce(&mut Place)) -> Result<Vec<Refusal>, IoEventFdError> {
        self.own()?;
        let _inside = self.region.protocol.inside();
        let refusals = RefCell::default();
        // What was refused is not tried again by itself: as far as possible it is as wanted.
        let changed = self.placed.change_as(wish, |wanted| {
            self.settle_or_stay(wanted, &refusals);
            (wanted, Ok(()))
        });
        changed.map(|_| refusals.into_inner()).map_err(|refused: Refused<IoEventFdError>| match refused {
            Refused::By(error) => error,
            Refused::Panicked => IoEventFdError::Vm { gpa: *self.gpa.lock(), source: PANICKED },
        })
    }

    /// [`change`](Self::change) with everything looked at again, for the first refusal.
    ///
    /// # Errors
    /// That refusal.
    pub(super) fn change_anew(&self, wish: impl FnOnce()) -> Result<(), IoEventFdError> {
        let refusals = self.change(|place| {
            wish();
            place.anew = true;
        });
        first(refusals)
    }

    /// If a place is refused, all of them go back to the one before. No other thread can make a wish meanwhile; the user's
    /// code may have made one, which stays.
    fn settle_or_stay(&self, wanted: bool, refusals: &RefCell<Vec<Refusal>>) {
        let tried = *self.gpa.lock();
        let accepted = *self.accepted.lock();
        let refused = self.settle(wanted, tried);
        if refused.is_empty() {
            *self.accepted.lock() = tried;
        } else if tried != accepted {
            let mut gpa = self.gpa.lock();
            if *gpa == tried {
                *gpa = accepted;
            }
            drop(gpa);
            drop(self.settle(wanted, accepted));
        }
        refusals.borrow_mut().extend(refused);
    }

    fn settle(&self, wanted: bool, gpa: u64) -> Vec<Refusal> {
        let entries = self.list.lock().clone();
        let mut refusals = Vec::new();
        let wished = |entry: &Entry| (wanted && !entry.is_gone()).then(|| gpa + entry.offset);
        // All that goes before all that comes: with a BAR that moves a little, one's new place is another's old one.
        for entry in &entries {
            let there = *entry.at.lock();
            if let Some(there) = there.filter(|there| wished(entry) != Some(*there)) {
                match self.ask(there, || self.vm.withdraw(&entry.at(there))) {
                    Ok(()) => *entry.at.lock() = None,
                    Err(error) => {
                        // It stays, and follows: no later change takes it out.
                        entry.gone.store(false, Ordering::Relaxed);
                        refusals.push((Arc::clone(entry), error));
                    }
                }
            }
        }
        for entry in &entries {
            let there = *entry.at.lock();
            let trial = entry.end_trial();
            if let (None, Some(wished)) = (there, wished(entry)) {
                match self.assign(entry, wished) {
                    Ok(()) => *entry.at.lock() = Some(wished),
                    Err(error) => {
                        if trial {
                            // No later change registers it.
                            entry.leave();
                        }
                        refusals.push((Arc::clone(entry), error));
                    }
                }
            }
        }
        self.list.lock().retain(|entry| !entry.is_gone() || entry.is_registered());
        refusals
    }

    fn assign(&self, entry: &Entry, gpa: u64) -> Result<(), IoEventFdError> {
        let panicked = std::cell::Cell::new(true);
        let assigned = self.ask(gpa, || {
            let assigned = self.vm.assign(&entry.at(gpa));
            panicked.set(false);
            assigned
        });
        if assigned.is_err() && panicked.get() {
            // It may be registered all the same.
            let _ = guarded(|| self.vm.withdraw(&entry.at(gpa)));
        }
        assigned
    }

    /// Asks the hypervisor; a panic is a refusal.
    fn ask(&self, gpa: u64, call: impl FnOnce() -> std::io::Result<()>) -> Result<(), IoEventFdError> {
        let refused = |source| IoEventFdError::Vm { gpa, source };
        may_fail(CALL).map_err(refused)?;
        guarded(call).ok_or(PANICKED).and_then(|done| done.map_err(|e| errno(&e))).map_err(refused)
    }

    fn follow(&self, revoked: bool) -> Result<(), NotifyError> {
        let followed = self.change(|place| {
            place.revoked = revoked;
            place.wanted = !revoked && !place.gone;
        });
        first(followed).map_err(|error| {
            let told = self.on_error.read().clone();
            if let Some(told) = told {
                let _ = guarded(|| told(&error));
            }
            error.into()
        })
    }
}

fn errno(error: &std::io::Error) -> SysError {
    SysError::new(CALL, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

/// # Errors
/// The first refusal.
fn first(refusals: Result<Vec<Refusal>, IoEventFdError>) -> Result<(), IoEventFdError> {
    refusals?.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
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

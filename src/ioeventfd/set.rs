//! The ioeventfds of one BAR.

use super::core::{Core, Entry, OnError, Refusal};
use super::error::IoEventFdError;
use super::vm::{SetIoEventFd, Width};
use crate::protocol::gate::Phase;
use crate::region::Region;
use crate::region::subscription::Subscription;
use crate::sys::map::dup;
use crate::users::Theirs;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The ioeventfds of one BAR, in step with its region's state. Dropping it withdraws them.
///
/// # Example
/// ```
/// # use nix::sys::eventfd::EventFd;
/// use revocable_mmio::Region;
/// use revocable_mmio::ioeventfd::{IoEvent, IoEventFdError, IoEventFds, SetIoEventFd, Width};
/// use std::os::fd::AsFd;
/// use std::sync::Arc;
///
/// /// With feature `kvm` this is `kvm_ioctls::VmFd`.
/// struct Vm;
///
/// impl SetIoEventFd for Vm {
///     fn assign(&self, event: &IoEvent<'_>) -> std::io::Result<()> {
///         println!("stores of {:?} to {:#x} are signals", event.value, event.gpa);
///         Ok(())
///     }
///     fn withdraw(&self, event: &IoEvent<'_>) -> std::io::Result<()> {
///         println!("stores to {:#x} exit", event.gpa);
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let queue = EventFd::new()?;
/// let bar = Region::builder(64 << 10).build()?;
/// let doorbells = IoEventFds::new(Arc::new(Vm), &bar, 0xe000_0000)?;
/// doorbells.on_error(|refused| eprintln!("a doorbell exits, or is heard: {refused}; see retry"));
/// doorbells.add(0x1000, Width::Four, None, queue.as_fd())?;
/// bar.disable()?; // withdrawn
/// assert_eq!(doorbells.registered(), 0);
/// doorbells.move_to(0xe800_0000)?; // the guest has written the BAR's address
/// bar.enable()?; // registered again, there
/// if doorbells.registered() == 0 {
///     doorbells.retry()?; // what the hypervisor had refused
/// }
/// doorbells.remove(0x1000, Width::Four, None)?;
/// let none = doorbells.remove(0x1000, Width::Four, None);
/// assert!(matches!(none, Err(IoEventFdError::NotFound { offset: 0x1000 })));
/// # Ok(())
/// # }
/// ```
#[must_use = "dropped at once, all are withdrawn at once"]
pub struct IoEventFds {
    core: Arc<Core>,
    _subscription: Subscription,
}

impl IoEventFds {
    /// None yet, of the BAR whose memory is `region`, at guest physical address `gpa`.
    ///
    /// # Blocking
    /// Waits for a change of the region's state that is under way.
    ///
    /// # Errors
    /// [`IoEventFdError::State`], [`IoEventFdError::OutOfRange`].
    pub fn new(vm: Arc<impl SetIoEventFd + 'static>, region: &Region, gpa: u64) -> Result<Self, IoEventFdError> {
        let region = &region.shared.core;
        let core = Arc::new(Core::new(Theirs::new(vm), Arc::clone(region), gpa));
        core_range(&core, gpa)?;
        let subscription = region.protocol.at_rest(|phase| {
            // No change is under way: the phase seen here is what the first notification will change.
            let subscription = Subscription::new(region, 0..region.len, Arc::clone(&core) as _);
            // Nothing is registered yet.
            let _ = core.change(|place| {
                place.revoked = phase != Phase::Open;
                place.wanted = !place.revoked;
            });
            subscription
        })?;
        Ok(Self { core, _subscription: subscription })
    }

    /// Calls `told` when the region's state has changed and an ioeventfd could not follow, in the thread that changes the
    /// state, before `enable()` or `disable()` returns. A doorbell that is not registered exits; one that could not be
    /// withdrawn still signals. [`retry`](Self::retry) tries again. Replaces an earlier one.
    pub fn on_error(&self, told: impl Fn(&IoEventFdError) + Send + Sync + 'static) {
        let told: Arc<OnError> = Arc::new(told);
        let earlier = self.core.on_error.write().replace(Theirs::new(told));
        drop(earlier);
    }

    /// Signals `eventfd` at each guest store of `width` bytes to the BAR at `offset`: of `value`, or of any value. In any
    /// state; the descriptor is duplicated.
    ///
    /// # Errors
    /// [`IoEventFdError::Exists`], [`IoEventFdError::OutOfRange`], [`IoEventFdError::Sys`]; [`IoEventFdError::Vm`] if it
    /// cannot be registered now.
    pub fn add(
        &self,
        offset: u64,
        width: Width,
        value: Option<u64>,
        eventfd: BorrowedFd<'_>,
    ) -> Result<(), IoEventFdError> {
        self.core.own()?;
        let gpa = *self.core.gpa.lock();
        let end = offset.checked_add(width.bytes() as u64).filter(|end| *end <= self.core.region.len as u64);
        end.ok_or(IoEventFdError::OutOfRange { offset, gpa })?;
        let entry = Entry::new(offset, width, value, dup(eventfd)?);
        let mut exists = false;
        let refusals = self.core.change(|place| {
            let mut list = self.core.list.lock();
            exists = list.iter().any(|known| is(known, offset, width, value));
            if !exists {
                list.push(Arc::clone(&entry));
                place.anew = true;
            }
        })?;
        if exists {
            return Err(IoEventFdError::Exists { offset });
        }
        // Not tried yet: this is called by the hypervisor, and its caller registers it.
        if entry.end_trial() {
            return Ok(());
        }
        // Another's refusal was told of then.
        of(&entry, refusals)
    }

    /// Ends what [`add`](Self::add) began.
    ///
    /// # Errors
    /// [`IoEventFdError::NotFound`]; [`IoEventFdError::Vm`]: it is still there.
    pub fn remove(&self, offset: u64, width: Width, value: Option<u64>) -> Result<(), IoEventFdError> {
        self.core.own()?;
        let mut found = None;
        let refusals = self.core.change(|place| {
            let list = self.core.list.lock();
            found = list.iter().find(|known| !known.is_gone() && is(known, offset, width, value)).cloned();
            if let Some(entry) = &found {
                entry.leave();
                place.anew = true;
            }
        })?;
        of(&found.ok_or(IoEventFdError::NotFound { offset })?, refusals)
    }

    /// Moves all of them with their BAR, in any state. A guest store in between exits.
    ///
    /// # Errors
    /// [`IoEventFdError::OutOfRange`]; [`IoEventFdError::Vm`]: they are back at the old place, as far as the hypervisor
    /// takes them there.
    pub fn move_to(&self, gpa: u64) -> Result<(), IoEventFdError> {
        core_range(&self.core, gpa)?;
        self.core.change_anew(|| *self.core.gpa.lock() = gpa)
    }

    /// Registers or withdraws again what the hypervisor has refused.
    ///
    /// # Errors
    /// [`IoEventFdError::Vm`]: the first that it refuses again.
    pub fn retry(&self) -> Result<(), IoEventFdError> {
        self.core.change_anew(|| ())
    }

    /// How many are registered now.
    pub fn registered(&self) -> usize {
        let list = self.core.list.lock().clone();
        list.iter().filter(|entry| entry.is_registered()).count()
    }
}

/// Checks that the BAR fits into the guest's addresses.
fn core_range(core: &Core, gpa: u64) -> Result<(), IoEventFdError> {
    let end = gpa.checked_add(core.region.len as u64);
    end.map(drop).ok_or(IoEventFdError::OutOfRange { offset: 0, gpa })
}

fn is(known: &Entry, offset: u64, width: Width, value: Option<u64>) -> bool {
    (known.offset, known.width, known.value) == (offset, width, value)
}

/// # Errors
/// The refusal of one ioeventfd, if it is among these.
fn of(entry: &Arc<Entry>, refusals: Vec<Refusal>) -> Result<(), IoEventFdError> {
    let own = refusals.into_iter().find(|(refused, _)| Arc::ptr_eq(refused, entry));
    own.map_or(Ok(()), |(_, error)| Err(error))
}

impl Drop for IoEventFds {
    fn drop(&mut self) {
        // Nothing is registered from here on, whatever notification comes before the subscription is dropped.
        let _ = self.core.change(|place| {
            place.gone = true;
            place.wanted = false;
        });
    }
}

impl fmt::Debug for IoEventFds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Under no lock: what is written to may be a user's.
        let gpa = *self.core.gpa.lock();
        let ioeventfds = self.core.list.lock().len();
        f.debug_struct("IoEventFds")
            .field("gpa", &format_args!("{gpa:#x}"))
            .field("ioeventfds", &ioeventfds)
            .field("registered", &self.registered())
            .finish()
    }
}

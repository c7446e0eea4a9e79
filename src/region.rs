//! Regions: device memory, its state, its mappings.

pub(crate) mod access_error;
pub(crate) mod backing;
mod builder;
pub(crate) mod error;
mod fault;
mod fault_async;
pub(crate) mod group;
pub(crate) mod mapping;
pub(crate) mod notify;
pub(crate) mod owner;
pub(crate) mod pin;
pub(crate) mod placed;
mod shared;

pub use builder::{FaultAround, RegionBuilder};
pub(crate) use shared::RegionShared;

use crate::protocol::error::RevokeError;
use crate::region::error::MapError;
use crate::region::mapping::{MapOptions, Mapping};
use crate::region::owner::OwnerView;
use crate::protocol::State;
use crate::stats::{RegionStats, count};
use crate::sys::known::KnownFile;
use crate::view::Strategy;
use crate::sync::wait::Patience;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Device memory that can be taken away from everyone who has it mapped, and given back.
///
/// Dropping a region revokes it for good: its mappings stay, refusing, until they are dropped too.
///
/// A forked child inherits no mapping: where its parent has one, it has nothing, and later maybe something else. It can drop
/// what it has inherited, which does nothing, and must not access it.
pub struct Region {
    pub(crate) shared: Arc<RegionShared>,
}

impl Region {
    /// Starts making a region of `len` bytes, a multiple of the page size.
    pub fn builder(len: usize) -> RegionBuilder {
        RegionBuilder::new(len)
    }

    /// Maps the region, or a part of it, while enabled or disabled alike. Waits while the region is busy.
    ///
    /// # Errors
    /// Nothing is left behind: see [`MapError`].
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn map(&self, options: MapOptions) -> Result<Mapping, MapError> {
        Mapping::new(&self.shared, options)
    }

    /// Is the memory reachable through its mappings? While a change is under way: was it before?
    pub fn is_enabled(&self) -> bool {
        self.shared.protocol.was_enabled()
    }

    /// Revokes every mapping. When it returns, nothing reaches the memory through any of them until
    /// [`enable`](Self::enable). Says whether this call changed the state.
    ///
    /// # Blocking
    /// Waits for guards and pins to be dropped, for another thread's change of state, and for single accesses that are made under
    /// the memory lock, as long as it takes: those on a caller's behalf, and on architectures other than x86-64 and aarch64 all
    /// (of a bulk copy, the page that is being copied).
    ///
    /// # Errors
    /// The state is as before: see [`RevokeError`].
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn disable(&self) -> Result<bool, RevokeError> {
        self.disable_with(Patience::Forever)
    }

    /// [`disable`](Self::disable) that never waits.
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `disable` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_disable(&self) -> Result<bool, RevokeError> {
        self.disable_with(Patience::Never)
    }

    /// [`disable`](Self::disable) that gives up after `patience`.
    ///
    /// # Errors
    /// [`RevokeError::TimedOut`] says for whom it waited.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn disable_timeout(&self, patience: Duration) -> Result<bool, RevokeError> {
        self.disable_with(until(patience))
    }

    fn disable_with(&self, patience: Patience) -> Result<bool, RevokeError> {
        let changed = self.shared.change(State::Disabled, patience)?;
        if changed && self.shared.trim_detached {
            self.shared.trim();
        }
        Ok(changed)
    }

    /// Gives every mapping its memory back, with the content it had. Says whether this call changed the state.
    ///
    /// # Blocking
    /// Waits for another thread's change of state only.
    ///
    /// # Errors
    /// The region stays disabled: see [`RevokeError`].
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn enable(&self) -> Result<bool, RevokeError> {
        self.shared.change(State::Enabled, Patience::Forever)
    }

    /// [`enable`](Self::enable) that never waits.
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `enable` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_enable(&self) -> Result<bool, RevokeError> {
        self.shared.change(State::Enabled, Patience::Never)
    }

    /// Runs `reset` while nothing reaches the memory through any mapping. Accesses to an enabled region wait for its
    /// end, none is refused; a disabled region stays disabled.
    ///
    /// `reset` gets the owner's view. It must not change this region's state, nor touch its mappings other than by `try_`
    /// accesses: they would wait for it. A panic in it passes on to the caller, after the mappings are back.
    ///
    /// # Blocking
    /// As [`disable`](Self::disable).
    ///
    /// # Errors
    /// The region is as before; [`RevokeError::Sys`] from giving the memory back leaves it disabled.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn reset<R>(&self, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        self.reset_with(Patience::Forever, reset)
    }

    /// [`reset`](Self::reset) that never waits.
    ///
    /// # Errors
    /// [`RevokeError::Busy`] where `reset` would wait.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn try_reset<R>(&self, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        self.reset_with(Patience::Never, reset)
    }

    fn reset_with<R>(&self, patience: Patience, reset: impl FnOnce(&OwnerView) -> R) -> Result<R, RevokeError> {
        let shared = &*self.shared;
        span!(DEBUG, "reset", region = %shared.name);
        let Some(mut change) = shared.protocol.begin(shared, None, patience)? else { return Err(RevokeError::Gone) };
        change.hold()?;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| reset(&shared.owner)));
        let released = change.release();
        drop(change);
        count(&shared.counters.resets);
        event!(DEBUG, region = %shared.name, "reset");
        match done {
            Ok(value) => released.map(|()| value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Hands in a file for a device that was dropped on revocation ([`OnRevoke::Drop`](crate::OnRevoke)), before `enable()`. An `enable()` that
    /// fails drops it again.
    ///
    /// # Errors
    /// The region has its file; `device` is handed back.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn supply(&self, device: OwnedFd) -> Result<(), OwnedFd> {
        let mut file = self.shared.file.lock_quietly();
        match *file {
            Some(_) => Err(device),
            None => {
                *file = Some(KnownFile::new(device));
                Ok(())
            }
        }
    }

    /// The device side's view, which no revocation touches.
    pub fn owner(&self) -> &OwnerView {
        &self.shared.owner
    }

    /// The length, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a region has at least one page")]
    pub fn len(&self) -> usize {
        self.shared.len
    }

    /// The page size of its memory, in bytes: offsets and lengths of mappings are multiples of it.
    pub fn page_size(&self) -> usize {
        self.shared.page
    }

    /// The name given.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How its mappings are revoked.
    pub fn strategy(&self) -> Strategy {
        self.shared.strategy
    }

    /// Counters and latencies.
    ///
    /// # Signal safety
    /// Not for signal handlers.
    pub fn stats(&self) -> RegionStats {
        use std::sync::atomic::Ordering::Relaxed;
        let c = &self.shared.counters;
        let mappings = self.shared.mappings.lock_quietly();
        RegionStats {
            disables: c.disables.load(Relaxed),
            enables: c.enables.load(Relaxed),
            resets: c.resets.load(Relaxed),
            faults_mapped: c.faults_mapped.load(Relaxed),
            pages_mapped: c.pages_mapped.load(Relaxed),
            faults_parked: c.faults_parked.load(Relaxed),
            faults_failed: c.faults_failed.load(Relaxed),
            refused: self.shared.protocol.gate.turned_away(),
            degraded: c.degraded.load(Relaxed),
            notifier_errors: self.shared.notifiers.errors.load(Relaxed),
            notifier_panics: self.shared.notifiers.panics.load(Relaxed),
            mappings: mappings.len(),
            guards: self.shared.protocol.gate.held_guards().iter().map(|held| held.count).sum(),
            pins: self.shared.protocol.pins(),
            alias_bytes: mappings.values().map(|m| m.view.aside_bytes()).sum(),
            page_tables_kept: mappings.values().map(|m| m.view.page_tables_kept()).sum(),
            disable: c.disable.snapshot(),
            enable: c.enable.snapshot(),
        }
    }
}

pub(crate) fn until(patience: Duration) -> Patience {
    // More than the clock can tell is for ever.
    Instant::now().checked_add(patience).map_or(Patience::Forever, Patience::Until)
}

impl Drop for Region {
    fn drop(&mut self) {
        let shared = &self.shared;
        // A drop waits for nobody: what guards and pins still promise is kept, and ended in the background.
        // Nor is a monitor in the middle of an answer a reason to leave it reachable when this returns.
        let readers = until(crate::region::group::READERS);
        match shared.change_among(State::Gone, Patience::Never, readers) {
            Ok(_) | Err(RevokeError::Gone | RevokeError::Forked) => {}
            Err(e) => {
                let later = Arc::clone(shared);
                let spawned = crate::sys::thread::spawn("mmio-drop", move || later.end());
                // No thread can be had: better wait than leave it reachable, unless that would be for ever.
                if spawned.is_err() && !matches!(e, RevokeError::WouldDeadlock { .. } | RevokeError::Reentrant) {
                    shared.end();
                }
            }
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        f.debug_struct("Region")
            .field("name", &shared.name)
            .field("len", &shared.len)
            .field("state", &shared.protocol.phase())
            .field("strategy", &shared.strategy)
            .field("memory", &shared.kind)
            .field("page", &shared.page)
            .field("mappings", &shared.mappings.lock_quietly().values().map(|m| &m.view).collect::<Vec<_>>())
            .field("pins", &shared.protocol.pins())
            .finish_non_exhaustive()
    }
}

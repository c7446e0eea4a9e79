//! A region with its mappings: the mechanism that the protocol drives.

use super::backing::OnRevoke;
use super::core::RegionCore;
use super::question::retire;
use super::served::Served;
use crate::monitor::Monitor;
use crate::protocol::error::RevokeError;
use crate::protocol::{Changes, Mechanism, Member, Protocol, State, Told};
use crate::stats::count;
use crate::sync::inside::Mutex;
use crate::sync::wait::Patience;
use crate::sys::known::KnownFile;
use crate::sys::signals::WithoutSignals;
use crate::sys::{Addr, SysError};
use crate::trace;
use crate::view::{Grade, Prepared, Shown};
use crate::window::Window;
use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::slice;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// A region with its mappings, for its owner and for the threads that change it.
pub(crate) struct RegionShared {
    pub(crate) core: Arc<RegionCore>,
    pub(super) on_revoke: OnRevoke,
    pub(super) trim_detached: bool,
    /// By first address.
    pub(super) mappings: Mutex<BTreeMap<Addr, Arc<Served>>>,
}

/// A move of the content between the window and the vault.
pub(super) struct WindowMove<'a> {
    region: &'a RegionShared,
    window: &'a Arc<Window>,
    files: [&'a KnownFile; 2],
    owner: Option<Prepared>,
}

impl WindowMove<'_> {
    /// Empties the window. The owner's view has the content of the vault then.
    pub(super) fn withdraw(self) -> Result<(), SysError> {
        let Self { region, window, files, owner } = self;
        let withdrawn = region.owner.move_with(owner, files, || window.empty());
        let lost = window.take_lost();
        if lost > 0 {
            region.counters.lost.fetch_add(lost as u64, Ordering::Relaxed);
            event!(WARN, region = %region.name, bytes = lost, "window cut off");
        }
        withdrawn
    }

    /// Fills the window.
    fn give_back(self) -> Result<(), SysError> {
        let Self { region, window, files, owner } = self;
        region.owner.move_with(owner, files, || window.fill())
    }
}

impl Deref for RegionShared {
    type Target = RegionCore;

    fn deref(&self) -> &RegionCore {
        &self.core
    }
}

impl RegionShared {
    /// Ends the region for good, however many tries it takes: there is no caller to report a failure to.
    pub(super) fn end(self: &Arc<Self>) {
        let end = || match Changes::make(slice::from_ref(self), State::Gone, Patience::Forever).map_err(|e| e.source) {
            // Gone is for good, even where a mapping did not refuse: no thread changes the state or resolves a fault any
            // more, so there is no lock to take. What is left is to refuse, and to wake the threads that wait in mappings
            // that now refuse.
            Err(RevokeError::Gone) => self.refuse(true).map(|()| self.wake()),
            ended => ended.map(drop),
        };
        while let Err(
            RevokeError::Sys { .. } | RevokeError::Window { .. } | RevokeError::Busy(_) | RevokeError::Barrier(_),
        ) = end()
        {
            if self.mappings.lock().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// For `Debug`: no lock is held while that is written. None of them in a forked child.
    pub(super) fn shown_mappings(&self) -> Vec<Shown> {
        if self.protocol.is_inherited() {
            return Vec::new();
        }
        self.mappings.lock_quietly().values().map(|mapping| mapping.view.shown()).collect()
    }

    /// Withdraw takes many locks quietly: signals are blocked once for all of them.
    fn quietly(&self) -> Option<WithoutSignals> {
        self.window.as_ref().map(|_| WithoutSignals::new())
    }

    /// Withdraw: has whatever emptying the window, or filling it, needs, before anything is changed. `None` if there is
    /// nothing to do.
    pub(super) fn prepare(&self, withdraw: bool) -> Result<Option<WindowMove<'_>>, SysError> {
        let is_done = |window: &&Arc<Window>| if withdraw { window.is_empty() } else { window.is_full() };
        let Some(window) = self.window.as_ref().filter(|window| !is_done(window)) else { return Ok(None) };
        let [file, vault] = window.check()?;
        let (from, to) = if withdraw { (file, vault) } else { (vault, file) };
        let owner = self.owner.prepare(to)?;
        Ok(Some(WindowMove { region: self, window, files: [from, to], owner }))
    }

    fn grade(&self, done: Result<Grade, SysError>, mapping: &Served) -> Result<(), RevokeError> {
        match done {
            Ok(Grade::Intended) => Ok(()),
            Ok(Grade::Degraded) => {
                count(&self.counters.degraded);
                event!(WARN, region = %self.name, addr = ?mapping.view.range.start, "degraded");
                Ok(())
            }
            Err(source) => Err(RevokeError::Sys { addr: mapping.view.range.start.0, source }),
        }
    }

    /// Frees the page tables that Detach has put aside, in the background.
    fn trim(self: &Arc<Self>) {
        let region: Weak<Self> = Arc::downgrade(self);
        let starts: Vec<Addr> = self.mappings.lock().keys().copied().collect();
        let trimming = move || {
            for start in starts {
                // One step at a time, so that neither an `enable()` nor the mapping's end waits for more than one. Each is
                // under the list's lock, and keeps nothing of the mapping: once the mapping's drop has returned, it is
                // unmapped.
                let mut done = Some(0);
                while let (Some(from), Some(region)) = (done, region.upgrade()) {
                    done = region.mappings.lock().get(&start).and_then(|served| served.view.trim(from));
                }
            }
        };
        // Without a thread the page tables stay, which costs memory and nothing else.
        let _ = crate::sys::thread::spawn("mmio-trim", trimming);
    }
}

fn of_window(source: SysError) -> RevokeError {
    RevokeError::Window { source }
}

impl Mechanism for RegionShared {
    fn before_revoke(&self, told: Told) {
        self.notifiers.before_revoke(told);
    }

    fn stays_revoked(&self) {
        self.notifiers.stays_revoked();
    }

    fn after_restore(&self) {
        self.notifiers.after_restore();
    }

    fn wait_for_peers(&self, patience: Patience) -> bool {
        let Some(window) = &self.window else { return true };
        let slow = Instant::now().checked_add(trace::SLOW);
        // Without waiting for a peer, a look still takes another thread's time.
        let deadline = match patience {
            Patience::Never => slow,
            Patience::Until(deadline) => Some(deadline),
            Patience::Forever => None,
        };
        if window.wait_for_peers(deadline.map_or(slow, |deadline| slow.map(|slow| slow.min(deadline)))) {
            return true;
        }
        count(&self.counters.peer_waits);
        event!(WARN, region = %self.name, peers = ?window.peers(), "peer holds the window's file");
        deadline.is_none_or(|deadline| deadline > Instant::now()) && window.wait_for_peers(deadline)
    }

    fn peers(&self) -> Vec<i32> {
        self.window.as_ref().map(|window| window.peers()).unwrap_or_default()
    }

    fn want_pins_back(&self) {
        self.pinned.tell();
    }

    fn hold(&self) -> Result<(), RevokeError> {
        let _quiet = self.quietly();
        let window = self.prepare(true).map_err(of_window)?;
        for mapping in self.mappings.lock().values() {
            self.grade(mapping.view.hold(), mapping)?;
        }
        window.map_or(Ok(()), WindowMove::withdraw).map_err(of_window)
    }

    fn refuse(&self, for_good: bool) -> Result<(), RevokeError> {
        let _quiet = self.quietly();
        let window = match self.prepare(true) {
            Err(e) if !for_good => return Err(of_window(e)),
            prepared => prepared,
        };
        let mut refused = Ok(());
        for mapping in self.mappings.lock().values() {
            mapping.close();
            // A failure does not spare the other mappings.
            refused = refused.and(self.grade(mapping.view.refuse(for_good), mapping));
        }
        refused?;
        let withdrawn = window.and_then(|window| window.map_or(Ok(()), WindowMove::withdraw));
        match (&self.window, withdrawn) {
            // For good its content is not needed.
            (Some(window), Err(e)) if for_good && e.errno != Errno::EBUSY => match window.discard() {
                // Other code has closed the file: no later try could do more.
                Err(e) if e.errno == Errno::EBADF => Ok(()),
                discarded => discarded,
            },
            (_, withdrawn) => withdrawn,
        }
        .map_err(of_window)?;
        if self.on_revoke == OnRevoke::Drop {
            let file = self.file.lock().take();
            file.into_iter().for_each(retire);
        }
        Ok(())
    }

    fn restore(&self) -> Result<(), RevokeError> {
        let _quiet = self.quietly();
        let file = self.file.lock();
        if file.is_none() {
            return Err(RevokeError::NoFile);
        }
        self.prepare(false).and_then(|window| window.map_or(Ok(()), WindowMove::give_back)).map_err(of_window)?;
        for mapping in self.mappings.lock().values() {
            let addr = mapping.view.range.start.0;
            let restored = mapping.view.restore(file.as_deref());
            restored.map_err(|source| RevokeError::Sys { addr, source })?;
        }
        Ok(())
    }

    fn wake(&self) {
        for mapping in self.mappings.lock().values() {
            mapping.view.wake();
        }
    }

    fn complete(&self) {
        self.pending.settle(|| self.protocol.phase());
    }

    fn close(&self) {
        self.mappings.lock().values().for_each(|mapping| mapping.close());
    }

    fn open(&self) {
        // A mapping that could not be given back stays closed: each access looks at it, and repairs it if that is possible
        // (`Served::heal`).
        self.mappings.lock().values().filter(|mapping| mapping.view.is_live()).for_each(|mapping| mapping.open());
    }

    fn help(&self) -> bool {
        self.monitor.as_ref().is_some_and(Monitor::help)
    }
}

impl Drop for RegionShared {
    fn drop(&mut self) {
        if self.protocol.is_inherited() {
            // A forked child's: another thread of the parent's may have been changing the map when the child was made, so it is not
            // fit to be dropped.
            std::mem::forget(std::mem::take(self.mappings.get_mut()));
        }
    }
}

impl Member for Arc<RegionShared> {
    fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    fn mechanism(&self) -> &dyn Mechanism {
        &**self
    }

    fn changed(&self, _was: State, now: State, took: Duration) {
        let counters = &self.counters;
        let (counter, latency) = match now {
            State::Enabled => (&counters.enables, &counters.enable),
            State::Disabled | State::Gone => (&counters.disables, &counters.disable),
        };
        count(counter);
        latency.record(took);
        match now {
            State::Enabled => event!(DEBUG, region = %self.name, took = ?took, "restored"),
            State::Disabled | State::Gone => event!(DEBUG, region = %self.name, took = ?took, "revoked"),
        }
        if now == State::Disabled && self.trim_detached {
            self.trim();
        }
    }

    fn was_reset(&self) {
        count(&self.counters.resets);
        event!(DEBUG, region = %self.name, "reset");
    }

    fn not_restored(&self) -> Option<RevokeError> {
        self.not_restored.take()
    }
}

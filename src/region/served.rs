//! What a mapping, its region and its monitor share, and how its faults are resolved.

use super::around::Around;
use super::core::RegionCore;
use super::offsets::{InMapping, InRegion};
use crate::monitor::{self, wake_page};
use crate::protocol::State;
use crate::raw::Medium;
use crate::stats::count;
use crate::sys::map::Prot;
use crate::sys::uffd::{Continued, FaultMessage, Uffd};
use crate::sys::{AddrRange, SysError};
use crate::view::View;
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a mapping, its region and its monitor share.
pub(crate) struct Served {
    pub(crate) region: Arc<RegionCore>,
    /// Where in the region the view starts.
    pub(crate) offset: InRegion,
    pub(crate) view: View,
    /// How copies to and from it are made.
    pub(crate) medium: Medium,
    /// Accesses below this offset may be tried at once. It is the mapping's length, or 0 while the mapping is known to
    /// refuse or to wait. One comparison checks the bounds and the state.
    pub(crate) load_limit: AtomicUsize,
    /// The same for stores; 0 for ever if the mapping is read-only.
    pub(crate) store_limit: AtomicUsize,
    pub(super) around: Around,
}

impl Served {
    /// Lets accesses be tried at once. Only a hint: an access that is tried too early faults and looks at the state again.
    ///
    /// Undone while the write side of the memory lock is held or waited for. Every access is SeqCst, as in `Change::lock`:
    /// either the change is seen here, or the change sees what is stored here, and overwrites it (`Mechanism::close`).
    pub(crate) fn open(&self) {
        let len = self.view.range.len;
        self.load_limit.store(len, Ordering::SeqCst);
        self.store_limit.store(if self.view.spec.prot == Prot::ReadWrite { len } else { 0 }, Ordering::SeqCst);
        if self.region.protocol.is_closed() {
            self.close();
        }
    }

    /// Repairs what a change that failed half-way left, under the read side of the memory lock of an enabled region. It
    /// only tries the file's lock: the next try is as good. True if the memory is in the range.
    pub(crate) fn heal(&self) -> bool {
        if self.region.window.as_ref().is_some_and(|window| window.heal().is_err()) {
            return false;
        }
        let live = self.region.file.try_lock().is_some_and(|file| self.view.restore(file.as_deref()).is_ok());
        if live {
            self.open();
        }
        live
    }

    /// Whether the region's memory is in the range; the caller holds the read side of the memory lock of an enabled region.
    /// What a change that failed half-way has left is repaired, except in a signal handler that has interrupted a thread
    /// `inside` of the crate. `None` (unknown): in such a handler, or if a change is about to begin.
    pub(crate) fn is_live(&self, inside: bool) -> Option<bool> {
        match self.load_limit.load(Ordering::Relaxed) > 0 {
            true => Some(true),
            false if inside || self.region.protocol.is_closed() => None,
            false => Some(self.heal()),
        }
    }

    /// Makes accesses look at the state first. A hint: the refusal itself is in the page tables.
    pub(crate) fn close(&self) {
        self.load_limit.store(0, Ordering::SeqCst);
        self.store_limit.store(0, Ordering::SeqCst);
    }

    /// Maps the page at `at` and those around it; `None` if the kernel resolves the mapping's faults. The caller holds the
    /// read side of the memory lock and has seen the region enabled, so no page that a revocation has dropped comes back.
    pub(crate) fn fault_in(&self, at: InMapping) -> Option<Result<(), SysError>> {
        self.view.spec.server.uffd().map(|uffd| self.map_pages(uffd, at))
    }

    fn map_pages(&self, uffd: &Uffd, at: InMapping) -> Result<(), SysError> {
        let page = self.region.page;
        let first = at.0 / page * page;
        let (start, end) = self.around.window(first, self.view.range.len);
        let mut from = start;
        let mut mapped = 0;
        while from < end {
            let part = self.view.range.part(from, end - from);
            match uffd.map_present(part) {
                Ok(Continued::Bytes(n)) => {
                    mapped += n / page;
                    from += n;
                }
                // Another thread was faster, and woke the page's waiters, except those that came in between.
                Ok(Continued::AlreadyMapped) => {
                    if from == first {
                        let _ = uffd.wake(self.view.range.part(from, page));
                    }
                    from += page;
                }
                Ok(Continued::Hole) if from == first => {
                    self.region.owner.populate(self.offset + InMapping(first), page)?
                }
                // Around the fault only pages that the file has are mapped.
                Ok(Continued::Hole) => from += page,
                // Part of the window was unmapped or split off by the application: the page itself, or nothing.
                Ok(Continued::NotRegistered) if from == first && part.len == page => {
                    return Err(SysError::new("UFFDIO_CONTINUE", Errno::ENOENT));
                }
                Err(e) if from == first => return Err(e),
                Ok(Continued::NotRegistered) | Err(_) if from <= first => {
                    return self.map_page(uffd, first);
                }
                // An error after the faulting page does not concern this fault.
                Ok(Continued::NotRegistered) | Err(_) => break,
                Ok(Continued::TryAgain) => std::thread::yield_now(),
            }
        }
        count(&self.region.counters.faults_mapped);
        self.region.counters.pages_mapped.fetch_add(mapped as u64, Ordering::Relaxed);
        Ok(())
    }

    fn map_page(&self, uffd: &Uffd, first: usize) -> Result<(), SysError> {
        let page = self.view.range.part(first, self.region.page);
        loop {
            match uffd.map_present(page)? {
                Continued::Bytes(_) => return Ok(()),
                Continued::AlreadyMapped => return uffd.wake(page),
                Continued::Hole => self.region.owner.populate(self.offset + InMapping(first), self.region.page)?,
                Continued::NotRegistered => return Err(SysError::new("UFFDIO_CONTINUE", Errno::ENOENT)),
                Continued::TryAgain => std::thread::yield_now(),
            }
        }
    }
}

impl monitor::Resolver for Served {
    fn serve(&self, fault: FaultMessage) {
        let Some(uffd) = self.view.spec.server.uffd() else { return };
        let counters = &self.region.counters;
        // NOWAIT: the holder of the write side wakes this mapping's waiters after releasing it, and they fault again.
        let Some(state) = self.region.protocol.try_read_to_answer() else {
            count(&counters.faults_parked);
            event!(TRACE, region = %self.region.name, addr = ?fault.addr, tid = fault.tid, "fault, region busy");
            return;
        };
        event!(TRACE, region = %self.region.name, addr = ?fault.addr, tid = fault.tid, state = ?*state, "fault");
        match *state {
            State::Enabled => {
                if self.map_pages(uffd, InMapping(fault.addr - self.view.range.start)).is_err() {
                    count(&counters.faults_failed);
                    // The file gives no page there: it was truncated, or its file system is full. Once the page is left to
                    // the kernel, the thread gets the kernel's answer, SIGBUS; otherwise it would fault here again and
                    // again. If the kernel maps something there after all, it is revoked with the rest, and the next
                    // `enable()` registers the page again. Splitting off one page takes one more mapping, for which there
                    // may be no memory either; unregistering the whole range takes none.
                    let page = self.region.page;
                    let page = AddrRange::new(fault.addr.page(page), page);
                    let _ = uffd.unregister(page).or_else(|_| uffd.unregister(self.view.range));
                    wake_page(uffd, fault.addr);
                }
            }
            // A late message: by now something else is in the range.
            State::Disabled | State::Gone => wake_page(uffd, fault.addr),
        }
    }

    fn abandon(&self) -> bool {
        let abandoned = self.view.abandon();
        if !matches!(abandoned, Ok(false)) {
            self.close();
        }
        if abandoned.is_err() {
            count(&self.region.counters.degraded);
        }
        // Replacing a mapping does not wake the threads that wait in it.
        self.view.wake();
        abandoned.is_ok()
    }
}

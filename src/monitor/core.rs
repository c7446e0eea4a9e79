//! The state and the loop of a monitor's threads: they read faults, resolve them, and fail closed.

use super::Resolver;
use crate::stats::Histogram;
use crate::sync::inside::RwLock;
use crate::sys::direct;
use crate::sys::identity::Identity;
use crate::sys::uffd::{FaultMessage, Messages, Uffd, UffdSource};
use crate::sys::{Addr, AddrRange, SysError, may_fail, page_size};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Of how many faults one is timed: two looks at the clock are some hundredths of what a fault takes.
const TIMED_ONE_IN: u64 = 16;

/// In a crowd of faults a read takes all that there is room for. While they come one by one, one of so many reads looks for
/// more: to find that there are none takes a hundredth of a fault.
const LOOKS_ONE_IN: u64 = 16;

#[derive(Default)]
pub(super) struct MonitorCounters {
    pub(super) faults: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) answer: Histogram,
}

/// Mappings by first address.
pub(super) type MappingTable = BTreeMap<Addr, (AddrRange, Arc<dyn Resolver>)>;

pub(super) struct MonitorCore {
    pub(super) uffd: Uffd,
    pub(super) source: UffdSource,
    /// By first address. Read-locked while a fault is resolved: see `Monitor::disown`.
    pub(super) mappings: RwLock<MappingTable>,
    /// Signalled at the end, for all threads, and never reset.
    pub(super) bell: EventFd,
    /// What the threads sleep in: the userfaultfd and the bell. Not poll(2), which keeps a file alive that is closed meanwhile: what
    /// waits in a closed userfaultfd is released when the last reference goes, and not before.
    pub(super) ready: Epoll,
    pub(super) stopping: AtomicBool,
    pub(super) dead: AtomicBool,
    pub(super) counters: MonitorCounters,
    /// The process whose faults it answers.
    pub(super) process: Identity,
}

impl Drop for MonitorCore {
    fn drop(&mut self) {
        if !self.process.is_current() {
            // As in `RegionShared`: in a forked child the table is not fit to be dropped.
            std::mem::forget(std::mem::take(self.mappings.get_mut()));
        }
    }
}

/// What is readable when there is something to do.
pub(super) fn either(uffd: &Uffd, bell: &EventFd) -> Result<Epoll, SysError> {
    may_fail("epoll_create1")?;
    let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| SysError::new("epoll_create1", e))?;
    for fd in [uffd.as_fd(), bell.as_fd()] {
        may_fail("epoll_ctl")?;
        ready.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(|e| SysError::new("epoll_ctl", e))?;
    }
    Ok(ready)
}

impl MonitorCore {
    /// Reads waiting faults (at most `limit`) and resolves them.
    pub(super) fn pump(&self, messages: &mut Messages, limit: usize) -> Result<usize, SysError> {
        let n = match self.uffd.read(messages, limit) {
            Err(e) if matches!(e.errno, Errno::EINTR | Errno::EAGAIN) => return Ok(0),
            other => other?,
        };
        for fault in messages.faults() {
            self.answer(fault);
        }
        Ok(n)
    }

    pub(super) fn answer(&self, fault: FaultMessage) {
        let earlier = self.counters.faults.fetch_add(1, Ordering::Relaxed);
        let since = (earlier % TIMED_ONE_IN == 0).then(Instant::now);
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let mappings = self.mappings.read();
            match mappings.range(..=fault.addr).next_back() {
                Some((_, (range, served))) if range.contains(fault.addr) => served.serve(fault),
                // The mapping went away since the fault: the thread is woken and sees what is there now.
                _ => {
                    self.counters.stale.fetch_add(1, Ordering::Relaxed);
                    wake_page(&self.uffd, fault.addr);
                }
            }
        }));
        if answered.is_err() {
            self.counters.panics.fetch_add(1, Ordering::Relaxed);
            self.give_up(fault.addr);
        }
        if let Some(since) = since {
            self.counters.answer.record(since.elapsed());
        }
    }

    /// Fails closed after a panic in `serve`: the next fault would panic too. The mapping refuses from now on, and the
    /// thread gets that instead of waiting for ever.
    fn give_up(&self, addr: Addr) {
        let _ = catch_unwind(AssertUnwindSafe(|| {
            let mappings = self.mappings.read();
            if let Some((_, (_, served))) = mappings.range(..=addr).next_back().filter(|(_, (r, _))| r.contains(addr)) {
                served.abandon();
            }
        }));
        wake_page(&self.uffd, addr);
    }

    pub(super) fn run(&self) {
        let (mut messages, mut reads, mut crowded) = (Messages::none(), 0_u64, false);
        while self.sleep() {
            reads = reads.wrapping_add(1);
            let limit = if crowded || reads % LOOKS_ONE_IN == 0 { usize::MAX } else { 1 };
            match self.pump(&mut messages, limit) {
                // Another thread has read them.
                Ok(0) => {}
                Ok(n) => crowded = n > 1,
                Err(_) => break,
            }
        }
        self.fail();
    }

    /// Called at the end of a thread. Unless the monitor is stopping, all of its mappings refuse from now on.
    pub(super) fn fail(&self) {
        // A mapping that cannot even refuse, for want of memory, say, would leave its threads waiting: try again.
        while !self.stopping.load(Ordering::Acquire) && !self.die() {
            thread::sleep(Duration::from_millis(10));
        }
        // The other threads end too.
        self.ring();
    }

    pub(super) fn ring(&self) {
        let _ = self.bell.write(1);
    }

    /// Waits for a fault; false at the end.
    fn sleep(&self) -> bool {
        let gone = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let mut events = [EpollEvent::empty(); 2];
        let woken = match direct::epoll_wait(&self.ready, &mut events) {
            Ok(ready) => !ready.iter().any(|event| event.events().intersects(gone)),
            Err(errno) => matches!(errno, Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM),
        };
        woken && !self.stopping.load(Ordering::Acquire) && !self.dead.load(Ordering::Acquire)
    }

    /// Makes all mappings refuse; false if that has to be tried again.
    pub(super) fn die(&self) -> bool {
        self.dead.store(true, Ordering::Release);
        let mut closed = true;
        for (_, served) in self.mappings.read().values() {
            // A panic here must not leave the rest of the mappings open.
            closed &= catch_unwind(AssertUnwindSafe(|| served.abandon())).unwrap_or(true);
        }
        closed
    }
}

pub(crate) fn wake_page(uffd: &Uffd, addr: Addr) {
    let page = page_size();
    let _ = uffd.wake(AddrRange::new(addr.page(page), page));
}

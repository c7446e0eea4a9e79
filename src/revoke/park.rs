//! Parking: nothing reaches the memory and every fault waits, in a userfaultfd that nobody answers until the range
//! is live again (or refuses).
//!
//! Where the range cannot be registered itself, a stand-in can: empty private memory, registered elsewhere and then
//! moved over the range in one step, so that no access ever meets it unregistered. The stand-in's userfaultfd asks for
//! `UFFD_FEATURE_EVENT_REMAP`, which lets a registration survive mremap; the price is an event that somebody has to
//! read before mremap returns (`mremap_userfaultfd_complete`), which a thread does for just so long.

use super::{Content, Place, Server, View};
use crate::sys::map::{self, Advice, Leave, Prot};
use crate::sys::uffd::{Uffd, UffdFeatures, UffdSource};
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::AsFd;
use std::thread;

/// Whose faults wait in a stand-in. Nobody reads its userfaultfd, so nobody would notice a system call that spins there
/// with a signal pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// Everyone's, as far as this process may: for the time of a reset.
    All,
    /// Those of user mode; the kernel's are refused (EFAULT): for as long as it takes.
    UserMode,
}

impl View {
    /// Faults wait from now on. What slips in between `REGISTER` and the zap is dropped by the zap.
    pub(super) fn park(&self, place: &mut Place, waits: Waits) -> Result<(), SysError> {
        match place.content {
            Content::Parked | Content::StandIn | Content::Unmapped => return Ok(()),
            Content::Reserved => return self.stand_in(place, waits),
            _ if self.drops_file => return self.stand_in(place, waits),
            Content::Live | Content::Covered | Content::Barred => {}
        }
        let uffd = self.server.uffd().ok_or(SysError::new("UFFDIO_REGISTER", Errno::ENOSYS))?;
        // Also where the range should be registered already (Zap): registering twice changes nothing, and trusting to an
        // earlier step that half failed would let the kernel fill the pages in again.
        match self.part_ranges(place).into_iter().try_for_each(|range| uffd.register(range, true)) {
            // Device files cannot be registered: something that can stands in for them, if they are in one piece.
            Err(e) if e.errno == Errno::EINVAL && place.parts.is_none() => return self.stand_in(place, waits),
            other => other?,
        }
        place.parked_since_wake = true;
        if let Err(e) = self.zap(place) {
            // Neither may live pages stay registered with somebody who does not serve them; whoever faults in between is
            // helped by the monitor (`heal`).
            if let (false, Server::Monitor(monitor)) = (self.served_live(), &self.server) {
                let mut ranges = self.part_ranges(place).into_iter();
                let _ = ranges.try_for_each(|range| uffd.unregister(range)).or_else(|_| monitor.start());
            }
            return Err(e);
        }
        place.content = Content::Parked;
        Ok(())
    }

    pub(super) fn unpark(&self, place: &mut Place) -> Result<(), SysError> {
        // Some parts may be live already when the next one fails: the caller has all of it refused anew.
        place.content = Content::Live;
        if let (Some(uffd), false) = (self.server.uffd(), self.served_live()) {
            self.part_ranges(place).into_iter().try_for_each(|range| uffd.unregister(range))?;
        }
        Ok(())
    }

    /// Has the kernel's faults refused from now on, while those of user mode go on waiting. For a thread that waits
    /// inside a system call and has a signal pending: the kernel neither runs the handler nor sleeps, it faults again
    /// and again (`fault_signal_pending`: only a fatal signal ends a fault of kernel mode).
    pub(crate) fn refuse_kernel_faults(&self) -> Result<(), SysError> {
        let mut place = self.place.lock();
        if place.content == Content::Parked && place.parts.is_none() {
            self.stand_in(&mut place, Waits::UserMode)?;
            // Those who wait in the server's userfaultfd fault again, into the stand-in's.
            place.parked_since_wake = true;
            drop(place);
            self.wake();
        }
        Ok(())
    }

    fn stand_in(&self, place: &mut Place, waits: Waits) -> Result<(), SysError> {
        let uffd = match waits {
            Waits::All => Uffd::open(UffdFeatures::EVENT_REMAP)?.0,
            Waits::UserMode => Uffd::open_by(UffdSource::UserModeOnly, UffdFeatures::EVENT_REMAP)?,
        };
        let staging = map::reserve(self.range.len, self.page)?;
        let moved = self.stage_stand_in(staging, &uffd).and_then(|()| move_registered(staging, self.range, &uffd));
        if moved.is_err() {
            super::left_over::release(staging);
        }
        moved?;
        place.content = Content::StandIn;
        place.stand_in = Some(uffd);
        Ok(())
    }

    #[expect(unsafe_code, reason = "UNSAFETY: maps a range that only the caller knows")]
    fn stage_stand_in(&self, staging: AddrRange, uffd: &Uffd) -> Result<(), SysError> {
        // SAFETY: a reservation that only the caller knows.
        unsafe { map::map_anonymous(staging, Prot::None) }?;
        for advice in [Advice::DontFork, Advice::DontDump] {
            // SAFETY: as above; neither advice drops pages.
            unsafe { map::advise(staging, advice) }?;
        }
        uffd.register(staging, false)?;
        // Accessible only now: a process that locks its memory (mlockall) is given pages of what is accessible at once, and
        // nobody would wait at those.
        // SAFETY: as above.
        unsafe { map::protect(staging, self.prot) }
    }
}

/// Moves a registered mapping over `to`, reading the event that this makes.
#[expect(unsafe_code, reason = "UNSAFETY: moves between ranges of the caller's view")]
fn move_registered(from: AddrRange, to: AddrRange, uffd: &Uffd) -> Result<(), SysError> {
    let done = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|e| SysError::new("eventfd", e))?;
    thread::scope(|scope| {
        let reader = thread::Builder::new().name("mmio-remap".to_owned());
        let started = crate::sys::thread::blocking_signals(|| reader.spawn_scoped(scope, || read_events(uffd, &done)));
        started.map_err(|e| SysError::new("clone", Errno::from_raw(e.raw_os_error().unwrap_or(0))))?;
        // SAFETY: both are the caller's; what stands at `to` is being revoked, and nothing of it is needed.
        let moved = unsafe { map::move_onto(from, to, Leave::Hole) };
        let _ = done.write(1);
        moved
    })
}

/// Reads (and so completes) events until told to stop. Faults that are read on the way keep waiting.
fn read_events(uffd: &Uffd, done: &EventFd) {
    let mut faults = Vec::new();
    loop {
        let mut fds = [PollFd::new(uffd.as_fd(), PollFlags::POLLIN), PollFd::new(done.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        let _ = uffd.read(&mut faults, usize::MAX);
        faults.clear();
        if fds[1].revents().is_some_and(|r| !r.is_empty()) {
            return;
        }
    }
}

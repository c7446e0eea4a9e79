//! Waiting rooms: the userfaultfds that stand-ins are registered with, one for each kind of waiting.
//!
//! A registration survives mremap only if its userfaultfd asks for `UFFD_FEATURE_EVENT_REMAP`, and then mremap returns only
//! once the event has been read (`mremap_userfaultfd_complete`). A thread reads it. Between the moves the thread sleeps on
//! a futex and not in the userfaultfd: so closing the userfaultfd while nothing is being moved ends it at once, and
//! releases all faults that wait in it. For a while after a move the thread looks for the next one, so that the many moves
//! of one change wake it once.
//!
//! Faults are not read, or read and ignored: a wake ends them.

use crate::sync::inside::Mutex;
use crate::sync::wait::Event;
use crate::sys::identity::PerProcess;
use crate::sys::map;
use crate::sys::thread;
use crate::sys::uffd::{Messages, Uffd, UffdFeatures, UffdSource};
use crate::sys::{AddrRange, SysError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Which faults wait in a stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// All faults that this process may see: for the time of a reset.
    Everyone,
    /// Faults of user mode; the kernel's are refused (EFAULT). For as long as it takes: while the thread has a signal
    /// pending the kernel does not sleep in a fault of its own, but faults again and again (`fault_signal_pending`).
    UserMode,
}

/// A userfaultfd whose faults wait until they are woken, and the thread that reads its events.
pub(crate) struct WaitingRoom {
    uffd: Uffd,
    /// Moves that are under way or about to be.
    moves: AtomicUsize,
    begun: Event,
    started: Mutex<bool>,
    /// The thread has found that the userfaultfd is gone.
    ended: AtomicBool,
    /// Another room has taken its place: the thread has to end.
    replaced: AtomicBool,
}

/// In place of the number of moves: there is no thread any more to read their events.
const NO_MORE: usize = usize::MAX;

#[derive(Default)]
struct Rooms {
    everyone: Mutex<Option<Arc<WaitingRoom>>>,
    user_mode: Mutex<Option<Arc<WaitingRoom>>>,
}

static ROOMS: PerProcess<Rooms> = PerProcess::new(Rooms::default);

impl Waits {
    fn room(self) -> &'static Mutex<Option<Arc<WaitingRoom>>> {
        match self {
            Waits::Everyone => &ROOMS.get().everyone,
            Waits::UserMode => &ROOMS.get().user_mode,
        }
    }
}

impl WaitingRoom {
    /// The process's room; it is made if there is none, or if the old one is gone.
    pub(crate) fn get(waits: Waits) -> Result<Arc<Self>, SysError> {
        Self::get_or(waits, || match waits {
            Waits::Everyone => Uffd::open(UffdFeatures::EVENT_REMAP).map(|(uffd, _)| uffd),
            Waits::UserMode => Uffd::open_by(UffdSource::UserModeOnly, UffdFeatures::EVENT_REMAP),
        })
    }

    /// Makes the room and starts its thread.
    pub(crate) fn prepare(waits: Waits) -> Result<(), SysError> {
        Self::get(waits)?.start()
    }

    /// Makes the rooms that this process could not make on its own, from a `/dev/userfaultfd` that was passed to it.
    pub(crate) fn supply(device: BorrowedFd<'_>) {
        let _ =
            Self::get_or(Waits::Everyone, || Uffd::by_device(device, UffdFeatures::EVENT_REMAP, UffdSource::Device));
        let _ = Self::get(Waits::UserMode).or_else(|_| {
            Self::get_or(Waits::UserMode, || {
                Uffd::by_device(device, UffdFeatures::EVENT_REMAP, UffdSource::UserModeOnly)
            })
        });
    }

    fn get_or(waits: Waits, open: impl FnOnce() -> Result<Uffd, SysError>) -> Result<Arc<Self>, SysError> {
        let mut room = waits.room().lock();
        if let Some(room) = room.as_ref().filter(|room| room.is_open()) {
            return Ok(Arc::clone(room));
        }
        let made = Arc::new(Self {
            uffd: open()?,
            moves: AtomicUsize::new(0),
            begun: Event::new(),
            started: Mutex::new(false),
            ended: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
        });
        if let Some(earlier) = room.replace(Arc::clone(&made)) {
            // The views whose faults wait in it keep it. SeqCst: as for `moves`.
            earlier.replaced.store(true, Ordering::SeqCst);
            earlier.begun.notify_all();
        }
        Ok(made)
    }

    fn is_open(&self) -> bool {
        // Acquire pairs with the Release in `read_events`; still only a hint.
        !self.ended.load(Ordering::Acquire) && self.uffd.is_open()
    }

    /// Makes the faults of `range`, which is private memory, wait from now on.
    pub(crate) fn register(&self, range: AddrRange) -> Result<(), SysError> {
        self.uffd.register(range, false)
    }

    /// Fails if the userfaultfd is gone.
    pub(crate) fn check(&self, range: AddrRange) -> Result<(), SysError> {
        self.uffd.wake(range)
    }

    /// Wakes every thread that waits in `range`: it faults again.
    pub(crate) fn wake(&self, range: AddrRange) {
        let _ = self.uffd.wake(range);
    }

    /// Moves a registered mapping over `to`.
    #[expect(unsafe_code, reason = "UNSAFETY: moves between ranges of the caller's view")]
    pub(crate) fn move_over(self: &Arc<Self>, from: AddrRange, to: AddrRange) -> Result<(), SysError> {
        self.start()?;
        // SeqCst, with the load in `read_events`: the thread sees the move, or is woken for it.
        let begin = |moves: usize| (moves != NO_MORE).then_some(moves + 1);
        if self.moves.fetch_update(Ordering::SeqCst, Ordering::SeqCst, begin).is_err() {
            return Err(SysError::new("mremap", Errno::EBADF));
        }
        self.begun.notify_all();
        // SAFETY: both are the caller's; the content of `to` is being revoked, and nothing of it is needed.
        let moved = unsafe { map::move_over(from, to) };
        self.moves.fetch_sub(1, Ordering::SeqCst);
        moved
    }

    fn start(self: &Arc<Self>) -> Result<(), SysError> {
        let mut started = self.started.lock();
        if !*started {
            let room = Arc::clone(self);
            thread::spawn("mmio-stand-in", move || room.read_events())?;
            *started = true;
        }
        Ok(())
    }

    /// Reads events while there are moves, and for a moment longer.
    fn read_events(&self) {
        const ANOTHER: Duration = Duration::from_micros(200);
        let moving = || self.moves.load(Ordering::SeqCst) > 0;
        let mut messages = Messages::none();
        loop {
            let _ = self.begun.wait_while(|| !moving() && !self.replaced.load(Ordering::SeqCst), None, None);
            // Only between moves, and none begins afterwards: its mremap would wait for ever for its event to be read.
            if self.replaced.load(Ordering::SeqCst)
                && self.moves.compare_exchange(0, NO_MORE, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            {
                return;
            }
            let mut quiet_since = Instant::now();
            while moving() || quiet_since.elapsed() < ANOTHER {
                match self.uffd.read(&mut messages, usize::MAX) {
                    Ok(0) if quiet_since.elapsed() < ANOTHER => std::thread::yield_now(),
                    // A move takes long: leave the CPU to it.
                    Ok(0) => {
                        let mut fds = [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN)];
                        let _ = poll(&mut fds, PollTimeout::from(1_u8));
                    }
                    Ok(_) if moving() => quiet_since = Instant::now(),
                    Ok(_) => {}
                    Err(e) if matches!(e.errno, Errno::EINTR | Errno::EAGAIN) => {}
                    Err(_) => {
                        // Release: see `is_open`.
                        self.ended.store(true, Ordering::Release);
                        return;
                    }
                }
            }
        }
    }
}

//! The loop that waits for ioeventfds: one epoll descriptor, read by a thread of its own or by the caller's event loop.

use super::error::PciError;
use crate::sys::SysError;
use crate::sys::identity::{Identity, PerProcess};
use crate::sys::{eventfd, thread};
use crate::users::guarded;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Waits for the ioeventfds of any number of devices; see
/// [`PciBuilder::io_event_loop`](super::PciBuilder::io_event_loop). A clone is the same loop.
///
/// It serves the process that made it: a forked child makes one of its own, and cannot use its parent's.
///
/// ```
/// use nix::sys::eventfd::EventFd;
/// use revocable_mmio::pci::{Bar, IoEventLoop, PciDevice, Space, Width};
/// use std::os::fd::AsFd;
///
/// let kicks = IoEventLoop::manual()?; // `shared` has a thread of its own
/// let nic = PciDevice::builder(0x8086, 0x10d3).command(2).bar(0, Bar::memory(0x20000));
/// let nic = nic.io_event_loop(kicks.clone()).build()?;
/// let queue = EventFd::new()?;
/// nic.add_ioeventfd(0, 0x3818, Width::Four, 7, queue.as_fd())?;
///
/// queue.write(1)?;
/// kicks.handle_ready()?; // once `kicks` polls readable
/// assert_eq!(nic.owner(Space::Bar(0)).ok_or("memory")?.read::<u32>(0x3818)?, 7);
/// nic.remove_ioeventfd(0, 0x3818, Width::Four, 7)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct IoEventLoop {
    core: Arc<LoopCore>,
    /// `None`: the caller's event loop drives it.
    thread: Option<Arc<Thread>>,
}

struct LoopCore {
    epoll: Epoll,
    targets: Mutex<HashMap<u64, Target>>,
    next: AtomicU64,
    stop: EventFd,
    stopping: AtomicBool,
    /// Its thread has ended: no thread waits for events any more.
    ended: AtomicBool,
    /// The process that made it. A forked child has the same epoll: what it adds, removes or waits for there is its
    /// parent's.
    process: Identity,
}

/// The action of a signalled eventfd.
pub(super) trait Kick: Send + Sync {
    /// The eventfd was signalled, and has been consumed. Never waits.
    fn signalled(self: Arc<Self>);
}

/// An ioeventfd and its descriptor. The descriptor lives as long as it may be read.
#[derive(Clone)]
struct Target {
    fd: Arc<OwnedFd>,
    kick: Arc<dyn Kick>,
}

/// An ioeventfd's registration with the loop, which ends when this is dropped.
pub(super) struct Registration {
    kicks: IoEventLoop,
    id: u64,
}

impl IoEventLoop {
    /// The process's shared loop, with one thread. It is made anew if no clone of it is left.
    ///
    /// # Errors
    /// Out of descriptors or threads.
    pub fn shared() -> Result<Self, PciError> {
        static SHARED: PerProcess<Mutex<(Weak<LoopCore>, Weak<Thread>)>> = PerProcess::new(Mutex::default);
        let mut shared = SHARED.get().lock();
        if let (Some(core), Some(thread)) = (shared.0.upgrade(), shared.1.upgrade()) {
            if !core.ended.load(Ordering::Acquire) {
                return Ok(Self { core, thread: Some(thread) });
            }
        }
        let core = Self::manual()?.core;
        let own = Arc::clone(&core);
        let running = thread::spawn("mmio-ioeventfds", move || own.run())?;
        let thread = Arc::new(Thread { core: Arc::clone(&core), running: Some(running) });
        *shared = (Arc::downgrade(&core), Arc::downgrade(&thread));
        Ok(Self { core, thread: Some(thread) })
    }

    /// A loop without a thread, for a caller's own: poll its [`AsFd`] for readability and call
    /// [`handle_ready`](Self::handle_ready).
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn manual() -> Result<Self, PciError> {
        Identity::prepare()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| SysError::new("epoll_create1", e))?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| SysError::new("eventfd", e))?;
        let core = LoopCore {
            epoll,
            targets: Mutex::new(HashMap::new()),
            next: AtomicU64::new(0),
            stop,
            stopping: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            process: Identity::current(),
        };
        Ok(Self { core: Arc::new(core), thread: None })
    }

    /// Makes the writes of the ioeventfds that are signalled now, and returns how many there were. Never blocks: a new
    /// thread makes the write to a busy device.
    ///
    /// A panic of a [`PortIo`](super::PortIo) is caught: its write counts as made.
    ///
    /// # Errors
    /// The epoll descriptor is gone; or this is a forked child and the loop is its parent's.
    pub fn handle_ready(&self) -> Result<usize, PciError> {
        if self.core.is_inherited() {
            return Err(PciError::Forked);
        }
        Ok(self.core.pump()?)
    }

    pub(super) fn register(&self, fd: OwnedFd, kick: Arc<dyn Kick>) -> Result<Registration, PciError> {
        let core = &self.core;
        if core.is_inherited() {
            return Err(PciError::Forked);
        }
        if !is_eventfd(fd.as_fd()) {
            return Err(PciError::NotEventFd);
        }
        if core.ended.load(Ordering::Acquire) {
            // Other code has closed its descriptors. No ioeventfd is better than one that is not served.
            return Err(SysError::new("epoll_wait", Errno::EBADF).into());
        }
        let id = core.next.fetch_add(1, Ordering::Relaxed);
        let fd = Arc::new(fd);
        // The target first, then its events.
        core.targets.lock().insert(id, Target { fd: Arc::clone(&fd), kick });
        // The duplicate is a descriptor of its own: one eventfd can stand for many writes.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, id);
        if let Err(e) = core.epoll.add(&*fd, event) {
            core.targets.lock().remove(&id);
            return Err(SysError::new("epoll_ctl", e).into());
        }
        Ok(Registration { kicks: self.clone(), id })
    }
}

impl AsFd for IoEventLoop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.epoll.0.as_fd()
    }
}

impl fmt::Debug for IoEventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoEventLoop")
            .field("ioeventfds", &self.core.targets.try_lock().map(|targets| targets.len()))
            .field("thread", &self.thread.is_some())
            .finish()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let core = &self.kicks.core;
        if core.is_inherited() {
            return;
        }
        let target = core.targets.lock().remove(&self.id);
        let _ = target.map(|target| core.epoll.delete(&*target.fd));
    }
}

impl Drop for LoopCore {
    fn drop(&mut self) {
        if self.is_inherited() {
            // Another thread of the parent's may have been changing the table when the child was made: it is not fit to be
            // dropped.
            std::mem::forget(std::mem::take(self.targets.get_mut()));
        }
    }
}

impl LoopCore {
    fn is_inherited(&self) -> bool {
        !self.process.is_current()
    }

    fn pump(&self) -> Result<usize, SysError> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => 0,
            ready => ready.map_err(|e| SysError::new("epoll_wait", e))?,
        };
        for event in &events[..ready] {
            let target = self.targets.lock().get(&event.data()).cloned();
            if let Some(target) = target {
                eventfd::take(target.fd.as_fd());
                // Ports are users' code, and so are destructors that run with the last reference to a device.
                let _ = guarded(|| target.kick.signalled());
            }
        }
        Ok(ready)
    }

    fn run(&self) {
        while !self.stopping.load(Ordering::Acquire) {
            let mut fds = [
                PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOMEM) => {}
                Err(_) => break,
            }
            if self.pump().is_err() {
                break;
            }
        }
        self.ended.store(true, Ordering::Release);
    }
}

struct Thread {
    core: Arc<LoopCore>,
    running: Option<thread::Thread>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.core.is_inherited() {
            // The thread is the parent's, and so is the eventfd that would stop it.
            return;
        }
        self.core.stopping.store(true, Ordering::Release);
        let _ = self.core.stop.write(1);
        // The thread itself may drop the last device: it is not joined then.
        if let Some(running) = self.running.take() {
            running.join();
        }
    }
}

/// True for an eventfd. The kernel says so in /proc only; without /proc any descriptor is taken for one.
fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or(true, |target| target.as_os_str() == "anon_inode:[eventfd]")
}
